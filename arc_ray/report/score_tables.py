"""The tables of what was evaluated: scores by the three rules, what voting and tuning gain, counting by question."""

from typing import Any

from arc_ray.report.charts import Scale
from arc_ray.report.load import Report
from arc_ray.report.tables import effect_axis
from arc_ray.report.words import RULES, level

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
ANSWERING_GAINS = ("voting/two_attempts", "tuning", "tuning/greedy", "generated")
"""Those that a report of an evaluation begins with."""


def score_view(report: Report) -> dict[str, Any]:
    """Lay out scores, gains and counting, with their axes and what their intervals are and hold."""
    scores, gains, counting = score_table(report), gain_table(report), question_table(report)
    rated = report.scores[report.scores["rule"].isin(RULES)]
    highest = max([0.0, *rated["value"].astype(float), *rated["high"].dropna().astype(float)])
    return {
        "scores": scores,
        "score_axis": Scale(0.0, next((end for end in (0.1, 0.2, 0.5) if end >= highest), 1.0), 0.0, 100.0),
        "seeds_note": _seeds_note(report),
        "gains": gains,
        "gain_axis": effect_axis(gains) if gains else None,
        "confidence": " and ".join(level(share) for share in sorted(report.scores["confidence"].unique())),
        "counting": counting,
        "counters": {
            name: list(dict.fromkeys(arm for scores in kinds.values() for arm in scores))
            for name, kinds in counting.items()
        },
    }


def _seeds_note(report: Report) -> str:
    seeds = list(report.scores["seeds"].dropna().unique())
    if any("," in listed for listed in seeds):
        which = seeds[0] if len(seeds) == 1 else "each arm's own"
        return f"Scores are means over seeds ({which}), counts are added up, and intervals hold the luck of seeds and tasks."
    one = f"seed {seeds[0]} of each arm" if seeds else "one trial of each arm"
    return f"Intervals hold the luck of the tasks, not of the seeds, because {one} is evaluated."


def score_table(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Return set -> rows of arm and method with the scores by rule; sets of questions are not among them."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for score in report.scores[report.scores["method"].isin(METHODS) & (report.scores["rule"] != "accuracy")].to_dict(
        "records"
    ):
        arm, method = score["arm"], score["method"]
        row = rows.setdefault((score["set"], arm, method), {"arm": arm, "method": method, "scores": {}})
        row["scores"][score["rule"]] = score
    arms = list(dict.fromkeys([*report.arms, *report.scores["arm"]]))
    table: dict[str, list[dict[str, Any]]] = {name: [] for name, *_ in rows}
    for name, arm, method in sorted(rows, key=lambda key: (arms.index(key[1]), METHODS.index(key[2]))):
        table[name].append(rows[name, arm, method])
    return table


def gain_table(report: Report) -> list[dict[str, Any]]:
    """Return what ways of answering gain over others, with set, arm and words for the two ways."""
    gains = report.scores[report.scores["rule"] == "gain"].to_dict("records")
    known = [row | {"words": GAINS[row["question"]]} for row in gains if row["question"] in GAINS]
    return sorted(known, key=lambda row: [*GAINS].index(row["question"]))


def question_table(report: Report) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Return set -> question kind -> arm or run -> score; all kinds together come first.

    Accuracy by side and by number of objects, "<kind>/side_06_10" and the like, is in the frame alone.
    """
    table: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    is_kind = (report.scores["rule"] == "accuracy") & ~report.scores["question"].str.contains("/", regex=False)
    for row in report.scores[is_kind].to_dict("records"):
        table.setdefault(row["set"], {}).setdefault(row["question"], {})[row["arm"]] = row
    return {name: dict(sorted(kinds.items(), key=lambda item: item[0] != "all")) for name, kinds in table.items()}
