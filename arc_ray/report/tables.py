"""The tables of the page: trials, scores, gains, counting, puzzles, plans, cost. Plain values; the templates write them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from arc_ray.report.charts import Scale
from arc_ray.report.frames import DataFrame, Row, config_value, scalar
from arc_ray.report.load import Report
from arc_ray.report.words import RULES, SPENT, is_number, level, setting_value, short_key, word
from arc_ray.scores.intervals import share_over_seeds, units_of
from arc_ray.scores.losses import ENDINGS, shares_by_rule, shares_of_endings
from arc_ray.tasks.task import puzzle_of

MOST_PUZZLES = 40
"""Puzzles shown in the comparison by puzzle: those on which the arms differ most."""
MEASURES = ("eval/solved", "eval/cell_accuracy", "eval/loss", "train/loss", "steps", "train/learned_tokens")
COSTS = ("train/learned_tokens", "train/tokens_per_second", "data/stall_share", "train/fill")

METHODS = ("greedy, untuned", "voting, untuned", "greedy", "voting", "greedy, generated", "voting, generated")
"""Ways of answering, in the order of the tables."""
GAINS = {
    "untuned/voting": "voting − greedy, untuned, one attempt",
    "untuned/voting/two_attempts": "voting in two attempts − greedy in one, untuned",
    "voting": "voting − greedy, one attempt",
    "voting/two_attempts": "voting in two attempts − greedy in one",
    "tuning": "test-time training − none, two attempts",
    "tuning/greedy": "test-time training − none, one greedy attempt",
    "generated": "generated − given descriptions, two attempts",
}
"""What one way of answering gains over another, in words, by what is gained by; in the order of the tables."""

LONGEST_SIDES = (5, 10, 15, 20, 30)
"""Longest sides of grids, in cells, by which outputs are grouped."""


class Column(NamedTuple):
    """A column of the table of trials."""

    key: str
    label: str
    title: str = ""
    """What the number means and does not; empty if the label says it."""
    is_text: bool = False


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
    """Return the best finished trial; until one has finished, the best of any so far. None before the first validation."""
    done = report.measured[report.measured["status"] == "done"]
    trials = done if len(done) else report.measured
    return str(ranked(report, trials).iloc[0]["trial"]) if len(trials) else None


def ranked(report: Report, trials: DataFrame) -> DataFrame:
    """Order trials by the metric, ties by cell accuracy, best first."""
    order = [name for name in (report.metric, "eval/cell_accuracy") if name in trials]
    return trials.sort_values(order, ascending=False, kind="stable") if order else trials


def trial_columns(report: Report) -> list[Column]:
    """List the columns of the table of trials, as far as there are any: who it is, what it varies, what it measured."""
    columns = [Column("trial", "trial" if report.is_search else "run", is_text=True)]
    columns += [Column("arm", short_key(report.compare), is_text=True)] if report.is_search else []
    columns += [Column(key, short_key(key), key) for key in report.varied]
    columns += [Column("seed", "seed"), Column("status", "status", is_text=True)]
    for key in dict.fromkeys([report.metric, *MEASURES]):
        words = word(key)
        columns.append(Column(key, words.label, f"{words.meaning} {words.caution}".strip()))
    columns.append(Column("seconds", "time", "Seconds since the trial's start, starting up included."))
    return [column for column in columns if column.key in report.trials]


def effect_axis(effects: Sequence[Mapping[str, Any]]) -> Scale:
    """Make one axis for all effects, in percent of its width and with zero on it; no difference is larger than 1.

    Intervals of older results may be wider: their ends are cut.
    """
    ends = [0.0, *(effect[end] for effect in effects for end in ("low", "high"))]
    room = 0.08 * (max(ends) - min(ends)) or 0.01
    return Scale(max(min(ends) - room, -1.05), min(max(ends) + room, 1.05), 0.0, 100.0)


def score_view(report: Report) -> dict[str, Any]:
    """Lay out scores, gains and counting, with their axes and what their intervals are and hold."""
    gains, rated = gain_table(report), report.scores[report.scores["rule"].isin(RULES)]
    highest = max([0.0, *rated["value"].astype(float), *rated["high"].dropna().astype(float)])
    versions = report.scores.dropna(subset=["version"]).groupby("set", sort=False)["version"]
    return {
        "scores": score_table(report),
        "versions": {name: " / ".join(dict.fromkeys(of_set)) for name, of_set in versions},
        "score_axis": Scale(0.0, next((end for end in (0.1, 0.2, 0.5) if end >= highest), 1.0), 0.0, 100.0),
        "seeds_note": _seeds_note(report),
        "gains": gains,
        "gain_axis": effect_axis(gains),
        "confidence": " and ".join(level(share) for share in sorted(report.scores["confidence"].unique())),
        "counting": question_table(report),
        "losses": loss_table(report),
        "selections": selection_table(report),
        "endings": ENDINGS,
    }


def _seeds_note(report: Report) -> str:
    seeds = list(report.scores["seeds"].dropna().unique())
    if any("," in listed for listed in seeds):
        which = seeds[0] if len(seeds) == 1 else "each arm's own"
        return f"Scores are means over seeds ({which}), counts are added up, and intervals hold the luck of seeds and tasks."
    one = "one trial of each arm" if report.is_search else "one model"
    one = f"seed {seeds[0]} of each arm" if seeds else one
    return f"Intervals hold the luck of the tasks, not of the seeds, because {one} is evaluated."


def score_table(report: Report) -> dict[str, list[Row]]:
    """Return set -> rows of arm and method with the scores by rule; sets of questions are not among them."""
    table: dict[str, dict[tuple[str, str], Row]] = {}
    scores = report.scores[report.scores["method"].isin(METHODS) & (report.scores["rule"] != "accuracy")]
    for score in scores.to_dict("records"):
        arm, method = score["arm"], score["method"]
        row = table.setdefault(score["set"], {}).setdefault((arm, method), {"arm": arm, "method": method, "scores": {}})
        row["scores"][score["rule"]] = score
    arms = list(dict.fromkeys([*report.arms, *report.scores["arm"]]))
    order = {(arm, method): i for i, (arm, method) in enumerate((arm, method) for arm in arms for method in METHODS)}
    return {name: [rows[key] for key in sorted(rows, key=order.__getitem__)] for name, rows in table.items()}


def gain_table(report: Report) -> list[Row]:
    """Return what ways of answering gain over others, with set, arm and words for the two ways."""
    gains = report.scores[report.scores["rule"] == "gain"].to_dict("records")
    known = [row | {"words": GAINS[row["question"]]} for row in gains if row["question"] in GAINS]
    return sorted(known, key=lambda row: [*GAINS].index(row["question"]))


def question_table(report: Report) -> dict[str, dict[str, dict[str, Row]]]:
    """Return set -> question kind -> arm or run -> score; all kinds together come first.

    Accuracy by side and by number of objects, "<kind>/side_06_10" and the like, is in the frame alone.
    """
    table: dict[str, dict[str, dict[str, Row]]] = {}
    is_kind = (report.scores["rule"] == "accuracy") & ~report.scores["question"].str.contains("/", regex=False)
    for row in report.scores[is_kind].to_dict("records"):
        table.setdefault(row["set"], {}).setdefault(row["question"], {})[row["arm"]] = row
    return {name: dict(sorted(kinds.items(), key=lambda item: item[0] != "all")) for name, kinds in table.items()}


def loss_table(report: Report) -> dict[str, list[Row]]:
    """Return set -> what became of its outputs: of each arm, all of them, then by size and by number of shown pairs."""
    answers = report.answers[report.answers["ending"].notna()]
    table: dict[str, list[Row]] = {}
    for (name, arm), found in answers.groupby(["set", "arm"], sort=False):
        side = found["truth"].map(lambda grid: next(s for s in LONGEST_SIDES if max(len(grid), len(grid[0])) <= s))
        pairs = found["shown"].map(len)
        groups = [("all", found)]
        groups += [(f"sides up to {s}", part) for s, part in found.groupby(side)] if side.nunique() > 1 else []
        groups += [(f"{n} shown pairs", part) for n, part in found.groupby(pairs)] if pairs.nunique() > 1 else []
        for group, part in groups:
            shares = shares_of_endings(part["ending"].tolist(), part["task"].tolist(), report.confidence)
            table.setdefault(name, []).append({"arm": arm, "group": group, "of": len(part), "shares": shares})
    return table


def selection_table(report: Report) -> dict[str, list[Row]]:
    """Return set -> each arm's share of outputs solved by each rule of selection, beside the best that any could reach."""
    table: dict[str, list[Row]] = {}
    for (name, arm), found in report.answers[report.answers["right_by"].notna()].groupby(["set", "arm"], sort=False):
        right_by, endings, tasks = (found[column].tolist() for column in ("right_by", "ending", "task"))
        shares = shares_by_rule(right_by, endings, tasks, report.confidence)
        table.setdefault(name, []).append({"arm": arm, "shares": shares})
    return table


def budget_tables(report: Report) -> dict[tuple[str, str], DataFrame]:
    """Return (set, axis) -> a row of each arm and x: `solved` with `low` and `high`, over seeds and tasks, `best`, and what
    was `SPENT`, NaN where that is not known of each seed."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for (name, axis, arm, x), found in report.budgets.groupby(["set", "axis", "arm", "x"], sort=False):
        solved = np.array(found["solved"].tolist(), float)
        low, high = share_over_seeds(solved, units_of(found["tasks"].iloc[0])[0], report.confidence)
        values = {"solved": solved.mean(), "low": low, "high": high, "best": np.mean(found["best"].tolist())}
        values |= {kind: found[kind].astype(float).mean(skipna=False) for kind in SPENT}
        rows.setdefault((name, axis), []).append({"arm": arm, "x": x, **values})
    return {key: pd.DataFrame(found) for key, found in rows.items()}


def spent_tables(budgets: Mapping[tuple[str, str], DataFrame]) -> dict[tuple[str, str], DataFrame]:
    """Return (set, what is spent) -> a row of each arm and smaller evaluation, x being what it spends, where that is known.

    These have fewer samples of each view where there are several, else fewer views.
    """
    found = {}
    for name, axis in {name: axis for name, axis in budgets if axis != "threshold"}.items():  # samples come after views
        for kind, label in SPENT.items():
            known = budgets[name, axis].dropna(subset=[kind])
            if known[kind].nunique() > 1 and (known[kind] > 0).all():
                found[name, label] = known.assign(x=known[kind])
    return found


def puzzle_table(report: Report, chosen: Mapping[str, DataFrame]) -> list[Row]:
    """Compare arms puzzle by puzzle: share solved at the end of each arm's chosen trials, over seeds and outputs.

    The puzzles on which the arms differ most come first; empty with fewer than two arms.
    """
    names = [name for trials in chosen.values() for name in trials["trial"]]
    done = report.validation[report.validation["trial"].isin(names)]
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


def _cost(metrics: DataFrame, name: str, kind: str, trials: DataFrame) -> Row:
    steps = metrics[metrics["trial"].isin(trials["trial"]) & (metrics["step"] > 0)]
    # Columns that nothing has logged yet are empty: means and medians are NaN, sums 0.
    steps = steps.reindex(columns=[*COSTS, "train/step_seconds"]).astype(float)
    seconds = steps["train/step_seconds"]
    on_gpus = trials[trials["on_gpu"].astype(bool)]
    return {
        "name": name,
        "kind": kind,
        "trials": len(trials),
        "steps": int(trials["steps"].sum()),
        "seconds": float(trials["seconds"].sum()),
        "gpu_hours": float((on_gpus["seconds"] * on_gpus["workers"]).sum()) / 3600 or None,
        "train/learned_tokens": float(trials.reindex(columns=["train/learned_tokens"]).astype(float).sum().iloc[0]),
        "train/tokens_per_second": steps["train/tokens_per_second"].median(),
        "data/stall_share": (steps["data/stall_share"] * seconds).sum() / (seconds.sum() or float("nan")),
        "train/fill": steps["train/fill"].mean(),
    }
