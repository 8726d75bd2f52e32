"""The frames of a report, and what a trial's files say as a row of them and as a line of trials.csv.

Names with a slash are metrics, names with a dot config keys. Shares lie between 0 and 1, times are in seconds, losses
in nats per learned token. `arm` is the value of the compared config key (`start` unless the study says otherwise) as
text. Every frame has its documented columns even where it has no rows.

trials      one row a trial; for a single run one row, for several runs one row each
    study, trial             name of the folder that was read; name of the trial
    arm, seed                what is compared; seed of its randomness
    status                   "running" (or cut off), "done", "stopped" (early, by the scheduler) or "failed"
    error                    why it failed; None if it did not
    steps, seconds           optimizer steps made; seconds since its start
    workers, on_gpu          training workers; whether each has a GPU
    plan_digest              of plan.parquet: trials with the same one train on the same rows in the same order
    train.lr, start...       every config key that the trial sets; true, null and lists as JSON text
    eval/*, train/*, data/*  last value of every metric logged
    plan/*                   rows, views, tokens and dropped views; only for a trial that ran to its end
runs        the runs made first (`runs:` in the config), with the columns of `trials`; `arm` is their name
metrics     one row a logged step of a trial or run: study, trial, arm, seed, step, seconds, then every metric;
            `train/learned_tokens` is the tokens learned so far. Step 0 has eval/* only
validation  one row a trial, validation step and output: study, trial, arm, seed, step, source, task, output (number
            within the task), solved (greedy), cell_accuracy, loss
scores      one row a score: study, arm, set, method ("greedy", "voting", "voting, untuned"...; "" of a gain), rule
            ("per_output", "per_task_mean", "strict"...; "accuracy" for questions; "gain" for a difference), question
            (its kind or "all"; of a gain what is gained by, such as "tuning"; "" for grids), value, low, high,
            confidence (of the interval), right, of, seeds (of a study's arm: the seeds that it is the mean of, such as
            "1, 2, 3"; right and of are sums), version (the set's, such as "ARC-AGI-2 evaluation, 167 outputs")
answers     one row an answered output: study, arm, seed (None outside studies), set, task, output, shown, input, truth,
            attempts, greedy (grids as lists of lists, None where unknown), is_right (by an attempt), greedy_right,
            cell_accuracy, ending (one of `arc_ray.scores.losses.ENDINGS`), right_by (rule of selection -> whether its
            attempts are right); None where older results do not tell
budgets     one row a smaller evaluation that the answers of a set hold: study, arm, seed, set, axis ("views", "samples",
            "threshold"), x (its value), passes, tokens, seconds (spent on an output in the mean, test-time training
            in the seconds; None where not known: passes and tokens of a search, tokens and seconds of older results), tasks
            (names), solved (1 where an attempt is right), best (1 where any answer is): lists with an item an output
audit       one row an output of an audit: study, arm, seed, set, task, kind ("published", "fresh", "turned", "recoloured"),
            variant (such as "turn1"), output, right, asked (whether its prompt was short enough), known (whether the task is
            known to be in the training data), cells (of input and output), difficulty (PSO, 0 to 1)
data        one row a generated dataset: study, dataset, kind, tasks, examples, attempts, rejected, duplicates, gave_up,
            timed_out (counts of examples, but for tasks), reasons (why rejected -> count)
"""

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from arc_ray.config import value_name

Row = dict[str, Any]
if TYPE_CHECKING:
    # pandas annotates what it returns as unions of everything possible, which no checker can narrow.
    DataFrame = Any
    Series = Any
else:
    DataFrame, Series = pd.DataFrame, pd.Series

TRIALS = ("study", "trial", "arm", "seed", "status", "error", "steps", "seconds", "workers", "on_gpu", "plan_digest")
WHO, CSV = TRIALS[:4], TRIALS[:8]
MORE = {
    "metrics": "study trial arm seed step seconds train/learned_tokens",
    "validation": "study trial arm seed step source task output solved cell_accuracy loss",
    "scores": "study arm set method rule question value low high confidence right of seeds version",
    "answers": "study arm seed set task output shown input truth attempts greedy is_right greedy_right cell_accuracy"
    " ending right_by",
    "budgets": "study arm seed set axis x passes tokens seconds tasks solved best",
    "audit": "study arm seed set task kind variant output right asked known cells difficulty",
    "data": "study dataset kind tasks examples attempts rejected duplicates gave_up timed_out reasons",
}
COLUMNS = {"trials": TRIALS, "runs": TRIALS} | {name: tuple(columns.split()) for name, columns in MORE.items()}
"""Frame of a report -> its documented columns."""

TOKENS = "train/learned_tokens"
MOST_POINTS = 120
"""Points of a curve: a page need not hold each step."""
Curve = tuple[np.ndarray, np.ndarray]
"""Learned tokens and values, each (num_points,)."""


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
        "trial": name,
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


def thinned(x: np.ndarray, y: np.ndarray) -> Curve:
    """Average neighbouring points until at most `MOST_POINTS` are left."""
    if len(x) <= MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MOST_POINTS)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Average curves point by point, as far as the shortest goes."""
    end = min(xs[-1] for xs, _ in curves)
    xs = np.unique(np.concatenate([xs[xs <= end] for xs, _ in curves]))
    return xs, np.mean([np.interp(xs, *curve) for curve in curves], axis=0)


def curves_by_trial(metrics: DataFrame, metric: str) -> dict[str, Curve]:
    """Return every trial's curve of a metric that has at least two points."""
    if metric not in metrics:
        return {}
    rows = metrics[metrics[metric].notna()]
    return {
        trial: (curve[TOKENS].to_numpy(float), curve[metric].to_numpy(float))
        for trial, curve in rows.groupby("trial", sort=False)[[TOKENS, metric]]
        if len(curve) > 1
    }
