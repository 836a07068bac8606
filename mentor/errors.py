"""The one error class for mistakes a user can make, and what turns it into one line and exit code 2."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class UserError(ValueError):
    """A mistake of whoever called: the message says what was given, what is allowed and what to do, on one line."""


def check_output(folder: Path) -> None:
    """Make sure that files could be written into `folder`, before the work for them begins; nothing is made.

    Raises:
        UserError: they could not.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"output {folder} cannot be written: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"output {folder} cannot be written: no permission in {existing}; choose another folder")


class Arguments(argparse.ArgumentParser):
    """A command-line parser whose complaints are user errors: one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message} (--help explains all options)")


def run_main(main: Callable[[], None]) -> None:
    """Run an entry point; a `UserError` ends as one line on stderr and exit code 2, Ctrl-C as exit code 130.

    A reader that went away, such as `head`, ends it without a word. Anything else is a fault of this project and keeps
    its traceback. `MENTOR_DEBUG=1` keeps it for user errors too.
    """
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        if os.environ.get("MENTOR_DEBUG"):
            raise
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
