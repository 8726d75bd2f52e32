"""`prepare`: a config becomes tasks, which the guard lets pass, a codec, a plan and validation rows, before any worker."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from arc_ray.config import Config
from arc_ray.datasets.reading import load_source
from arc_ray.errors import UserError, located
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.formats import format_named, needs_description
from arc_ray.prompts.lengths import fit_views
from arc_ray.prompts.sample import make_codec
from arc_ray.prompts.tokenizer import load_tokenizer, refuse_other_frame
from arc_ray.rows.guard import mixed, refuse_overlap
from arc_ray.rows.maker import RowMaker, ValidationSet, make_validation
from arc_ray.rows.plan import Plan, load_plan, make_plan, planned_views, save_plan
from arc_ray.runs.folder import note_sets
from arc_ray.storage import Folder
from arc_ray.tasks.fingerprints import digest_tasks, refuse_changes
from arc_ray.tasks.selection import name_set
from arc_ray.tasks.task import TaskTable
from arc_ray.views.view import Views, draw_views, keys_of

CHUNK = 200_000
"""Views drawn at once while planning: bounds memory, changes nothing else."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a plan is made of; shared by the configs of one `inputs_key`."""

    tables: Mapping[str, TaskTable]
    """The sources of mix and validation, by name."""
    sets: Mapping[str, str]
    """The versions of those, by name."""
    codec: Codec
    pad_id: int
    validation: ValidationSet | None


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a run needs before any worker starts."""

    tables: Mapping[str, TaskTable]
    sets: Mapping[str, str]
    maker: RowMaker
    validation: ValidationSet | None

    @property
    def plan(self) -> Plan:
        """The plan of the run."""
        return self.maker.plan


def prepare(config: Config, folder: Folder | None = None, known: dict[str, Any] | None = None) -> Prepared:
    """Load tasks, refuse leaks, plan rows and write validation rows. Raises UserError; `folder` as `refuse_overlap`.

    Calls that are given the same `known` share what they make, as far as their configs agree in what it depends on.
    """
    known, key, inputs_at = {} if known is None else known, plan_key(config), inputs_key(config)
    if inputs_at not in known:
        known[inputs_at] = read_inputs(config, folder)
    if key not in known:
        inputs: Inputs = known[inputs_at]
        plan = plan_rows(config, inputs.tables, inputs.codec)
        plan = dataclasses.replace(plan, data={name: digest_tasks(table) for name, table in inputs.tables.items()})
        tables = tuple(inputs.tables[name] for name in plan.sources)
        maker = RowMaker(plan, tables, config.view, inputs.codec.without_tokenizer(), inputs.pad_id)
        known[key] = Prepared(inputs.tables, inputs.sets, maker, inputs.validation)
    return known[key]


def keep(prepared: Prepared, folder: Folder) -> Prepared:
    """Write frame, plan and names of sets into the folder of a new run; for one that goes on, return `prepared` with its
    own plan.

    Raises UserError where that run began with other data or another chat template.
    """
    frame = prepared.maker.codec.frame
    kept = folder.read_json("frame.json", dict[str, str])
    refuse_other_frame(kept, frame, folder.uri)
    if kept is None:
        folder.write_json("frame.json", dataclasses.asdict(frame))
    if not folder.exists("plan.parquet"):
        note_sets(folder, prepared.sets)
        folder.write_bytes("plan.parquet", save_plan(prepared.plan))
        return prepared
    begun = folder.read("plan.parquet", load_plan)
    refuse_changes(begun.data, prepared.tables, folder.uri)
    most = [len(prepared.tables[name]) if name in prepared.tables else 0 for name in begun.sources]
    if begun.sources != prepared.plan.sources or (begun.views["task"] >= np.array(most)[begun.views["source"]]).any():
        raise UserError(f"{folder.uri}/plan.parquet is of other data than this config's; delete the folder")
    return dataclasses.replace(prepared, maker=dataclasses.replace(prepared.maker, plan=begun))


def inputs_key(config: Config) -> str:
    """Write down all that `read_inputs` depends on: configs of equal keys have the same inputs."""
    data = config.data
    sources = {name: data.sources[name] for name in sorted({*mixed(config), *data.validation, *config.evaluate.sets})}
    held = (data.validation, config.evaluate.sets, data.allow_overlap)
    tokenizer = (config.model.base, config.model.scratch is None, config.model.vocabulary)
    return repr(
        (config.storage, sources, mixed(config), held, tokenizer, config.prompt, config.view, config.train.row_tokens)
    )


def plan_key(config: Config) -> str:
    """Write down all that `prepare` depends on: configs of equal keys have the same plan, rows and validation rows."""
    train = config.train
    copies = [config.data.mix[name] for name in mixed(config)]
    return repr(
        (inputs_key(config), copies, train.epochs, train.batch_rows, train.max_steps, train.too_long, config.seed)
    )


def read_inputs(config: Config, folder: Folder | None = None) -> Inputs:
    """Load tasks and tokenizer, hold tasks against what is evaluated, write validation rows. Raises UserError."""
    storage, validation = Folder.at(config.storage), None
    names = dict.fromkeys([*mixed(config), *config.data.validation])
    tasks = {name: load_source(config.data.sources[name], storage) for name in names}
    refuse_overlap(config, tasks=tasks, folder=folder)
    tables = {name: TaskTable.of(tasks[name]) for name in names}
    tokenizer = load_tokenizer(config.model, config.storage)
    codec = codec_of(config, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if config.data.validation:
        asked, held = dataclasses.replace(codec, learn="asked"), {name: tables[name] for name in config.data.validation}
        validation = make_validation(asked, held, config.view.max_shown, config.train.row_tokens, pad_id)
    sets = {name: name_set(config.data.sources[name], tables[name], config.storage) for name in names}
    return Inputs(tables, sets, codec, pad_id, validation)


def codec_of(config: Config, tokenizer: Any) -> Codec:
    """Make the codec of a config's prompt for a tokenizer. Raises UserError for a format that its views do not suit."""
    view = config.view
    if needs_description(format_named(config.prompt.format)) and (
        view.symmetries or view.colors != "keep" or view.one_sided
    ):
        raise UserError(
            f"prompt.format={config.prompt.format} uses descriptions, which name colours and directions:"
            f" set view.symmetries=false, view.colors=keep and view.one_sided=0, or they would be wrong"
        )
    if config.model.vocabulary == "cells" and needs_description(format_named(config.prompt.format)):
        raise UserError(
            f"prompt.format={config.prompt.format} uses descriptions, whose words model.vocabulary=cells leaves out: set it to"
            f" null, or to a list of texts with these words"
        )
    with located(config.model.called):
        return make_codec(tokenizer, config.prompt)


def plan_rows(config: Config, tables: Mapping[str, TaskTable], codec: Codec) -> Plan:
    """Plan a training run: every source of `data.mix`, every task, every copy, every epoch.

    Raises UserError if nothing is left to train on.
    """
    sources, train, parts, shortened = mixed(config), config.train, [], 0
    for source, name in enumerate(sources):
        table, per_epoch = tables[name], config.data.mix[name] * len(tables[name])
        total = per_epoch * train.epochs
        for begin in range(0, total, CHUNK):
            epoch, within = np.divmod(np.arange(begin, min(begin + CHUNK, total)), per_epoch)
            copy, task = np.divmod(within, len(table))
            key = keys_of(config.seed, name, table, task, copy, epoch)
            views = draw_views(config.view, table, task, key)
            shown, lengths = fit_views(codec, table, views, train.row_tokens, drop=train.too_long == "drop")
            parts.append(planned_views(source, task, copy, epoch, key, shown, *lengths))
            shortened += int(((shown >= 0) & (shown < views.num_shown())).sum())
    if not any((part["shown"] >= 0).any() for part in parts):
        raise UserError(
            "nothing to train on: data.mix names no source with tasks that fit into train.row_tokens"
            f" = {train.row_tokens}; give a source at least one view per task, or longer rows"
        )
    return make_plan(config, sources, np.concatenate(parts), shortened)


def first_views(config: Config, name: str, table: TaskTable) -> Views:
    """Draw the first view of every task of a source, as training begins with it: for people to look at."""
    task = np.arange(len(table))
    return draw_views(config.view, table, task, keys_of(config.seed, name, table, task, np.zeros_like(task), 0))
