"""The tables of the page: arms, effects, puzzles, plans, cost. Plain values; the template writes them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from arc_ray.report.drawing import round_step
from arc_ray.report.frames import Column, Frame, Row, config_value, scalar
from arc_ray.report.load import Report
from arc_ray.report.words import is_number, number, setting, setting_value, show, word
from arc_ray.tasks.task import puzzle_of

MOST_PUZZLES = 40
"""Puzzles shown in the comparison by puzzle: those on which the arms differ most."""


@dataclass(frozen=True)
class Axis:
    """A horizontal axis in percent of its width, for intervals drawn as page elements."""

    low: float
    high: float
    ticks: tuple[float, ...] = ()

    def __call__(self, value: float) -> float:
        return round(100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low), 2)


def trials_at(trials: Frame, arm: str, values: Mapping[str, Any]) -> Frame:
    """Select an arm's trials of one setting (config key -> value), all seeds."""
    here = trials[trials["arm"] == arm]
    for key, value in values.items():
        if key in here:
            here = here[here[key].isna() if value != value else here[key] == scalar(value)]
    return here


def chosen_settings(report: Report) -> dict[str, Row]:
    """Return each arm's setting: the analysis's choice, or so far the best mean of the metric over seeds."""
    if report.analysis:
        return {arm["arm"]: dict(arm.get("setting") or {}) for arm in report.analysis.get("arms", [])}
    if report.kind in ("run", "runs"):
        return {arm: {} for arm in report.arms}
    chosen: dict[str, Row] = {}
    for arm, trials in report.measured.groupby("arm", sort=False):
        means = trials.groupby(report.varied, dropna=False)[report.metric].mean() if report.varied else None
        best = means.idxmax() if means is not None else ()
        values = best if isinstance(best, tuple) else (best,)
        chosen[str(arm)] = dict(zip(report.varied, values, strict=True))
    return chosen


def best_trial(report: Report) -> str | None:
    """Return the finished trial with the best metric, ties by cell accuracy; until one has finished, of any so far.

    None before the first validation.
    """
    if not len(report.measured):
        return None
    done = report.measured[report.measured["status"] == "done"]
    trials = done if len(done) else report.measured
    by = [name for name in (report.metric, "eval/cell_accuracy") if name in trials]
    return str(trials.sort_values(by, ascending=False, kind="stable").iloc[0]["trial"])


def effect_axis(effects: Sequence[Mapping[str, Any]]) -> Axis:
    """Make one axis for all effects, with zero on it and round ticks; no difference of shares is larger than 1.

    Intervals of older results may be wider: their ends are cut.
    """
    ends = [0.0, *(effect[end] for effect in effects for end in ("low", "high"))]
    room = 0.08 * (max(ends) - min(ends)) or 0.01
    low, high = max(min(ends) - room, -1.05), min(max(ends) + room, 1.05)
    step = max(round_step((high - low) / 7), 0.01)
    ticks = tuple(round(i * step, 6) for i in range(math.ceil(low / step), math.floor(high / step) + 1))
    return Axis(low, high, ticks)


def arm_rows(report: Report) -> tuple[list[str], list[Row]]:
    """Return the headings of further findings and one row per arm of the analysis, all as written."""
    analysis, metric = report.analysis or {}, report.metric
    arms = analysis.get("arms", [])
    level, tokens = analysis.get("steps_to_loss_level"), analysis.get("equal_tokens_at")
    titles = {
        "loss_at_step_0": "validation loss before step 1",
        "steps_to_loss": f"steps to loss {number(level)}" if is_number(level) else "steps to the same loss",
        "equal_tokens": f"{word(metric).label} at {number(tokens) if is_number(tokens) else 'equal'} learned tokens",
    }
    titles = {key: title for key, title in titles.items() if {a["arm"] for a in arms} & set(analysis.get(key) or {})}
    rows = [
        {
            "name": arm["arm"],
            "setting": setting(arm.get("setting") or {}) or "the only one",
            "value": show(arm.get("value"), metric),
            "value_choosing": show(arm.get("value_choosing"), metric),
            "findings": [show(analysis[k].get(arm["arm"]), metric if k == "equal_tokens" else "") for k in titles],
            "num_seeds": len(arm.get("seeds") or ()),
        }
        for arm in arms
    ]
    return list(titles.values()), rows


def pairing(report: Report, chosen: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Say which arms were trained on the same rows in the same order, seed by seed, as their plans show.

    None before the analysis, and where plans were not copied along.
    """
    if not report.analysis:
        return None
    digests = {arm: trials_at(report.trials, arm, values).set_index("seed") for arm, values in chosen.items()}
    found: set[frozenset[tuple[str, ...]]] = set()
    for seed in {seed for arm in report.analysis["arms"] for seed in arm.get("seeds") or ()}:
        by_plan: dict[str, list[str]] = {}
        for arm, trials in digests.items():
            digest = trials["plan_digest"].get(seed)
            if not isinstance(digest, str):
                return None
            by_plan.setdefault(digest, []).append(arm)
        found.add(frozenset(tuple(arms) for arms in by_plan.values()))
    if not found:
        return None
    if len(found) > 1:
        return "Which arms trained on the same rows differs from seed to seed."
    groups = sorted(found.pop())
    together, alone = [arms for arms in groups if len(arms) > 1], [arms[0] for arms in groups if len(arms) == 1]
    if not together:
        return "The arms were trained on different rows: their data or their epochs differ."
    parts = [f"{' and '.join(arms)} were trained on the same rows in the same order" for arms in together]
    parts += [f"{', '.join(alone)} on rows of {'its' if len(alone) == 1 else 'their'} own"] if alone else []
    return f"With each seed, {'; '.join(parts)}."


def puzzle_table(report: Report, chosen: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Compare arms puzzle by puzzle: share solved at the end of each arm's chosen setting, over seeds and outputs.

    The puzzles on which the arms differ most come first; empty with fewer than two arms.
    """
    tables = {}
    for arm, values in chosen.items():
        trials = trials_at(report.trials, arm, values)
        done = report.validation[report.validation["trial"].isin(trials["trial"])]
        last = done[done["step"] == done.groupby("trial")["step"].transform("max")]
        if len(last):
            tables[arm] = last.groupby(last["task"].map(puzzle_of))["solved"].agg(["mean", "size"])
    if len(tables) < 2:
        return []
    values = pd.DataFrame({arm: table["mean"] for arm, table in tables.items()}).dropna()
    sizes = {arm: table["size"] for arm, table in tables.items()}
    order = (values.max(axis=1) - values.min(axis=1)).sort_values(ascending=False, kind="stable").index
    return [
        {"puzzle": p, "values": values.loc[p].to_dict(), "of": {arm: int(size.loc[p]) for arm, size in sizes.items()}}
        for p in order
    ]


def plan_rows(report: Report) -> list[Row]:
    """Say what one trial of each arm and number of epochs trains on, from the trials that ran to their end."""
    if "plan/views" not in report.trials:
        return []
    planned = report.trials[report.trials["plan/views"].notna()]
    sources = [name for name in planned.columns if name.startswith("plan/views/")]
    rows: dict[tuple[str, str], Row] = {}
    for trial in planned.to_dict("records"):
        epochs = setting_value(trial.get("train.epochs", config_value(report.config, "train.epochs", 1)))
        row = {name: trial.get(f"plan/{name}") for name in ("views", "dropped", "rows", "fill")}
        counts = {name.removeprefix("plan/views/"): trial[name] for name in sources if is_number(trial[name])}
        row |= {"arm": trial["arm"], "epochs": epochs, "learned": trial.get("plan/learned_tokens"), "sources": counts}
        rows.setdefault((trial["arm"], epochs), row)
    return sorted(rows.values(), key=lambda row: (report.arms.index(row["arm"]), row["epochs"]))


def cost_rows(report: Report) -> list[Row]:
    """Sum what was spent: by arm, for the runs made first, and in total."""
    by_arm = [] if report.kind == "runs" else report.trials.groupby("arm", sort=False)
    groups = [(arm, "trials", trials) for arm, trials in by_arm]
    groups += [(name, "made first", run) for name, run in report.runs.groupby("arm", sort=False)]
    groups.append(("all", "total", pd.concat([report.trials, report.runs]) if len(report.runs) else report.trials))
    return [_cost(report.metrics, str(name), kind, trials) for name, kind, trials in groups if len(trials)]


def _cost(metrics: Frame, name: str, kind: str, trials: Frame) -> dict[str, Any]:
    steps = metrics[metrics["trial"].isin(trials["trial"]) & (metrics["step"] > 0)]
    seconds, stall = _column(steps, "train/step_seconds"), _column(steps, "data/stall_share")
    on_gpus = trials[trials["on_gpu"].astype(bool)]
    gpu_hours = float((on_gpus["seconds"] * on_gpus["workers"]).sum()) / 3600
    return {
        "name": name,
        "kind": kind,
        "trials": len(trials),
        "steps": int(trials["steps"].sum()),
        "seconds": float(trials["seconds"].sum()),
        "gpu_hours": gpu_hours or None,
        "learned_tokens": float(_column(trials, "train/learned_tokens").sum()),
        "train/tokens_per_second": float(_column(steps, "train/tokens_per_second").median()),
        "train/fill": float(_column(steps, "train/fill").mean()),
        "data/stall_share": float((stall * seconds).sum() / seconds.sum()) if seconds.sum() > 0 else None,
    }


def _column(rows: Frame, name: str) -> Column:
    """Return a column, empty where nothing has logged it yet: means and medians are then NaN, sums 0."""
    return rows[name].astype(float) if name in rows else pd.Series(dtype=float)
