"""One example from a generator: draw, check, try again, and how hard it is.

What becomes of (seed, task, index) depends on nothing else but the time limit: where that strikes, the outcome says so.
"""

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from arc_ray.errors import UserError
from arc_ray.tasks.task import MAX_SIDE, NUM_COLORS, Grid, Pair, Task, largest_side, same_grid

MAX_ATTEMPTS = 100
"""Attempts before an example is given up; RE-ARC's most rejected task fails 3 of 4, so that 1 in 10^12 is lost."""

REASONS = ("generator_error", "invalid_grid", "too_large", "verifier_error", "unverified", "degenerate")
"""Why an attempt may be rejected, in the order in which it is checked."""

_COLORS = bytes(range(NUM_COLORS))


class Draw(NamedTuple):
    """What a generator returned, before any check."""

    input: Any
    output: Any
    rng_difficulty: float | None = None
    """Mean of the difficulties that the generator drew for its sizes and counts, 0 to 1; None if it drew none."""


@dataclass(frozen=True, eq=False)
class Example:
    """What became of one (seed, task, index)."""

    outcome: Literal["accepted", "gave_up", "timed_out"]
    attempts: int
    rejects: Counter[str]
    """Reason -> rejected attempts."""
    pair: Pair | None = None
    rng_difficulty: float | None = None
    error: str | None = None
    """The last exception of the generator or the verifier, if there was one."""
    task: Task | None = None
    """A counting task, in place of a pair."""


class _RejectedError(Exception):
    """This attempt failed a check; the argument is the reason."""


class TimeLimitError(BaseException):
    """Not an Exception, so that an `except Exception` in a generator cannot swallow it."""


def try_until_accepted(
    draw: Callable[[int], Draw],
    is_right: Callable[[Draw], bool],
    max_side: int = MAX_SIDE,
    time_limit_seconds: float = 60.0,
) -> Example:
    """Try until an attempt passes every check, MAX_ATTEMPTS are used up, or the time limit strikes.

    `draw(attempt)` must take all its randomness from the attempt's number. An attempt passes if both grids are valid
    and their sides at most `max_side` cells, the verifier `is_right` agrees, and the output differs from the input.
    The limit covers all attempts together and interrupts Python code only: one long call into C is waited for. Must be
    called from the main thread (signals), where Ray runs its tasks. Raises UserError if `draw` does.
    """
    rejects = Counter[str]()
    attempts, outcome, pair, difficulty, error = 0, "gave_up", None, None, None
    try:
        with _time_limit(time_limit_seconds):
            while pair is None and attempts < MAX_ATTEMPTS:
                attempts += 1
                try:
                    made = _call("generator_error", draw, attempts - 1)
                    pair, difficulty = _checked(made, is_right, max_side), made.rng_difficulty
                    outcome = "accepted"
                except _RejectedError as rejected:
                    rejects[str(rejected)] += 1
                    error = repr(rejected.__cause__)[:200] if rejected.__cause__ else error
    except TimeLimitError:
        pair, difficulty, outcome = None, None, "timed_out"
    return Example(outcome, attempts, rejects, pair, difficulty, error)


def as_grid(value: Any) -> Grid | None:
    """Convert rows of colours (tuples, lists or an array) to a grid of its own; None if they are no valid grid."""
    try:
        if isinstance(value, tuple | list) and set(map(type, value)) <= {tuple, list}:
            return _from_rows(value)
        cells = np.array(value)
    except (TypeError, ValueError):  # no colours, or rows of different lengths
        return None
    if cells.ndim != 2 or cells.dtype.kind not in "iu" or not 1 <= min(cells.shape) <= max(cells.shape) <= MAX_SIDE:
        return None
    return cells.astype(np.uint8) if cells.min() >= 0 and cells.max() < NUM_COLORS else None


def _from_rows(rows: Sequence[Sequence[int]]) -> Grid | None:
    """Convert nested tuples or lists four times as fast as numpy does: every drawn grid comes this way."""
    cells = b"".join(map(bytes, rows))
    widths = set(map(len, rows))
    if len(widths) != 1 or not 1 <= max(widths) <= MAX_SIDE or len(rows) > MAX_SIDE or cells.translate(None, _COLORS):
        return None
    return np.frombuffer(cells, np.uint8).reshape(len(rows), -1)


def _checked(made: Draw, is_right: Callable[[Draw], bool], max_side: int) -> Pair:
    given, wanted = as_grid(made.input), as_grid(made.output)
    if given is None or wanted is None:
        raise _RejectedError("invalid_grid") from _what_is_wrong(made.input if given is None else made.output)
    pair = Pair(given, wanted)
    if largest_side([pair]) > max_side:
        raise _RejectedError("too_large")
    if not _call("verifier_error", is_right, made):
        raise _RejectedError("unverified")
    if same_grid(given, wanted):
        raise _RejectedError("degenerate")
    return pair


def _what_is_wrong(value: Any) -> ValueError:
    """Say what was made in place of a grid."""
    try:
        shape = f", {len(value)} rows of {sorted({len(row) for row in value})} cells"
    except TypeError:
        shape = ""
    return ValueError(f"no 1 to {MAX_SIDE} rows and columns of colours below {NUM_COLORS}: {str(value)[:40]}{shape}")


def _call(reason: str, function: Callable[[Any], Any], argument: Any) -> Any:
    """Call code that is not ours: whatever it raises rejects the attempt, is counted and kept for the report."""
    try:
        return function(argument)
    except UserError:
        raise
    except Exception as error:
        raise _RejectedError(reason) from error


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitError in the body after `seconds`, and every second from then on, should an except swallow it. It may
    strike even between the body and the clean-up, hence the two levels: the outer one is reached anyway."""

    def interrupt(signum: int, frame: Any) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


def pso_difficulties(pairs: Sequence[Pair]) -> npt.NDArray[np.float64]:
    """Rate pairs from 0 (easy) to 1, all at once, because one by one costs 2 % of generating them: (len(pairs),).

    The mean of three numbers (Hodel, arXiv 2404.07353): cells of both grids / 1800, colours of both / 10, and objects per
    cell, averaged over the two grids. An object is a patch of one colour, connected by edges; the background's count too.
    """
    grids = [grid for pair in pairs for grid in pair.grids]
    assert len(grids) == 2 * len(pairs), "a hidden output cannot be rated"
    if not grids:
        return np.zeros(0)
    sizes = np.array([grid.size for grid in grids]).reshape(-1, 2)
    density = (_count_patches(grids).reshape(-1, 2) / sizes).mean(axis=1)
    is_used = np.zeros((len(pairs), NUM_COLORS), dtype=bool)
    is_used[np.repeat(np.arange(len(pairs)), sizes.sum(axis=1)), np.concatenate([grid.ravel() for grid in grids])] = (
        True
    )
    return (sizes.sum(axis=1) / (2 * MAX_SIDE**2) + is_used.mean(axis=1) + density) / 3


def _count_patches(grids: Sequence[Grid]) -> npt.NDArray[np.int64]:
    """Count each grid's patches of one colour, all by one labelling: (len(grids),).

    The grids lie under each other on a canvas of twice their size: cells at even places, and between two neighbours a
    bridge where they have the same colour. Labels are numbered from top to bottom, so each grid has a range of them.
    """
    from scipy import ndimage  # takes 0.3 s to import

    tops = np.cumsum([0, *(2 * grid.shape[0] for grid in grids)])
    canvas = np.zeros((tops[-1], 2 * max(grid.shape[1] for grid in grids) - 1), dtype=bool)
    for grid, top in zip(grids, tops, strict=False):
        place = canvas[top : top + 2 * grid.shape[0] - 1, : 2 * grid.shape[1] - 1]
        place[::2, ::2] = True
        place[1::2, ::2] = grid[1:] == grid[:-1]
        place[::2, 1::2] = grid[:, 1:] == grid[:, :-1]
    labels = np.empty(canvas.shape, np.int32)
    ndimage.label(canvas, output=labels)
    return np.diff(np.maximum.reduceat(labels.max(axis=1), tops[:-1]), prepend=0)
