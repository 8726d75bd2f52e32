"""Evaluation, test-time training, search and study: how a model is judged, what is varied, what is asked."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from arc_ray.config.section import ModelName, Section, value_name

ACCURACIES = ("eval/solved", "eval/cell_accuracy")
"""What a search may maximise: over all validation sets or, with /<source> behind it, over one of them."""

DISTRIBUTIONS = {"grid": "a list", "choice": "a list", "uniform": "[low, high]", "loguniform": "[low, high]"}


class TttConfig(Section):
    """Test-time training, one adapter a task; what has no key here (clip, betas, row_tokens, micro_rows) is `train`'s.

    Published recipes: 250 views in 2 epochs of batch 2 at 5e-5 to 1e-4 (Akyürek et al., arXiv 2411.07279); 300 steps of
    batch 1 at 8e-5 (ironbar, ARC24); 8 epochs over 8 symmetries at 1e-4 (Franzen et al., "Product of Experts", 2025).
    """

    steps: int = Field(default=128, ge=1)
    """Optimizer steps per task."""
    views_per_step: int = Field(default=2, ge=1)
    """Leave-one-out views per step: each asks for one shown pair and shows others."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate; `train.schedule` and `train.warmup` shape it."""
    adapter: Literal["continue", "new"] = "continue"
    """Continue the checkpoint's adapter, or put a new LoRA (model.lora) on the merged model; a whole model gets a new one."""
    symmetries: bool | None = None
    """Turn and mirror each view by one of the 8 symmetries; null does as `view` says."""
    colors: Literal["permute", "keep"] | None = None
    """Rename colours in each view; null does as `view` says."""
    num_workers: int | None = Field(default=None, ge=1)
    """Tasks tuned at the same time; null takes what the cluster has room for."""
    gpus: float = Field(default=1.0, gt=0, le=1)
    """Share of a GPU for each worker, where scaling.use_gpu: 0.5 tunes two tasks on one GPU."""
    budget_seconds: float | None = Field(default=None, gt=0)
    """Wall-clock seconds for all tasks of an evaluation together; tasks that are not done by then keep the answers of the
    untuned model. null has no limit."""
    retries: int = Field(default=2, ge=0)
    """Further attempts at a task whose worker was lost or failed; after them it keeps its untuned answers."""


class AuditConfig(Section):
    """Memory or skill: published pairs against fresh ones of the same rules, and against themselves turned and recoloured."""

    fresh: int = Field(default=0, ge=0, le=100)
    """Fresh examples for each published test pair. A study audits every model that it evaluates, unless this is 0;
    `arc-ray audit` takes 10 where it is 0. With fewer than 10 no single task can show a difference."""
    sources: list[str] = Field(default=[])
    """Sources (rearc, arcgen or plugin) whose generators make fresh examples, from their `first` on; training must take
    others. Empty takes RE-ARC's, of 400 tasks of ARC-AGI-1."""


class EvaluateConfig(Section):
    """Predictions after training."""

    checkpoint: ModelName | None = None
    """Folder or "@run" of the checkpoint to evaluate; null evaluates the model of `model` as it is."""
    sets: list[str] = Field(default=[])
    """Sources to answer."""
    symmetries: int = Field(default=8, ge=1, le=8)
    """Views per output for voting: the first n of the 8 symmetries; with copies 1, 1 is greedy without voting."""
    copies: int = Field(default=1, ge=1)
    """Views per symmetry: the first keeps colours and pairs, others draw them (colours as `view` allows)."""
    decode: Literal["greedy", "sample", "search"] = "greedy"
    """How a view is answered: the most probable token each time, `samples` random answers, or all answers more probable
    than `min_probability`."""
    samples: int = Field(default=8, ge=1)
    """Answers drawn for each view by decode: sample; they follow from (seed, task, output, view, number) alone."""
    temperature: float = Field(default=1.0, gt=0)
    """Of decode: sample; below 1 probable answers become more frequent."""
    min_probability: float = Field(default=0.1, gt=0, lt=1)
    """Of decode: search; every answer above it is found, and memory is needed for 1 / min_probability rows a view."""
    constrain: bool = False
    """Write nothing but grids, as prompt.encoder gives them. Log-probabilities stay the model's own."""
    lookahead: int = Field(default=8, ge=0)
    """Tokens guessed at most before each forward pass by copying what followed a similar place, then verified: same
    answers, fewer passes. Writing one answer, twice as many as were right last time are tried; a search finds the branches at
    each guess. 0 turns it off; models with windowed attention do without."""
    selection: Literal[
        "majority", "vote_with_log_probability", "product_of_experts", "votes_and_mean_log_probability"
    ] = "majority"
    """How two attempts are chosen from the answers of all views; the last two first have every distinct answer scored under
    every view. Changed later, only what is missing is done."""
    fill_submission: bool = False
    """Give tasks of a Kaggle file that its source leaves out (tasks, exclude, limit, max_side) a place in submission.json,
    each output answered by [[0]]: the competition takes whole files only. Changed later, the submission is written again."""
    batch_tokens: int = Field(default=8192, ge=64)
    """Tokens per generation batch (answers at a time x their length); batches are sorted by length. Suits a CPU: a GPU has
    room for far more, such as 200000 of a small model."""
    max_prompt_tokens: int = Field(default=8192, ge=16)
    """Outputs whose prompt is longer are unanswered, which counts as wrong. Where the model has fewer positions, prompts
    leave room for their answers there."""
    num_actors: int | None = Field(default=None, ge=1)
    """Model replicas that predict at the same time; null takes as many as `gpus` lets GPUs hold, without GPUs one that has
    all cores."""
    gpus: float = Field(default=1.0, gt=0, le=1)
    """Share of a GPU for each replica, where scaling.use_gpu: 0.25 answers by four on one GPU. A small model leaves most of a
    GPU idle, and each replica has memory of its own for its weights and batch_tokens."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What writes greedy and sampled answers; vllm is an extra in an environment of its own. It takes no lookahead; scores,
    counting questions and models tuned by ttt are left to transformers."""
    describer: ModelName | None = None
    """Folder or "@run" of a first player, trained with prompt.format: describe. The second player (prompt.format:
    implement) then answers from its descriptions as well as from those given with the tasks."""
    max_description_tokens: int = Field(default=128, ge=1)
    """Longest description that the first player may write."""
    ttt: TttConfig | None = None
    """Test-time training: learn from each task's shown pairs before answering it; null answers untuned."""
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "EvaluateConfig":
        if self.backend == "vllm" and (self.decode == "search" or self.constrain):
            raise ValueError(
                "backend: vllm neither searches nor constrains; set decode to greedy or sample, constrain to false"
            )
        if self.ttt and self.describer:
            raise ValueError("ttt and describer exclude each other: set one of them to null")
        return self


class SchedulerConfig(Section):
    """Early stopping of trials."""

    kind: Literal["asha", "fifo"] = "asha"
    """ASHA stops the trials that are behind at a rung; FIFO lets all run to their end."""
    time_attribute: Literal["tokens", "epochs"] = "tokens"
    """What a rung counts: learned tokens seen, or epochs."""
    grace: float = Field(default=0.25, gt=0, le=1)
    """Share of the longest trial before the first rung."""
    reduction: float = Field(default=3.0, gt=1)
    """One trial in so many passes a rung."""


class TuneConfig(Section):
    """A search over config keys."""

    space: dict[str, Any] = Field(default={})
    """Dotted config key -> {grid: [...]}, {choice: [...]}, {uniform: [a, b]} or {loguniform: [a, b]}."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """Every point of a grid; points drawn at random; or Optuna's tree-structured Parzen estimator, which learns from
    the trials that have ended (a study asks it for each arm apart)."""
    num_trials: int | None = Field(default=None, ge=1)
    """Trials to draw at random or to ask Optuna for; a grid runs each of its points once."""
    metric: str = "eval/solved"
    """What is maximised, and what a study compares: eval/solved, eval/cell_accuracy, or one of them of a source, such as
    eval/solved/held_out; eval/cell_accuracy breaks ties. Never a loss, which goes on falling, or rises again, while
    accuracy does otherwise."""
    scheduler: SchedulerConfig = SchedulerConfig()
    max_concurrent: int | None = Field(default=None, ge=1)
    """Trials at the same time; null derives it from the cluster so that no trial waits for another's workers."""

    @model_validator(mode="after")
    def _is_a_search(self) -> "TuneConfig":
        if "/".join(self.metric.split("/", 2)[:2]) not in ACCURACIES:
            raise ValueError(
                f"metric {self.metric!r}: a search maximises eval/solved or eval/cell_accuracy (or .../<source> of them)"
            )
        for key, spec in self.space.items():
            if key.partition(".")[0] == "evaluate":
                raise ValueError(
                    f"space.{key}: trials are judged by validation, which it does not change; name it in study.compare"
                )
            if not isinstance(spec, dict) or len(spec) != 1 or next(iter(spec)) not in DISTRIBUTIONS:
                raise ValueError(
                    f"space.{key}: write {{grid: [...]}}, {{choice: [...]}}, {{uniform: [a, b]}} or {{loguniform: [a, b]}}"
                )
            kind, values = next(iter(spec.items()))
            if not isinstance(values, list) or not values:
                raise ValueError(f"space.{key}.{kind} takes {DISTRIBUTIONS[kind]}")
            if kind in ("uniform", "loguniform"):
                if len(values) != 2 or not all(isinstance(v, int | float) for v in values) or values[0] >= values[1]:
                    raise ValueError(f"space.{key}.{kind} takes two numbers, the lower first")
                if self.search == "grid":
                    raise ValueError(
                        f"space.{key}: a grid search takes {{grid: [...]}}; {kind} needs search: random or optuna"
                    )
                if kind == "loguniform" and values[0] <= 0:
                    raise ValueError(f"space.{key}.loguniform starts above 0")
        if self.search != "grid" and not self.space:
            raise ValueError(
                f"search: {self.search} draws from space, which is empty; name a key there, or search: grid"
            )
        if self.search != "grid" and self.num_trials is None:
            raise ValueError(f"search: {self.search} needs num_trials")
        return self


class SeedsConfig(Section):
    """Seeds that are added in rounds until the answer is clear."""

    at_least: int = Field(default=3, ge=2)
    """Seeds of each round, from 1 on; after each the arms are compared."""
    at_most: int = Field(default=12, le=100)
    """Seeds after which no more are added."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "SeedsConfig":
        if self.at_most <= self.at_least:
            raise ValueError("at_most must be more than at_least; a list of seeds is one round")
        return self


class StudyConfig(Section):
    """A question asked of trials: what differs between the arms, and over which seeds."""

    compare: str = "start"
    """Config key whose values are the arms. Arms that differ in keys of `evaluate` alone share their trainings, and arms
    that differ in such keys at all are compared by what they answer to `evaluate.sets`."""
    arms: list[Any] = Field(default=["base", "count"])
    """Values of `compare`; the first is the baseline."""
    seeds: Annotated[
        Annotated[list[int], Field(min_length=1), Tag("list")] | Annotated[SeedsConfig, Tag("rounds")],
        Discriminator(lambda seeds: "rounds" if isinstance(seeds, Mapping | SeedsConfig) else "list"),
    ] = Field(default=[1, 2, 3])
    """Each arm's chosen setting is trained once per seed, and arms are compared seed by seed; the search uses `seed`. With
    {at_least: 3, at_most: 12} seeds are added until each interval leaves out zero or lies within `indifference`."""
    indifference: float = Field(default=0.05, ge=0, lt=1)
    """Of seeds that are added: an effect of at most this size, in either direction, is as good as none."""
    evaluate_seeds: Literal["all", "one"] = "all"
    """Which seeds of each arm answer `evaluate.sets`: every one, or, for a fraction of the cost, the first."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Level of the intervals of effects, scores and gains."""

    @model_validator(mode="after")
    def _arms_differ(self) -> "StudyConfig":
        if len(self.arms) < 2 or len({value_name(arm) for arm in self.arms}) < len(self.arms):
            raise ValueError("arms: give at least two different values of the key that `compare` names")
        if self.compare in ("evaluate.checkpoint", "evaluate.sets"):
            raise ValueError(
                f"compare: {self.compare}: all arms answer the same sets, with checkpoints that the study trains"
            )
        if len(set(self.all_seeds)) < len(self.all_seeds):
            raise ValueError("seeds repeat; each seed counts once")
        if isinstance(self.seeds, SeedsConfig) and self.evaluate_seeds == "one":
            raise ValueError("evaluate_seeds: all seeds must answer where seeds are added; set it to all")
        return self

    @property
    def all_seeds(self) -> list[int]:
        """All seeds that may be used."""
        return [*range(1, self.seeds.at_most + 1)] if isinstance(self.seeds, SeedsConfig) else self.seeds

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many seeds arms are compared."""
        size = self.seeds.at_least if isinstance(self.seeds, SeedsConfig) else len(self.seeds)
        return *range(size, len(self.all_seeds), size), len(self.all_seeds)


def arm_parts(
    compare: str, arms: Sequence[Any], starts: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return, by an arm's name, the keys that make it an arm: those of training, and those of `evaluate`."""
    keys = {value_name(arm): starts.get(arm, {compare: arm}) if compare == "start" else {compare: arm} for arm in arms}
    return {name: (_part(own, of_answers=False), _part(own, of_answers=True)) for name, own in keys.items()}


def differ_in_answering(compare: str, arms: Sequence[Any], starts: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether a study is about how its arms answer, perhaps besides what they were trained on."""
    parts = [answering for _, answering in arm_parts(compare, arms, starts).values()]
    return any(part != parts[0] for part in parts)


def trained_as(compare: str, arms: Sequence[Any], starts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name for each arm the one whose trainings it answers with: the first that differs in how it answers alone."""
    if not differ_in_answering(compare, arms, starts):
        return {value_name(arm): value_name(arm) for arm in arms}
    parts = {name: training for name, (training, _) in arm_parts(compare, arms, starts).items()}
    return {name: next(other for other in parts if parts[other] == part) for name, part in parts.items()}


def _part(keys: Mapping[str, Any], of_answers: bool) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if (key.partition(".")[0] == "evaluate") == of_answers}
