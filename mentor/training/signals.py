"""What a request to stop does to a training run, in whatever phase it comes.

Python runs signal handlers between two instructions of the main thread, so a process that waits inside a library would
not notice any. The system also writes every signal's number into a pipe, at once; a thread reads there and ends the
process when the main thread cannot, or when a second signal says that nobody wants to wait.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from types import FrameType

# A terminal and a launcher may both pass on the same Ctrl-C.
SAME_REQUEST = 0.5
# Time for the main thread to leave whatever it is in, where nothing has to be saved.
PATIENCE = 5.0


class Phase(Enum):
    """What a signal meets.

    Attributes:
        EXPENDABLE: nothing would be lost: before the first step, in validation, while the release is written.
        TRAINING: the step in progress is finished and saved first.
    """

    EXPENDABLE = "expendable"
    TRAINING = "training"


class Stopped(SystemExit):
    """A signal asked the run to stop. The exit code is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class StopSignals:
    """Notices SIGTERM, Ctrl-C and, under SLURM, SIGUSR1.

    Attributes:
        requested: number of the signal that asked to stop; 0 if none did.

    Args:
        requeue: whether SIGUSR1 is a request to stop too.
        say: takes the line that is said when the thread has to end the process.
    """

    def __init__(self, requeue: bool = False, say: Callable[[str], None] = lambda line: None) -> None:
        self.requested = 0
        self._phase = Phase.EXPENDABLE
        self._at = 0.0
        self._say = say
        self._over = threading.Event()
        self._numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if requeue else [])]

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over, and give them back in the end. Does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = {number: signal.getsignal(number) for number in self._numbers}
        pipe_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=(reading,), daemon=True, name="signals")
        watcher.start()
        for number in self._numbers:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            self._over.set()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(pipe_before)
            os.close(writing)  # ends the thread
            watcher.join()
            os.close(reading)

    def enter(self, phase: Phase) -> None:
        """Treat signals as befits the phase from now on.

        Raises:
            Stopped: one has come before, and in the new phase nothing would be lost.
        """
        self._phase = phase
        if phase is Phase.EXPENDABLE:
            self.check()

    def check(self) -> None:
        """Nothing, unless a signal has come.

        Raises:
            Stopped: one has.
        """
        if self.requested:
            raise Stopped(self.requested)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._at = number, time.monotonic()
            if self._phase is Phase.EXPENDABLE:
                raise Stopped(number)

    def _watch(self, reading: int) -> None:
        first, at = 0, 0.0
        numbers = set(map(int, self._numbers))
        while received := os.read(reading, 64):
            for number in received:
                if number not in numbers:
                    continue
                now = time.monotonic()
                if not first:
                    first, at = number, now
                    threading.Thread(target=self._end_if_stuck, args=(number,), daemon=True).start()
                elif now - at > SAME_REQUEST:
                    self._end(number, "a second signal: ending at once, the last checkpoint stands")

    def _end_if_stuck(self, number: int) -> None:
        if not self._over.wait(PATIENCE) and self._phase is Phase.EXPENDABLE:
            self._end(number, "")

    def _end(self, number: int, line: str) -> None:
        if line:
            self._say(line)
        sys.stderr.flush()
        os._exit(128 + number)
