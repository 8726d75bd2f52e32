"""`arc-ray COMMAND`: the only place with `ray.init`, logging set-up and printing. Heavy imports wait for their command."""

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from functools import partial
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
SIGNAL_ENDINGS = {signal.SIGINT: (INTERRUPTED, "interrupted"), signal.SIGTERM: (143, "stopped")}
"""The shell's exit codes for Ctrl-C and for SIGTERM, which `ray job stop` and batch systems send; and what is said."""

SEND_AGAIN_SECONDS = 0.05

received: list[int] = []
"""The signals that this process was sent, from the moment that they come."""


def main() -> None:
    """Run the command line; exit code 0 done, 2 the user's mistake, 1 ours or too little memory."""
    hear_signals()
    # Libraries make a million objects, all of which stay: to look through them as often as usual is a fourth of an import.
    gc.set_threshold(100_000, 50, 50)
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
        _say(str(error))
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # what Typer makes of a KeyboardInterrupt
            leave(*SIGNAL_ENDINGS[signal.SIGINT])
        if end.code == signal.SIGTERM:
            leave(*SIGNAL_ENDINGS[signal.SIGTERM])
        raise


def hear_signals() -> None:
    """End by signals, and note them in `received` at once: a handler waits until the main thread is back from Ray's code."""
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))  # whose signals are its own
    threading.Thread(target=_note_signals, args=(heard,), daemon=True).start()
    sys.unraisablehook = _send_again
    for number in SIGNAL_ENDINGS:
        signal.signal(number, _interrupt)


def _send_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Send a signal again whose exception was raised where Python ignores it, such as in the callback of a weak reference."""
    number = {SystemExit: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(ignored.exc_type)
    if number:
        threading.Timer(SEND_AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(ignored)


def _note_signals(heard: int) -> None:
    while numbers := os.read(heard, 64):
        received.extend(numbers)


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


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt or, for SIGTERM, SystemExit, as Ray's own handler does.

    In the middle of an import, which may swallow it or fail otherwise, leave at once.
    """
    received.append(number)  # the thread that notes signals may come later
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            leave(*SIGNAL_ENDINGS[signal.Signals(number)])
        frame = frame.f_back
    raise SystemExit(number) if number == signal.SIGTERM else KeyboardInterrupt


def leave(code: int, reason: str) -> NoReturn:
    """Say why, and exit at once: Ray has been shut down or is dead, and threads of its that a signal left half-way may
    abort the interpreter's own way out, with an exit code that says nothing."""
    _say(f"{reason}; the same command goes on from here")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say(message: str) -> None:
    from arc_ray.errors import plain

    print(f"error: {plain(message)}", file=sys.stderr)
