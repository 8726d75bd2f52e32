"""Early stopping: ASHA, for each arm of a study apart, so that an arm's settings compete with each other alone."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from arc_ray.config import Config
from arc_ray.rows.prepare import prepare
from arc_ray.tune.space import Point

TIME = {"tokens": "train/learned_tokens", "epochs": "train/epoch"}
SCORE = "score"
"""What the scheduler compares: the metric, and a thousandth of cell accuracy to break its ties."""


def make_scheduler(
    config: Config, points: Sequence[Point], trials: Sequence[Config], apart: str | None
) -> TrialScheduler:
    """Make the config's scheduler for trials (the configs of these points).

    `apart` names the config key whose values do not compete: were a study's arms stopped by each other, the weaker
    one's setting would be chosen among trials that hardly began.
    """
    if config.tune.scheduler.kind == "fifo":
        return FIFOScheduler()
    groups: dict[str, list[Config]] = {}
    for point, trial in zip(points, trials, strict=True):
        groups.setdefault(_group(point, apart), []).append(trial)
    return Apart({name: _asha(config, of_group) for name, of_group in groups.items()}, apart)


class Apart(FIFOScheduler):
    """Starts trials in order, and asks the scheduler of a trial's group when to stop it."""

    def __init__(self, schedulers: Mapping[str, TrialScheduler], apart: str | None) -> None:
        super().__init__()
        self._schedulers, self._apart = schedulers, apart

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Pass it on."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Pass it on."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass it on, and what it decides back."""
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Pass it on."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Pass it on."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """Say what Tune would print."""
        return "\n".join(f"{name}: {scheduler.debug_string()}" for name, scheduler in self._schedulers.items())

    def _of(self, trial: Any) -> TrialScheduler:
        return self._schedulers[_group(trial.config["point"], self._apart)]


def _group(point: Point, apart: str | None) -> str:
    return json.dumps(point.get(apart)) if apart else "all"


def _asha(config: Config, trials: Sequence[Config]) -> AsyncHyperBandScheduler:
    """Make ASHA; its longest time is that of the longest trial, known from its plan."""
    longest = max(trials, key=lambda trial: trial.train.epochs)
    plan = prepare(longest).plan
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
