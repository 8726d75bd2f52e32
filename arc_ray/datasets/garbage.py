"""Python's garbage collector, out of the way of code that makes many objects and no cycles."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the search for cyclic garbage in the body; what has no cycles is freed all the same.

    RE-ARC makes millions of tuples: 6 % of its time. A batch of rows makes lists with a hundred thousand entries: every
    third one takes twice as long, since each search looks at all objects of the process.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
