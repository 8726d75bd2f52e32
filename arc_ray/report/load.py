"""`load`: the folder of a study, a search or a single run as pandas frames; from files alone, also while it runs.

In a notebook (`arc_ray.report.frames` describes the frames):

    report = arc_ray.report.load("runs/quickstart")
    report.trials.groupby(["arm", "train.lr"])["eval/solved"].mean()
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from arc_ray.config import value_name
from arc_ray.config.searching import trained_as
from arc_ray.errors import UserError, nearest
from arc_ray.report import folders
from arc_ray.report.frames import COLUMNS, TRIALS, DataFrame, config_value, frame
from arc_ray.runs.shapes import AnalysisShape, ConfigShape, QualityShape, RunShape
from arc_ray.storage import Folder

ReportKind = Literal["study", "tune", "run", "runs"]

TRIALS_AT_ONCE = 8
"""Trials read at the same time: a bucket answers slowly, but many at once."""
MADE_OF = "trials/ (a study or search), config.yaml or metrics.jsonl (a run), experiment_state-*.json (Ray Tune)"


@dataclass(frozen=True, eq=False)
class Report:
    """Everything the files say. The frames are described in `arc_ray.report.frames`."""

    folder: Folder
    kind: ReportKind
    is_finished: bool
    """Whether it has its result; a study also once it is analysed, since the report is written before the result."""
    config: Mapping[str, Any]
    """config.yaml as a nested dict."""
    run: Mapping[str, Any]
    """run.json: command, versions, hardware; empty if it is missing."""
    analysis: Mapping[str, Any] | None
    """analysis.json: what the comparison found; None before it is made."""
    compare: str
    """Config key whose values are the arms."""
    best: str | None
    """best.yaml as text."""
    trials: DataFrame
    runs: DataFrame
    metrics: DataFrame
    validation: DataFrame
    scores: DataFrame
    answers: DataFrame
    budgets: DataFrame
    audit: DataFrame
    data: DataFrame
    quality: Mapping[str, Any] | None = None
    """quality.json: duplicates, distinct views, lengths, padding, overlap; None where none was written."""
    overlap: Sequence[str] = ()
    """overlap.json of an evaluation: what its checkpoint had learned of what it answered; of several runs, all theirs."""

    @property
    def name(self) -> str:
        """Name of the study or run; of several runs, all their names."""
        if self.kind == "runs":
            return ", ".join(self.trials["trial"])
        return (self.folder.parent if self.is_audit else self.folder).name

    @property
    def is_search(self) -> bool:
        """Whether it compares settings: a study or a search."""
        return self.kind in ("study", "tune")

    @property
    def is_evaluation(self) -> bool:
        """Whether it is an evaluation by itself, which trains nothing."""
        return self.is_audit or (self.kind == "run" and self.run.get("command") == "evaluate")

    @property
    def is_audit(self) -> bool:
        """Whether it is an audit by itself, below the folder of the evaluation that it is named after."""
        return self.kind == "run" and self.run.get("command") == "audit"

    @property
    def question(self) -> str:
        """What was asked; empty if nothing was. A run has none: it was made with its study's config."""
        if not self.is_search:
            return ""
        return str((self.analysis or {}).get("question") or self.config.get("question") or "")

    @property
    def metric(self) -> str:
        """Metric of validation that the search maximises."""
        is_of_answers = self.asked_metric.startswith("answers/")
        return str(config_value(self.config, "tune.metric", "eval/solved")) if is_of_answers else self.asked_metric

    @property
    def asked_metric(self) -> str:
        """Metric that the comparison is about: the search's, or that of answers where the arms differ in how they answer."""
        return str((self.analysis or {}).get("metric") or config_value(self.config, "tune.metric", "eval/solved"))

    @property
    def trained_as(self) -> Mapping[str, str]:
        """For each arm of a study the one whose trainings it answers with, itself unless they differ in `evaluate` alone."""
        keys = ("study.compare", "study.arms", "starts")
        compare, arms, starts = (config_value(self.config, key) for key in keys)
        return trained_as(compare, arms, starts) if self.kind == "study" and compare and arms else {}

    @property
    def arms(self) -> list[str]:
        """The arms, the baseline first, then in the order of the config, then as they come."""
        analysis = self.analysis or {}
        asked = config_value(self.config, "study.arms", []) if self.kind == "study" else []
        baseline = [analysis["baseline"]] if analysis else []
        named = [*baseline, *map(value_name, asked), *(arm["arm"] for arm in analysis.get("arms", []))]
        return list(dict.fromkeys([*named, *self.trials["arm"]]))

    @property
    def confidence(self) -> float:
        """Level of the intervals that a report computes."""
        return config_value(self.config, "study.confidence", 0.95)

    @property
    def measured(self) -> DataFrame:
        """The trials that have been validated and have not failed."""
        if self.metric not in self.trials:
            return self.trials.iloc[:0]
        return self.trials[self.trials[self.metric].notna() & (self.trials["status"] != "failed")]

    @property
    def varied(self) -> list[str]:
        """Config keys with more than one value among the trials, apart from the compared one and the seed."""
        keys = [key for key in self.trials.columns if "/" not in key and key not in (*TRIALS, self.compare)]
        return [key for key in keys if self.trials[key].astype(str).nunique() > 1]

    @property
    def num_expected(self) -> int:
        """Trials there will be: while it runs by its config, once it is finished those that are there.

        A study searches with every arm at every point, then measures each arm with every seed.
        """
        if self.is_finished or not self.is_search:
            return len(self.trials)
        space: Mapping[str, Any] = config_value(self.config, "tune.space", {})
        is_grid = config_value(self.config, "tune.search", "grid") == "grid"
        drawn = config_value(self.config, "tune.num_trials") or 1
        points = math.prod(len(next(iter(spec.values()))) for spec in space.values()) if is_grid else drawn
        if self.kind == "tune":
            return max(len(self.trials), points)
        seeds, num_trained = config_value(self.config, "study.seeds", [0]), len({*self.trained_as.values()})
        num_seeds = seeds["at_least"] if isinstance(seeds, Mapping) else len(seeds)
        return max(len(self.trials), max(num_trained, 1) * (points + num_seeds))


def load(folder: str) -> Report:
    """Read the folder of a study, search or run, or of a Tune experiment: a local path, s3://... or gs://... .

    Paths inside the files are not used: a folder copied from elsewhere reads the same. What lies beside it (the runs
    made first, the generated data) is read where it was copied along. Raises UserError.
    """
    place = Folder.at(folder)
    config, run = place.read_yaml("config.yaml", ConfigShape) or {}, place.read_json("run.json", RunShape) or {}
    analysis, beside, trials = _read_analysis(place), place.parent, folders.read_experiment(place)
    compare = str((analysis or {}).get("compare") or config_value(config, "study.compare", "start"))
    if trials is None:
        kind = _kind_of(place, run, analysis)
        is_finished = place.exists("analysis.json") or place.exists("result.json")
        trials = _read_trials(place, kind, compare)
    else:
        kind, is_finished = "tune", all(trial.trial["status"] != "running" for trial in trials)
    made_first = [beside / name for name in config.get("runs") or {} if (beside / name).exists("config.yaml")]
    runs = [folders.read_trial_folder(folder, place.name, folder.name, None) for folder in made_first]
    rows = {
        "trials": [trial.trial for trial in trials],
        "runs": [run.trial for run in runs],
        "metrics": [row for trial in [*trials, *runs] for row in trial.metrics],
        "validation": [row for trial in trials for row in trial.validation],
        **folders.read_evaluations(place, made_first),
        "data": folders.read_data(beside / "data", place.name, config),
    }
    return Report(
        folder=place,
        kind=kind,
        is_finished=is_finished,
        config=config,
        run=run,
        analysis=analysis,
        compare=compare,
        best=place.read("best.yaml", bytes.decode) if place.exists("best.yaml") else None,
        **{name: frame(name, found) for name, found in rows.items()},
        quality=place.read_json("quality.json", QualityShape),
        overlap=place.read_json("overlap.json", list[str]) or (),
    )


def load_many(places: Sequence[str]) -> list[Report]:
    """Read several folders, in order; single runs among them become one report with a row of `trials` for each.

    `pandas.concat([report.trials for report in load_many(places)])` puts all trials into one frame. Raises UserError.
    """
    if not places:
        raise UserError("no folder to report on; name the folder of a study, a search or a run")
    reports = [load(folder) for folder in dict.fromkeys(places)]
    runs = [report for report in reports if report.kind == "run"]
    if len(runs) < 2:
        return reports
    merged = _merge_runs(runs)
    return [merged if report is runs[0] else report for report in reports if report is runs[0] or report.kind != "run"]


def _merge_runs(runs: Sequence[Report]) -> Report:
    first = runs[0]
    merged: dict[str, Any] = {}
    for name in COLUMNS:
        parts = [part for run in runs if len(part := getattr(run, name))]
        merged[name] = pd.concat(parts, ignore_index=True) if parts else getattr(first, name)
    # Runs of one storage folder share its data, which is counted once.
    merged["data"] = merged["data"].drop_duplicates("dataset", ignore_index=True)
    run = first.run if all(run.run == first.run for run in runs) else {}
    overlap = [said for one in runs for said in [*(one.quality or {}).get("overlap", ()), *one.overlap]]
    about = {"analysis": None, "best": None, "quality": None, "overlap": list(dict.fromkeys(overlap))}
    return replace(first, kind="runs", is_finished=all(r.is_finished for r in runs), run=run, **about, **merged)


def _read_trials(place: Folder, kind: ReportKind, compare: str) -> list[folders.TrialRows]:
    if kind == "run":
        return [folders.read_trial_folder(place, place.name, place.name, None)]
    names = (place / "trials").names()
    with ThreadPoolExecutor(TRIALS_AT_ONCE) as pool:
        return list(pool.map(lambda n: folders.read_trial_folder(place / "trials" / n, place.name, n, compare), names))


def _kind_of(place: Folder, run: Mapping[str, Any], analysis: object) -> ReportKind:
    if not place.exists("trial.json"):
        if analysis is not None or run.get("command") == "study":
            return "study"
        if place.exists("trials") or run.get("command") == "tune":
            return "tune"
    if place.exists("config.yaml") or place.exists("metrics.jsonl"):
        return "run"
    if not place.exists():
        near = nearest(place.name, place.parent.names(), before=f"{place.parent.uri}/")
        raise UserError(f"{place.uri}: there is no such folder; name the folder of a study, a search or a run{near}")
    inside = [name for name in place.names() if any((place / name).exists(f) for f in ("trials", "config.yaml"))]
    hint = f"; did you mean {place.uri}/{inside[0]}?" if inside else ""
    raise UserError(f"{place.uri} is no folder of a study, a search or a run: looked for {MADE_OF}{hint}")


def _read_analysis(place: Folder) -> dict[str, Any] | None:
    """Read analysis.json with the names of arms as text, which an older file may lack; None before it is made."""
    analysis = place.read_json("analysis.json", AnalysisShape)
    if analysis is None:
        return None
    named = {key: [{**part, "arm": value_name(part["arm"])} for part in analysis[key]] for key in ("arms", "effects")}
    return {**analysis, "baseline": value_name(analysis["baseline"]), **named}
