"""What the files of a study say, as rows of frames: pure functions from parsed JSON and YAML to dictionaries."""

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from arc_ray.config import value_name
from arc_ray.errors import UserError
from arc_ray.scores.records import read_record

Row = dict[str, Any]
if TYPE_CHECKING:
    # pandas annotates what it returns as unions of everything possible, which no checker can narrow.
    DataFrame = Any
    Series = Any
else:
    DataFrame, Series = pd.DataFrame, pd.Series

TRIALS = ("study", "trial", "arm", "seed", "status", "error", "steps", "seconds", "workers", "on_gpu", "plan_digest")
CSV = TRIALS[:8]
MORE = {
    "metrics": "study trial arm seed step seconds train/learned_tokens",
    "validation": "study trial arm seed step source task output solved cell_accuracy loss",
    "scores": "study arm set method rule question value low high confidence right of seeds",
    "answers": "study arm seed set task output shown input truth attempts greedy is_right greedy_right cell_accuracy",
    "data": "study dataset kind tasks examples attempts rejected duplicates gave_up timed_out reasons",
}
COLUMNS = {"trials": TRIALS, "runs": TRIALS} | {name: tuple(columns.split()) for name, columns in MORE.items()}
"""Frame of a report -> its documented columns."""


def frame(name: str, rows: Iterable[Row]) -> DataFrame:
    """Make a frame whose documented columns come first and exist even without rows; further ones keep their order."""
    rows, columns = list(rows), COLUMNS[name]
    extra = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in columns]
    return pd.DataFrame(rows, columns=pd.Index([*columns, *extra]))


def config_value(config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Look a dotted key up in a nested config; `default` where a part of the path is missing."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def scalar(value: Any) -> Any:
    """Write what is no number as text: values of a column must be comparable."""
    return value_name(value) if value is None or isinstance(value, bool | list | dict) else value


def trial_row(
    study: str,
    name: str,
    about: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    records: Sequence[Row],
    result: Mapping[str, Any] | None,
    compare: str | None,
) -> Row:
    """Describe one trial: who it is, what it varies, how it stands, the last value of every metric, what it cost.

    `about` is trial.json; None for a run that no search made, which is done once it has a result. `compare` is the
    config key that names the arm; None takes the trial's own name.
    """
    about = about or {"status": "done" if result else "running"}
    set_by_trial = about.get("overrides") or {}
    overrides = {key: scalar(value) for key, value in set_by_trial.items()}
    last: Row = dict(ChainMap(dict(result or {}), *reversed(records)))
    workers = config_value(config, "scaling.num_workers", 1)
    measured = {key: value for key, value in last.items() if "/" in key and isinstance(value, int | float)}
    return {
        "study": study,
        "trial": str(about.get("trial") or name),
        "arm": name if compare is None else value_name(set_by_trial.get(compare, config_value(config, compare, name))),
        "seed": overrides.pop("seed", config_value(config, "seed", 0)),
        "status": about.get("status", "running"),
        "error": about.get("error"),
        "steps": last.get("steps", last.get("step", 0)),
        "seconds": last.get("seconds", 0.0),
        "workers": max(workers) if isinstance(workers, list) else 1 if workers == "auto" else workers,
        "on_gpu": config_value(config, "scaling.use_gpu", False) is True,
        **overrides,
        **measured,
    }


def trials_csv(trials: DataFrame) -> str:
    """Write trials.csv, a line a trial by name: the columns of `CSV`, the keys that trials set, every metric's last value.

    Keys have a dot or are words of the config, metrics a slash; what a trial does not have is empty.
    """
    others = sorted(name for name in trials.columns if name not in TRIALS)
    columns = [*CSV, *(n for n in others if "/" not in n), *(n for n in others if "/" in n)]
    # Counts that some trials lack would be written as 480.0.
    return trials[columns].sort_values(["study", "trial"]).convert_dtypes().to_csv(index=False)


def metric_rows(trial: Row, records: Iterable[Row]) -> list[Row]:
    """Return the trial's metric records under its name; tokens of a record without any are those of its step."""
    rows, tokens = [], 0.0
    for record in records:
        tokens = record.get("train/learned_tokens", tokens)
        rows.append({**_who(trial), **record, "train/learned_tokens": tokens})
    return rows


def validation_rows(trial: Row, step: int, outcome: Mapping[str, Any]) -> list[Row]:
    """Return one row per validation view of one step; names are <source>/<task id>/<output>."""
    rows = []
    columns = (outcome[key] for key in ("names", "solved", "cell_accuracy", "loss"))
    for name, solved, cell_accuracy, loss in zip(*columns, strict=True):
        source, *task, output = name.split("/")
        where = {"step": step, "source": source, "task": "/".join(task), "output": int(output)}
        rows.append({**_who(trial), **where, "solved": bool(solved), "cell_accuracy": cell_accuracy, "loss": loss})
    return rows


def score_rows(study: str, arm: str, result: Mapping[str, Any]) -> list[Row]:
    """Return one row per score of an evaluation: by its set, how it was answered (`method`), rule and question.

    What one way of answering gains over another has the rule "gain" and the ways as its question. `seeds` are those that
    an arm's scores are over, as text; None where that was not written. Intervals of results that do not tell their
    `confidence` are of 95 %.
    """
    seeds = ", ".join(str(seed) for seed in result.get("seeds", ())) or None
    about = {"study": study, "arm": arm, "seeds": seeds, "confidence": result.get("confidence", 0.95)}
    return [about | _described(*path) | score for path, score in read_record(result).items()]


def _described(name: str, *path: str) -> Row:
    *ways, rule = path
    if rule == "gain":
        return {"set": name, "method": "", "rule": "gain", "question": "/".join(ways)}
    if path[0] == "accuracy":
        return {"set": name, "method": "greedy", "rule": "accuracy", "question": "/".join(path[1:]) or "all"}
    method = ", ".join(["greedy" if "greedy" in ways else "voting", *(way for way in ways if way != "greedy")])
    return {"set": name, "method": method, "rule": rule, "question": ""}


def answer_rows(study: str, arm: str, answers: Iterable[Row], seed: int | None = None) -> list[Row]:
    """Return one row per answered output; `greedy_right` is None where there is no greedy grid or no truth."""
    who = {"study": study, "arm": arm, "seed": seed}
    rows = []
    for answer in answers:
        greedy, truth = answer.get("greedy"), answer.get("truth")
        right = None if greedy is None or truth is None else greedy == truth
        known = {"truth": truth, "greedy": greedy, "greedy_right": right}
        rows.append({**who, "output": 0, "shown": [], "cell_accuracy": None, **answer, **known})
    return rows


def data_row(study: str, dataset: str, manifest: Mapping[str, Any]) -> Row:
    """Sum a generated dataset's manifest up; `reasons` says why examples were rejected and how many."""
    reasons = manifest.get("rejected") or {}
    return {
        "study": study,
        "dataset": dataset,
        "kind": manifest.get("kind", ""),
        "tasks": manifest.get("num_tasks", len(manifest.get("tasks", {}))),
        **{key: manifest.get(key, 0) for key in ("examples", "attempts", "duplicates", "gave_up")},
        "rejected": sum(reasons.values()),
        "timed_out": len(manifest.get("timed_out") or ()),
        "reasons": dict(reasons),
    }


def check_keys(value: object, keys: Iterable[str], where: str) -> None:
    """Refuse a file that is not what a study writes. Raises UserError naming file and missing key."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise UserError(f'{where}: "{key}" is missing; was the file changed by hand, or only partly copied?')


def _who(trial: Row) -> Row:
    return {key: trial[key] for key in TRIALS[:4]}
