"""`prepare`: a config becomes tasks, which the guard lets pass, a codec, a plan and validation rows, before any worker."""

import dataclasses
from typing import Any

from arc_ray.config import Config
from arc_ray.datasets.reading import load_source
from arc_ray.errors import UserError
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import encoder_named
from arc_ray.prompts.formats import format_named, needs_description
from arc_ray.prompts.lengths import warm_up
from arc_ray.prompts.sample import make_codec
from arc_ray.prompts.tokenizer import frame_of, load_tokenizer, refuse_other_frame
from arc_ray.rows.guard import refuse_overlap
from arc_ray.rows.maker import RowMaker, plan_rows
from arc_ray.rows.plan import Plan, load_plan, save_plan
from arc_ray.rows.validation import ValidationSet, make_validation
from arc_ray.storage import Folder
from arc_ray.tasks.fingerprints import fingerprint, refuse_changes
from arc_ray.tasks.task import TaskTable


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a run needs before any worker starts."""

    maker: RowMaker
    validation: ValidationSet | None

    @property
    def plan(self) -> Plan:
        """The plan of the run."""
        return self.maker.plan


def prepare(config: Config, folder: Folder | None = None) -> Prepared:
    """Load tasks, plan rows, write the validation rows; a plan already in `folder` is used as it is. Raises UserError."""
    storage = Folder.at(config.storage)
    mixed = [name for name, copies in config.data.mix.items() if copies > 0]
    tasks = {name: load_source(config.data.sources[name], storage) for name in {*mixed, *config.data.validation}}
    refuse_overlap(config, tasks=tasks, folder=folder)
    tables = {name: TaskTable.of(of_source) for name, of_source in tasks.items()}
    tokenizer = load_tokenizer(config.model, config.storage)
    codec = codec_of(config, tokenizer)
    if folder is not None:
        refuse_other_frame(folder.read_json("frame.json"), codec.frame, folder.uri)
        folder.write_json("frame.json", dataclasses.asdict(codec.frame))
    if folder is not None and folder.exists("plan.parquet"):
        plan = load_plan(folder.read_bytes("plan.parquet"))
        refuse_changes(plan.data, tables, folder.uri)
        for name in mixed:  # look up what planning would have looked up
            warm_up(codec, tables[name], int(plan.shown.max(initial=0)), config.view.one_sided > 0)
    else:
        plan = plan_rows(config, tables, codec)
        if folder is not None:
            plan = dataclasses.replace(plan, data={name: fingerprint(table) for name, table in tables.items()})
            folder.write_bytes("plan.parquet", save_plan(plan))
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    maker = RowMaker(plan, tuple(tables[name] for name in mixed), config.view, codec.without_tokenizer(), pad_id)
    validation = None
    if config.data.validation:
        asked = dataclasses.replace(codec_of(config, tokenizer), learn="asked")
        held_out = {name: tables[name] for name in config.data.validation}
        validation = make_validation(asked, held_out, config.view.max_shown, config.train.row_tokens, pad_id)
    return Prepared(maker, validation)


def codec_of(config: Config, tokenizer: Any) -> Codec:
    """Make the codec of a config's prompt for a tokenizer. Raises UserError for a format that its views do not suit."""
    format = format_named(config.prompt.format)
    view = config.view
    if needs_description(format) and (view.symmetries or view.colors != "keep" or view.one_sided):
        raise UserError(
            f"prompt.format={config.prompt.format} uses descriptions, which name colours and directions:"
            f" set view.symmetries=false, view.colors=keep and view.one_sided=0, or they would be wrong"
        )
    encoder = encoder_named(config.prompt.encoder)
    return make_codec(tokenizer, frame_of(tokenizer), encoder, format, config.prompt.learn)
