"""The report in words: progress and answer in sentences, and report.md for a terminal or a pull request."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from arc_ray.report import score_tables, tables
from arc_ray.report.frames import config_value
from arc_ray.report.load import Report
from arc_ray.report.words import (
    RULES,
    duration,
    is_number,
    level,
    number,
    percent,
    points,
    setting,
    short_key,
    show,
    word,
)

MOST_NAMED = 10
"""Overlaps that a warning names."""
MET_SHARE = 0.05
"""A set is warned of if more than this share of its asked pairs equal a training pair: then it moves a score."""


def progress(report: Report) -> str:
    """Say in a few words how far it is."""
    statuses = report.trials["status"].tolist()
    counts = {status: statuses.count(status) for status in ("done", "stopped", "running", "failed")}
    if report.kind == "run":
        return "finished" if report.is_finished else "running or cut off"
    ended, expected = counts["done"] + counts["stopped"] + counts["failed"], report.num_expected
    if not expected:
        return "no trial yet"
    parts = [f"{ended} of {expected} {'runs' if report.kind == 'runs' else 'trials'} finished"]
    parts += [f"{counts['stopped']} of them stopped early"] if counts["stopped"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    parts += [f"{counts['running']} running or cut off"] if counts["running"] else []
    return ", ".join(parts)


def sentences(report: Report) -> list[str]:
    """Give the answer: the analysis's own sentences about the metric asked for, or what can be said without one."""
    effects = (report.analysis or {}).get("effects", [])
    found = [str(effect["sentence"]) for effect in effects if effect["metric"] == report.metric]
    if found:
        return found
    if report.is_evaluation:
        return list(_evaluated(report)) or [no_scores(report)]
    so_far = _best_so_far(report)
    if report.kind in ("run", "runs") or (report.kind == "tune" and report.is_finished):
        return [so_far]
    wait = "This page will say more when the search is over."
    if report.kind == "study":
        wait = "There is no answer yet: this page will say more when every arm has a setting finished with all seeds."
    return [f"{progress(report).capitalize()}. {wait}", so_far]


def no_scores(report: Report) -> str:
    """Say why there are no scores to show."""
    if report.is_evaluation and report.is_finished:
        return "All tasks are answered; their outputs are hidden, so nothing is scored. The answers are in submission.json."
    if report.is_evaluation:
        return "Nothing is evaluated yet."
    return "Nothing is evaluated yet. What each arm measures will be scored here by the three rules, greedy and voting."


def warnings_of(report: Report) -> list[str]:
    """Say what a reader must know before believing a number."""
    found = []
    if config_value(report.config, "data.allow_overlap"):
        found.append(
            "This config allows training on tasks that are also validated or evaluated on (data.allow_overlap):"
            " scores may be memory rather than skill."
        )
    overlap = [*(report.quality or {}).get("overlap", ()), *report.overlap]
    if overlap:
        rest = f"; and {len(overlap) - MOST_NAMED} more" if len(overlap) > MOST_NAMED else ""
        found.append(f"What is evaluated was trained on: {'; '.join(overlap[:MOST_NAMED])}{rest}.")
    for name, counts in (report.quality or {}).get("met", {}).items():
        if counts["met"] > MET_SHARE * counts["asked"]:
            found.append(
                f"{counts['met']} of the {counts['asked']} pairs that {name} asks equal a training pair up to symmetry and"
                f" colours: its scores may be memory rather than skill."
            )
    return found


def markdown(reports: Sequence[Report], written: str) -> str:
    """Write report.md: question, answer, arms, scores, cost, how to do it again; every number with its n."""
    parts = [line for report in reports for line in _chapter(report)]
    return "\n".join([*parts, f"_Written on {written} by `arc-ray report`; grids and curves are in report.html._", ""])


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
    keys = {key: trial[key] for key in report.varied}
    about = ", ".join(filter(None, [str(trial["arm"]), setting(keys), f"seed {trial['seed']}"]))
    flatters = (
        f" It was picked as the best of {len(report.measured)}, which flatters it." if len(report.measured) > 1 else ""
    )
    return f"The best trial{'' if report.is_finished else ' so far'} is {best} ({about}): {after}.{flatters}"


def _evaluated(report: Report) -> Iterable[str]:
    """Say for each set how much of it is solved and what voting and tuning gain; of questions, how many are right."""
    gains = score_tables.gain_table(report)
    for name, rows in score_tables.score_table(report).items():
        score = next(row for row in rows if row["method"] == "voting")["scores"][RULES[0]]
        yield (
            f"{name}: {percent(score['value'])} of {number(score['of'])} outputs solved in two attempts"
            f" ({level(score['confidence'])} interval {percent(score['low'], 0)} to {percent(score['high'], 0)})."
        )
        for gain in gains:
            if gain["set"] == name and gain["question"] in score_tables.ANSWERING_GAINS:
                interval = f"{level(gain['confidence'])} interval {points(gain['low'])} to {points(gain['high'])}"
                shown = "." if gain["low"] > 0 or gain["high"] < 0 else ": no effect shown at this size."
                yield f"{name}, {gain['words']}: {points(gain['value'])} points ({interval}){shown}"
    for name, kinds in score_tables.counting_table(report).items():
        for arm, score in kinds["all"].items():
            yield f"{name}: {percent(score['value'])} of {number(score['of'])} questions answered right by {arm}."


def _chapter(report: Report) -> Iterable[str]:
    yield f"# {_text(report.question or report.name)}\n"
    yield from (f"**{_text(sentence)}**\n" for sentence in sentences(report))
    yield f"{_text(report.name)}: {progress(report)}.\n"
    yield from (f"> {_text(warning)}\n" for warning in warnings_of(report))
    if report.analysis:
        yield from _answer(report, report.analysis)
    yield from _scores(report)
    yield from _costs(report)


def _answer(report: Report, analysis: Mapping[str, Any]) -> Iterable[str]:
    effects = [
        (
            f"{effect['arm']} − {analysis['baseline']}",
            word(effect["metric"]).label,
            points(effect["value"]),
            f"{points(effect['low'])} to {points(effect['high'])}",
            f"{effect['num_seeds']} seeds × {effect['num_tasks']} tasks"
            + (f" of {effect['num_units']} puzzles" if effect.get("unit") == "puzzles" else ""),
        )
        for effect in analysis["effects"]
    ]
    interval = f"{level(analysis.get('confidence', 0.95))} interval"
    yield from _table(("effect, in percentage points", "metric", "value", interval, "n"), effects)
    findings, arms = tables.arm_rows(report)
    yield from _table(
        (
            short_key(report.compare),
            "chosen setting",
            f"{word(report.metric).label}, measuring half",
            *findings,
            "seeds",
        ),
        (
            (
                arm.name,
                setting(arm.setting) or "the only one",
                arm.values["value"],
                *(arm.values[heading] for heading in findings),
                arm.num_seeds,
            )
            for arm in arms
        ),
    )


def _costs(report: Report) -> Iterable[str]:
    rows = [
        (
            {"total": "everything", "made first": f"{row['name']} (made first)"}.get(row["kind"], row["name"]),
            row["trials"],
            number(row["steps"]),
            duration(row["seconds"]),
            number(row["learned_tokens"]),
            number(row["train/tokens_per_second"]),
        )
        for row in tables.cost_rows(report)
    ]
    yield from _table(("spent on", "runs", "steps", "time", "learned tokens", "tokens/s"), rows)


def _scores(report: Report) -> Iterable[str]:
    rows = [
        (
            name,
            row["arm"],
            row["method"],
            *(_score(row["scores"].get(rule)) for rule in RULES),
        )
        for name, of_set in score_tables.score_table(report).items()
        for row in of_set
    ]
    if rows:
        yield from _table(("set", "arm", "answers", *(word(rule).label for rule in RULES)), rows)
        yield f"In brackets: {score_tables.confidence(report)} intervals. {score_tables.seeds_note(report)}\n"
    gains = [
        (row["set"], row["arm"], row["words"], points(row["value"]), f"{points(row['low'])} to {points(row['high'])}")
        for row in score_tables.gain_table(report)
    ]
    if gains:
        interval = f"{score_tables.confidence(report)} interval"
        yield from _table(("set", "arm", "gain, in percentage points", "value", interval), gains)
    counted = [
        (name, kind, arm, percent(score["value"]), number(score.get("of")))
        for name, kinds in score_tables.counting_table(report).items()
        for kind, scores in kinds.items()
        for arm, score in scores.items()
    ]
    if counted:
        yield from _table(("set", "question", "arm", "right", "questions"), counted)


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return ""
    about = [f"{percent(score['low'], 0)} to {percent(score['high'], 0)}"] if is_number(score["low"]) else []
    about += [f"n = {number(score['of'])}"] if is_number(score["of"]) else []
    return percent(score["value"]) + (f" ({', '.join(about)})" if about else "")


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterable[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    yield from (f"| {' | '.join(_text(str(value)) for value in row)} |" for row in rows)
    yield ""


def _text(text: str) -> str:
    """Keep what comes from files from being read as Markdown or HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("*", "\\*").split())
