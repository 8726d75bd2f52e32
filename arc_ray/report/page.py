"""`write_report`: report.html, report.md and trials.csv from folders; the page is one file that needs no network.

Both are templates of the same views; `templates/report.html.j2` and `report.md.j2` begin them.
"""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from arc_ray.report import charts, gallery, score_tables, sentences, tables, trial_table, words
from arc_ray.report.frames import config_value, trials_csv
from arc_ray.report.load import Report, load_many

SECTIONS = ("answer", "search", "curves", "scores", "gallery", "data", "cost", "again")
KIND_NAMES = {"study": "study", "tune": "search", "run": "run", "runs": "runs"}
SPOKEN = (
    *(words.word, words.show, words.number, words.percent, words.level, words.points, words.duration),
    *(words.setting, words.short_key, words.is_number),
)
"""Functions that templates call by their names."""


def write_report(folders: Sequence[str], now: datetime | None = None) -> dict[str, str]:
    """Write report.html, report.md and trials.csv into the first folder and return their places by these names.

    Several studies become chapters of one page, single runs one chapter. Reads files only, whatever is there by now.
    `now` is what the page says about when it was written. Raises UserError for a folder that is none of these.
    """
    reports = load_many(folders)
    place = reports[0].folder
    about = {
        "title": ", ".join(report.name for report in reports),
        "views": [view_of(report) for report in reports],
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
    environment.globals.update(gallery=gallery, most_puzzles=tables.MOST_PUZZLES)
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
    chosen, kind = tables.chosen_settings(report), KIND_NAMES[report.kind]
    costs, config = tables.cost_rows(report), dict(report.config)
    return {
        "report": report,
        "kind_name": kind,
        "untitled": f"{kind.capitalize()} {report.name}",
        "is_search": report.kind in ("study", "tune"),
        "progress": sentences.progress(report),
        "begun": str(report.run.get("started", ""))[:16].replace("T", " "),
        "sentences": sentences.sentences(report),
        "warnings": sentences.warnings_of(report),
        "number_of": {arm: i for i, arm in enumerate(report.arms)},
        "chosen": chosen,
        "pairing": tables.pairing(report, chosen),
        **_answer_view(report),
        **trial_table.view(report, chosen),
        **charts.view(report, chosen),
        "puzzles": tables.puzzle_table(report, chosen),
        **_evaluation_view(report),
        "plans": tables.plan_rows(report),
        "costs": costs,
        "on_gpu": any(row["gpu_hours"] for row in costs),
        "commands": _commands(report),
        "seeds": ", ".join(str(seed) for seed in sorted(set(report.trials["seed"]))) or words.NOTHING,
        "environment": _made_where(report),
        "config_text": yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False, default_flow_style=None, width=100)
        if config
        else "",
    }


def _commands(report: Report) -> list[str]:
    """List the shell commands that make this again, where it was made; each line can be pasted."""
    arguments = report.run.get("arguments") or [report.run.get("command", "train"), "config.yaml"]
    storage, names = report.config.get("storage", "."), report.arms if report.kind == "runs" else [report.name]
    made_in = shlex.join(f"{storage}/{name}" for name in names)
    lines = [f"arc-ray {shlex.join(str(argument) for argument in arguments)}"] if report.kind != "runs" else []
    lines += [f"arc-ray train {made_in}/best.yaml    # the best trial alone"] if lines and report.best else []
    return [*lines, f"arc-ray report {made_in}    # this page, from the files"]


def _made_where(report: Report) -> dict[str, str]:
    """Describe where it ran, from run.json; empty if that is missing."""
    run = report.run
    if not run:
        return {}
    versions = {"python": run.get("python"), **(run.get("versions") or {})}
    return {
        "git commit": run.get("git_commit") or "unknown",
        "machine": ", ".join(f"{name} {value}" for name, value in (run.get("hardware") or {}).items()),
        "workers": f"{config_value(report.config, 'scaling.num_workers', 1)} per trial",
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value),
    }


def _answer_view(report: Report) -> dict[str, Any]:
    effects = (report.analysis or {}).get("effects", [])
    findings, rows = tables.arm_rows(report)
    return {
        "effects": sorted(effects, key=lambda effect: effect["metric"] != report.metric),
        "axis": tables.effect_axis(effects) if effects else None,
        "findings": findings,
        "arm_rows": rows,
    }


def _evaluation_view(report: Report) -> dict[str, Any]:
    counting, cards = score_tables.counting_table(report), gallery.make_cards(report.answers)
    gains, groups = score_tables.gain_table(report), {card.group for card in cards}
    return {
        "scores": score_tables.score_table(report),
        "score_axis": score_tables.score_axis(report),
        "no_scores": sentences.no_scores(report),
        "seeds_note": score_tables.seeds_note(report),
        "gains": gains,
        "gain_axis": tables.effect_axis(gains) if gains else None,
        "confidence": score_tables.confidence(report),
        "counting": counting,
        "counters": {
            name: list(dict.fromkeys(arm for scores in kinds.values() for arm in scores))
            for name, kinds in counting.items()
        },
        "cards": cards,
        "card_groups": [group for group in gallery.GROUPS if group in groups],
        "card_sets": list(dict.fromkeys(card.set for card in cards)),
        "num_outputs": len(report.answers.drop_duplicates(["set", "task", "output"])),
    }
