"""Ctrl-C and SIGTERM end a command wherever it is, also where a library swallows the exception that they raise."""

import os
import select
import signal
import sys
import threading
from functools import cache, partial
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
SIGNAL_ENDINGS = {signal.SIGINT: (INTERRUPTED, "interrupted"), signal.SIGTERM: (143, "stopped")}
"""The shell's exit codes for Ctrl-C and for SIGTERM, which `ray job stop` and batch systems send; and what is said."""

HEED_SECONDS = 0.25
LOOKS = 2
"""So many looks in a row must find that a signal changed nothing: between two frames it may be on its way out unseen."""

received: list[int] = []
"""The signals that this process was sent, from the moment that they come."""


def hear_signals() -> None:
    """End by signals, and note them in `received` at once: a handler waits until the main thread is back from Ray's code."""
    signal.set_wakeup_fd(_signal_pipe(os.getpid()), warn_on_full_buffer=False)
    sys.unraisablehook = _hide_interrupts
    for number in SIGNAL_ENDINGS:
        signal.signal(number, _interrupt)


@cache
def _signal_pipe(process: int) -> int:
    """Start the thread that notes a process's signals, once; return where Python writes them."""
    heard, told = os.pipe()
    os.set_blocking(told, False)
    os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))  # whose signals are its own
    threading.Thread(target=_note_signals, args=(heard,), daemon=True).start()
    return told


def leave(code: int, reason: str) -> NoReturn:
    """Say why, and exit at once: Ray has been shut down or is dead, and threads of its that a signal left half-way may
    abort the interpreter's own way out, with an exit code that says nothing."""
    print(f"error: {reason}; the same command goes on from here", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _note_signals(heard: int) -> None:
    """Note signals, and send one again that the main thread goes on after: weak references' callbacks, pydantic's choice
    between classes and others ignore what is raised in them."""
    unheeded = 0
    while True:
        if select.select([heard], [], [], HEED_SECONDS if received else None)[0]:
            received.extend(number for number in os.read(heard, 64) if number in SIGNAL_ENDINGS)
            unheeded = 0
            continue
        unheeded = 0 if _is_ending() else unheeded + 1
        if unheeded == LOOKS:
            os.kill(os.getpid(), received[-1])


def _is_ending() -> bool:
    """Tell whether the main thread handles what a signal raised, or what was raised while it did."""
    handled = sys._current_exceptions().get(threading.main_thread().ident or 0)
    error = handled[1] if isinstance(handled, tuple) else handled  # three parts before Python 3.12
    while error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
        error = error.__context__
    return error is not None


def _hide_interrupts(ignored: "sys.UnraisableHookArgs") -> None:
    """Leave to `_note_signals` what a signal raised where Python ignores it."""
    if not issubclass(ignored.exc_type, KeyboardInterrupt | SystemExit):
        sys.__unraisablehook__(ignored)


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
