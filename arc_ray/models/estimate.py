"""What a training would take, in lines to read: memory of a GPU, what fits, and hours."""

import warnings
from collections.abc import Iterator
from typing import Any

from arc_ray.config import Config
from arc_ray.errors import NotMadeYetError
from arc_ray.models.flops import GPUS, MEMORY_SIZES, SHOWN_GPUS, expected_mfu, hours
from arc_ray.rows.plan import Plan

LEARNED_SHARE = {"asked": 0.25, "all": 0.5}
"""Share of a row's tokens that is learned at most, by `prompt.learn`: before there is a plan, which would tell."""

USABLE = 0.85
"""Share of a GPU's memory that rows are chosen for: what tensors take is known to 15 %."""

PARTS = ("weights", "gradients", "optimizer", "activations", "logits")


def estimate_lines(config: Config, plan: Plan) -> Iterator[str]:
    """Describe memory and time of a training from its plan and its model's shape; says why if that is not known yet."""
    from arc_ray.models.skeleton import count_parameters, flops_of

    try:
        skeleton = _skeleton(config)
    except NotMadeYetError as error:
        yield f"memory and time: not known yet ({error})"
        return
    total, trained = count_parameters(skeleton)
    yield f"model: {total / 1e6:,.2f} M parameters, {trained / 1e6:,.2f} M of them trained, in {config.model.dtype}"
    yield from _memory(config, plan, skeleton)
    sizes = plan.tokens_per_step(), plan.learned_per_step(), plan.squared_lengths_per_step()
    yield _time(flops_of(skeleton).of_steps(*sizes).sum(), total, config.scaling.workers[0])


def rows_for(config: Config, capacity: int) -> int:
    """Return how many rows at once a GPU of `capacity` bytes is given: as many as are sure to fit and divide the batch.

    Rows are shared out equally among the workers, or in an elastic run none of them is left without. Raises UserError.
    """
    from arc_ray.models.memory import footprint, rows_that_fit, simulate_pass

    train, (low, high) = config.train, config.scaling.workers
    skeleton, learned = _skeleton(config), int(train.row_tokens * LEARNED_SHARE[config.prompt.learn])
    held = footprint(skeleton, simulate_pass(skeleton, 1, train.row_tokens, learned), _setting(config, train.zero))
    most, shared = rows_that_fit(held, 1, int(USABLE * capacity)), low if low == high else 1
    fitting = range(2, min(most, train.batch_rows // high) + 1)
    return max((rows for rows in fitting if train.batch_rows % (rows * shared) == 0), default=1)


def _setting(config: Config, stage: int) -> Any:
    from arc_ray.models.memory import Setting

    is_compiled = config.train.compile and not config.model.gradient_checkpointing
    return Setting(stage, config.scaling.workers[0], config.train.offload, is_compiled)


def _skeleton(config: Config) -> Any:
    from arc_ray.models.skeleton import build_skeleton
    from arc_ray.prompts.tokenizer import load_tokenizer

    with warnings.catch_warnings():
        # peft and we call transformers by names that it is about to change, which is no concern of the reader's.
        warnings.simplefilter("ignore", FutureWarning)
        tokenizer = load_tokenizer(config.model, config.storage)
        return build_skeleton(config.model, config.storage, config.train.full, tokenizer)


def _memory(config: Config, plan: Plan, skeleton: Any) -> Iterator[str]:
    """Say what one GPU holds at each ZeRO stage, and how many rows at once would fit."""
    from arc_ray.models.memory import RUNTIME_BYTES, STAGES, footprint, rows_that_fit, simulate_pass

    rows, workers = config.train.rows_at_once, config.scaling.workers[0]
    learned = most_learned(plan, rows)
    found = simulate_pass(skeleton, rows, plan.row_tokens, learned)
    yield (
        f"memory of a GPU, one of {workers}, in GB; {_rows(rows)} of {plan.row_tokens} tokens at once, up to {learned} of"
        f" them learned; total with {RUNTIME_BYTES / 1e9:.1f} GB for CUDA and NCCL:"
    )
    yield f"  {'ZeRO':>4}" + "".join(f"{word:>12}" for word in (*PARTS, "total")) + "   fits into"
    held = [footprint(skeleton, found, _setting(config, stage)) for stage in STAGES]
    for stage, of_stage in zip(STAGES, held, strict=True):
        total = of_stage.total + RUNTIME_BYTES
        numbers = "".join(f"{number / 1e9:12.2f}" for number in (*(getattr(of_stage, p) for p in PARTS), total))
        fits = ", ".join(f"{size}" for size in MEMORY_SIZES if total <= size * 1e9)
        mark = "  <- train.zero_stage" if stage == config.train.zero else ""
        yield f"  {stage:4d}{numbers}   {fits + ' GB' if fits else 'none of these'}{mark}"
    most = {size: rows_that_fit(held[config.train.zero], rows, size * 10**9) for size in MEMORY_SIZES}
    said = ", ".join(f"{size} GB {_rows(number) if number else 'none'}" for size, number in most.items())
    hint = "" if config.model.gradient_checkpointing else " (more with model.gradient_checkpointing=true)"
    yield f"  rows at once (train.micro_rows) that fit: {said}{hint}"


def most_learned(plan: Plan, micro_rows: int) -> int:
    """Return the most learned tokens that `micro_rows` rows standing together have: what one forward pass may meet."""
    per_row = plan.learned_per_row()
    groups = [per_row[begin : begin + micro_rows].sum() for begin in range(0, len(per_row), micro_rows)]
    return int(max(groups, default=0))


def _time(flops: float, parameters: int, workers: int) -> str:
    """Say how long it would take on some GPUs, each at the share of its peak that a model of this size reaches."""
    times = []
    for gpu in sorted((gpu for gpu in GPUS if gpu.name in SHOWN_GPUS), key=lambda gpu: gpu.tflops):
        mfu = expected_mfu(parameters, gpu)
        times.append(f"{workers} x {gpu.name} {_duration(hours(flops, gpu, workers, mfu))} ({100 * mfu:.0f} % MFU)")
    return f"time: {flops:.2e} FLOPs in bfloat16: {', '.join(times)}"


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"


def _duration(in_hours: float) -> str:
    minutes = in_hours * 60
    return f"{in_hours:.1f} h" if in_hours >= 1 else f"{minutes:.0f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"
