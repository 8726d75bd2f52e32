"""A score with its interval, and the name that it has in result.json: put together and taken apart here only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

ScorePath = tuple[str, ...]
"""What a score is about: set, way of answering, rule, ...; `flat_record` joins it to a name."""
FIELDS = ("low", "high", "right", "of")


@dataclass(frozen=True)
class Interval:
    """A share, or a difference of shares, with its interval."""

    value: float
    low: float
    high: float


def flat_record(scores: Mapping[ScorePath, Interval | Mapping[str, float]]) -> dict[str, float]:
    """Name scores for result.json, <set>/<rule> and the like; what else is known of one hangs below it (`FIELDS`)."""
    record: dict[str, float] = {}
    for path, score in scores.items():
        known = score if isinstance(score, Mapping) else vars(score)
        name = "/".join(path)
        record[name] = known["value"]
        record |= {f"{name}/{field}": known[field] for field in FIELDS if field in known}
    return record


def read_record(result: Mapping[str, Any]) -> dict[ScorePath, dict[str, float]]:
    """Take the names of `flat_record` apart again: path -> "value" and those of `FIELDS` that there are."""
    scores: dict[ScorePath, dict[str, float]] = {}
    for name, value in result.items():
        *path, last = name.split("/")
        if isinstance(value, int | float) and not isinstance(value, bool):
            key, field = (path, last) if last in FIELDS else ([*path, last], "value")
            scores.setdefault(tuple(key), {})[field] = value
    return {path: score for path, score in scores.items() if len(path) > 1 and "value" in score}
