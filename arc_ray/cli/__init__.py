"""`arc-ray COMMAND`: the only place with `ray.init`, logging set-up and printing. Heavy imports wait for their command."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED, TERMINATED = 130, 143
"""The shell's exit codes for Ctrl-C and for SIGTERM, which `ray job stop` and batch systems send."""


def main() -> None:
    """Run the command line; exit code 0 done, 2 the user's mistake, 1 ours or too little memory."""
    signal.signal(signal.SIGINT, _interrupt)
    from arc_ray.cli import configs, looking  # noqa: F401 - each adds its commands
    from arc_ray.cli.commands import app
    from arc_ray.errors import UserError, unwrapped

    # What a config names by its import path may be a file here, as for `python -m`, for Ray's workers and for a job.
    sys.path.append(os.getcwd())
    settle_environment()
    try:
        with unwrapped():
            app(standalone_mode=True)
    except UserError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # what Typer makes of a KeyboardInterrupt
            _leave(INTERRUPTED)
        if end.code == signal.SIGTERM:  # what Ray's own handler makes of the signal
            _leave(TERMINATED)
        raise


def settle_environment() -> None:
    """Tell libraries, before they are imported, what they read from the environment; what the user set stays."""
    # Ray's usage report and transformers' hub look-ups would wait for a network that may not be there.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Fetched in a thread, the news of a finished task is seen one look later: its worker waits 0.22 s instead of 0.13 s.
    os.environ.setdefault("RAY_DATA_METADATA_PREFETCH_ON_THREAD", "0")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but leave at once in the middle of an import, which may swallow it or fail otherwise."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave(code: int) -> NoReturn:
    """Say why, and exit at once: Ray has been shut down, and threads of its that a signal left half-way may abort the
    interpreter's own way out, with an exit code that says nothing."""
    _say(f"{'interrupted' if code == INTERRUPTED else 'stopped'}; the same command goes on from here")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
