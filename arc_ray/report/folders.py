"""The files of a study, a run, an evaluation or a Ray Tune experiment as rows of frames.

They lie on a disk or in a bucket, whole or half copied: what is missing reads as nothing. Of an experiment that Ray Tune
wrote, the study's own or anybody's, nothing pickled is opened; it tells less than our trials do, but these read the same:

    experiment_state-<time>.json   Tune's trials: id, status, what was varied, folder; one file a call of Tune
    <trial folder>/result.json     one report a line
    <trial folder>/error.txt       why it failed
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from arc_ray.errors import UserError
from arc_ray.report.frames import WHO, Row, config_value, trial_row
from arc_ray.scores.records import read_record
from arc_ray.storage import Folder

TUNE_ENDINGS = {"TERMINATED": "done", "ERROR": "failed"}
"""Tune's words for ended trials; one that the scheduler stopped has ended to Tune like any other."""


class TrialRows(NamedTuple):
    """One trial's files as rows of frames."""

    trial: Row
    metrics: Sequence[Row]
    validation: Sequence[Row] = ()


def read_trial_folder(folder: Folder, study: str, name: str, compare: str | None) -> TrialRows:
    """Read a run folder; `compare` is the config key that names its arm, None takes its own name. Raises UserError."""
    config, about = read_yaml(folder, "config.yaml"), read_json_file(folder, "trial.json")
    records, _ = _read(folder, "metrics.jsonl", "JSON", folder.read_json_lines)
    result = read_json_file(folder, "result.json")
    plan = folder.read_bytes("plan.parquet") if folder.exists("plan.parquet") else b""
    digest = hashlib.blake2b(plan, digest_size=6).hexdigest() if plan else None
    trial = trial_row(study, name, about, config, records, result, compare) | {"plan_digest": digest}
    validation: list[Row] = []
    for file in (folder / "validation").names():
        outcome = read_json_file(folder, f"validation/{file}")
        check_keys(outcome, ("names", "solved", "cell_accuracy", "loss"), f"{folder.uri}/validation/{file}")
        step = int(file.removeprefix("step-").removesuffix(".json"))
        columns = (outcome[key] for key in ("names", "solved", "cell_accuracy", "loss"))
        for view, solved, cell_accuracy, loss in zip(*columns, strict=True):
            source, *task, output = view.split("/")
            where = _who(trial) | {"step": step, "source": source, "task": "/".join(task), "output": int(output)}
            validation.append({**where, "solved": bool(solved), "cell_accuracy": cell_accuracy, "loss": loss})
    return TrialRows(trial, _metric_rows(trial, records), validation)


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
    return [_read_tune_trial(place, about) for name in states for about in _tune_trials(place, name)]


def _tune_trials(place: Folder, name: str) -> Iterator[dict[str, Any]]:
    try:
        for state, *_ in (place.read_json(name) or {})["trial_data"]:
            yield json.loads(state)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{place.uri}/{name} is no state of a Tune experiment: {error}; copy the folder again"
        ) from error


def _read_tune_trial(place: Folder, about: Mapping[str, Any]) -> TrialRows:
    folder = place / about["relative_logdir"]
    lines, error = (
        folder.read_bytes(name).decode().strip().splitlines() if folder.exists(name) else []
        for name in ("result.json", "error.txt")
    )
    records = []
    for report in (json.loads(line) for line in lines if line):
        record = {"step": report.get("training_iteration", 0), "seconds": report.get("time_total_s", 0.0)}
        # Tune adds times, places and the trial's whole config to what was measured.
        records.append(record | {key: v for key, v in report.items() if "/" in key or key in ("step", "seconds")})
    status = TUNE_ENDINGS.get(about["status"], "running")
    trial = {
        "trial": about["trial_id"],
        "status": status,
        "overrides": dict(_varied(about.get("evaluated_params") or {})),
        "error": (error or ["no reason given"])[-1] if status == "failed" else None,
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


def read_evaluations(place: Folder, runs: Iterable[Folder]) -> tuple[list[Row], list[Row], list[Row]]:
    """Read scores, answers and budgets, as rows, of a folder and of the runs made first. Raises UserError.

    They are in an evaluation's own folder, evaluate/ (of a run), or evaluate/<arm>/ and its seed-<n>/ (of a study).
    """
    evaluate = place / "evaluate"
    folders = [(place.name, place if place.exists("answers.json") else evaluate)]
    folders += [(name, evaluate / name) for name in evaluate.names() if (evaluate / name).exists("result.json")]
    folders += [(run.name, run / "evaluate") for run in runs]
    scores: list[Row] = []
    answers: list[Row] = []
    budgets: list[Row] = []
    for arm, folder in folders:
        result = read_json_file(folder, "result.json") or {}
        arm = result.get("arm", arm)
        scores += score_rows(place.name, arm, result)
        seeds = [name for name in folder.names() if name.startswith("seed-")]
        for seed in seeds or [None]:
            answered = folder / seed if seed else folder
            who = {"study": place.name, "arm": arm, "seed": int(seed.removeprefix("seed-")) if seed else None}
            budgets += [who | budget for budget in read_json_file(answered, "curves.json") or []]
            for answer in read_json_file(answered, "answers.json") or []:
                check_keys(answer, ("set", "task", "attempts", "is_right"), f"{answered.uri}/answers.json")
                greedy, truth = answer.get("greedy"), answer.get("truth")
                right = None if greedy is None or truth is None else greedy == truth
                known = {"truth": truth, "greedy": greedy, "greedy_right": right}
                answers.append({**who, "output": 0, "shown": [], "cell_accuracy": None, **answer, **known})
    return scores, answers, budgets


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
        manifest = read_json_file(folder, f"{name}/manifest.json") if name in used else None
        if manifest:
            reasons = manifest.get("rejected") or {}
            row = {"study": study, "dataset": name, "kind": manifest.get("kind", ""), "reasons": dict(reasons)}
            row |= {"tasks": manifest.get("num_tasks", len(manifest.get("tasks", {})))}
            row |= {key: manifest.get(key, 0) for key in ("examples", "attempts", "duplicates", "gave_up")}
            rows.append(row | {"rejected": sum(reasons.values()), "timed_out": len(manifest.get("timed_out") or ())})
    return rows


def read_json_file(folder: Folder, name: str) -> Any:
    """Read a JSON file; None if there is none. Raises UserError for a broken one."""
    return _read(folder, name, "JSON", folder.read_json)


def read_yaml(folder: Folder, name: str) -> dict[str, Any]:
    """Read a YAML file of keys and values; empty if there is none. Raises UserError for a broken one."""
    if not folder.exists(name):
        return {}
    value = _read(folder, name, "YAML", lambda name: yaml.load(folder.read_bytes(name), Loader=yaml.CSafeLoader))
    return value if isinstance(value, dict) else {}


def _read(folder: Folder, name: str, what: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(name)
    except (ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{folder.uri}/{name} is no {what}: {said}; copy the folder again") from error


def check_keys(value: object, keys: Iterable[str], where: str) -> None:
    """Refuse a file that is not what a study writes. Raises UserError naming file and missing key."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise UserError(f'{where}: "{key}" is missing; was the file changed by hand, or only partly copied?')
