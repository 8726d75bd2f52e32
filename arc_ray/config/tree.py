"""The root of the config tree."""

from pydantic import Field, model_validator

from arc_ray.config.searching import EvaluateConfig, StudyConfig, TuneConfig
from arc_ray.config.section import DottedKeys, PlacePath, Section
from arc_ray.config.training import (
    DataConfig,
    ModelConfig,
    PromptConfig,
    RayConfig,
    ScalingConfig,
    TrainConfig,
    ViewConfig,
)


class Config(Section):
    """Everything a command needs to know."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")
    """Name of the run: its folder below `storage`."""
    storage: PlacePath = "runs"
    """Folder for everything that is made: a local path, s3://bucket/path or gs://bucket/path."""
    question: str = ""
    """What this study is asked, in one sentence; the report opens with it."""
    seed: int = 0
    """All randomness of training follows from it."""
    start: str = "base"
    """Starting checkpoint: a name under `starts`."""
    starts: dict[str, DottedKeys] = Field(default_factory=lambda: {"base": {}})
    """Name -> dotted overrides that make it, such as {model.adapter: "@count"} or {data.mix.counting: 2}."""
    runs: dict[str, DottedKeys] = Field(default_factory=dict)
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
        for name in self.evaluate.sets:
            if name not in self.data.sources:
                raise ValueError(
                    f"evaluate.sets names the source {name!r}; data.sources has {sorted(self.data.sources)}"
                )
        workers = self.scaling.num_workers
        high = 1 if workers == "auto" else self.scaling.workers[1]
        if self.train.engine == "trl" and isinstance(workers, tuple):
            raise ValueError(
                f"scaling.num_workers {list(workers)} is elastic, which train.engine trl is not: give one number,"
                " or set train.engine to deepspeed"
            )
        # An elastic run takes what the cluster has, and fills a share that does not divide with empty rows.
        if self.train.batch_rows % self.train.rows_at_once or (
            not isinstance(workers, tuple) and self.train.batch_rows % (high * self.train.rows_at_once)
        ):
            raise ValueError(
                f"train.batch_rows {self.train.batch_rows} must be a multiple of scaling.num_workers x train.micro_rows"
                f" = {high} x {self.train.rows_at_once}: the global batch is shared equally"
            )
        if self.train.batch_rows < high * self.train.rows_at_once:
            raise ValueError(
                f"train.batch_rows {self.train.batch_rows} is less than scaling.num_workers x train.micro_rows"
                f" = {high} x {self.train.rows_at_once}: some workers would have nothing to do"
            )
        if self.model.scratch and not self.train.full:
            raise ValueError(
                "model.scratch starts from random weights, which an adapter cannot mend: set train.full to true"
            )
        if self.train.engine == "trl" and "16" in self.model.dtype and self.scaling.use_gpu is False:
            raise ValueError("train.engine trl computes in float32 without a GPU: set model.dtype to float32")
        if self.train.full and self.model.adapter and self.model.adapter_use == "continue":
            raise ValueError("train.full trains no adapter: set model.adapter_use to merge, or train.full to false")
        return self
