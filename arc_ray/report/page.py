"""`write_report`: report.html, report.md and trials.csv from folders; the page is one file that needs no network.

Both are templates of the same views; `templates/report.html.j2` and `report.md.j2` begin them.
"""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from arc_ray.report import answer, charts, gallery, tables, words
from arc_ray.report.frames import config_value, trials_csv
from arc_ray.report.load import Report, load_many

SECTIONS = ("answer", "search", "curves", "scores", "gallery", "data", "cost", "again")
SPOKEN = (
    *(words.word, words.show, words.number, words.percent, words.level, words.in_points, words.duration),
    *(words.setting, words.trial_value, words.short_key, words.is_number, config_value),
)
"""Functions that templates call by their names."""


def write_report(
    folders: Sequence[str], now: datetime | None = None, refresh_seconds: float | None = None
) -> dict[str, str]:
    """Write report.html, report.md and trials.csv into the first folder and return their places by these names.

    Several studies become chapters of one page, single runs one chapter. Reads files only, whatever is there by now.
    `now` is what the page says about when it was written; a page with `refresh_seconds` loads itself anew. Raises
    UserError for a folder that is none of these.
    """
    reports = load_many(folders)
    place = reports[0].folder
    about = {
        "title": ", ".join(report.name for report in reports),
        "views": (views := [view_of(report) for report in reports]),
        "side_by_side": answer.side_by_side(views),
        "refresh_seconds": refresh_seconds,
        "written": (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
    }
    contents = {
        "report.html": _environment(is_markdown=False).get_template("report.html.j2").render(about),
        "report.md": _environment(is_markdown=True).get_template("report.md.j2").render(about),
        "trials.csv": trials_csv(pd.concat([report.trials for report in reports])),
    }
    for name, content in contents.items():
        place.write_bytes(name, content.encode())
    return {name: (place / name).uri for name in contents}


@cache
def _environment(is_markdown: bool) -> jinja2.Environment:
    """Return where templates come from; what they write of files is escaped, for HTML or for Markdown."""
    loader = jinja2.PackageLoader("arc_ray.report", "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=_markdown if is_markdown else None,
    )
    environment.globals.update({function.__name__: function for function in SPOKEN})
    environment.globals.update(words=words.WORDS, rules=words.RULES, more_rules=words.MORE_RULES, sections=SECTIONS)
    environment.globals.update(charts=charts, gallery=gallery, most_puzzles=tables.MOST_PUZZLES, costs=tables.COSTS)
    environment.filters["yaml"] = partial(
        yaml.dump, Dumper=yaml.CSafeDumper, sort_keys=False, default_flow_style=None, width=100
    )
    environment.filters["source"] = lambda name: Markup(loader.get_source(environment, name)[0])
    return environment


def _markdown(value: object) -> object:
    """Keep what comes from files from being read as Markdown or HTML."""
    if isinstance(value, Markup):
        return value
    text = str(value).replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("*", "\\*")
    return Markup(" ".join(text.split()))


def view_of(report: Report) -> dict[str, Any]:
    """Compute everything that the templates write about one study, search or run."""
    settings = tables.chosen_settings(report)
    chosen, budgets = tables.chosen_trials(report, settings), tables.budget_tables(report)
    return {
        "report": report,
        "progress": answer.progress(report),
        "sentences": answer.sentences(report),
        "warnings": answer.warnings_of(report),
        "number_of": {arm: i for i, arm in enumerate(report.arms)},
        "chosen": settings,
        "pairing": " ".join(filter(None, (answer.sharing(report), answer.pairing(report, chosen)))),
        **answer.answer_view(report),
        "columns": tables.trial_columns(report),
        "rows": tables.ranked(report, report.trials).to_dict("records"),
        "members": {name for trials in chosen.values() for name in trials["trial"]} if report.varied else set(),
        "best_trial": tables.best_trial(report),
        "effect_charts": charts.effect_charts(report) if report.is_search else [],
        "equal_tokens": charts.equal_tokens_chart(report) if report.is_search else None,
        "parallel": charts.parallel_chart(report) if report.is_search else None,
        "curves": charts.curve_charts(report, chosen),
        "puzzles": tables.puzzle_table(report, chosen),
        **tables.score_view(report),
        "budgets": [charts.budget_chart(report, *key, table) for key, table in budgets.items()],
        "spent": [charts.budget_chart(report, *key, table) for key, table in tables.spent_tables(budgets).items()],
        "no_scores": answer.no_scores(report),
        **answer.audit_view(report),
        "cards": gallery.make_cards(report.answers),
        "plans": tables.plan_table(report),
        "costs": tables.cost_table(report),
        "commands": _commands(report),
    }


def _commands(report: Report) -> list[str]:
    """List the shell commands that make this again, where it was made; each line can be pasted."""
    arguments = report.run.get("arguments") or [report.run.get("command", "train"), "config.yaml"]
    storage, names = report.config.get("storage", "."), report.arms if report.kind == "runs" else [report.name]
    made_in = shlex.join(f"{storage}/{name}" for name in names)
    lines = [f"arc-ray {shlex.join(str(argument) for argument in arguments)}"] if report.kind != "runs" else []
    lines += [f"arc-ray train {made_in}/best.yaml    # the best trial alone"] if lines and report.best else []
    return [*lines, f"arc-ray report {made_in}    # this page, from the files"]
