"""`write_report`: report.html, report.md and trials.csv from folders; the page is one file that needs no network."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from arc_ray.report import charts, gallery, score_tables, tables, trial_table, words
from arc_ray.report.frames import config_value, trials_csv
from arc_ray.report.load import Report, load_many
from arc_ray.report.summary import markdown, no_scores, progress, sentences, warnings_of

SECTIONS = {
    "answer": "answer",
    "search": "search",
    "curves": "curves",
    "scores": "scores",
    "gallery": "gallery",
    "data": "data",
    "cost": "cost",
    "again": "do it again",
}
KIND_NAMES = {"study": "study", "tune": "search", "run": "run", "runs": "runs"}


def write_report(folders: Sequence[str], now: datetime | None = None) -> dict[str, str]:
    """Write report.html, report.md and trials.csv into the first folder and return their places by these names.

    Several studies become chapters of one page, single runs one chapter. Reads files only, whatever is there by now.
    `now` is what the page says about when it was written. Raises UserError for a folder that is none of these.
    """
    reports = load_many(folders)
    place = reports[0].folder
    written = (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    contents = {
        "report.html": to_html(reports, written),
        "report.md": markdown(reports, written),
        "trials.csv": trials_csv(pd.concat([report.trials for report in reports])),
    }
    for name, content in contents.items():
        place.write_bytes(name, content.encode())
    return {name: (place / name).uri for name in contents}


def to_html(reports: Sequence[Report], written: str) -> str:
    """Write the whole page: style and script are in it, everything that comes from files is escaped."""
    loader = jinja2.PackageLoader("arc_ray.report", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    css, js = (Markup(loader.get_source(environment, name)[0]) for name in ("report.css", "report.js"))
    environment.globals.update(
        word=words.word,
        words=words.WORDS,
        show=words.show,
        number=words.number,
        percent=words.percent,
        level=words.level,
        points=words.points,
        duration=words.duration,
        setting=words.setting,
        short_key=words.short_key,
        is_number=words.is_number,
        rules=words.RULES,
        more_rules=words.MORE_RULES,
        groups=gallery.GROUPS,
        nearly=gallery.NEARLY,
        per_group=gallery.PER_GROUP,
        most_puzzles=tables.MOST_PUZZLES,
    )
    title = ", ".join(report.name for report in reports)
    sections = SECTIONS.items()
    return environment.get_template("report.html.j2").render(
        title=title, views=[view_of(r) for r in reports], sections=sections, written=written, css=css, js=js
    )


def view_of(report: Report) -> dict[str, Any]:
    """Compute everything that the template writes about one study, search or run."""
    chosen = tables.chosen_settings(report)
    return {
        "report": report,
        "kind_name": KIND_NAMES[report.kind],
        "untitled": f"{KIND_NAMES[report.kind].capitalize()} {report.name}",
        "is_search": report.kind in ("study", "tune"),
        "progress": progress(report),
        "begun": str(report.run.get("started", ""))[:16].replace("T", " "),
        "sentences": sentences(report),
        "warnings": warnings_of(report),
        "number_of": {arm: i for i, arm in enumerate(report.arms)},
        "chosen": chosen,
        "pairing": tables.pairing(report, chosen),
        **_answer_view(report),
        **trial_table.view(report, chosen),
        **_chart_view(report, chosen),
        **_evaluation_view(report),
        "plans": tables.plan_rows(report),
        "costs": (costs := tables.cost_rows(report)),
        "on_gpu": any(row["gpu_hours"] for row in costs),
        "commands": commands_of(report),
        "seeds": ", ".join(str(seed) for seed in sorted(set(report.trials["seed"]))) or words.NOTHING,
        "environment": environment_of(report),
        "config_text": yaml.safe_dump(dict(report.config), sort_keys=False, default_flow_style=None, width=100)
        if report.config
        else "",
    }


def commands_of(report: Report) -> list[str]:
    """List the shell commands that make this again, where it was made; each line can be pasted."""
    arguments = report.run.get("arguments") or [report.run.get("command", "train"), "config.yaml"]
    storage, names = report.config.get("storage", "."), report.arms if report.kind == "runs" else [report.name]
    made_in = shlex.join(f"{storage}/{name}" for name in names)
    if report.kind == "runs":
        return [f"arc-ray report {made_in}    # this page, from the files"]
    lines = [f"arc-ray {shlex.join(str(argument) for argument in arguments)}"]
    lines += [f"arc-ray train {made_in}/best.yaml    # the best trial alone"] if report.best else []
    return [*lines, f"arc-ray report {made_in}    # this page, from the files"]


def environment_of(report: Report) -> dict[str, str]:
    """Describe where it ran, from run.json; empty if that is missing."""
    run = report.run
    if not run:
        return {}
    hardware: Mapping[str, Any] = run.get("hardware") or {}
    versions = {"python": run.get("python"), **(run.get("versions") or {})}
    found = {
        "git commit": run.get("git_commit") or "unknown",
        "machine": ", ".join(f"{name} {value}" for name, value in hardware.items()),
        "workers": f"{config_value(report.config, 'scaling.num_workers', 1)} per trial",
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value),
    }
    return found


def _answer_view(report: Report) -> dict[str, Any]:
    effects = (report.analysis or {}).get("effects", [])
    effects = sorted(effects, key=lambda effect: effect["metric"] != report.metric)
    findings, rows = tables.arm_rows(report)
    axis = tables.effect_axis(effects) if effects else None
    return {"effects": effects, "axis": axis, "findings": findings, "arm_rows": rows}


def _chart_view(report: Report, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    is_search = report.kind in ("study", "tune")
    return {
        "effect_charts": charts.effect_charts(report) if is_search else [],
        "equal_tokens": charts.equal_tokens_chart(report) if is_search else None,
        "parallel": charts.parallel_chart(report) if is_search else None,
        "curves": charts.curve_charts(report, chosen),
        "puzzles": tables.puzzle_table(report, chosen),
    }


def _evaluation_view(report: Report) -> dict[str, Any]:
    counting, cards = score_tables.counting_table(report), gallery.make_cards(report.answers)
    groups = {card.group for card in cards}
    return {
        "scores": score_tables.score_table(report),
        "score_axis": score_tables.score_axis(report),
        "no_scores": no_scores(report),
        "seeds_note": score_tables.seeds_note(report),
        "gains": (gains := score_tables.gain_table(report)),
        "gain_axis": tables.effect_axis(gains) if gains else None,
        "confidence": score_tables.confidence(report),
        "counting": counting,
        "counters": {
            n: list(dict.fromkeys(a for kind in kinds.values() for a in kind)) for n, kinds in counting.items()
        },
        "cards": cards,
        "card_groups": [group for group in gallery.GROUPS if group in groups],
        "card_sets": list(dict.fromkeys(card.set for card in cards)),
        "num_outputs": len(report.answers.drop_duplicates(["set", "task", "output"])),
    }
