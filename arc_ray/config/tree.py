"""The root of the config tree, and what its dotted keys are: which there are, and what their values may be."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import Field, model_validator

from arc_ray.config.model import ModelConfig
from arc_ray.config.searching import EvaluateConfig, StudyConfig, TuneConfig
from arc_ray.config.section import DottedKeys, PlacePath, RunName, Section
from arc_ray.config.sources import AnySource
from arc_ray.config.training import DataConfig, PromptConfig, RayConfig, ScalingConfig, TrainConfig, ViewConfig
from arc_ray.errors import SECRET


class Config(Section):
    """Everything a command needs to know."""

    name: RunName = "run"
    """Name of the run: its folder below `storage`."""
    storage: PlacePath = "runs"
    """Folder for everything that is made: a local path, s3://bucket/path or gs://bucket/path."""
    question: str = ""
    """What this study is asked, in one sentence; the report opens with it."""
    seed: int = 0
    """All randomness of training follows from it."""
    start: str = "base"
    """Starting checkpoint: a name under `starts`."""
    starts: dict[str, DottedKeys] = Field(default={"base": {}})
    """Name -> dotted overrides that make it, such as {model.adapter: "@count"} or {data.mix.counting: 2}."""
    runs: dict[str, DottedKeys] = Field(default={})
    """Name -> dotted overrides of a training run that is made once, before whatever refers to it as "@name"."""
    data: DataConfig = DataConfig()
    view: ViewConfig = ViewConfig()
    prompt: PromptConfig = PromptConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    scaling: ScalingConfig = ScalingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tune: TuneConfig = TuneConfig()
    study: StudyConfig = StudyConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if self.start not in self.starts:
            raise ValueError(f"start {self.start!r} is not under starts, which has {sorted(self.starts)}")
        if secret := SECRET.search(str(self.train.deepspeed)):
            raise ValueError(
                f"train.deepspeed holds a key ({secret[0]}), which would be written down with the config: leave it out, and"
                f" set it in the environment of every node"
            )
        for name in self.evaluate.sets:
            if name not in self.data.sources:
                raise ValueError(
                    f"evaluate.sets names the source {name!r}; data.sources has {sorted(self.data.sources)}"
                )
        num_workers, batch, at_once = self.scaling.num_workers, self.train.batch_rows, self.train.rows_at_once
        is_elastic = isinstance(num_workers, tuple)
        if self.train.engine == "trl" and is_elastic:
            raise ValueError(
                f"scaling.num_workers {list(num_workers)} is elastic, which train.engine trl is not: give one number,"
                " or set train.engine to deepspeed"
            )
        high = 1 if num_workers == "auto" else self.scaling.workers[1]
        shares = f"scaling.num_workers x train.micro_rows = {high} x {at_once}"
        # An elastic run takes what the cluster has, and fills a share that does not divide with empty rows.
        if not is_elastic and batch % (high * at_once):
            raise ValueError(
                f"train.batch_rows {batch} must be a multiple of {shares}: the global batch is shared equally"
            )
        if batch < high * at_once:
            raise ValueError(f"train.batch_rows {batch} is less than {shares}: some workers would have nothing to do")
        if self.model.scratch and not self.train.full:
            raise ValueError(
                "model.scratch starts from random weights, which an adapter cannot mend: set train.full to true"
            )
        if self.train.engine == "trl" and "16" in self.model.dtype and self.scaling.use_gpu is False:
            raise ValueError("train.engine trl computes in float32 without a GPU: set model.dtype to float32")
        for key, value, counting, other in (
            ("train.engine", self.train.engine, ("trl",), "deepspeed"),
            ("evaluate.backend", self.evaluate.backend, ("vllm",), "transformers"),
            ("model.attention", self.model.attention, ("flex_attention", "eager"), "auto"),
        ):
            if self.prompt.positions == "grid" and value in counting:
                raise ValueError(
                    f"prompt.positions grid: {key} {value} takes positions for a sequence; set {key} to {other},"
                    " or prompt.positions to sequence"
                )
        if self.train.full and self.model.adapter and self.model.adapter_use == "continue":
            raise ValueError("train.full trains no adapter: set model.adapter_use to merge, or train.full to false")
        return self


@cache
def known_keys() -> frozenset[str]:
    """List every dotted key of the tree, but for those within a dict of the user's names (sources, mix)."""

    def walk(section: type[Section], prefix: str) -> Iterator[str]:
        for name, kind in _fields(section).items():
            yield f"{prefix}{name}"
            for inner in sections_among(_parts(kind)):
                yield from walk(inner, f"{prefix}{name}.")

    return frozenset(walk(Config, ""))


def types_of(key: str) -> tuple[Any, ...]:
    """Return what the value of a dotted key may be: its type with the parts of that, `absolute` among them for a path."""
    return types_below((Config,), key)


def types_below(types: Iterable[Any], key: str) -> tuple[Any, ...]:
    """Return the same of a key, which may be dotted, of values that have one of these types."""
    if not key:
        return tuple(types)
    name, _, rest = key.partition(".")
    below: list[Any] = []
    for kind in types:
        if get_origin(kind) is dict:  # of names that a user chose, which may hold dots
            values = _parts(get_args(kind)[1])
            below += [*values, *types_below(values, rest)] if rest else values
        elif name in (fields := _fields(kind)):
            below += types_below(_parts(fields[name]), rest)
    return tuple(below)


def sections_among(types: Iterable[Any]) -> list[type[Section]]:
    """Return those of some types that are parts of the tree."""
    return [kind for kind in types if isinstance(kind, type) and issubclass(kind, Section)]


@cache
def _parts(kind: Any) -> tuple[Any, ...]:
    """Take unions, lists and annotations apart, itself first; dotted overrides are as the config itself."""
    if kind is DottedKeys:
        return (Config,)
    if get_origin(kind) is dict:
        return (kind,)
    return (kind, *(part for argument in get_args(kind) for part in _parts(argument)))


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """Return the types of a section's keys; nothing for a type that is no section."""
    hints = get_type_hints(kind, include_extras=True) if sections_among([kind]) else {}
    return {name: hint for name, hint in hints.items() if name in kind.model_fields}


SOURCE_KINDS = {
    name: section
    for section in sections_among(_parts(AnySource))
    for name in get_args(section.model_fields["kind"].annotation)
}
"""The values of `kind` of a source, and their classes."""
