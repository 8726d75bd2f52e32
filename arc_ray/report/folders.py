"""The files of a study, read: local or from a bucket, whole or half copied; what is missing reads as nothing."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from arc_ray.errors import UserError
from arc_ray.report import frames
from arc_ray.report.frames import Row, config_value
from arc_ray.storage import Folder


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
    trial = frames.trial_row(study, name, about, config, records, result, compare) | {"plan_digest": digest}
    validation: list[Row] = []
    for file in (folder / "validation").names():
        outcome = read_json_file(folder, f"validation/{file}")
        frames.check_keys(outcome, ("names", "solved", "cell_accuracy", "loss"), f"{folder.uri}/validation/{file}")
        step = int(file.removeprefix("step-").removesuffix(".json"))
        validation += frames.validation_rows(trial, step, outcome)
    return TrialRows(trial, frames.metric_rows(trial, records), validation)


def read_evaluations(place: Folder, runs: Iterable[Folder]) -> tuple[list[Row], list[Row]]:
    """Read scores and answers, as rows, of a folder and of the runs made first. Raises UserError.

    They are in an evaluation's own folder, evaluate/ (of a run), or evaluate/<arm>/ and its seed-<n>/ (of a study).
    """
    evaluate = place / "evaluate"
    folders = [(place.name, place if place.exists("answers.json") else evaluate)]
    folders += [(name, evaluate / name) for name in evaluate.names() if (evaluate / name).exists("result.json")]
    folders += [(run.name, run / "evaluate") for run in runs]
    scores: list[Row] = []
    answers: list[Row] = []
    for arm, folder in folders:
        result = read_json_file(folder, "result.json") or {}
        arm = result.get("arm", arm)
        scores += frames.score_rows(place.name, arm, result)
        seeds = [name for name in folder.names() if name.startswith("seed-")]
        for seed in seeds or [None]:
            answered = folder / seed if seed else folder
            found = read_json_file(answered, "answers.json") or []
            for answer in found:
                frames.check_keys(answer, ("set", "task", "attempts", "is_right"), f"{answered.uri}/answers.json")
            answers += frames.answer_rows(place.name, arm, found, int(seed.removeprefix("seed-")) if seed else None)
    return scores, answers


def read_data(folder: Folder, study: str, config: Mapping[str, Any]) -> list[Row]:
    """Read the manifests of the generated datasets that a config uses, from <storage>/data. Raises UserError."""
    used = {source.get("dataset") for source in config_value(config, "data.sources", {}).values()}
    manifests = {name: read_json_file(folder, f"{name}/manifest.json") for name in folder.names() if name in used}
    return [frames.data_row(study, name, manifest) for name, manifest in manifests.items() if manifest]


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
