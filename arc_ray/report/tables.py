"""The tables of the page: arms, effects, puzzles, plans, cost. Plain values; the template writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from arc_ray.report.charts import Scale
from arc_ray.report.frames import DataFrame, Row, Series, config_value, scalar
from arc_ray.report.load import Report
from arc_ray.report.words import is_number, number, setting, setting_value, show, word
from arc_ray.tasks.task import puzzle_of

MOST_PUZZLES = 40
"""Puzzles shown in the comparison by puzzle: those on which the arms differ most."""


def chosen_trials(report: Report, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, DataFrame]:
    """Select each arm's trials of its setting (config key -> value), all seeds."""
    found = {}
    for arm, values in settings.items():
        trials = report.trials[report.trials["arm"] == arm]
        for key, value in values.items():
            if key in trials:
                trials = trials[trials[key].isna() if value != value else trials[key] == scalar(value)]
        found[arm] = trials
    return found


def chosen_settings(report: Report) -> dict[str, Row]:
    """Return each arm's setting: the analysis's choice, or so far the best mean of the metric over seeds."""
    if report.analysis:
        return {arm["arm"]: dict(arm.get("setting") or {}) for arm in report.analysis.get("arms", [])}
    if not report.is_search:
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


def effect_axis(effects: Sequence[Mapping[str, Any]]) -> Scale:
    """Make one axis for all effects, in percent of its width and with zero on it; no difference is larger than 1.

    Intervals of older results may be wider: their ends are cut.
    """
    ends = [0.0, *(effect[end] for effect in effects for end in ("low", "high"))]
    room = 0.08 * (max(ends) - min(ends)) or 0.01
    return Scale(max(min(ends) - room, -1.05), min(max(ends) + room, 1.05), 0.0, 100.0)


def answer_view(report: Report) -> dict[str, Any]:
    """Lay out the effects, those asked about first, and the arms with headings of further findings; all as written."""
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
    effects = sorted(analysis.get("effects", ()), key=lambda effect: effect["metric"] != metric)
    axis = effect_axis(effects) if effects else None
    return {"effects": effects, "axis": axis, "findings": list(titles.values()), "arm_rows": rows}


def pairing(report: Report, chosen: Mapping[str, DataFrame]) -> str | None:
    """Say which arms were trained on the same rows in the same order, seed by seed, as their plans show.

    `chosen` has each arm's trials. None before the analysis, and where plans were not copied along.
    """
    seeds = sorted({seed for arm in (report.analysis or {}).get("arms", ()) for seed in arm.get("seeds") or ()})
    digests = {arm: trials.drop_duplicates("seed").set_index("seed")["plan_digest"] for arm, trials in chosen.items()}
    plans = pd.DataFrame(digests).reindex(seeds)
    if plans.empty or plans.isna().any(axis=None):
        return None
    # Arms with the same number were trained on the same rows.
    alike = {tuple(pd.factorize(row)[0]) for row in plans.to_numpy()}
    if len(alike) > 1:
        return "Which arms trained on the same rows differs from seed to seed."
    groups: dict[int, list[str]] = {}
    for arm, group in zip(plans, alike.pop(), strict=True):
        groups.setdefault(group, []).append(arm)
    alone = [arms[0] for arms in groups.values() if len(arms) == 1]
    if len(alone) == len(groups):
        return "The arms were trained on different rows: their data or their epochs differ."
    together = (" and ".join(arms) for arms in groups.values() if len(arms) > 1)
    parts = [f"{arms} were trained on the same rows in the same order" for arms in together]
    parts += [f"{', '.join(alone)} on rows of {'its' if len(alone) == 1 else 'their'} own"] if alone else []
    return f"With each seed, {'; '.join(parts)}."


def puzzle_table(report: Report, chosen: Mapping[str, DataFrame]) -> list[Row]:
    """Compare arms puzzle by puzzle: share solved at the end of each arm's chosen trials, over seeds and outputs.

    The puzzles on which the arms differ most come first; empty with fewer than two arms.
    """
    done = report.validation[
        report.validation["trial"].isin([n for trials in chosen.values() for n in trials["trial"]])
    ]
    last = done[done["step"] == done.groupby("trial")["step"].transform("max")]
    arms = [arm for arm in chosen if arm in set(last["arm"])]
    if len(arms) < 2:
        return []
    table = last.groupby([last["task"].map(puzzle_of), "arm"])["solved"].agg(["mean", "size"]).unstack()
    values = table["mean"][arms].dropna()
    order = (values.max(axis=1) - values.min(axis=1)).sort_values(ascending=False, kind="stable").index
    sizes = table["size"].loc[order, arms].astype(int)
    return [{"puzzle": p, "values": values.loc[p].to_dict(), "of": sizes.loc[p].to_dict()} for p in order]


def plan_table(report: Report) -> list[Row]:
    """Say what one trial of each arm and number of epochs trains on, from the trials that ran to their end."""
    planned = report.trials.dropna(subset=["plan/views"]) if "plan/views" in report.trials else report.trials[:0]
    rows: dict[tuple[int, str], Row] = {}
    for trial in planned.to_dict("records"):
        epochs = setting_value(trial.get("train.epochs", config_value(report.config, "train.epochs", 1)))
        counts = {name.removeprefix("plan/views/"): n for name, n in trial.items() if name.startswith("plan/views/")}
        row = {name: trial.get(f"plan/{name}") for name in ("views", "dropped", "rows", "fill", "learned_tokens")}
        row |= {"arm": trial["arm"], "epochs": epochs, "sources": {k: n for k, n in counts.items() if is_number(n)}}
        rows.setdefault((report.arms.index(trial["arm"]), epochs), row)
    return [rows[key] for key in sorted(rows)]


def cost_table(report: Report) -> list[Row]:
    """Sum what was spent: by arm, for the runs made first, and in total."""
    by_arm = [] if report.kind == "runs" else report.trials.groupby("arm", sort=False)
    groups = [(arm, "trials", trials) for arm, trials in by_arm]
    groups += [(name, "made first", run) for name, run in report.runs.groupby("arm", sort=False)]
    groups.append(("all", "total", pd.concat([report.trials, report.runs]) if len(report.runs) else report.trials))
    return [_cost(report.metrics, str(name), kind, trials) for name, kind, trials in groups if len(trials)]


def _cost(metrics: DataFrame, name: str, kind: str, trials: DataFrame) -> dict[str, Any]:
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


def _column(rows: DataFrame, name: str) -> Series:
    """Return a column, empty where nothing has logged it yet: means and medians are then NaN, sums 0."""
    return rows[name].astype(float) if name in rows else pd.Series(dtype=float)
