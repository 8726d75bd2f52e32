"""What makes each kind of generated examples, what tells one dataset from another, and what one must hold."""

import importlib.metadata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from arc_ray.config import differing_keys
from arc_ray.config.sources import AnySource, ArcGenSource, CountingSource, PluginSource, RearcSource
from arc_ray.errors import NotMadeYetError, UserError, located
from arc_ray.runs.shapes import DatasetShape
from arc_ray.storage import Folder
from arc_ray.tasks import generators
from arc_ray.tasks.counting import counting_task
from arc_ray.tasks.examples import Example
from arc_ray.tasks.selection import pick
from arc_ray.tasks.task import MAX_SIDE

GeneratedSource = RearcSource | ArcGenSource | CountingSource | PluginSource

LAYOUT = 2
"""Raise it when boundaries, columns or what counts as a duplicate change: datasets of another layout are refused."""


class Maker(NamedTuple):
    """What makes a source's examples, and all else that differs between kinds."""

    make: Callable[[str, int], Example]
    """Makes the example of a task and an index: a pure function of them and the source."""
    tasks: Callable[[], Sequence[str]]
    """Lists the tasks that the source could take."""
    seconds: Callable[[str], float]
    """Estimates what an example of a task costs on one core."""
    may_yield_nothing: bool
    """Whether some task may have no usable example."""
    identity: tuple[str, ...]
    """Config keys that decide what an index yields: not those that say how much is taken, and not the time limit, because
    the manifest names the examples on which it struck."""
    made_with: Callable[[], dict[str, str]]
    """Returns what else decides it: a version, or a digest of code."""


def maker_of(source: GeneratedSource) -> Maker:
    """Return what makes a source's examples: the place to add a kind."""
    match source:
        case RearcSource():
            return Maker(
                make=partial(generators.rearc_example, source),
                tasks=generators.rearc_ids,
                seconds=partial(generators.expected_seconds, slow=generators.REARC_SLOW, usual=generators.REARC_USUAL),
                may_yield_nothing=source.max_side < MAX_SIDE or source.difficulty != (0.0, 1.0),
                identity=("kind", "seed", "difficulty", "max_side"),
                made_with=lambda: {"reasoning-gym": importlib.metadata.version("reasoning-gym")},
            )
        case ArcGenSource():
            return Maker(
                make=partial(generators.arcgen_example, source),
                tasks=lambda: generators.arcgen_ids(source.path),
                seconds=partial(
                    generators.expected_seconds, slow=generators.ARCGEN_SLOW, usual=generators.ARCGEN_USUAL
                ),
                may_yield_nothing=True,
                identity=("kind", "seed", "max_side"),
                made_with=lambda: {"code": generators.arcgen_digest(source.path), "verifiers": "none"},
            )
        case PluginSource():
            return Maker(
                make=lambda task_id, index: generators.plugin_example(source, index),
                tasks=lambda: [source.task_id],
                seconds=lambda task_id: 0.01,  # Nothing is known: where a generator is slower, blocks take longer.
                may_yield_nothing=True,
                identity=("kind", "seed", "difficulty", "max_side", "generate", "verify", "task_id"),
                made_with=lambda: {"code": generators.digest_of(generators.code_files(source))},
            )
        case CountingSource():
            return Maker(
                make=lambda task_id, index: Example("accepted", 1, Counter(), task=counting_task(source, index)),
                tasks=lambda: ["counting"],
                seconds=lambda task_id: 0.0007,
                may_yield_nothing=False,
                identity=("kind", "seed", "max_side", "connectivity", "questions"),
                made_with=lambda: {"arc_ray": importlib.metadata.version("arc_ray")},
            )


def code_notes(source: GeneratedSource) -> list[str]:
    """Say which code of the user's own making a source runs: none where its maker comes with the package. Raises UserError."""
    match source:
        case PluginSource():
            places = generators.code_files(source)
        case ArcGenSource():
            places = [source.path]
        case _:
            places = []
    return [f"dataset {source.dataset}: runs the code in {place}, since the config names it" for place in places]


class Request(NamedTuple):
    """What one dataset must hold."""

    source: GeneratedSource
    """One of the sources that share the dataset; in everything that decides an example they agree."""
    wanted: Mapping[str, int]
    """Task id -> usable examples."""


def requests_of(sources: Mapping[str, AnySource]) -> list[Request]:
    """Merge the generated ones among named sources into one request a dataset, in the order of first mention.

    Raises UserError for two sources that share a dataset but differ in what an example is.
    """
    users: dict[str, dict[str, GeneratedSource]] = {}
    for name, source in sources.items():
        if isinstance(source, GeneratedSource):
            users.setdefault(source.dataset, {})[name] = source
    return [_merge(sharing) for sharing in users.values()]


def task_ids_of(source: GeneratedSource) -> list[str]:
    """List the tasks that a source takes from its dataset. Raises UserError for an unknown id."""
    known = maker_of(source).tasks()
    if isinstance(source, CountingSource):
        return list(known)
    with located(f"the source of dataset {source.dataset}"):
        return pick(known, source.tasks, source.exclude)[: source.limit]


def wanted_of(source: GeneratedSource) -> dict[str, int]:
    """Return the usable examples that a dataset must hold of each task for a source. Raises UserError."""
    return dict.fromkeys(sorted(task_ids_of(source)), source.first + source.examples)


def dataset_folder(storage: Folder, dataset: str) -> Folder:
    """Return the folder of a generated dataset."""
    return storage / "data" / dataset


def identity_of(source: GeneratedSource) -> dict[str, Any]:
    """Return the config keys that decide what an index of this source's dataset yields."""
    values = source.model_dump(mode="json")
    return {key: values[key] for key in maker_of(source).identity}


def claim_dataset(folder: Folder, source: GeneratedSource) -> None:
    """Write dataset.json into a new folder, or check that this source made the folder, also with these versions of
    generators: examples of two makings are not mixed. Raises UserError naming the differing keys."""
    folder.clear_leftovers()
    record = identity_of(source) | {"made_with": {"layout": LAYOUT, **maker_of(source).made_with()}}
    found = folder.read_json("dataset.json", DatasetShape)
    if found is None:
        folder.write_json("dataset.json", record)
    else:
        _refuse_difference(found, record, f"dataset {folder.uri} is there already and was made otherwise")


def check_identity(folder: Folder, source: GeneratedSource) -> None:
    """Check that a dataset holds what a source's config says, by whatever versions it was made. Raises UserError."""
    found = folder.read_json("dataset.json", DatasetShape)
    if found is None:
        raise NotMadeYetError(f"dataset {folder.uri} is not there; run `arc-ray generate` with this config first")
    identity = identity_of(source) | {"layout": LAYOUT}
    there = {key: found.get(key) for key in identity} | {"layout": found["made_with"].get("layout")}
    _refuse_difference(there, identity, f"dataset {folder.uri} was made by another config")


def _merge(sharing: Mapping[str, GeneratedSource]) -> Request:
    (first_name, first), *others = sharing.items()
    for name, other in others:
        where = f"sources {first_name} and {name} share the dataset {first.dataset!r}"
        _refuse_difference(identity_of(first), identity_of(other), where)
    wanted: dict[str, int] = {}
    for wishes in map(wanted_of, sharing.values()):
        wanted |= {task_id: max(wanted.get(task_id, 0), want) for task_id, want in wishes.items()}
    limits = [source.time_limit_seconds for source in sharing.values() if not isinstance(source, CountingSource)]
    patient = first.model_copy(update={"time_limit_seconds": max(limits)}) if limits else first
    return Request(patient, dict(sorted(wanted.items())))


def _refuse_difference(there: Mapping[str, Any], here: Mapping[str, Any], what: str) -> None:
    keys = differing_keys(there, here)
    if keys:
        raise UserError(
            f"{what} (differs in: {', '.join(keys)}); give the source another `dataset`, or delete the folder"
        )
