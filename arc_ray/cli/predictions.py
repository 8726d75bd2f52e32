"""`arc-ray peek --stage predictions`: what an evaluation, or the arms of a study, answered, beside the right answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from arc_ray.cli.peek import grid_text
from arc_ray.config import Config
from arc_ray.errors import UserError
from arc_ray.runs.folder import run_folder
from arc_ray.tasks.task import Grid, parse_grid, same_grid


def show_predictions(config: Config, count: int, console: Console) -> None:
    """Print `count` answered outputs of every set and arm from answers.json. Raises UserError where there is none."""
    folder = run_folder(config)
    places = [("", folder)]
    for arm in (folder / "evaluate").names():
        place = folder / "evaluate" / arm
        places += [(arm, place), *((f"{arm}, {seed}", place / seed) for seed in place.names() if "seed-" in seed)]
    found = [(arm, place.read_json("answers.json")) for arm, place in places if place.exists("answers.json")]
    if not found:
        raise UserError(
            f"{folder.uri} holds no predictions yet; run arc-ray evaluate (or study) with this config first"
        )
    for arm, answers in found:
        for name in dict.fromkeys(answer["set"] for answer in answers):
            answered = [answer for answer in answers if answer["set"] == name]
            console.rule(f"{arm} {name}: {_summary(answered)}".strip(), align="left")
            for answer in answered[:count]:
                console.print(_answer(answer))


def _summary(answers: Sequence[dict[str, Any]]) -> str:
    if any(answer["truth"] is None for answer in answers):
        return f"{len(answers)} outputs, answers not known"
    return f"{sum(answer['is_right'] for answer in answers)} of {len(answers)} outputs right"


def _answer(answer: dict[str, Any]) -> RenderableType:
    where = f"answers.json, task {answer['task']}"
    truth = None if answer["truth"] is None else parse_grid(answer["truth"], where)
    attempts = [parse_grid(grid, where) for grid in answer["attempts"]]
    columns: list[tuple[str, RenderableType]] = [("input", grid_text(parse_grid(answer["input"], where)))]
    if truth is not None:
        columns.append(("right answer", grid_text(truth)))
    columns += [
        (f"attempt {i}", Group(grid_text(grid), Text(_verdict(grid, truth)))) for i, grid in enumerate(attempts, 1)
    ]
    table = Table.grid(padding=(0, 2))
    table.add_row(*(title for title, _ in columns))
    table.add_row(*(drawn for _, drawn in columns))
    note = [] if attempts else [Text("unanswered: no view gave a grid", style="dim")]
    title = f"{answer['task']}, output {answer['output']}"
    return Panel(Group(table, *note), title=title, title_align="left")


def _verdict(grid: Grid, truth: Grid | None) -> str:
    if truth is None:
        return ""
    if same_grid(grid, truth):
        return "right"
    if grid.shape != truth.shape:
        return f"{grid.shape[0]} x {grid.shape[1]}, not {truth.shape[0]} x {truth.shape[1]}"
    return f"{int(np.sum(grid != truth))} of {truth.size} cells wrong"
