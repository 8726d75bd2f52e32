"""`arc-ray COMMAND`: the only place with `ray.init`, logging set-up and printing. Heavy imports wait for their command."""

import os
import signal
import sys
from typing import NoReturn

from arc_ray.cli.commands import app
from arc_ray.cli.console import fail
from arc_ray.errors import UserError, mistake_in

INTERRUPTED, TERMINATED = 130, 143
"""The shell's exit codes for Ctrl-C and for SIGTERM, which `ray job stop` and batch systems send."""


def main() -> None:
    """Run the command line; exit code 0 done, 2 the user's mistake, 1 ours."""
    # Ray's usage report and transformers' hub look-ups would wait for a network that may not be there.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Fetched in a thread, the news of a finished task is seen one look later: its worker waits 0.22 s instead of 0.13 s.
    os.environ.setdefault("RAY_DATA_METADATA_PREFETCH_ON_THREAD", "0")
    try:
        app(standalone_mode=True)
    except UserError as error:
        fail(str(mistake_in(error)))
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # what Typer makes of a KeyboardInterrupt
            fail("interrupted; the same command goes on from here")
            _leave(INTERRUPTED)
        if end.code == signal.SIGTERM:  # what Ray's own handler makes of the signal
            fail("stopped; the same command goes on from here")
            _leave(TERMINATED)
        raise


def _leave(code: int) -> NoReturn:
    """Exit at once: Ray has been shut down, and threads of its that a signal left half-way may abort the interpreter's
    own way out, with an exit code that says nothing."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
