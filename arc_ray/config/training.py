"""What is learned, on which rows, how, and on how many workers."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from arc_ray.config.section import Section
from arc_ray.config.sources import AnySource, Name, Unit


class DataConfig(Section):
    """Sources by name, and how they are mixed."""

    sources: dict[Name, AnySource] = Field(default={})
    """Every source by a name of your choice; only those named below are used."""
    mix: dict[str, int] = Field(default={})
    """Source name -> views of each of its tasks per epoch; 0 leaves the source out."""
    validation: list[str] = Field(default=[])
    """Sources whose tasks are answered during training (greedy, one forward pass)."""
    allow_overlap: bool = False
    """Train on, or answer with weights that learned, what is validated or evaluated. Result and report will say so."""

    @model_validator(mode="after")
    def _names_exist(self) -> "DataConfig":
        for key, names in (("mix", self.mix), ("validation", self.validation)):
            for name in names:
                if name not in self.sources:
                    raise ValueError(f"{key} names the source {name!r}; data.sources has {sorted(self.sources)}")
        if any(copies < 0 for copies in self.mix.values()):
            raise ValueError("mix holds a negative number of views; 0 leaves a source out")
        return self


class ViewConfig(Section):
    """What may be random about a view."""

    symmetries: bool = True
    """Turn and mirror the whole task by one of the 8 symmetries of the square, uniformly."""
    colors: Literal["permute", "keep"] = "permute"
    """Rename colours by a random bijection, the same for all grids of the view."""
    background_probability: Unit = 0.1
    """Chance that colour 0, the usual background, takes part in the permutation (which then moves it 9 times in 10)."""
    one_sided: Unit = 0.0
    """Chance that the inputs alone, or the outputs alone, of all pairs of the view are changed as well: another puzzle with
    the same idea in it. Where the change would make a side longer than 30 cells, the view stays as it is."""
    one_sided_weights: dict[Literal["geometric", "padding", "upscale", "mirror"], Annotated[float, Field(ge=0)]] = (
        Field(default={"geometric": 1.0, "padding": 2.0, "upscale": 4.0, "mirror": 4.0})
    )
    """How often each kind of one-sided change is drawn, relative to the others; a kind that is not named is not drawn."""
    shuffle_pairs: bool = True
    """Choose the pair to answer uniformly among all pairs with a known output, and show others in random order."""
    max_shown: int = Field(default=4, ge=1, le=10)
    """Show at most this many pairs."""
    min_shown: int | None = Field(default=None, ge=1, le=10)
    """Show a random number of pairs, uniformly from this to `max_shown`; null shows as many as there are."""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> "ViewConfig":
        if self.one_sided and not any(self.one_sided_weights.values()):
            raise ValueError("one_sided_weights are all 0: give at least one kind a weight, or set one_sided to 0")
        if self.min_shown and self.min_shown > self.max_shown:
            raise ValueError(f"min_shown {self.min_shown} is more than max_shown {self.max_shown}")
        return self


class PromptConfig(Section):
    """How a view becomes text."""

    format: str = "output_from_examples"
    """output_from_examples, compact, input_from_inputs, describe or implement; `arc-ray peek --stage prompt` shows it."""
    encoder: str = "shape_rows"
    """How a grid is written: plain, separated (1|2), fenced, shape (height x width first), rows (row numbers), shape_rows
    (both), repeated (111), symbols (rare letters), or compact (for the tiny model). With -columns, -snake or -spiral behind
    it, as in compact-snake, cells are written in that order."""
    positions: Literal["sequence", "grid"] = "sequence"
    """What a model's rotary positions count: tokens; or pair, row and column, so that a cell is as far from the one above it,
    and from the same cell of the input, in every grid. For models from scratch: others, of full attention only, would have
    to learn it. Folders of whole models do not say it: set it beside a `model.base` that learned `grid`."""
    learn: Literal["asked", "all"] = "asked"
    """Learn the asked answer only, or every output after the first shown pair as well (n-1 more targets from one prompt)."""


DERIVED = {
    "train_batch_size": "batch_rows",
    "train_micro_batch_size_per_gpu": "micro_rows",
    "gradient_accumulation_steps": "batch_rows",
    "optimizer": "optimizer, lr, betas and weight_decay",
    "scheduler": "schedule and warmup",
}
"""Keys of DeepSpeed that have a key here, which the rows of a step and the schedule follow from."""

GRADIENT_BUCKET = 50_000_000
"""Gradients that DeepSpeed reduces at once: 0.1 GB in bfloat16. Its own default of 500 million takes 1 GB of every GPU."""


class TrainConfig(Section):
    """The optimizer's view of a run."""

    engine: Literal["deepspeed", "trl"] = "deepspeed"
    """Whose loop trains: ours on DeepSpeed, or trl's SFTTrainer with the same rows, checkpoints and losses, but slower."""
    full: bool = False
    """Train all parameters instead of an adapter."""
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """adamw_8bit keeps AdamW's moments in 8 bits (`pip install 'arc_ray[quantize]'`). muon makes steps of matrices orthogonal,
    but for embeddings and output layer, and as long as AdamW's; AdamW steps the rest; it takes ZeRO stage 0."""
    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    embedding_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of input embeddings and output layer where these are trained; null takes `lr`. In test-time training
    it is as many times `evaluate.ttt.lr` as it is `lr` here."""
    epochs: int = Field(default=1, ge=1)
    """Times each task's views are drawn anew; every epoch has its own augmentations."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps (the schedule ends there too); null runs all epochs."""
    row_tokens: int = Field(default=4096, ge=16)
    """Length of a packed row in tokens."""
    too_long: Literal["fewer_pairs", "drop"] = "fewer_pairs"
    """A view longer than a row loses shown pairs until it fits, or is dropped; both are counted."""
    batch_rows: int = Field(default=16, ge=1)
    """Rows per optimizer step over all workers: the global batch."""
    micro_rows: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Rows per forward pass on one worker; "auto" is 1 on CPUs, and on GPUs as many as are sure to fit and divide
    `batch_rows`. A run keeps what it began with."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls to 0 after the warm-up; constant keeps it."""
    warmup: Unit = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay of weights, as a share of the learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest gradient norm; null does not clip."""
    log_every: int = Field(default=1, ge=1)
    """Steps between metric lines."""
    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    """Where the lines of metrics.jsonl are shown as well; wandb and mlflow need `pip install 'arc_ray[tracking]'`."""
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between validations; null validates at every quarter of the run. The end is always validated."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; null saves at every quarter. The end is always saved."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept, the newest ones."""
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """DeepSpeed's ZeRO stage: what is sharded over workers (1 optimizer, 2 + gradients, 3 + parameters). "auto" is 1 for an
    adapter, whose gradients are small and cost more to shard, and 2 where `full`, whose gradients are as large as the model; 0
    for muon."""
    offload: bool = False
    """Keep optimizer state in CPU memory (and parameters, at ZeRO 3)."""
    compile: bool = False
    """Let torch.compile fuse each layer's small operations: on a GPU some 20 s at the start, then a fifth to a third faster."""
    deepspeed: dict[str, Any] = Field(default={})
    """Merged last into the DeepSpeed config: for what has no key here, such as zero_optimization.overlap_comm."""
    max_failures: int = Field(default=3, ge=-1)
    """Restarts of the workers after a fault before the run gives up; -1 never gives up."""

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.optimizer == "muon" and self.zero:
            raise ValueError(
                f"muon needs whole matrices, which zero_stage {self.zero_stage} cuts among workers: set it to 0 or auto"
            )
        if self.offload and self.zero == 0:
            raise ValueError("offload needs something to move: set zero_stage to 1, 2 or 3, or offload to false")
        if self.compile and self.zero == 3:
            raise ValueError(
                "compile cannot see through the hooks of ZeRO 3: set zero_stage to 0, 1 or 2, or compile to false"
            )
        if taken := DERIVED.keys() & self.deepspeed.keys():
            name = min(taken)
            raise ValueError(f"deepspeed sets {name}, which would be overruled: set train.{DERIVED[name]} instead")
        if self.batch_rows % self.rows_at_once:
            raise ValueError(f"batch_rows {self.batch_rows} must be a multiple of micro_rows {self.rows_at_once}")
        return self

    @property
    def rows_at_once(self) -> int:
        """`micro_rows` as a number: 1 where nobody has chosen."""
        return 1 if self.micro_rows == "auto" else self.micro_rows

    @property
    def zero(self) -> int:
        """The ZeRO stage, chosen."""
        if self.zero_stage != "auto":
            return self.zero_stage
        if self.optimizer == "muon":
            return 0
        return 2 if self.full else 1


class ScalingConfig(Section):
    """How many workers, and what each may use."""

    num_workers: Literal["auto"] | int | tuple[int, int] = "auto"
    """Training workers (one a GPU), or [min, max] for elastic training: as many as the cluster has room for. "auto" takes
    the GPUs of one node type that train.batch_rows can be shared among; 1 for each trial of a search, and on CPUs."""
    resize_seconds: float = Field(default=60.0, gt=0)
    """Elastic training: time between looks for machines that came; to use them costs a restart from the newest checkpoint."""
    use_gpu: Literal["auto"] | bool = "auto"
    """Train and answer on GPUs; "auto" does where there are any, or the cluster's autoscaler can start some."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """Logical CPUs that Ray reserves for a training worker."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one training worker's arithmetic; null shares the machine's cores among the workers."""
    data_cpus: float = Field(default=0.5, gt=0)
    """Logical CPUs of one task that makes rows."""

    @model_validator(mode="after")
    def _at_least_one(self) -> "ScalingConfig":
        if self.num_workers != "auto" and not 1 <= self.workers[0] <= self.workers[1]:
            raise ValueError(f"num_workers {self.num_workers}: give a number of at least 1, or [min, max]")
        return self

    @property
    def workers(self) -> tuple[int, int]:
        """The least and the most training workers, once they are chosen."""
        assert self.num_workers != "auto", "nobody has chosen scaling.num_workers"
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)

    @property
    def on_gpu(self) -> bool:
        """Whether GPUs are used, once that is chosen."""
        assert self.use_gpu != "auto", "nobody has chosen scaling.use_gpu"
        return self.use_gpu


class RayConfig(Section):
    """The Ray that `arc-ray` starts when no address is given."""

    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs; null takes the cores of the machine, at least 4, so that a worker and its data tasks fit."""
    object_store_mib: int = Field(default=512, ge=80)
    """Shared memory for rows in flight, in MiB."""
