"""What a generated dataset must hold: the wishes of all sources that share it, and what tells one from another."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arc_ray.config import differing_keys
from arc_ray.config.sources import AnySource, CountingSource, PluginSource, RearcSource
from arc_ray.datasets.blocks import LAYOUT, GeneratedSource
from arc_ray.errors import NotMadeYetError, UserError
from arc_ray.storage import Folder
from arc_ray.tasks import generators
from arc_ray.tasks.selection import pick

IDENTITY = {
    "rearc": ("kind", "seed", "difficulty", "max_side"),
    "plugin": ("kind", "seed", "difficulty", "max_side", "generate", "verify", "task_id"),
    "counting": ("kind", "seed", "max_side", "connectivity", "questions"),
}
"""Config keys that decide what an index yields. Keys that only say how much is taken are not among them, and neither is
the time limit, because the manifest names the examples on which it struck."""


@dataclass(frozen=True)
class Request:
    """What one dataset must hold."""

    dataset: str
    source: GeneratedSource
    """One of the sources that share the dataset; in everything that decides an example they agree."""
    wanted: Mapping[str, int]
    """Task id -> usable examples."""


def requests_of(sources: Mapping[str, AnySource]) -> list[Request]:
    """Merge the generated ones among named sources into one request a dataset, in the order of first mention.

    Raises UserError for two sources that share a dataset but differ in what an example is.
    """
    users: dict[str, list[str]] = {}
    for name, source in sources.items():
        if isinstance(source, GeneratedSource):
            users.setdefault(source.dataset, []).append(name)
    return [_merge(dataset, {name: sources[name] for name in names}) for dataset, names in users.items()]


def dataset_folder(storage: Folder, dataset: str) -> Folder:
    """Return the folder of a generated dataset."""
    return storage / "data" / dataset


def task_ids_of(source: GeneratedSource) -> list[str]:
    """List the tasks that a source takes from its dataset. Raises UserError for an unknown id."""
    match source:
        case RearcSource():
            return pick(generators.rearc_ids(), source.tasks, source.exclude)[: source.limit]
        case PluginSource():
            return pick([source.task_id], source.tasks, source.exclude)
        case CountingSource():
            return ["counting"]


def identity_of(source: GeneratedSource) -> dict[str, Any]:
    """Return the config keys that decide what an index of this source's dataset yields."""
    values = source.model_dump(mode="json")
    return {key: values[key] for key in IDENTITY[source.kind]}


def claim_dataset(folder: Folder, source: GeneratedSource) -> None:
    """Write dataset.json into a new folder, or check that this source made the folder.

    Raises UserError naming the differing keys, also for other generators: examples of two makings are not mixed.
    """
    folder.clear_leftovers()
    record = {**identity_of(source), "made_with": _made_with(source)}
    found = folder.read_json("dataset.json")
    if found is None:
        folder.write_json("dataset.json", record)
    else:
        _refuse_difference(found, record, f"dataset {folder.uri} is there already and was made otherwise")


def check_identity(folder: Folder, source: GeneratedSource) -> None:
    """Check that a dataset holds what a source's config says, by whatever versions it was made. Raises UserError."""
    found = folder.read_json("dataset.json")
    if found is None:
        raise NotMadeYetError(f"dataset {folder.uri} is not there; run `arc-ray generate` with this config first")
    identity = identity_of(source) | {"layout": LAYOUT}
    there = {key: found.get(key) for key in identity} | {"layout": found["made_with"]["layout"]}
    _refuse_difference(there, identity, f"dataset {folder.uri} was made by another config")


def _merge(dataset: str, sources: Mapping[str, Any]) -> Request:
    (first_name, first), *others = sources.items()
    for name, other in others:
        where = f"sources {first_name} and {name} share the dataset {dataset!r}"
        _refuse_difference(identity_of(first), identity_of(other), where)
    wanted: dict[str, int] = {}
    for source in sources.values():
        for task_id in task_ids_of(source):
            wanted[task_id] = max(wanted.get(task_id, 0), source.first + source.examples)
    limits = [source.time_limit_seconds for source in sources.values() if not isinstance(source, CountingSource)]
    patient = first.model_copy(update={"time_limit_seconds": max(limits)}) if limits else first
    return Request(dataset, patient, dict(sorted(wanted.items())))


def _refuse_difference(there: Mapping[str, Any], here: Mapping[str, Any], what: str) -> None:
    keys = differing_keys(there, here)
    if keys:
        raise UserError(
            f"{what} (differs in: {', '.join(keys)}); give the source another `dataset`, or delete the folder"
        )


def _made_with(source: GeneratedSource) -> dict[str, Any]:
    match source:
        case RearcSource():
            return {"layout": LAYOUT, generators.REARC_PACKAGE: importlib.metadata.version(generators.REARC_PACKAGE)}
        case PluginSource():
            return {"layout": LAYOUT, "code": generators.code_digest(source)}
        case CountingSource():
            return {"layout": LAYOUT, "arc_ray": importlib.metadata.version("arc_ray")}
