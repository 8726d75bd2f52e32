"""The controlled comparison: every arm at its own best setting, chosen on some tasks and measured on others.

    finished runs -> gather -> compare (choosing_half, choose_setting, paired_effect) -> finding

The best of eight settings looks better than it is, because its luck was chosen too: see "Choosing settings" in
`tests/benchmarks/STATISTICS.md`. Beside it, learning curves are read at one level of loss and at one number of tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arc_ray.errors import UserError
from arc_ray.scores.intervals import Effect, needed, paired_effect
from arc_ray.scores.records import FloatArray
from arc_ray.seeding import digest64
from arc_ray.tasks.task import puzzle_of

WORTH_SHOWING = 0.05
"""Effect for which a larger study is planned where none is shown."""
FEW_DIFFERING = 10
"""Fewer units than this on which the arms differ, and the sentence says so: intervals are then rough."""


@dataclass(frozen=True)
class Run:
    """What the comparison needs of one finished trial."""

    arm: str
    setting: str
    """Name of everything else that was varied (learning rate, epochs); the same for all seeds."""
    seed: int
    outcomes: Mapping[str, float]
    """Task id -> the metric to maximise, such as 1.0 for a solved task."""
    ties: Mapping[str, float]
    """Task id -> the metric that decides between equally good settings, such as cell accuracy."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """All settings that were run with every seed, so that arms can be paired seed by seed and task by task."""

    task_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: Mapping[str, Mapping[str, FloatArray]]
    """Arm -> setting -> outcomes and ties, (2, num_seeds, num_tasks)."""


def gather(runs: Iterable[Run]) -> Outcomes:
    """Arrange finished runs by arm, setting and seed; a setting that lacks a seed is left out.

    Raises UserError if an arm has no complete setting. All runs must have answered the same tasks.
    """
    tables = {(run.arm, run.setting, run.seed): run for run in runs}
    if not tables:
        raise UserError("no run has finished: there is nothing to compare; let the study go on")
    seeds = tuple(sorted({seed for _, _, seed in tables}))
    task_ids = tuple(next(iter(tables.values())).outcomes)
    arms: dict[str, dict[str, FloatArray]] = {arm: {} for arm, _, _ in tables}
    left_out: list[str] = []
    for arm, setting in dict.fromkeys((arm, setting) for arm, setting, _ in tables):
        if missing := [str(seed) for seed in seeds if (arm, setting, seed) not in tables]:
            left_out.append(f"{arm}, {setting}: no finished run with seed {', '.join(missing)}")
            continue
        found = [tables[arm, setting, seed] for seed in seeds]
        assert all(run.outcomes.keys() == set(task_ids) for run in found), f"{arm}, {setting}: other tasks"
        both = ([run.outcomes for run in found], [run.ties for run in found])
        arms[arm][setting] = np.array([[[run[task] for task in task_ids] for run in table] for table in both], float)
    for arm, settings in arms.items():
        if not settings:
            raise UserError(f"arm {arm}: no setting has finished with all seeds {list(seeds)}; {'; '.join(left_out)}")
    return Outcomes(task_ids, seeds, arms)


def choosing_half(task_ids: Sequence[str], seed: int) -> npt.NDArray[np.bool_]:
    """Mark the half of the tasks on which settings are chosen, (num_tasks,); the others, never fewer, measure.

    The same are marked in whatever order they come, and of a source (`source/...`) whether others are there or not.
    Outputs of one task, and tasks cut from one puzzle, stay together, unless their source has only one. Raises UserError
    where nothing would be left to choose on.
    """
    by_source: dict[str, list[str]] = {}
    for task_id in task_ids:
        by_source.setdefault(task_id.partition("/")[0] if "/" in task_id else "", []).append(task_id)
    choosing = {task_id for ids in by_source.values() for task_id in _choosing(ids, seed)}
    if not choosing:
        raise UserError(
            f"{len(task_ids)} validation task: a comparison chooses on one half and measures on the other;"
            f" validate on at least two tasks of a source"
        )
    return np.array([task_id in choosing for task_id in task_ids])


def _choosing(task_ids: Sequence[str], seed: int) -> list[str]:
    # The outputs of one task, source/task/0 and so on, are named after its first.
    tasks = [f"{task_id.rpartition('/')[0]}/0" if "/" in task_id else task_id for task_id in task_ids]
    puzzles = [puzzle_of(task) for task in tasks]
    groups = next((names for names in (puzzles, tasks) if len(set(names)) > 1), list(task_ids))
    choosing: set[str] = set()
    lead = 0
    for group in sorted(set(groups), key=lambda group: digest64(seed, "choosing half", group)):
        if lead > 0:
            choosing.add(group)
        lead += -groups.count(group) if group in choosing else groups.count(group)
    return [task_id for task_id, group in zip(task_ids, groups, strict=True) if group in choosing]


def choose_setting(outcomes: Outcomes, arm: str, tasks: npt.NDArray[np.bool_]) -> str:
    """Return the arm's setting with the best mean over seeds and the marked tasks; `ties` decide, then the order."""

    def merit(setting: str) -> tuple[float, float]:
        # Rounded, because equal shares summed in another order differ in their last digit.
        first, second = outcomes.arms[arm][setting][..., tasks].mean(axis=(1, 2))
        return round(float(first), 12), float(second)

    return max(outcomes.arms[arm], key=merit)


def compare(
    outcomes: Outcomes, baseline: str, confidence: float = 0.95, seed: int = 0
) -> tuple[dict[str, str], dict[str, Effect]]:
    """Return every arm's best setting, the baseline's first, and each other arm's effect over the baseline.

    `seed` draws the half of the tasks that chooses; the other half measures. Each interval holds by itself: of twenty
    arms without any effect, one is expected to seem to have one. Raises UserError if no run of the baseline has finished.
    """
    if baseline not in outcomes.arms:
        raise UserError(f"arm {baseline}: no run has finished, and it is the baseline; finish or resume the study")
    choosing = choosing_half(outcomes.task_ids, seed)
    measured = [task_id for task_id, chooses in zip(outcomes.task_ids, choosing, strict=True) if not chooses]
    arms = dict.fromkeys([baseline, *outcomes.arms])
    best = {arm: choose_setting(outcomes, arm, choosing) for arm in arms}
    base, *others = (outcomes.arms[arm][setting][0][:, ~choosing] for arm, setting in best.items())
    effects = (paired_effect(other, base, measured, confidence) for other in others)
    return best, dict(zip(list(arms)[1:], effects, strict=True))


@dataclass(frozen=True)
class Finding:
    """What a comparison found, in words."""

    result: str
    """The effect with its interval, and whether it is shown."""
    needed: str | None
    """What it would take to show an effect of `WORTH_SHOWING`; None where one is shown."""
    warnings: tuple[str, ...]
    """What the interval does not hold."""

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        return "; ".join([self.result, *([self.needed] if self.needed else []), *self.warnings]) + "."


def finding(effect: Effect, arm: str, baseline: str) -> Finding:
    """Say what was found, for outcomes between 0 and 1, in percentage points."""
    tasks = f"{effect.num_tasks} tasks" if effect.unit == "tasks" else f"{effect.num_units} puzzles"
    seeds = "1 seed" if effect.num_seeds == 1 else f"{effect.num_seeds} seeds"
    verdict = (
        f"{arm} is {'better' if effect.value > 0 else 'worse'}" if effect.shown else "no effect shown at this size"
    )
    result = (
        f"{arm} minus {baseline}: {100 * effect.value:+.1f} points ({100 * effect.confidence:g} % interval"
        f" {100 * effect.low:+.1f} to {100 * effect.high:+.1f}, {seeds} x {tasks}): {verdict}"
    )
    warnings = ["with one seed its luck is not in the interval"] if effect.num_seeds == 1 else []
    if effect.num_differing < FEW_DIFFERING:
        unit = effect.unit.removesuffix("s") if effect.num_differing < 2 else effect.unit
        few = f"{effect.num_differing} {unit} only" if effect.num_differing else f"no {unit}"
        warnings.append(f"the interval is rough, since the arms differ on {few}")
    return Finding(result, None if effect.shown else _needed_words(effect), tuple(warnings))


def _needed_words(effect: Effect) -> str:
    seeds, units = needed(effect, WORTH_SHOWING)
    points = f"an effect of {100 * WORTH_SHOWING:g} points"
    if units is not None and units <= effect.num_units:
        return f"{points} would probably have been shown"
    if seeds is None and units is None:
        return f"{points} takes both more seeds and more {effect.unit}"
    ways = [f"{seeds} seeds"] * (seeds is not None) + [f"{units} measured {effect.unit}"] * (units is not None)
    return f"{points} takes about {' or '.join(ways)}"


def steps_to_loss(steps: Sequence[float], losses: Sequence[float], level: float) -> float | None:
    """Return the step at which a curve first comes down to a level, linear between its points; None if it never does."""
    reached = next((i for i, loss in enumerate(losses) if loss <= level), None)
    if reached is None:
        return None
    around = slice(max(reached - 1, 0), reached + 1)
    return float(np.interp(-level, np.negative(losses[around]), steps[around]))


def at_equal_tokens(
    curves: Mapping[str, tuple[Sequence[float] | FloatArray, Sequence[float] | FloatArray]],
) -> tuple[float, dict[str, float | None]]:
    """Read every trial's curve, (tokens seen, value), at the most tokens that all have seen; return these and the values.

    Settings with more epochs have seen more data at their end, which is no merit of theirs. A trial whose curve begins
    later has None.
    """
    tokens = min((float(seen[-1]) for seen, _ in curves.values()), default=0.0)
    values = {
        name: float(np.interp(tokens, seen, values)) if seen[0] <= tokens else None
        for name, (seen, values) in curves.items()
    }
    return tokens, values
