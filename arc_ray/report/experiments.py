"""Folders that Ray Tune itself writes, read as trials: `<study>/tune/search`, or an experiment of anybody's.

    experiment_state-<time>.json   Tune's trials: id, status, what was varied, folder; one file a call of Tune
    <trial folder>/result.json     one report a line
    <trial folder>/error.txt       why it failed

Nothing pickled is opened. What Tune was told is less than what a trial's own run folder holds: validations, no losses
between them, no cost.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from arc_ray.errors import UserError
from arc_ray.report import frames
from arc_ray.report.folders import TrialRows
from arc_ray.report.frames import Row
from arc_ray.storage import Folder

TUNE_ENDINGS = {"TERMINATED": "done", "ERROR": "failed"}
"""Tune's words for ended trials; one that the scheduler stopped has ended to Tune like any other."""


def is_experiment(folder: Folder) -> bool:
    """Tell whether Ray Tune wrote this folder."""
    return any(name.startswith("experiment_state-") for name in folder.names())


def read_experiment(place: Folder) -> list[TrialRows]:
    """Read the trials of a Tune experiment folder, in the order in which they were started. Raises UserError."""
    states = sorted(name for name in place.names() if name.startswith("experiment_state-"))
    return [_read_trial(place, about) for name in states for about in _trials_of(place, name)]


def _trials_of(place: Folder, name: str) -> Iterator[dict[str, Any]]:
    try:
        for state, *_ in (place.read_json(name) or {})["trial_data"]:
            yield json.loads(state)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{place.uri}/{name} is no state of a Tune experiment: {error}; copy the folder again"
        ) from error


def _read_trial(place: Folder, about: Mapping[str, Any]) -> TrialRows:
    folder = place / about["relative_logdir"]
    lines, error = (
        folder.read_bytes(name).decode().strip().splitlines() if folder.exists(name) else []
        for name in ("result.json", "error.txt")
    )
    records = [_record(json.loads(line)) for line in lines if line]
    status = TUNE_ENDINGS.get(about["status"], "running")
    trial = {
        "trial": about["trial_id"],
        "status": status,
        "overrides": dict(_varied(about.get("evaluated_params") or {})),
        "error": (error or ["no reason given"])[-1] if status == "failed" else None,
    }
    row = frames.trial_row(place.name, about["trial_id"], trial, {"start": place.name}, records, None, "start")
    return TrialRows(row | {"plan_digest": None}, frames.metric_rows(row, records))


def _record(report: Mapping[str, Any]) -> Row:
    """Take from one report what was measured; Tune adds times, places and the trial's whole config."""
    record = {"step": report.get("training_iteration", 0), "seconds": report.get("time_total_s", 0.0)}
    return record | {key: value for key, value in report.items() if "/" in key or key in ("step", "seconds")}


def _varied(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten what Tune varied to dotted keys; a search of ours puts them under `point`."""
    for key, value in parameters.items():
        name = f"{prefix}{key}".removeprefix("point/")
        if isinstance(value, Mapping):
            yield from _varied(value, "" if name == "point" else f"{name}.")
        else:
            yield name.replace("/", "."), value
