"""How trials end: stopped early by ASHA, for each arm of a study apart, by an error, or by themselves."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.tune
from ray.train import TrainingFailedError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from arc_ray.config import Config
from arc_ray.errors import StorageError, mistake_in
from arc_ray.rows.plan import Plan
from arc_ray.runs.folder import is_finished
from arc_ray.tune.space import Point, trial_config, trial_folder
from arc_ray.tune.trials import write_status

TIME = {"tokens": "train/learned_tokens", "epochs": "train/epoch"}
SCORE = "score"
"""What the scheduler compares: the metric, and a thousandth of cell accuracy to break its ties."""

ERROR_LINE = re.compile(r"[\w.]*(Error|Exception)\b")
"""How the line begins that names an error, such as `torch.OutOfMemoryError: ...`."""
MOST_OF_REASON = 500
"""Characters of an error that the table shows."""

_errors: dict[str, BaseException] = {}
"""What trials have failed by, by their ids, in a search that runs: from Tune's file it would have to be unpickled."""


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


class Ends(ray.tune.Callback):
    """Notes in its folder how each trial ended, when it ends: a driver that dies later loses nothing."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ran to its end, or the scheduler stopped it."""
        point = trial.config["point"]
        folder = trial_folder(self._config, point)
        write_status(folder, point, "done" if is_finished(folder) else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It failed, and the search goes on; or the storage did, and the search ends without it (see `Search.run_points`)."""
        point, error = trial.config["point"], _errors.get(trial.trial_id)
        mistake = mistake_in(error) if error else None
        reason = " ".join(str(mistake).split()) if mistake else reason_of(trial.error_file)
        status = "running" if isinstance(mistake, StorageError) else "failed"
        write_status(trial_folder(self._config, point), point, status, reason, is_mistake=mistake is not None)


@contextmanager
def final_errors() -> Iterator[None]:
    """Let a trial end at once by a user's mistake, or when its own workers failed too often; Tune tries all else again.

    Tune has no public place for that.
    """
    recovers, handle = TuneTrial.should_recover, TuneTrial.handle_error

    def handle_error(self: TuneTrial, exc: Any = None) -> None:
        _errors[self.trial_id] = exc
        handle(self, exc)

    def should_recover(self: TuneTrial) -> bool:
        error = _errors.get(self.trial_id) or RuntimeError("unknown")
        gave_up = isinstance(getattr(error, "cause", error), TrainingFailedError)
        return not (gave_up or mistake_in(error)) and recovers(self)

    TuneTrial.should_recover, TuneTrial.handle_error = should_recover, handle_error
    try:
        yield
    finally:
        TuneTrial.should_recover, TuneTrial.handle_error = recovers, handle
        _errors.clear()


def reason_of(error_file: str | None) -> str:
    """Take from Tune's error.txt the last error, with all its lines in one; traces and earlier causes stand above it."""
    text = Path(error_file).read_text() if error_file and Path(error_file).exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = max((i for i, line in enumerate(lines) if ERROR_LINE.match(line)), default=len(lines) - 1)
    return " ".join(lines[last:])[:MOST_OF_REASON] or "no reason given"
