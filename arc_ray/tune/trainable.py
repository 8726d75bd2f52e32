"""What Ray Tune calls for each trial."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ray
import ray.tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.integration.ray_train import TuneReportCallback

from arc_ray.cluster.roles import TRIAL_CPUS
from arc_ray.config import Config
from arc_ray.runs.folder import checkpoint_steps, is_finished, read_metrics, run_folder
from arc_ray.runs.machine import usable_cores
from arc_ray.runs.shapes import TrialShape
from arc_ray.storage import Folder
from arc_ray.train.alone import train_alone
from arc_ray.train.run import is_alone, run_training, train_in_group, worker_resources
from arc_ray.train.worker import Job
from arc_ray.tune.space import Point, trial_config
from arc_ray.tune.stopping import SCORE, TIME
from arc_ray.tune.trials import merit, write_status


def trial_resources(parameters: dict[str, Any]) -> PlacementGroupFactory:
    """Return what a trial's own process takes: a worker's resources where it is the worker, next to nothing otherwise."""
    config = trial_config(parameters["config"], parameters["point"])
    return PlacementGroupFactory([worker_resources(config.scaling) if is_alone(config) else {"CPU": TRIAL_CPUS}])


def train_trial(parameters: dict[str, Any], preparer: Any, environment: Mapping[str, str]) -> None:
    """Run one trial in its Tune actor, which runs one after another: replay what its folder holds, then train."""
    os.environ.update(environment)
    point: Point = parameters["point"]
    searched: Config = parameters["config"]
    config = _sharing_cores(trial_config(searched, point), parameters["at_once"])
    folder = run_folder(config)
    report = partial(scored, searched, folder, in_study=parameters["in_study"])
    about = folder.read_json("trial.json", TrialShape)
    has_ended = is_finished(folder) or bool(about and about["status"] == "stopped" and not parameters["to_the_end"])
    last = max(checkpoint_steps(folder), default=-1)
    for record in read_metrics(folder):
        if "eval/solved" in record and (has_ended or record["step"] <= last):
            ray.tune.report(report(record))
    if has_ended:
        return
    write_status(folder, point, "running")
    run_training(
        config,
        command="trial",
        share=lambda trial, place: ray.get(preparer.share.remote(trial, place)),
        train=partial(_train, report=report),
    )


def _train(job: Job, report: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Do a trial's job, passing each validation on to Tune: here, where the next trial finds all started, or in a group."""
    if is_alone(job.config):
        train_alone(job, lambda record: ray.tune.report(report(record)))
    else:
        train_in_group(job, [_Report(report)])


def _sharing_cores(config: Config, trials_at_once: int) -> Config:
    """Give a trial on CPUs its share of the machine's threads: two that both take all cores run at a fraction of it."""
    if config.scaling.threads or config.scaling.on_gpu:
        return config
    share = max(1, usable_cores() // trials_at_once)
    return config.model_copy(update={"scaling": config.scaling.model_copy(update={"threads": share})})


def scored(config: Config, folder: Folder, record: dict[str, Any], in_study: bool) -> dict[str, Any]:
    """Add what the scheduler and Optuna compare to a trial's validation: its merit as one number."""
    value, tie = merit(config, folder, record, in_study)
    return {TIME["tokens"]: 0.0, TIME["epochs"]: 0.0, **record, SCORE: value + 1e-3 * tie}


class _Report(TuneReportCallback):
    """Passes each validation on to Tune, with the score the scheduler compares."""

    def __init__(self, report: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__()
        self._report = report

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Report rank 0's record."""
        super().after_report(run_context, [self._report(metrics[0])], checkpoint)
