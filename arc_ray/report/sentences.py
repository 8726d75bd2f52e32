"""The report in sentences: how far it is, the answer, and what a reader must know before believing a number."""

from collections.abc import Iterable

from arc_ray.report import score_tables, tables
from arc_ray.report.frames import config_value
from arc_ray.report.load import Report
from arc_ray.report.words import RULES, in_points, level, number, percent, setting, show, word

MOST_NAMED = 10
"""Overlaps that a warning names."""
MET_SHARE = 0.05
"""A set is warned of if more than this share of its asked pairs equal a training pair: then it moves a score."""


def progress(report: Report) -> str:
    """Say in a few words how far it is."""
    if report.kind == "run":
        return "finished" if report.is_finished else "running or cut off"
    if not report.num_expected:
        return "no trial yet"
    statuses = report.trials["status"].tolist()
    done, stopped, running, failed = map(statuses.count, ("done", "stopped", "running", "failed"))
    what = "runs" if report.kind == "runs" else "trials"
    parts = [f"{done + stopped + failed} of {report.num_expected} {what} finished"]
    beside = ((stopped, "of them stopped early"), (failed, "failed"), (running, "running or cut off"))
    return ", ".join(parts + [f"{count} {state}" for count, state in beside if count])


def sentences(report: Report) -> list[str]:
    """Give the answer: the analysis's own sentences about the metric asked for, or what can be said without one."""
    effects = (report.analysis or {}).get("effects", [])
    if found := [str(effect["sentence"]) for effect in effects if effect["metric"] == report.metric]:
        return found
    if report.is_evaluation:
        return list(_evaluated(report)) or [no_scores(report)]
    so_far = _best_so_far(report)
    if not report.is_search or (report.kind == "tune" and report.is_finished):
        return [so_far]
    wait = "This page will say more when the search is over."
    if report.kind == "study":
        wait = "There is no answer yet: this page will say more when every arm has a setting finished with all seeds."
    return [f"{progress(report).capitalize()}. {wait}", so_far]


def no_scores(report: Report) -> str:
    """Say why there are no scores to show."""
    if not report.is_evaluation:
        later = "What each arm measures will be scored here by the three rules, greedy and voting."
        return f"Nothing is evaluated yet. {later}"
    if report.is_finished:
        return "All tasks are answered; their outputs are hidden, so nothing is scored. The answers are in submission.json."
    return "Nothing is evaluated yet."


def warnings_of(report: Report) -> list[str]:
    """Say what a reader must know before believing a number."""
    found, quality = [], report.quality or {}
    if config_value(report.config, "data.allow_overlap"):
        found.append(
            "This config allows training on tasks that are also validated or evaluated on (data.allow_overlap):"
            " scores may be memory rather than skill."
        )
    if overlap := [*quality.get("overlap", ()), *report.overlap]:
        rest = f"; and {len(overlap) - MOST_NAMED} more" if len(overlap) > MOST_NAMED else ""
        found.append(f"What is evaluated was trained on: {'; '.join(overlap[:MOST_NAMED])}{rest}.")
    return found + [
        f"{counts['met']} of the {counts['asked']} pairs that {name} asks equal a training pair up to symmetry and"
        f" colours: its scores may be memory rather than skill."
        for name, counts in quality.get("met", {}).items()
        if counts["met"] > MET_SHARE * counts["asked"]
    ]


def _best_so_far(report: Report) -> str:
    best = tables.best_trial(report)
    if best is None:
        return "No validation has been made yet."
    trial = report.trials.set_index("trial").loc[best]
    value = f"{show(trial[report.metric], report.metric)} ({word(report.metric).label})"
    after = f"{value} on the validation outputs after {number(trial['steps'])} steps"
    if report.kind == "run":
        return f"{after}."
    if report.kind == "runs":
        return f"Best of {len(report.trials)} runs: {best}, {after}."
    values = setting({key: trial[key] for key in report.varied})
    about = ", ".join(filter(None, [str(trial["arm"]), values, f"seed {trial['seed']}"]))
    num_measured = len(report.measured)
    flatters = f" It was picked as the best of {num_measured}, which flatters it." if num_measured > 1 else ""
    return f"The best trial{'' if report.is_finished else ' so far'} is {best} ({about}): {after}.{flatters}"


def _evaluated(report: Report) -> Iterable[str]:
    """Say for each set how much of it is solved and what voting and tuning gain; of questions, how many are right."""
    gains = [g for g in score_tables.gain_table(report) if g["question"] in score_tables.ANSWERING_GAINS]
    for name, rows in score_tables.score_table(report).items():
        score = next(row for row in rows if row["method"] == "voting")["scores"][RULES[0]]
        yield (
            f"{name}: {percent(score['value'])} of {number(score['of'])} outputs solved in two attempts"
            f" ({level(score['confidence'])} interval {percent(score['low'], 0)} to {percent(score['high'], 0)})."
        )
        for gain in (gain for gain in gains if gain["set"] == name):
            interval = f"{level(gain['confidence'])} interval {in_points(gain['low'])} to {in_points(gain['high'])}"
            shown = "." if gain["low"] > 0 or gain["high"] < 0 else ": no effect shown at this size."
            yield f"{name}, {gain['words']}: {in_points(gain['value'])} points ({interval}){shown}"
    for name, kinds in score_tables.question_table(report).items():
        for arm, score in kinds["all"].items():
            yield f"{name}: {percent(score['value'])} of {number(score['of'])} questions answered right by {arm}."
