"""What is known of trials, from their folders: the table, what each validation task came to, which trial is the best.

Whatever compares trials judges them by `merit`. In a study it sees the choosing half of the validation tasks alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from arc_ray.config import Config, to_yaml
from arc_ray.report.frames import frame, trial_row, trials_csv
from arc_ray.runs.folder import MetricsTail, read_metrics, run_folder
from arc_ray.runs.shapes import OutcomeShape, ResultShape, RunShape, TrialShape
from arc_ray.scores.analysis import at_equal_tokens, choosing_half
from arc_ray.storage import Folder
from arc_ray.tune.space import Point, trial_config, trial_folder, trial_name

Status = Literal["waiting", "running", "done", "stopped", "failed"]


@dataclass(frozen=True, eq=False)
class Trial:
    """A trial as its folder tells it."""

    name: str
    point: Point
    status: Status
    error: str | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The newest value of every metric, and of a finished trial what its result adds."""
    merit: tuple[float, float] | None = None
    """`merit` of the newest validation; None before the first."""
    is_mistake: bool = False
    """Whether the error is the user's to mend."""


class TrialReader:
    """Reads trials again and again while they run, of their metrics only what is new."""

    def __init__(self, config: Config, in_study: bool) -> None:
        self._config, self._in_study = config, in_study
        self._tails: dict[str, MetricsTail] = {}
        self._results: dict[str, Mapping[str, Any]] = {}
        self._judged: dict[str, tuple[int, tuple[float, float]]] = {}

    def __call__(self, point: Point) -> Trial:
        """Read what a trial's folder says by now."""
        name, folder = trial_name(point), trial_folder(self._config, point)
        about = folder.read_json("trial.json", TrialShape) or {"status": "waiting", "error": None}
        tail = self._tails.setdefault(name, MetricsTail(folder))
        tail.look()
        step, judged = self._judged.get(name, (None, None))
        if tail.validation and tail.validation["step"] != step:
            judged = merit(self._config, folder, tail.validation, self._in_study)
            self._judged[name] = tail.validation["step"], judged
        if about["status"] == "done" and name not in self._results:
            self._results[name] = folder.read_json("result.json", ResultShape) or {}
        newest = {**tail.newest, **self._results.get(name, {})}
        is_mistake = about.get("is_mistake", False)  # not there in folders of earlier versions
        return Trial(name, point, about["status"], about["error"], newest, judged, is_mistake)


def read_outcomes(folder: Folder, *metrics: str, step: int | None = None) -> list[dict[str, float]]:
    """Read what a run's validation after a step found, or its newest: of each metric, validated view -> outcome.

    A metric of one source, such as eval/solved/held_out, has that source's views only. Empty without a validation.
    """
    place = folder / "validation"
    names = place.names() if step is None else [f"step-{step:06d}.json"]
    # Steps have six digits or more.
    found = place.read_json(max(names, key=lambda name: (len(name), name)), OutcomeShape) if names else None
    outcomes = []
    for metric in metrics:
        column, _, source = metric.removeprefix("eval/").partition("/")
        values = zip(found["names"], found[column], strict=True) if found else ()
        outcomes.append({name: value for name, value in values if not source or name.startswith(f"{source}/")})
    return outcomes


def merit(config: Config, folder: Folder, record: Mapping[str, Any], in_study: bool) -> tuple[float, float]:
    """Return `tune.metric` and cell accuracy, which decides ties, of one of a run's validations.

    In a study on the choosing half of the tasks, so that no search has seen the other half when it measures.
    """
    metrics = (config.tune.metric, "eval/cell_accuracy")
    if not in_study:
        return tuple(record[metric] for metric in metrics)
    found = read_outcomes(folder, *metrics, step=record["step"])
    value, tie = (float(np.mean(np.array([*f.values()])[choosing_half([*f], config.seed)])) for f in found)
    return value, tie


def known_points(config: Config, fixed: Point) -> list[Point]:
    """List the points that have folders and hold `fixed`: those that have ended first, then in the order of their start."""
    trials = run_folder(config) / "trials"
    found = []
    for name in trials.names():
        about = (trials / name).read_json("trial.json", TrialShape)
        if about and fixed.items() <= about["overrides"].items():
            run = (trials / name).read_json("run.json", RunShape) or {}
            found.append((about["status"] not in ("done", "stopped"), run.get("started", "~"), name, about))
    return [about["overrides"] for *_, about in sorted(found, key=lambda entry: entry[:3])]


def write_status(
    folder: Folder, point: Point, status: Status, error: str | None = None, is_mistake: bool = False
) -> None:
    """Write trial.json: what the trial is, how it ended, and whether that was the user's mistake."""
    about = {"trial": folder.name, "overrides": point, "status": status, "error": error, "is_mistake": is_mistake}
    folder.write_json("trial.json", about)


def rank(trials: Sequence[Trial]) -> list[Trial]:
    """Order trials by merit, best first: the finished ones, then the others."""
    lowest = (float("-inf"), float("-inf"))
    by_merit = sorted(trials, key=lambda trial: trial.merit or lowest, reverse=True)
    return sorted(by_merit, key=lambda trial: trial.status != "done")


def candidates(config: Config, trials: Sequence[Trial], in_study: bool = False) -> list[Trial]:
    """Order the trials that a search may choose, best first; empty while it is too early to tell.

    They are the finished ones: one that was stopped early has not shown what it comes to. Where all that were not
    stopped have failed, stopped ones are compared where each has learned as many tokens as the shortest.
    """
    done = [trial for trial in trials if trial.status == "done" and trial.merit]
    if done or any(trial.status in ("waiting", "running") for trial in trials):
        return rank(done)
    stopped = {trial.name: trial for trial in trials if trial.status == "stopped" and trial.merit}
    curves = {name: _curve(config, trial, in_study) for name, trial in stopped.items()}
    values, ties = (at_equal_tokens({name: (c[0], c[i]) for name, c in curves.items()})[1] for i in (1, 2))
    return rank([replace(t, merit=(v, ties[name])) for name, t in stopped.items() if (v := values[name]) is not None])


def _curve(config: Config, trial: Trial, in_study: bool) -> tuple[list[float], list[float], list[float]]:
    """Return learned tokens, metric and cell accuracy of a trial's validations."""
    folder = trial_folder(config, trial.point)
    records = [record for record in read_metrics(folder) if "eval/solved" in record]
    merits = [merit(config, folder, record, in_study) for record in records]
    return [r.get("train/learned_tokens", 0.0) for r in records], [m[0] for m in merits], [m[1] for m in merits]


def to_csv(config: Config, trials: Sequence[Trial]) -> str:
    """Write the table of trials as a report of the search does (see `report.frames.trials_csv`)."""
    study, tree, compare = run_folder(config).name, config.model_dump(mode="json"), config.study.compare
    rows = []
    for trial in trials:
        about = {"overrides": trial.point, "status": trial.status, "error": trial.error}
        rows.append(trial_row(study, trial.name, about, tree, [dict(trial.metrics)], None, compare))
    return trials_csv(frame("trials", rows))


def write_search(config: Config, trials: Sequence[Trial], in_study: bool = False) -> None:
    """Write trials.csv and best.yaml; the latter runs by itself with `arc-ray train best.yaml`."""
    folder = run_folder(config)
    folder.write_bytes("trials.csv", to_csv(config, trials).encode())
    if ranked := candidates(config, trials, in_study):
        best = trial_config(config, ranked[0].point)
        alone = best.model_copy(update={"name": f"{config.name}-best"})
        folder.write_bytes("best.yaml", to_yaml(alone).encode())
