"""The files of predictions, and of scores of candidates: what they hold, how they are read, and which are made only once.

An answer follows from checkpoint, prompt and the keys that say how a prompt is answered. How many views there are, and how
two attempts are chosen, only says which answers an evaluation has and what becomes of them: a later evaluation of a
checkpoint takes over what is done.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from arc_ray.config import Config
from arc_ray.config.searching import EvaluateConfig
from arc_ray.contents import parse_json, parse_parquet
from arc_ray.evaluate.questions import Candidates, Prompt, Work, works_of
from arc_ray.runs.folder import run_folder
from arc_ray.runs.shapes import FilesShape, GridShape, TimingShape
from arc_ray.scores.attempts import Attempts, Candidate, attempts_by, distinct_grids
from arc_ray.storage import Folder
from arc_ray.tasks.task import Grid

SCHEMA = pa.schema(
    {
        "task": pa.string(),
        "output": pa.int32(),
        "view": pa.string(),
        "text": pa.string(),
        "grid": pa.string(),
        "failure": pa.string(),
        "log_probability": pa.float64(),
        "passes": pa.int32(),
        "tokens": pa.int32(),
    }
)
"""One prediction a row: what was written, and the grid read from it (JSON, turned back from the view) or why none was.

`passes` are the forward passes that it took part in, `tokens` those that were written, the end included, null in older
files. Where search found nothing, text and log_probability are null.
"""

SCORES = pa.schema([SCHEMA.field(name) for name in ("task", "output", "view", "grid", "log_probability")])
"""One candidate grid (JSON, not turned) under one view a row."""

SCORES_SUFFIX = "-scores"
"""Ends the name of a tuned task's file of scores, beside that of its predictions."""

Predictions = Mapping[tuple[str, int], list[dict[str, Any]]]
"""(task id, number of the test pair) -> rows of SCHEMA, or of SCORES."""

CHOICE_AND_SPEED = ("selection", "fill_submission", "num_actors", "gpus", "batch_tokens")
"""Keys of `evaluate` that say what becomes of answers, or how fast they are written."""
NUMBER = ("symmetries", "copies", "samples")
"""Keys that say how many answers there are: fewer are the first of more."""


def distinct_answers(predictions: Predictions) -> dict[tuple[str, int], tuple[Grid, ...]]:
    """List the different grids among the predictions of each output: what its views are to score."""
    return {key: tuple(distinct_grids(candidates_of(rows))) for key, rows in predictions.items()}


def by_output(rows: Iterable[dict[str, Any]]) -> Predictions:
    """Put the rows of each output together, in their order."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["task"], row["output"]), []).append(row)
    return found


def read_predictions(folder: Folder, names: Iterable[str]) -> Predictions:
    """Read all predictions, or scores, of these files. Raises UserError for one that is missing or damaged.

    The `seconds` of a row are its share of those that its file took, which the views in it share alike: they are of about
    one length. None where older evaluations did not write them.
    """
    return by_output(row for name in names for row in _timed_rows(folder, name))


def _timed_rows(folder: Folder, name: str) -> list[dict[str, Any]]:
    rows, timing = folder.read(name, _rows_in), folder.read_json(timing_of(name), TimingShape)
    sizes = Counter((row["task"], row["output"], row["view"]) for row in rows)
    for row in rows:
        size = len(sizes) * sizes[row["task"], row["output"], row["view"]]
        row["seconds"] = timing["seconds"] / size if timing else None
    return rows


def timing_of(name: str) -> str:
    """Name the file that tells how many seconds a file of predictions or scores took: the same answers take others."""
    return f"{name}.json"


def _rows_in(content: bytes) -> list[dict[str, Any]]:
    table = parse_parquet(content)
    schema = SCHEMA if "text" in table.column_names else SCORES
    if "text" in table.column_names and "tokens" not in table.column_names:
        table = table.append_column("tokens", pa.nulls(len(table), pa.int32()))
    rows = table.select(schema.names).cast(schema).to_pylist()
    for row in rows:
        if row["grid"]:
            parse_json(row["grid"].encode(), GridShape)
        score = row["log_probability"]
        if None in (row["task"], row["output"], row["view"]) or score != score:
            raise ValueError("task, output and view must not be empty, and log_probability no NaN")
    return rows


def candidates_of(rows: Iterable[Mapping[str, Any]]) -> list[Candidate]:
    """Return those of the predictions, or scores, of one output from which a grid was read."""
    grids = ((grid_of(row), row) for row in rows)
    return [Candidate(grid, row["log_probability"], row["view"]) for grid, row in grids if grid is not None]


def grid_of(row: Mapping[str, Any]) -> Grid | None:
    """Return the grid of a prediction, turned back from its view."""
    return np.array(json.loads(row["grid"]), np.uint8) if row["grid"] else None


def choose(rule: str, predicted: Iterable[Mapping[str, Any]], scored: Iterable[Mapping[str, Any]]) -> Attempts:
    """Choose the attempts at one output by `evaluate.selection`; `scored` are of use to the rules `BY_SCORES` only."""
    if rule == "vote_with_log_probability":
        # The same text drawn twice under one view is one summand of the mixture: its probability says how often it comes.
        predicted = list({(row["view"], row["text"]): row for row in predicted}.values())
    return attempts_by(rule, candidates_of(predicted), candidates_of(scored))


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
