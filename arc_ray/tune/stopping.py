"""Early stopping: ASHA, for each arm of a study apart, so that an arm's settings compete with each other alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from arc_ray.config import Config
from arc_ray.rows.plan import Plan
from arc_ray.tune.space import Point, trial_config

TIME = {"tokens": "train/learned_tokens", "epochs": "train/epoch"}
SCORE = "score"
"""What the scheduler compares: the metric, and a thousandth of cell accuracy to break its ties."""


def make_scheduler(
    config: Config, points: Sequence[Point], apart: str | None, plan_of: Callable[[Config], Plan]
) -> TrialScheduler:
    """Make the config's scheduler for the trials at these points, whose plans `plan_of` knows.

    `apart` names the config key whose values do not compete: were a study's arms stopped by each other, the weaker
    one's setting would be chosen among trials that hardly began.
    """
    if config.tune.scheduler.kind == "fifo":
        return FIFOScheduler()
    groups: dict[str, list[Config]] = {}
    for point in points:
        groups.setdefault(_group(point, apart), []).append(trial_config(config, point))
    longest = {name: max(trials, key=lambda trial: trial.train.epochs) for name, trials in groups.items()}
    return Apart({name: _asha(config, plan_of(trial)) for name, trial in longest.items()}, apart)


def _passed_on(name: str) -> Any:
    """Make a method that hands a notice of Tune's on, and back what is decided."""

    def hand_on(self: "Apart", tune_controller: Any, trial: Any, *result: Any) -> Any:
        return getattr(self.scheduler_of(trial), name)(tune_controller, trial, *result)

    return hand_on


class Apart(FIFOScheduler):
    """Starts trials in order, and asks the scheduler of a trial's group when to stop it."""

    def __init__(self, schedulers: Mapping[str, TrialScheduler], apart: str | None) -> None:
        super().__init__()
        self._schedulers, self._apart = schedulers, apart

    on_trial_add, on_trial_error = _passed_on("on_trial_add"), _passed_on("on_trial_error")
    on_trial_result, on_trial_complete = _passed_on("on_trial_result"), _passed_on("on_trial_complete")
    on_trial_remove = _passed_on("on_trial_remove")

    def scheduler_of(self, trial: Any) -> TrialScheduler:
        """Return the scheduler of a trial's group."""
        return self._schedulers[_group(trial.config["point"], self._apart)]


def _group(point: Point, apart: str | None) -> str:
    return json.dumps(point.get(apart)) if apart else "all"


def _asha(config: Config, plan: Plan) -> AsyncHyperBandScheduler:
    """Make ASHA; its longest time is that of the longest trial, whose plan this is."""
    if config.tune.scheduler.time_attribute == "epochs":
        most = plan.epoch_of_step(plan.num_steps)
    else:
        most = float(plan.learned_per_step().sum())
    # A validation after a quarter of the steps has seen a quarter of the tokens only roughly: a step less will do, or
    # the rung would decide one validation later.
    grace = most * max(config.tune.scheduler.grace - 1 / plan.num_steps, 1 / plan.num_steps)
    return AsyncHyperBandScheduler(
        time_attr=TIME[config.tune.scheduler.time_attribute],
        metric=SCORE,
        mode="max",
        max_t=most,  # pyright: ignore[reportArgumentType]
        grace_period=grace,  # pyright: ignore[reportArgumentType]
        reduction_factor=config.tune.scheduler.reduction,
        # A trial that reaches max_t has done all its steps; it ends by itself, with its checkpoint written.
        stop_last_trials=False,
    )
