"""What is known of trials, from their folders: the table, the best one, what each validation task came to."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from arc_ray.config import Config, to_yaml
from arc_ray.runs import read_metrics, run_folder
from arc_ray.storage import Folder
from arc_ray.tune.space import Point, trial_config, trial_name

Status = Literal["waiting", "running", "done", "stopped", "failed"]


@dataclass(frozen=True, eq=False)
class Trial:
    """A trial as its folder tells it."""

    name: str
    point: Point
    status: Status
    error: str | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The newest value of every metric."""


def read_trial(config: Config, point: Point) -> Trial:
    """Read what a trial's folder says; a trial that never began is waiting."""
    folder = run_folder(trial_config(config, point, config.name))
    about = folder.read_json("trial.json") or {"status": "waiting", "error": None}
    metrics: dict[str, float] = {}
    for record in read_metrics(folder):
        metrics |= record
    return Trial(trial_name(point), point, about["status"], about["error"], metrics)


def known_points(config: Config, fixed: Point) -> list[Point]:
    """List the points that have folders and hold `fixed`: those that have ended first, then in the order of their start."""
    trials = run_folder(config) / "trials"
    found = []
    for name in trials.names():
        about, run = (trials / name).read_json("trial.json"), (trials / name).read_json("run.json")
        if about and fixed.items() <= about["overrides"].items():
            found.append((about["status"] not in ("done", "stopped"), (run or {}).get("started", "~"), name, about))
    return [about["overrides"] for *_, about in sorted(found, key=lambda entry: entry[:3])]


def write_status(folder: Folder, point: Point, status: Status, error: str | None = None) -> None:
    """Write trial.json: what the trial is and how it ended."""
    folder.write_json("trial.json", {"trial": folder.name, "overrides": point, "status": status, "error": error})


def rank(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Order trials by a metric, best first; cell accuracy breaks ties, then the order in which they were started."""

    def merit(trial: Trial) -> tuple[float, float]:
        return (-trial.metrics.get(metric, float("-inf")), -trial.metrics.get("eval/cell_accuracy", float("-inf")))

    return sorted(trials, key=merit)


def to_csv(trials: Sequence[Trial]) -> str:
    """Write the table of trials: name, status, what was varied, every metric, and the error of a failed one."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.point))
    metrics = sorted({key for trial in trials for key in trial.metrics})
    sink = io.StringIO()
    table = csv.writer(sink, lineterminator="\n")
    table.writerow(["trial", "status", *keys, *metrics, "error"])
    for trial in trials:
        varied, measured = [trial.point.get(key) for key in keys], [trial.metrics.get(key, "") for key in metrics]
        table.writerow([trial.name, trial.status, *varied, *measured, trial.error or ""])
    return sink.getvalue()


def write_search(folder: Folder, config: Config, trials: Sequence[Trial]) -> None:
    """Write trials.csv and best.yaml; the latter runs by itself with `arc-ray train best.yaml`."""
    folder.write_bytes("trials.csv", to_csv(trials).encode())
    ended = [trial for trial in trials if trial.status in ("done", "stopped") and trial.metrics]
    if ended:
        best = trial_config(config, rank(ended, config.tune.metric)[0].point, config.name)
        alone = best.model_copy(update={"name": f"{config.name}-best"})
        folder.write_bytes("best.yaml", to_yaml(alone).encode())
