"""Learning curves read at one level of loss, or at one number of training tokens."""

from collections.abc import Mapping, Sequence

import numpy as np

from arc_ray.scores.records import FloatArray

Points = Sequence[float] | FloatArray
"""One coordinate of a curve, (num_points,)."""


def steps_to_loss(steps: Points, losses: Points, level: float) -> float | None:
    """Return the step at which a curve first comes down to a level, linear between its points; None if it never does.

    `steps` ascend; both are (num_points,).
    """
    steps, losses = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    reached = np.flatnonzero(losses <= level)[:1]
    if not len(reached):
        return None
    around = slice(max(int(reached[0]) - 1, 0), int(reached[0]) + 1)
    return float(np.interp(-level, -losses[around], steps[around]))


def at_equal_tokens(
    curves: Mapping[str, tuple[Points, Points]], tokens: float | None = None
) -> dict[str, float | None]:
    """Read every trial's curve, (tokens seen, value), at one number of training tokens, linear between its points.

    Settings with more epochs have seen more data at their end, which is no merit of theirs. `tokens` None takes the
    most that all trials have seen. A trial whose curve does not reach so far has None.
    """
    if tokens is None:
        tokens = min((float(seen[-1]) for seen, _ in curves.values()), default=0.0)
    return {
        name: float(np.interp(tokens, seen, values)) if np.min(seen) <= tokens <= np.max(seen) else None
        for name, (seen, values) in curves.items()
    }
