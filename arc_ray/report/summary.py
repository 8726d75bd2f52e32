"""The report in words: progress and answer in sentences, and report.md for a terminal or a pull request."""

from collections.abc import Iterable, Sequence

from arc_ray.report import tables
from arc_ray.report.load import Report
from arc_ray.report.words import RULES, duration, number, percent, points, setting, short_key, show, word


def progress(report: Report) -> str:
    """Say in a few words how far it is."""
    statuses = report.trials["status"].value_counts()
    counts = {status: int(statuses.get(status, 0)) for status in ("done", "stopped", "running", "failed")}
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
    best = tables.best_trial(report)
    so_far = _best_so_far(report, best) if best else "No validation has been made yet."
    if report.kind in ("run", "runs"):
        return [so_far]
    if report.kind == "tune" and report.is_finished:
        return [f"{so_far} It was picked for this number, which therefore flatters it."]
    wait = "This page will say more when the search is over."
    if report.kind == "study":
        wait = "There is no answer yet: this page will say more when every arm has a setting finished with all seeds."
    return [f"{progress(report).capitalize()}. {wait}", f"{so_far}"]


def markdown(reports: Sequence[Report], written: str) -> str:
    """Write report.md: question, answer, arms, scores, cost, how to do it again; every number with its n."""
    parts = [line for report in reports for line in _chapter(report)]
    return "\n".join([*parts, f"_Written on {written} by `arc-ray report`; grids and curves are in report.html._", ""])


def _best_so_far(report: Report, best: str) -> str:
    trial = report.trials.set_index("trial").loc[best]
    unit = word(report.metric)
    value = f"{show(trial[report.metric], report.metric)} ({unit.label})"
    if report.kind == "run":
        return f"{value} on the validation outputs after {number(trial['steps'])} steps."
    keys = {key: trial[key] for key in report.varied}
    about = ", ".join(filter(None, [str(trial["arm"]), setting(keys), f"seed {trial['seed']}"]))
    return (
        f"Best of {len(report.trials)} {'runs' if report.kind == 'runs' else 'trials'}: {best} ({about}) with {value}."
    )


def _chapter(report: Report) -> Iterable[str]:
    yield f"# {_text(report.question or report.name)}\n"
    yield from (f"**{_text(sentence)}**\n" for sentence in sentences(report))
    yield f"{_text(report.name)}: {progress(report)}.\n"
    effects = (report.analysis or {}).get("effects", [])
    if effects:
        baseline = report.analysis["baseline"] if report.analysis else ""
        yield from _table(
            ("effect, in percentage points", "metric", "value", "interval", "n"),
            (
                (
                    f"{e['arm']} − {baseline}",
                    word(e["metric"]).label,
                    points(e["value"]),
                    f"{points(e['low'])} to {points(e['high'])}",
                    f"{e['num_seeds']} seeds × {e['num_tasks']} tasks",
                )
                for e in effects
            ),
        )
    _, arms = tables.arm_rows(report)
    if arms:
        yield from _table(
            (short_key(report.compare), "chosen setting", f"{word(report.metric).label}, measuring half", "seeds"),
            ((arm.name, setting(arm.setting), show(arm.values["value"], report.metric), arm.num_seeds) for arm in arms),
        )
    yield from _scores(report)
    yield from _table(
        ("spent on", "trials", "steps", "time", "learned tokens", "tokens/s"),
        (
            (
                "everything" if row["kind"] == "total" else row["name"],
                row["trials"],
                number(row["steps"]),
                duration(row["seconds"]),
                number(row["learned_tokens"]),
                number(row["train/tokens_per_second"]),
            )
            for row in tables.cost_rows(report)
        ),
    )


def _scores(report: Report) -> Iterable[str]:
    rows = [
        (
            name,
            row["arm"],
            row["method"],
            *(_score(row["scores"].get(rule)) for rule in RULES),
        )
        for name, of_set in tables.score_table(report).items()
        for row in of_set
    ]
    if rows:
        yield from _table(("set", "arm", "answers", *(word(rule).label for rule in RULES)), rows)
    counted = [
        (name, kind, arm, percent(score["value"]), number(score.get("of")))
        for name, kinds in tables.counting_table(report).items()
        for kind, scores in kinds.items()
        for arm, score in scores.items()
    ]
    if counted:
        yield from _table(("set", "question", "arm", "right", "questions"), counted)


def _score(score: dict | None) -> str:
    if score is None:
        return ""
    return f"{percent(score['value'])} ({percent(score['low'], 0)} to {percent(score['high'], 0)}, n = {number(score['of'])})"


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterable[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    yield from (f"| {' | '.join(_text(str(value)) for value in row)} |" for row in rows)
    yield ""


def _text(text: str) -> str:
    """Keep what comes from files from being read as Markdown or HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("*", "\\*").split())
