"""`arc-ray COMMAND`: the only place with `ray.init`, logging set-up and printing. Heavy imports wait for their command."""

import atexit
import gc
import logging
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

from arc_ray.cli.signals import INTERRUPTED, SIGNAL_ENDINGS, hear_signals, leave

if TYPE_CHECKING:
    from arc_ray.errors import UserError


def main() -> None:
    """Run the command line; exit code 0 done, 2 the user's mistake, 1 ours or too little memory."""
    hear_signals()
    # Libraries make a million objects, all of which stay: to look through them as often as usual is a fourth of an import.
    gc.set_threshold(100_000, 50, 50)
    # And at the end Python would look through all of them again, a second or two after the last word.
    atexit.register(gc.freeze)
    # What libraries will change concerns us, not users: here, and in the processes that this one starts.
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)
        os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning"
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
        complain(error)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # what Typer makes of a KeyboardInterrupt
            leave(*SIGNAL_ENDINGS[signal.SIGINT])
        if end.code == signal.SIGTERM:
            leave(*SIGNAL_ENDINGS[signal.SIGTERM])
        raise


def complain(mistake: "UserError") -> NoReturn:
    """Print a user's mistake and exit with its code."""
    from arc_ray.errors import plain

    print(f"error: {plain(str(mistake))}", file=sys.stderr)
    sys.exit(mistake.exit_code)


def settle_environment() -> None:
    """Tell libraries, before they are imported, how to behave; what the user set in the environment stays."""
    # At its import it warns that a faster product of a hub is not there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Ray's usage report and transformers' hub look-ups would wait for a network that may not be there.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Nobody is told of runs: neither the hub of every request, nor the makers of trackers and of vLLM.
    for variable in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"):
        os.environ.setdefault(variable, "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Fetched in a thread, the news of a finished task is seen one look later: its worker waits 0.22 s instead of 0.13 s.
    os.environ.setdefault("RAY_DATA_METADATA_PREFETCH_ON_THREAD", "0")
