"""Candidate grids in, at most two attempts out: how predictions of one test output under many views are put together.

Every rule takes all candidates of one output and ranks its distinct grids. What no rule can decide is decided by the
grid itself (smaller shape, then smaller colours first), so that the order in which workers deliver never matters.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arc_ray.tasks.task import Grid

NUM_ATTEMPTS = 2
"""Attempts that every official ARC rule allows per test output."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A grid that may be the answer, turned back from the view in which it was written."""

    grid: Grid
    log_probability: float
    """Natural logarithm of the answer's probability under `view`, summed over its tokens."""
    view: str
    """Name of the view that produced or scored it."""


Attempts = tuple[Grid, ...]
"""Up to two distinct grids, the better one first; empty where nothing could be read."""


def majority(candidates: Sequence[Candidate]) -> Attempts:
    """Take the grids that most candidates agree on; equal counts go by the sum of log-probabilities."""
    return _best(candidates, lambda logs: (len(logs), float(np.sum(logs))))


def vote_with_log_probability(candidates: Sequence[Candidate]) -> Attempts:
    """Let each candidate vote with its probability: the mixture of the views, where `product_of_experts` multiplies.

    A grid that one view is sure of beats one that several views barely prefer; equal sums go by count.
    """
    return _best(candidates, lambda logs: (float(np.logaddexp.reduce(logs)), len(logs)))


def product_of_experts(candidates: Sequence[Candidate]) -> Attempts:
    """Take the grids with the largest sum of log-probabilities over all views, each view being an expert with a veto.

    Every distinct grid must have been scored once under every view: a grid that lacks a view would win by having fewer
    terms. (Franzen, Disselhoff and Hartmann, "Product of Experts with LLMs", 2025.)
    """
    grids, views = {_key(c.grid) for c in candidates}, {c.view for c in candidates}
    scored = {(_key(c.grid), c.view) for c in candidates}
    assert len(candidates) == len(scored) == len(grids) * len(views), (
        f"{len(grids)} grids x {len(views)} views, but {len(candidates)} scores"
    )
    return _best(candidates, lambda logs: (float(np.sum(logs)),))


SELECTIONS: dict[str, Callable[[Sequence[Candidate]], Attempts]] = {
    rule.__name__: rule for rule in (majority, vote_with_log_probability, product_of_experts)
}
"""Values of `evaluate.selection`."""


def distinct_grids(candidates: Iterable[Candidate]) -> list[Grid]:
    """List the different grids among the candidates, in the fixed order of ties: what has to be rescored."""
    grids = {_key(c.grid): c.grid for c in candidates}
    return [grids[key] for key in sorted(grids)]


def _best(candidates: Sequence[Candidate], score: Callable[[npt.NDArray[np.float64]], tuple[float, ...]]) -> Attempts:
    """Rank distinct grids by a score of their candidates' log-probabilities, highest first, and keep two."""
    grids: dict[tuple[int, int, bytes], Grid] = {}
    logs: dict[tuple[int, int, bytes], list[float]] = {}
    for candidate in candidates:
        grids[key := _key(candidate.grid)] = candidate.grid
        logs.setdefault(key, []).append(candidate.log_probability)
    # Sorted before summing: a sum of floats depends on the order of its terms, and workers deliver in any order.
    scores = {key: score(np.sort(np.array(values))) for key, values in logs.items()}
    ranked = sorted(scores, key=lambda key: (*(-value for value in scores[key]), key))
    return tuple(grids[key] for key in ranked[:NUM_ATTEMPTS])


def _key(grid: Grid) -> tuple[int, int, bytes]:
    return grid.shape[0], grid.shape[1], np.asarray(grid, dtype=np.uint8).tobytes()
