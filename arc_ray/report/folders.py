"""The files of a study, a run, an evaluation or a Ray Tune experiment as rows of frames.

They lie on a disk or in a bucket, whole or half copied: what is missing reads as nothing. Of an experiment that Ray Tune
wrote, the study's own or anybody's, nothing pickled is opened; it tells less than our trials do, but these read the same:

    experiment_state-<time>.json   Tune's trials: id, status, what was varied, folder; one file a call of Tune
    <trial folder>/result.json     one report a line
    <trial folder>/error.txt       why it failed
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from arc_ray.contents import checked, damaged, parse_json
from arc_ray.report.frames import WHO, Row, config_value, trial_row
from arc_ray.runs.shapes import (
    AnswerShape,
    ConfigShape,
    Count,
    ManifestShape,
    MetricsShape,
    Named,
    Number,
    OutcomeShape,
    Positive,
    ResultShape,
    TrialShape,
    is_even,
)
from arc_ray.scores.records import read_record
from arc_ray.storage import Folder

TUNE_ENDINGS = {"TERMINATED": "done", "ERROR": "failed"}
"""Tune's words for ended trials; one that the scheduler stopped has ended to Tune like any other."""


class TuneStateShape(TypedDict):
    """experiment_state-<time>.json, as Ray Tune writes it: of each trial first a `TuneTrialShape` as text."""

    trial_data: list[Annotated[list[str], Field(min_length=1)]]


class TuneTrialShape(TypedDict):
    trial_id: str
    status: str
    relative_logdir: str
    evaluated_params: NotRequired[Named | None]


class PointShape(TypedDict):
    """An entry of curves.json: an item an output in each list."""

    set: str
    axis: str
    x: Number
    tasks: list[str]
    solved: list[Number]
    best: list[Number]
    passes: NotRequired[Number | None]
    tokens: NotRequired[Number | None]
    seconds: NotRequired[Number | None]


class AuditShape(TypedDict):
    """A record of audit.json, one an answered output."""

    set: str
    task: str
    known: bool
    kind: Literal["published", "fresh", "turned", "recoloured"]
    variant: str
    output: Count
    right: bool
    asked: bool
    cells: Positive
    difficulty: Number


BudgetShape = Annotated[PointShape, AfterValidator(is_even)]


class TrialRows(NamedTuple):
    """One trial's files as rows of frames."""

    trial: Row
    metrics: Sequence[Row]
    validation: Sequence[Row] = ()


def read_trial_folder(folder: Folder, study: str, name: str, compare: str | None) -> TrialRows:
    """Read a run folder; `compare` is the config key that names its arm, None takes its own name. Raises UserError."""
    config, about = folder.read_yaml("config.yaml", ConfigShape) or {}, folder.read_json("trial.json", TrialShape)
    records, _ = folder.read_json_lines("metrics.jsonl", shape=MetricsShape)
    result = folder.read_json("result.json", ResultShape)
    plan = folder.read_bytes("plan.parquet") if folder.exists("plan.parquet") else b""
    digest = hashlib.blake2b(plan, digest_size=6).hexdigest() if plan else None
    trial = trial_row(study, name, about, config, records, result, compare) | {"plan_digest": digest}
    validation: list[Row] = []
    for file in (folder / "validation").names():
        outcome = folder.read_json(f"validation/{file}", OutcomeShape)
        with damaged(f"{folder.uri}/validation/{file}"):
            validation += _validation_rows(_who(trial), file, outcome)
    return TrialRows(trial, _metric_rows(trial, records), validation)


def _validation_rows(who: Row, file: str, outcome: Mapping[str, Any]) -> Iterator[Row]:
    step = int(file.removeprefix("step-").removesuffix(".json"))
    columns = (outcome[key] for key in ("names", "solved", "cell_accuracy", "loss"))
    for view, solved, cell_accuracy, loss in zip(*columns, strict=True):
        source, *task, output = view.split("/")
        where = who | {"step": step, "source": source, "task": "/".join(task), "output": int(output)}
        yield {**where, "solved": bool(solved), "cell_accuracy": cell_accuracy, "loss": loss}


def _metric_rows(trial: Row, records: Iterable[Row]) -> list[Row]:
    """Return a trial's metric records under its name; tokens of a record without any are those of its step."""
    rows, tokens = [], 0.0
    for record in records:
        tokens = record.get("train/learned_tokens", tokens)
        rows.append({**_who(trial), **record, "train/learned_tokens": tokens})
    return rows


def _who(trial: Row) -> Row:
    return {key: trial[key] for key in WHO}


def read_experiment(place: Folder) -> list[TrialRows] | None:
    """Read the trials of a Tune experiment, in the order of their start; None if Tune did not write it. Raises UserError."""
    states = [name for name in place.names() if name.startswith("experiment_state-")]
    if not states:
        return None
    trials = {about["trial_id"]: about for name in states for about in _tune_trials(place, name)}
    return [_read_tune_trial(place, about) for about in trials.values()]


def _tune_trials(place: Folder, name: str) -> Iterator[TuneTrialShape]:
    for state, *_ in place.read_json(name, TuneStateShape)["trial_data"]:
        with damaged(f"{place.uri}/{name}"):
            yield parse_json(state.encode(), TuneTrialShape)


def _read_tune_trial(place: Folder, about: TuneTrialShape) -> TrialRows:
    folder = place / about["relative_logdir"]
    reports, _ = folder.read_json_lines("result.json", shape=dict[str, Any])
    records = []
    for report in reports:
        record = {"step": report.get("training_iteration", 0), "seconds": report.get("time_total_s", 0.0)}
        # Tune adds times, places and the trial's whole config to what was measured.
        record |= {k: v for k, v in report.items() if k in record or ("/" in k and isinstance(v, int | float))}
        with damaged((folder / "result.json").uri):
            records.append(checked(record, MetricsShape))
    status = TUNE_ENDINGS.get(about["status"], "running")
    error = folder.read("error.txt", bytes.decode) if folder.exists("error.txt") else ""
    trial = {
        "trial": about["trial_id"],
        "status": status,
        "overrides": dict(_varied(about.get("evaluated_params") or {})),
        "error": (error.strip().splitlines() or ["no reason given"])[-1] if status == "failed" else None,
    }
    row = trial_row(place.name, about["trial_id"], trial, {"start": place.name}, records, None, "start")
    return TrialRows(row | {"plan_digest": None}, _metric_rows(row, records))


def _varied(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten what Tune varied to dotted keys; a search of ours puts them under `point`."""
    for key, value in parameters.items():
        name = f"{prefix}{key}".removeprefix("point/")
        if isinstance(value, Mapping):
            yield from _varied(value, "" if name == "point" else f"{name}.")
        else:
            yield name.replace("/", "."), value


def read_evaluations(place: Folder, runs: Iterable[Folder]) -> dict[str, list[Row]]:
    """Read rows of the frames scores, answers, budgets and audit of a folder and of the runs made first. Raises UserError.

    They are in an evaluation's own folder, evaluate/ (of a run), or evaluate/<arm>/ and its seed-<n>/ (of a study).
    """
    evaluate = place / "evaluate"
    is_own = any(place.exists(file) for file in ("answers.json", "audit.json", "audit/audit.json"))
    folders = [(place.name, place if is_own else evaluate)]
    folders += [(name, evaluate / name) for name in evaluate.names() if (evaluate / name).exists("result.json")]
    folders += [(run.name, run / "evaluate") for run in runs]
    rows: dict[str, list[Row]] = {name: [] for name in ("scores", "answers", "budgets", "audit")}
    for arm, folder in folders:
        result = folder.read_json("result.json", ResultShape) or {}
        arm = result.get("arm", arm)
        rows["scores"] += score_rows(place.name, arm, result) if not folder.exists("audit.json") else []
        seeds = [name for name in folder.names() if name.startswith("seed-")]
        for seed in seeds or [None]:
            answered = folder / seed if seed else folder
            who = {"study": place.name, "arm": arm, "seed": int(seed.removeprefix("seed-")) if seed else None}
            rows["budgets"] += [who | budget for budget in answered.read_json("curves.json", list[BudgetShape]) or []]
            for audited in (answered, answered / "audit"):
                rows["audit"] += [who | record for record in audited.read_json("audit.json", list[AuditShape]) or []]
            for answer in answered.read_json("answers.json", list[AnswerShape]) or []:
                greedy, truth = answer.get("greedy"), answer.get("truth")
                right = None if greedy is None or truth is None else greedy == truth
                known = {"truth": truth, "greedy": greedy, "greedy_right": right}
                rows["answers"].append({**who, "output": 0, "shown": [], "cell_accuracy": None, **answer, **known})
    return rows


def score_rows(study: str, arm: str, result: Mapping[str, Any]) -> list[Row]:
    """Return one row per score of an evaluation: by its set, how it was answered (`method`), rule and question.

    What one way of answering gains over another has the rule "gain" and the ways as its question. `seeds` are those that
    an arm's scores are over, as text; None where that was not written. Intervals of results that do not tell their
    `confidence` are of 95 %.
    """
    seeds = ", ".join(str(seed) for seed in result.get("seeds", ())) or None
    about = {"study": study, "arm": arm, "seeds": seeds, "confidence": result.get("confidence", 0.95)}
    return [
        about | {"version": result.get(f"{path[0]}/version")} | _described(*path) | score
        for path, score in read_record(result).items()
    ]


def _described(name: str, *path: str) -> Row:
    *ways, rule = path
    if rule == "gain":
        return {"set": name, "method": "", "rule": "gain", "question": "/".join(ways)}
    if path[0] == "accuracy":
        return {"set": name, "method": "greedy", "rule": "accuracy", "question": "/".join(path[1:]) or "all"}
    method = ", ".join(["greedy" if "greedy" in ways else "voting", *(way for way in ways if way != "greedy")])
    return {"set": name, "method": method, "rule": rule, "question": ""}


def read_data(folder: Folder, study: str, config: Mapping[str, Any]) -> list[Row]:
    """Read the manifests of the generated datasets that a config uses, from <storage>/data. Raises UserError."""
    used = {source.get("dataset") for source in config_value(config, "data.sources", {}).values()}
    rows = []
    for name in folder.names():
        manifest = folder.read_json(f"{name}/manifest.json", ManifestShape) if name in used else None
        if manifest:
            reasons = manifest.get("rejected") or {}
            row = {"study": study, "dataset": name, "kind": manifest.get("kind", ""), "reasons": dict(reasons)}
            row |= {"tasks": manifest.get("num_tasks", len(manifest.get("tasks", {})))}
            row |= {key: manifest.get(key, 0) for key in ("examples", "attempts", "duplicates", "gave_up")}
            rows.append(row | {"rejected": sum(reasons.values()), "timed_out": len(manifest.get("timed_out") or ())})
    return rows
