"""`arc-ray peek`: what the model really sees, in colour (tasks, views, prompts, tokens), and what it answered."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from arc_ray.config import Config
from arc_ray.datasets.reading import load_source
from arc_ray.errors import UserError, plain
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.prepare import codec_of, first_views
from arc_ray.runs.folder import run_folder
from arc_ray.runs.shapes import AnswerShape
from arc_ray.storage import Folder
from arc_ray.tasks.task import PALETTE, Grid, Task, TaskTable, parse_grid, same_grid
from arc_ray.views.view import Views

PEEK_STAGES = ("task", "view", "prompt", "tokens", "predictions")


def show_stage(config: Config, stage: str, count: int) -> None:
    """Print `count` examples of a stage, in lines as long as the terminal is wide. Raises UserError."""
    console = Console(highlight=False)
    if stage == "predictions":
        show_predictions(config, count, console)
    else:
        show_examples(config, stage, count, console)


def show_examples(config: Config, stage: str, count: int, console: Console) -> None:
    """Print `count` examples of a stage from every source of the mix. Raises UserError."""
    names = [name for name, copies in config.data.mix.items() if copies] or list(config.data.sources)
    if not names:
        raise UserError("data.sources is empty: there is nothing to peek at")
    codec = codec_of(config, load_tokenizer(config.model, config.storage)) if stage in ("prompt", "tokens") else None
    for name in names:
        tasks = load_source(config.data.sources[name], Folder.at(config.storage))
        console.rule(Text(plain(f"{name}: {len(tasks)} tasks")), align="left")
        if stage == "task":
            for task in tasks[:count]:
                console.print(_task(task))
            continue
        table = TaskTable.of(tasks)
        views = first_views(config, name, table)
        for i in range(min(count, len(views))):
            if codec is None:
                console.print(_view(table, views, i))
            else:
                console.print(_prompt(codec, table, views, i) if stage == "prompt" else _tokens(codec, table, views, i))


def show_predictions(config: Config, count: int, console: Console) -> None:
    """Print `count` answered outputs of every set and arm from answers.json. Raises UserError where there is none."""
    folder = run_folder(config)
    places = [("", folder)]
    for arm in (folder / "evaluate").names():
        place = folder / "evaluate" / arm
        places += [(arm, place), *((f"{arm}, {seed}", place / seed) for seed in place.names() if "seed-" in seed)]
    found = [
        (arm, place.read_json("answers.json", list[AnswerShape]))
        for arm, place in places
        if place.exists("answers.json")
    ]
    if not found:
        raise UserError(
            f"{folder.uri} holds no predictions yet; run arc-ray evaluate (or study) with this config first"
        )
    for arm, answers in found:
        for name in dict.fromkeys(answer["set"] for answer in answers):
            answered = [answer for answer in answers if answer["set"] == name]
            console.rule(Text(plain(f"{arm} {name}: {_summary(answered)}".strip())), align="left")
            for answer in answered[:count]:
                console.print(_drawn(answer))


def grid_text(grid: Grid | None) -> Text:
    """Draw a grid with two coloured columns a cell, the digit on the first: readable without colour too."""
    if grid is None:
        return Text("hidden", style="dim")
    text = Text()
    for row in grid:
        for cell in row:
            ink = "black" if cell in (3, 4, 5, 7, 8) else "white"
            text.append(f"{cell} ", style=f"{ink} on {PALETTE[cell]}")
        text.append("\n")
    return text


def _side_by_side(drawings: Iterable[Sequence[RenderableType]]) -> RenderableType:
    """Set drawings, each with its title first, beside each other, as many as the terminal has room for, then below."""
    return Columns([Group(*drawing) for drawing in drawings], padding=(0, 2))


def _pairs(pairs: Sequence[tuple[Grid, Grid | None]], titles: Sequence[str]) -> RenderableType:
    becomes = Text("becomes", style="dim")
    return _side_by_side(
        (title, grid_text(a), becomes, grid_text(b)) for title, (a, b) in zip(titles, pairs, strict=True)
    )


def _task(task: Task) -> RenderableType:
    titles = [f"train {i}" for i in range(len(task.train))] + [f"test {i}" for i in range(len(task.test))]
    pairs, titles = [(p.input, p.output) for p in task.pairs][:6], titles[:6]
    parts: list[RenderableType] = [_pairs(pairs, titles)]
    parts += [Text(plain(f"{q.kind}: {q.text} -> {q.answer}")) for q in task.questions]
    parts += [Text(plain(task.description))] if task.description else []
    return Panel(Group(*parts), title=Text(plain(repr(task))), title_align="left")


def _view(table: TaskTable, views: Views, i: int) -> RenderableType:
    augmentation = views.augmentation(i)
    shown = [int(p) for p in views.shown[i] if p >= 0]
    pairs = []
    for pair in [*shown, int(views.asked[i])]:
        output = augmentation.apply(table.grid(2 * pair + 1), "output") if table.height[2 * pair + 1] else None
        pairs.append((augmentation.apply(table.grid(2 * pair), "input"), output))
    titles = [f"shown {k}" for k in range(len(shown))] + ["asked"]
    title = f"{table.ids[views.task[i]]}  {augmentation.name}"
    return Panel(_pairs(pairs, titles), title=Text(plain(title)), title_align="left")


def _prompt(codec: Codec, table: TaskTable, views: Views, i: int) -> RenderableType:
    text = Text()
    for piece, is_learned in codec.text(table, views, i):
        text.append(plain(piece, len(piece)), style="bold black on green" if is_learned else "")
    return Panel(text, title=Text(plain(f"{table.ids[views.task[i]]}  (learned: green)")), title_align="left")


def _tokens(codec: Codec, table: TaskTable, views: Views, i: int) -> RenderableType:
    ((ids, learned),) = codec.encode(table, views.take(np.array([i])))
    text = Text()
    positions = [f"@{at}" for at in codec.positions.of(ids)] if codec.positions.kinds else [""] * len(ids)
    for position, (word, is_learned) in zip(positions, _words(codec, ids.tolist(), learned.tolist()), strict=True):
        text.append(plain(word).replace("\n", "\\n"), style="black on green" if is_learned else "reverse")
        text.append(f"{position} ", style="dim")
    title = f"{table.ids[views.task[i]]}  {len(ids)} tokens, {int(learned.sum())} learned"
    return Panel(text, title=Text(plain(title)), title_align="left")


def _words(codec: Codec, ids: list[int], learned: list[bool]) -> Iterator[tuple[str, bool]]:
    for token, is_learned in zip(ids, learned, strict=True):
        yield codec.tokenizer.decode([token]), is_learned


def _summary(answers: Sequence[dict[str, Any]]) -> str:
    if any(answer["truth"] is None for answer in answers):
        return f"{len(answers)} outputs, answers not known"
    return f"{sum(answer['is_right'] for answer in answers)} of {len(answers)} outputs right"


def _drawn(answer: dict[str, Any]) -> RenderableType:
    where = f"answers.json, task {answer['task']}"
    truth = None if answer["truth"] is None else parse_grid(answer["truth"], where)
    attempts = [parse_grid(grid, where) for grid in answer["attempts"]]
    drawings: list[Sequence[RenderableType]] = [("input", grid_text(parse_grid(answer["input"], where)))]
    if truth is not None:
        drawings.append(("right answer", grid_text(truth)))
    drawings += [(f"attempt {i}", grid_text(grid), _verdict(grid, truth)) for i, grid in enumerate(attempts, 1)]
    note = [] if attempts else [Text("unanswered: no view gave a grid", style="dim")]
    title = f"{answer['task']}, output {answer['output']}"
    return Panel(Group(_side_by_side(drawings), *note), title=Text(plain(title)), title_align="left")


def _verdict(grid: Grid, truth: Grid | None) -> str:
    if truth is None:
        return ""
    if same_grid(grid, truth):
        return "right"
    if grid.shape != truth.shape:
        return f"{grid.shape[0]} x {grid.shape[1]}, not {truth.shape[0]} x {truth.shape[1]}"
    return f"{int(np.sum(grid != truth))} of {truth.size} cells wrong"
