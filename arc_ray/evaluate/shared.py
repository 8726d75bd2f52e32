"""What evaluations of one checkpoint have in common is made once: a later one takes it over from those that are done.

An answer follows from checkpoint, prompt and the keys that say how a prompt is answered. How many views there are, and how
two attempts are chosen, only says which answers an evaluation has and what becomes of them.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from arc_ray.config import Config
from arc_ray.config.searching import EvaluateConfig
from arc_ray.evaluate.questions import SCHEMA, SCORES, Candidates, Prompt, Work, read_predictions, timing_of, works_of
from arc_ray.runs.folder import run_folder
from arc_ray.runs.shapes import FilesShape
from arc_ray.storage import Folder

CHOICE_AND_SPEED = ("selection", "fill_submission", "num_actors", "gpus", "batch_tokens")
"""Keys of `evaluate` that say what becomes of answers, or how fast they are written."""
NUMBER = ("symmetries", "copies", "samples")
"""Keys that say how many answers there are: fewer are the first of more."""


def answers_alike(evaluate: EvaluateConfig, other: EvaluateConfig) -> bool:
    """Tell whether another evaluation of the same checkpoint gives prompts that both have the same answers, before any
    test-time training."""
    is_enough = evaluate.decode != "sample" or evaluate.samples <= other.samples
    return is_enough and _equal(evaluate, other, {*CHOICE_AND_SPEED, *NUMBER, "ttt", "sets"})


def tunes_alike(evaluate: EvaluateConfig, other: EvaluateConfig) -> bool:
    """Tell whether both tune on each task and then ask it the same."""
    return evaluate.ttt is not None and _equal(evaluate, other, {*CHOICE_AND_SPEED})


def _equal(evaluate: EvaluateConfig, other: EvaluateConfig, without: set[str]) -> bool:
    return evaluate.model_dump(exclude=without) == other.model_dump(exclude=without)


def take_over(
    config: Config,
    others: Sequence[Config],
    place: Folder,
    name: str,
    prompts: Sequence[Prompt],
    candidates: Candidates | None = None,
) -> list[Work]:
    """Cut the prompts of a set into works, as `works_of`. What others answered to them, or how they scored all `candidates`
    under them, is written into a file of `place`, that of the last work.
    """
    known: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for other in others:
        folder = run_folder(other) / place.name
        if answers_alike(config.evaluate, other.evaluate) and (files := folder.read_json("files.json", FilesShape)):
            by_view: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
            for key, rows in read_predictions(folder, files.get(name, ())).items():
                for row in rows:
                    by_view.setdefault((*key, row["view"]), []).append(row)
            known = by_view | known
    taken, left, written = list[Prompt](), list[Prompt](), list[dict[str, Any]]()
    for prompt in prompts:
        rows = known.get((*prompt.key, prompt.view))
        if rows is not None and candidates is not None:
            by_grid = {row["grid"]: row for row in rows}
            grids = [json.dumps(grid.tolist()) for grid in candidates.get(prompt.key, ())]
            rows = [by_grid[grid] for grid in grids] if by_grid.keys() >= {*grids} else None
        elif rows is not None and config.evaluate.decode == "sample":
            rows = rows[: config.evaluate.samples]
        (left if rows is None else taken).append(prompt)
        written += rows or ()
    works = works_of(name, left, config.evaluate, candidates)
    if not taken:
        return works
    work = Work(f"{name}-taken.parquet", tuple(taken))
    if not place.exists(work.name):
        seconds = [row["seconds"] for row in written]
        if None not in seconds:
            place.write_json(timing_of(work.name), {"seconds": sum(seconds)})
        place.write_parquet(work.name, pa.Table.from_pylist(written, SCORES if candidates is not None else SCHEMA))
    return [*works, work]


def take_over_whole(config: Config, others: Sequence[Config], folder: Folder, counting: Sequence[str]) -> None:
    """Copy what another evaluation has of counting questions, and what it made of tasks if it tuned on them as this does."""
    for other in others:
        made, names = run_folder(other), []
        if tunes_alike(config.evaluate, other.evaluate) and made.exists("tuning.json"):
            names = [f"tuned/{name}" for name in (made / "tuned").names()] + ["tuning.json"]
        names += [file for name in counting if made.exists(file := f"predictions/{name}.json")]
        for name in names:
            if not folder.exists(name):
                folder.write_bytes(name, made.read_bytes(name))
