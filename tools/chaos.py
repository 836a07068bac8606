"""Kill training at random moments, and see whether it ends as if nothing had happened.

    python tools/chaos.py kills=N output=DIR [stage=S] [workers=W] [seed=S] [key=value ...]

A small model is trained to its end once, undisturbed. Then N times anew, each time killed without warning (SIGKILL to
the command and its loader processes) at a moment drawn over the whole of its time, and started again until it ends.
Every third one is killed twice; some are killed while they write a checkpoint or the release. What each round leaves
must be what the undisturbed run left, bit for bit: last checkpoint, release, sample grids, logs and summary.

  kills    rounds
  output   folder of it all: data, releases to start from, the undisturbed run, and the rounds that differ
  stage    tokenizer, 1, 2, diffusion or diffusion_2 (default: 1)
  workers  rounds at a time (default: 1)
  seed     of the moments (default: 0)

Keys with a dot are settings of the training, such as trainer.max_steps=100. Exit code 0 says that all rounds are
bit-identical, 1 that one is not, 2 that the rounds could not begin.
"""

import fcntl
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from chaos.killing import Commands, Writing, find_place
from pydantic import Field

from mentor.config import Config, compose, validate
from mentor.errors import UserError, check_output, run_main

TOOLS = Path(__file__).resolve().parent
MARK = "chaos.json"
Stage = Literal["tokenizer", "1", "2", "diffusion", "diffusion_2"]
BEFORE: dict[Stage, tuple[Stage, ...]] = {
    "tokenizer": (),
    "1": ("tokenizer",),
    "2": ("tokenizer", "1"),
    "diffusion": ("tokenizer",),
    "diffusion_2": ("tokenizer", "diffusion"),
}
# Every source of chance and every kind of state that training has, in as few steps as will do. The intervals have no
# common rhythm: checkpoints fall between rows of the logs, on them, and on validations.
HARD = (
    "data.workers=1",
    "ema.decay=0.99",
    "trainer.accumulate=2",
    "trainer.checkpoint_every=3",
    "trainer.log_every=2",
    "trainer.max_steps=36",
    "trainer.samples=2",
    "trainer.validate_every=4",
)
DROPOUT = "backbone.dropout=0.1"
OF_STAGE: dict[Stage, tuple[str, ...]] = {
    # Codes are chosen by k-means on the way; they die and move often. The discriminator joins in later.
    "tokenizer": (
        "data.mixture.segment=0.3",
        "image_tokenizer.quantizer.restart_below=0.5",
        "image_tokenizer.quantizer.usage_decay=0.7",
        "loss.adversarial.discriminator.channels=8",
        "loss.adversarial.discriminator.groups=4",
        "loss.adversarial.start=0.4",
        "loss.delay=0.3",
        "loss.images=6",
    ),
    "1": (DROPOUT, "optimizer.kind=muon"),
    "diffusion": (DROPOUT, "optimizer.kind=muon"),
    # Their dropout is that of the release they start from.
    "2": ("optimizer.kind=muon",),
    "diffusion_2": ("optimizer.kind=muon",),
}
# Set here: rounds must not differ in them.
OWN = {"run.dir", "data.root", "data.datasets", "data.stream"}
ATTEMPTS = 5
SHOWN = 8


class ChaosConfig(Config):
    """What the command line may say; the module's docstring has the words."""

    kills: int = Field(ge=1)
    output: str = Field(min_length=1)
    stage: Stage = "1"
    workers: int = Field(default=1, ge=1)
    seed: int = 0


@dataclass
class Round:
    """One training with kills: when and where it was killed, how long it took in all, how it differs."""

    number: int
    folder: Path
    kills: list[str] = field(default_factory=list)
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)


class Chaos:
    """All rounds of one stage.

    Args:
        config: the command line's words.
        settings: of the training.
        commands: runs them.

    Raises:
        UserError: a setting is unknown or has a value that is not allowed.
    """

    def __init__(self, config: ChaosConfig, settings: Sequence[str], commands: Commands) -> None:
        from mentor.training.config import TrainConfig  # late, so that help does not wait for torch

        self._config, self._commands = config, commands
        self._output = Path(config.output).expanduser().absolute()
        self._folder = self._output / f"stage-{config.stage}"
        self.command = self._training(config.stage, settings)
        self._trainer = validate(TrainConfig, compose("train", self.command[2:])).trainer
        self._seconds = 0.0

    def prepare(self) -> float:
        """Make what the stage starts from, as far as it is not there, and train it undisturbed; the seconds of that.

        Raises:
            UserError: a command fails.
        """
        data = self._output / "data"
        if not (data / "manifest.json").is_file():
            say("making the data")
            make = (str(TOOLS / "make_shards.py"), "shapes", "limit=200", "samples_per_shard=20", "workers=1")
            self._finish([*make, f"output={data}"], self._output)
        for stage in BEFORE[self._config.stage]:
            if not self._release(stage).is_dir():
                say(f"training {self._title(stage)} to start from")
                few = ["trainer.max_steps=6", *([DROPOUT] if stage in ("1", "diffusion") else [])]
                self._finish(self._training(stage, few), self._release(stage).parents[1])
        say(f"training {self._title(self._config.stage)} undisturbed")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._seconds = self._finish(self.command, self._folder / "undisturbed")
        return self._seconds

    def round(self, number: int) -> Round:
        """Train once more, with kills, and compare."""
        from chaos.comparing import compare_runs  # late for the same reason

        # A generator for each round: its moments do not depend on how many rounds there are, nor how many at a time.
        rng, home = random.Random(f"{self._config.seed} {number}"), self._folder / f"round-{number:03d}"
        done, started = Round(number, home), time.monotonic()
        for attempt in range(ATTEMPTS):
            shutil.rmtree(home, ignore_errors=True)
            # What is aimed at may be over between two looks.
            moment = self._moment(home / "run", number, rng) if attempt < 2 else self._sometime(rng)
            if self._kill(home, moment, done):
                break
        else:
            done.differences.append(f"it ended {ATTEMPTS} times before it could be killed")
        if number % 3 == 0:
            self._kill(home, self._sometime(rng), done)
        code = self._start(home, "last.log", lambda seconds: seconds > self._limit)
        done.seconds = time.monotonic() - started
        if code is None:
            done.differences.append(f"killed and started again, it did not end within {self._limit:.0f} s")
        elif code:
            done.differences.append(f"killed and started again, it ended with {code}: {last_line(home / 'last.log')}")
        else:
            done.differences += compare_runs(self._folder / "undisturbed" / "run", home / "run")
        if not done.differences:
            shutil.rmtree(home)
        return done

    @property
    def _limit(self) -> float:
        """Seconds after which a start counts as stuck."""
        return 60 + 10 * self._seconds

    def _kill(self, home: Path, moment: Callable[[float], bool], done: Round) -> bool:
        """Whether the training could be killed at that moment; notes where that was."""
        log, started = f"kill-{len(done.kills) + 1}.log", time.monotonic()
        code = self._start(home, log, lambda seconds: moment(seconds) or seconds > self._limit)
        if code is None:
            place = find_place(home / "run", home / log, self._trainer.validate_every)
            done.kills.append(f"after {time.monotonic() - started:.1f} s {place}")
        elif code:
            done.differences.append(f"it ended with {code} by itself: {last_line(home / log)}")
        return code is None

    def _moment(self, run: Path, number: int, rng: random.Random) -> Callable[[float], bool]:
        """When to kill the round's first start: some aim at writing, most at nothing."""
        delay = rng.uniform(0, 0.01)
        if number % 4 == 2:
            checkpoints = self._trainer.max_steps // (self._trainer.checkpoint_every or self._trainer.max_steps)
            return Writing(run / "checkpoints", ".partial", rng.randint(1, max(1, checkpoints // 2)), delay)
        if number % 8 == 4:
            return Writing(run, "release.partial", 1, delay)
        return self._sometime(rng)

    def _sometime(self, rng: random.Random) -> Callable[[float], bool]:
        """A moment of the whole time; a little longer, since rounds may be slower than the undisturbed run."""
        moment = rng.uniform(0, 1.1 * self._seconds)
        return lambda seconds: seconds >= moment

    def _training(self, stage: Stage, settings: Sequence[str]) -> list[str]:
        """What stands after `python` to train a stage into the folder `run` of wherever it is started."""
        start = {
            "tokenizer": (),
            "1": (f"image_tokenizer_from={self._release('tokenizer')}",),
            "2": (f"init_from={self._release('1')}",),
            "diffusion": (f"image_tokenizer_from={self._release('tokenizer')}",),
            "diffusion_2": (f"init_from={self._release('diffusion')}",),
        }[stage]
        places = (f"data.root={self._output / 'data'}", "run.dir=run")
        return ["-m", "mentor.train", f"stage={stage}", "experiment=test", *settings, *start, *places]

    def _release(self, stage: Stage) -> Path:
        """The release of a stage that a later one starts from."""
        return self._output / "prepared" / stage / "run" / "release"

    def _title(self, stage: Stage) -> str:
        return "the tokenizer" if stage == "tokenizer" else f"stage {stage}"

    def _start(self, home: Path, log: str, until: Callable[[float], bool]) -> int | None:
        home.mkdir(parents=True, exist_ok=True)
        return self._commands.run(self.command, home, home / log, until)

    def _finish(self, command: Sequence[str], home: Path) -> float:
        """Seconds that a command took which must end well."""
        home.mkdir(parents=True, exist_ok=True)
        started, log = time.monotonic(), home / "undisturbed.log"
        if code := self._commands.run(command, home, log, lambda seconds: False):
            line = last_line(log).removeprefix("error: ")
            raise UserError(f"{command[1]} ended with {code} without being disturbed, see {log}: {line}")
        return time.monotonic() - started


def last_line(log: Path) -> str:
    """The last line of what a command printed."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def say(line: str) -> None:
    """One line for people, at once."""
    print(line, flush=True)


def tell(done: Round) -> None:
    """A line on a round; below it, how it differs."""
    killed = f"killed {', then '.join(done.kills)}" if done.kills else "never killed"
    alike = f"DIFFERS in {len(done.differences)}, kept in {done.folder}" if done.differences else "bit-identical"
    say(f"round {done.number}: {killed}; {done.seconds:.1f} s in all: {alike}")
    for line in done.differences[:SHOWN]:
        say(f"    {line}")
    if len(done.differences) > SHOWN:
        say(f"    and {len(done.differences) - SHOWN} more")


def conclude(rounds: Sequence[Round]) -> int:
    """The exit code, after the last line: how many rounds ended as if nothing had happened."""
    alike = sum(not one.differences for one in rounds)
    say(f"{alike} of {len(rounds)} bit-identical")
    return int(alike < len(rounds))


def parse(arguments: Sequence[str]) -> tuple[ChaosConfig, list[str]]:
    """What the command line says, and its settings of the training.

    Raises:
        UserError: a word is unknown or cannot be used.
    """
    own: dict[str, str] = {}
    settings = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"cannot read {argument!r}: write settings as key=value")
        if key in OWN:
            raise UserError(f"{key} is set by chaos.py, whose rounds all have the same: leave it out")
        if "." in key:
            settings.append(argument)
        else:
            own[key] = value
    return validate(ChaosConfig, own), settings


def claim(output: Path, config: ChaosConfig) -> TextIO:
    """Make the folder this program's own, for as long as what is returned stays open.

    Raises:
        UserError: it holds other files, another chaos.py is at work in it, or it cannot be written.
    """
    check_output(output)
    if output.is_dir() and any(output.iterdir()) and not (output / MARK).is_file():
        raise UserError(f"output {output} holds other files: choose a new folder, or one that chaos.py made")
    output.mkdir(parents=True, exist_ok=True)
    mark = (output / MARK).open("a", encoding="utf-8")
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"output {output} is in use by another chaos.py: wait for it, or choose another") from None
    mark.truncate(0)
    mark.write(config.model_dump_json(indent=2) + "\n")
    mark.flush()
    return mark


def main() -> None:
    """Do what the command line asks for."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(__doc__, end="")
        return
    config, extra = parse(arguments)
    output, rounds = Path(config.output).expanduser(), []
    try:
        # The commands close first, which ends what the pool waits for.
        with ThreadPoolExecutor(config.workers) as pool, Commands() as commands:
            chaos = Chaos(config, [*HARD, *OF_STAGE[config.stage], *extra], commands)
            with claim(output, config):
                say(f"it takes {chaos.prepare():.1f} s; now {config.kills} rounds with kills")
                for future in as_completed([pool.submit(chaos.round, number + 1) for number in range(config.kills)]):
                    rounds.append(future.result())
                    tell(rounds[-1])
    except OSError as error:
        raise UserError(f"cannot work in {output} ({error.strerror or error}): choose another output") from error
    sys.exit(conclude(rounds))


if __name__ == "__main__":
    run_main(main)
