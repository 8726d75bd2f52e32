"""Memory or skill: what answers to published pairs have over those to fresh, turned and recoloured ones, paired over tasks.

Records are those of audit.json, as the frame `audit` of `report.frames` has them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from arc_ray.scores.intervals import contrast_interval, share_over_seeds, two_shares_interval
from arc_ray.scores.records import Interval

ASKED_KINDS: Mapping[str, str] = {
    "published": "The test pairs as they are published.",
    "fresh": "Other inputs of the same rule, made by a generator, after the same shown pairs.",
    "turned": "The published task, turned and mirrored in the seven other ways.",
    "recoloured": "The published task with every colour but 0 renamed, in four ways.",
}
"""What is asked in an audit; published is what the others are compared with."""
TASK_GROUPS: Mapping[str, str] = {
    "all": "all tasks",
    "known": "known to be in the training data",
    "others": "not known to be in it",
}
"""Tasks for which a difference is told by itself -> in words."""


@dataclass(frozen=True)
class TaskShares:
    """What share of a task's outputs was answered right, by kind."""

    known: bool
    by_seed: dict[str, dict[Any, list[bool]]] = field(default_factory=dict)
    """Kind -> seed -> whether each output is right."""

    def shares(self, kind: str) -> list[float]:
        """Return the share of right outputs of each seed."""
        return [fmean(right) for right in self.by_seed[kind].values()]

    def of(self, kind: str) -> int:
        """Count the outputs of a kind, each once."""
        return len(next(iter(self.by_seed.get(kind, {}).values()), ()))


def by_task(records: Iterable[Mapping[str, Any]]) -> dict[str, TaskShares]:
    """Put the records of one set, of one or several seeds, together by task."""
    tasks: dict[str, TaskShares] = {}
    for record in records:
        task = tasks.setdefault(record["task"], TaskShares(bool(record["known"])))
        task.by_seed.setdefault(record["kind"], {}).setdefault(record.get("seed"), []).append(bool(record["right"]))
    return tasks


def in_group(tasks: Mapping[str, TaskShares], group: str, kind: str = "published") -> list[TaskShares]:
    """Return the tasks of a group that were asked in a kind; all groups but "all" are empty where one would hold all."""
    asked = [task for task in tasks.values() if kind in task.by_seed]
    found = [task for task in asked if group == "all" or task.known == (group == "known")]
    return [] if group != "all" and len(found) == len(asked) else found


def share(tasks: Sequence[TaskShares], kind: str, confidence: float) -> Interval:
    """Return the share of a kind that is solved, a task counting once, with its interval over tasks and seeds."""
    shares = np.array([task.shares(kind) for task in tasks]).T
    low, high = share_over_seeds(shares, np.arange(len(tasks)), confidence)
    return Interval(float(shares.mean()), float(low), float(high))


def difference(tasks: Sequence[TaskShares], kind: str, confidence: float) -> Interval:
    """Return published minus another kind, a task counting once, with its interval over tasks and seeds."""
    shares = (np.array([task.shares(which) for task in tasks]).T for which in ("published", kind))
    return Interval(*map(float, contrast_interval(np.subtract(*shares), confidence)))


def task_difference(task: TaskShares, kind: str, confidence: float) -> Interval:
    """Return the same for one task; its interval holds the luck of the published pair as well as that of the others."""
    (first, of_first), (second, of_second) = ((fmean(task.shares(k)), task.of(k)) for k in ("published", kind))
    return two_shares_interval(first, of_first, second, of_second, confidence)


def contrasts(tasks: Mapping[str, TaskShares], confidence: float) -> dict[tuple[str, str], tuple[int, Interval]]:
    """Return (kind, group) -> number of tasks and published minus that kind, for groups of at least two tasks."""
    found = {}
    for kind in [*ASKED_KINDS][1:]:
        for group in TASK_GROUPS:
            members = in_group(tasks, group, kind)
            if len(members) > 1:
                found[kind, group] = len(members), difference(members, kind, confidence)
    return found
