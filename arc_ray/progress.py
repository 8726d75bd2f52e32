"""What long work tells whoever watches it; the command line shows it, a test or a notebook may ignore it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from arc_ray.errors import UserError


class Progress(Protocol):
    """Receives news; implementations must not raise."""

    def stage(self, number: int, total: int, title: str) -> None:
        """A stage of several begins."""
        ...

    def note(self, text: str) -> None:
        """One line worth keeping."""
        ...

    def advance(self, what: str, done: float, total: float, detail: str = "") -> None:
        """So much of something is done; ends by itself when done equals total."""
        ...

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table in its newest state."""
        ...


@contextmanager
def repeated(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `act` in a thread every so many seconds while the work within goes on.

    One that the storage does not answer, or has no room for, is left out: the next one tries again.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            with suppress(OSError, UserError):
                act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def watched(look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do so with a `look` at the work, and once more if that ends well."""
    with repeated(look, seconds):
        yield
    look()
