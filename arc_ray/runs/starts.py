"""What must exist before a run: runs named under `runs` that it refers to as "@name", made once, in order."""

import logging
from collections.abc import Iterable, Sequence

from arc_ray.config import Config, config_from, with_overrides
from arc_ray.errors import UserError
from arc_ray.runs.folder import checkpoint_steps
from arc_ray.runs.shapes import ConfigShape
from arc_ray.storage import Folder

logger = logging.getLogger(__name__)


def with_start(config: Config) -> Config:
    """Apply the overrides of the config's start; what a start sets wins over the rest of the config."""
    return with_overrides(config, config.starts[config.start], f"starts.{config.start}")


def config_of_run(config: Config, name: str) -> Config:
    """Return the config of a run named under `runs`: the config's own, with that run's overrides and name.

    It knows nothing of the study around it, so two studies that define a run alike share it. Raises UserError.
    """
    neutral = {"start": "base", "starts": {"base": {}}, "question": "", "tune": {}, "study": {}, "evaluate": {}}
    run = with_overrides(config, {**neutral, **config.runs[name], "name": name}, f"runs.{name}")
    mix = {source: copies for source, copies in run.data.mix.items() if copies}
    used = {
        source: run.data.sources[source].model_dump(mode="json")
        for source in [*mix, *run.data.validation, *run.evaluate.sets]
    }
    return with_overrides(run, {"data.sources": used, "data.mix": mix, "runs": {}}, f"runs.{name}")


def needed_runs(config: Config, variants: Iterable[Config]) -> list[Config]:
    """Return the configs of runs under `runs` that variants of a config refer to, those they refer to themselves first.

    Raises UserError for a reference to a run that is neither defined nor there, and for runs that need each other.
    """
    found: dict[str, Config] = {}

    def visit(key: str, name: str, path: tuple[str, ...] = ()) -> None:
        if path[-1:] == (name,):
            raise UserError(
                f"runs.{name} starts from itself, because it takes over what the config says;"
                f" set model.base and model.adapter under runs.{name} to what it starts from, or to null"
            )
        if name in path:
            raise UserError(f"runs need each other: {' -> '.join((*path, name))}")
        if name in found:
            return
        if name not in config.runs:
            if not checkpoint_steps(Folder.at(config.storage) / name):
                raise UserError(
                    f"{key} @{name}: there is no run of this name under `runs` ({', '.join(config.runs) or 'which is empty'})"
                    f" and none with a checkpoint in {config.storage}"
                )
            return
        run = config_of_run(config, name)
        for place, needed in _references(run).items():
            visit(f"runs.{name}.{place}", needed, (*path, name))
        found[name] = run

    for variant in variants:
        for key, name in _references(variant).items():
            visit(key, name)
    return list(found.values())


def lineage(config: Config, variant: Config | None = None, trains: bool = True) -> dict[str, Config]:
    """Return the configs of the runs that the weights of a config's variant (else its own) come from, by reference.

    A run that is there says by its config.yaml what it was, one that is not by the config's `runs`. Unless it `trains`,
    the checkpoints that the variant answers with count as well. Of a folder that no run of ours made nothing is known.
    """
    found: dict[str, Config] = {}

    def visit(storage: str, values: Sequence[str | None]) -> None:
        for reference in filter(None, values):
            made_by = _made_by(reference, storage)
            if not made_by and reference.startswith("@") and reference[1:] in config.runs:
                made_by = config_of_run(config, reference[1:])
            if made_by and made_by not in found.values():
                found[reference] = made_by
                visit(made_by.storage, (made_by.model.base, made_by.model.adapter))

    asked = variant or config
    answering = () if trains else (asked.evaluate.checkpoint, asked.evaluate.describer)
    visit(asked.storage, (*answering, asked.model.base, asked.model.adapter))
    return found


def _made_by(reference: str, storage: str) -> Config | None:
    """Read the config of the run that made "@run", or the folder of a run or of its checkpoint; None if there is none."""
    if reference.startswith("@"):
        place, overrides = Folder.at(storage) / reference[1:], {"storage": storage}
    else:
        folder, overrides = Folder.at(reference), {}
        place = folder.parent if folder.name.startswith("checkpoint-") else folder
    if not place.exists("config.yaml"):
        return None
    try:
        return config_from(place.read_yaml("config.yaml", ConfigShape), overrides, f"{place.uri}/config.yaml")
    except UserError as error:
        logger.warning("what %s was trained on is not known: %s", reference, error)
        return None


def _references(config: Config) -> dict[str, str]:
    """Return the names of runs that a config refers to, by key."""
    values = {
        "model.base": config.model.base,
        "model.adapter": config.model.adapter,
        "evaluate.checkpoint": config.evaluate.checkpoint,
        "evaluate.describer": config.evaluate.describer,
    }
    return {key: value[1:] for key, value in values.items() if value and value.startswith("@")}
