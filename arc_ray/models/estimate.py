"""What a training takes, in numbers and in lines to read: FLOPs and hours, a GPU's memory, rows at once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from arc_ray.cluster.speed import Demand
from arc_ray.config import Config
from arc_ray.errors import NotMadeYetError
from arc_ray.models.attention import MASKED_LAYERS, packs
from arc_ray.models.build import build_skeleton, trainable
from arc_ray.models.memory import (
    MASTER_BYTES,
    RUNTIME_BYTES,
    STAGES,
    Footprint,
    Pass,
    footprint,
    moments_bytes,
    rows_that_fit,
    simulate_pass,
)
from arc_ray.rows.plan import Plan

LEARNED_SHARE = {"asked": 0.25, "all": 0.5}
"""Share of a row's tokens that is learned at most, by `prompt.learn`: before there is a plan, which would tell."""

USABLE = 0.85
"""Share of a GPU's memory that rows are chosen for: what tensors take is known to 15 %."""

PARTS = ("weights", "gradients", "optimizer", "activations", "logits")


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker describes it."""

    name: str
    tflops: float
    """Dense bfloat16 tensor-core peak with float32 accumulation (float16 on T4 and V100), in 10^12 per second."""
    bandwidth: float
    """Of its memory, in 10^12 bytes per second."""


GPUS = (
    Gpu("T4", 65.0, 0.32),
    Gpu("V100", 125.0, 0.9),
    Gpu("RTX 3090", 71.0, 0.936),
    Gpu("RTX 4090", 165.2, 1.008),
    Gpu("RTX 5090", 209.5, 1.792),
    Gpu("RTX 6000 Ada", 364.2, 0.96),
    Gpu("RTX PRO 6000", 503.8, 1.792),
    Gpu("RTX PRO 6000 Max-Q", 438.9, 1.792),
    Gpu("A10G", 70.0, 0.6),
    Gpu("A10", 125.0, 0.6),
    Gpu("L4", 121.0, 0.3),
    Gpu("L40S", 362.0, 0.864),
    Gpu("A100", 312.0, 2.0),
    Gpu("H100 PCIe", 756.0, 2.0),
    Gpu("H100 NVL", 835.5, 3.9),
    Gpu("H100", 989.4, 3.35),
    Gpu("H200 NVL", 835.5, 4.8),
    Gpu("H200", 989.4, 4.8),
    Gpu("B200", 2250.0, 8.0),
    Gpu("GB200", 2500.0, 8.0),
)
"""From NVIDIA's data sheets of each (where they print the rate with sparsity, half of it) and, for the RTX cards, the white
papers of the GA102, Ada and Blackwell architectures; A10G from AWS's description of G5 instances. H100 and H200 are the SXM
modules, RTX PRO 6000 the 600 W workstation card."""

SHOWN_GPUS = ("A10G", "RTX 4090", "A100", "H100")
"""The ones an estimate of hours names: a cloud's small one, a desk's, and two of a data centre."""

MEMORY_SIZES = (16, 24, 40, 80)
"""GPU memories that an estimate is compared with, in GB."""


MATMUL_MFU = 0.6
"""Share of a GPU's peak that its matrix products reach by themselves."""

MEASURED_MFU = {
    False: ("H100", ((135e6, 0.13), (0.5e9, 0.19), (1.5e9, 0.25), (7e9, 0.37))),
    True: ("H200", ((135e6, 0.247), (0.5e9, 0.31), (1.5e9, 0.41))),
}
"""Whether layers are compiled; a GPU, and for parameters of a model the MFU of training LoRA on all its linear layers on it.

Measured on 2026-11-26 and 27, rows of 8,192 tokens, four at once, compiled 135 M eight. Those of 1.5 B and 7 B not compiled
keep the share of the others, nine tenths, of what memory traffic lets them reach.
"""


def flops_per(model: Any) -> npt.NDArray[np.float64]:
    """Return the FLOPs of a training for each token, each learned token and each squared view length: (3,).

    A multiply-add is 2 FLOPs; a weight costs one forwards, one backwards for the input's gradient, and one for its own
    gradient if it is trained: 4 or 6 a token, and of the output layer a learned token. Attention costs 12 x layers x heads
    x head size x length a token (Chowdhery et al., "PaLM", 2022, appendix B), length being the view's, since views in a
    row do not see each other. A token visits few of a layer's experts, whose weights are one tensor of three dimensions.
    Nothing is counted for recurrent states, nor for what is only recomputed (gradient checkpointing), nor for padding.
    Call it before DeepSpeed shards the parameters.
    """
    about, head = model.config.get_text_config(), model.get_output_embeddings()
    # An adapter of experts is added to their weights once a pass, whatever the number of tokens.
    of_experts = [m for m in model.modules() if type(m).__name__ == "ParamWrapper"]
    apart = {part for m in of_experts for adapter in (m.lora_A, m.lora_B) for part in adapter.modules()}
    apart |= {m for m in model.modules() if isinstance(m, nn.Embedding | nn.Conv1d) or m is head}
    weights = [w for m in model.modules() if m not in apart for w in m.parameters(recurse=False)]
    visited = getattr(about, "num_experts_per_tok", 0)
    per_token = sum(
        (6 if w.requires_grad else 4) * num_weights(w) * (visited / len(w) if w.ndim == 3 else 1.0)
        for w in weights
        if w.ndim in (2, 3)
    )
    heads = getattr(about, "num_attention_heads", 0)
    head_size = getattr(about, "head_dim", None) or about.hidden_size // max(heads, 1)
    kinds = getattr(about, "layer_types", None) or ["full_attention"] * about.num_hidden_layers
    attending = sum(kind in MASKED_LAYERS for kind in kinds)
    return np.array(
        [per_token, (6 if head.weight.requires_grad else 4) * head.weight.numel(), 12 * attending * heads * head_size],
        np.float64,
    )


def num_weights(tensor: Any) -> int:
    """Count the weights in a tensor, where they are packed too."""
    return tensor.quant_state.shape.numel() if hasattr(tensor, "quant_state") else tensor.numel()


def flops_of_steps(model: nn.Module, plan: Plan) -> npt.NDArray[np.float64]:
    """Return the FLOPs of each step of a plan: (num_steps,)."""
    counts = np.stack([plan.tokens_per_step(), plan.learned_per_step(), plan.squared_lengths_per_step()])
    return flops_per(model) @ counts


def peak_flops(device_name: str) -> float | None:
    """Return the peak FLOPs per second of a device by its driver's name; None if unknown, a part (MIG) or for laptops."""

    def words(name: str) -> set[str]:
        return set(name.replace("-", " ").upper().split())

    for gpu in sorted(GPUS, key=lambda gpu: -len(gpu.name)):
        if words(gpu.name) <= words(device_name) and not words(device_name) & {"MIG", "LAPTOP"}:
            return gpu.tflops * 1e12
    return None


def device_peak() -> float | None:
    """Return the peak FLOPs per second of this process's GPU; None without one, or where it is not known."""
    return peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def expected_mfu(parameters: int, gpu: Gpu, is_compiled: bool = False) -> float:
    """Return the share of a GPU's peak that an estimate of hours reckons with; a run's own is its metric `train/mfu`.

    What the measured GPU loses beyond its matrix products it loses to memory traffic, and the more the smaller the model is:
    others lose by the ratio of their peak to their bandwidth.
    """
    name, measured = MEASURED_MFU[is_compiled]
    sizes, mfus = np.array(measured).T
    known = next(gpu for gpu in GPUS if gpu.name == name)
    traffic = 1 / np.interp(np.log(parameters), np.log(sizes), mfus) - 1 / MATMUL_MFU
    return float(1 / (1 / MATMUL_MFU + traffic * (gpu.tflops / gpu.bandwidth) / (known.tflops / known.bandwidth)))


def hours(flops: float, gpu: Gpu, num_workers: int, mfu: float) -> float:
    """Return how long this many FLOPs take on this many GPUs."""
    return flops / (gpu.tflops * 1e12 * mfu * num_workers) / 3600


def demand(config: Config, plan: Plan, accelerator: str | None) -> Demand:
    """Return what a training asks of network and storage. `accelerator`: Ray's name for its GPUs, None without.

    How much ZeRO moves is from Rajbhandari et al., 2020, section 7; to gather or to scatter moves half of an all-reduce.
    """
    skeleton = build_skeleton(config.model, config.storage, config.train.full)
    trained, workers = list(trainable(skeleton).values()), config.scaling.workers[0]
    weights, gradients = sum(p.nbytes for p in skeleton.parameters()), sum(p.nbytes for p in trained)
    passes = math.ceil(plan.batch_rows / (workers * config.train.rows_at_once))
    by_stage = (gradients, gradients, (passes + 1) * gradients / 2, passes * (weights + gradients / 2))
    written = "muon" if config.train.optimizer == "muon" else "adamw"  # moments of 8 bits are written in 32
    kept = sum(p.numel() for p in trained) * MASTER_BYTES + moments_bytes(skeleton, written) + gradients
    seconds, gpu = None, next((gpu for gpu in GPUS if gpu.name == accelerator), None)
    if gpu:
        mfu = expected_mfu(sum(p.numel() for p in skeleton.parameters()), gpu, config.train.compile)
        seconds = 3600 * hours(flops_of_steps(skeleton, plan).mean(), gpu, workers, mfu)
    return Demand(
        by_stage[config.train.zero], kept, seconds, config.train.checkpoint_every or math.ceil(plan.num_steps / 4)
    )


def estimate_lines(config: Config, plan: Plan) -> Iterator[str]:
    """Describe memory and time of a training from its plan and its model's shape; says why if that is not known yet."""
    try:
        skeleton = build_skeleton(config.model, config.storage, config.train.full)
    except NotMadeYetError as error:
        yield f"memory and time: not known yet ({error})"
        return
    total, trained = (
        sum(p.numel() for p in weights) for weights in (skeleton.parameters(), trainable(skeleton).values())
    )
    yield f"model: {total / 1e6:,.2f} M parameters, {trained / 1e6:,.2f} M of them trained, in {config.model.dtype}"
    if not packs(skeleton):
        yield (
            "views: its layers know no mask between two views, so each view of a row is read by itself: nothing is padded,"
            " but a pass reads views of one length only"
        )
    yield from _saved_by_cut(config, plan, skeleton)
    yield from _memory(config, plan, skeleton)
    flops, workers, times = flops_of_steps(skeleton, plan).sum(), config.scaling.workers[0], []
    for gpu in sorted((gpu for gpu in GPUS if gpu.name in SHOWN_GPUS), key=lambda gpu: gpu.tflops):
        mfu = expected_mfu(total, gpu, config.train.compile)
        times.append(f"{workers} x {gpu.name} {_duration(hours(flops, gpu, workers, mfu))} ({100 * mfu:.0f} % MFU)")
    yield f"time: {flops:.2e} FLOPs in bfloat16: {', '.join(times)}"


def _memory(config: Config, plan: Plan, skeleton: nn.Module) -> Iterator[str]:
    """Say what one GPU holds at each ZeRO stage, and how many rows at once would fit."""
    rows, workers, learned = config.train.rows_at_once, config.scaling.workers[0], _most_learned(config, plan)
    found = simulate_pass(skeleton, rows, plan.row_tokens, learned)
    yield (
        f"memory of a GPU, one of {workers}, in GB; {_rows(rows)} of {plan.row_tokens} tokens at once, up to {learned} of"
        f" them learned; total with {RUNTIME_BYTES / 1e9:.1f} GB for CUDA and NCCL:"
    )
    yield f"  {'ZeRO':>4}" + "".join(f"{word:>12}" for word in (*PARTS, "total")) + "   fits into"
    held = [_held(config, skeleton, found, stage) for stage in STAGES]
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


def _saved_by_cut(config: Config, plan: Plan, skeleton: nn.Module) -> Iterator[str]:
    """Say what a GPU holds less for `model.vocabulary`."""
    if not config.model.vocabulary:
        return
    model = config.model.model_copy(update={"vocabulary": None})
    models: list[Any] = [build_skeleton(model, config.storage, config.train.full), skeleton]
    held = []
    for each in models:
        found = simulate_pass(each, config.train.rows_at_once, plan.row_tokens, _most_learned(config, plan))
        held.append(_held(config, each, found, config.train.zero).total + RUNTIME_BYTES)
    rows, kept = (each.get_input_embeddings().weight.shape[0] for each in models)
    parameters, left = (sum(p.numel() for p in each.parameters()) for each in models)
    yield (
        f"model.vocabulary: {kept} of {rows} tokens stay: {(parameters - left) / 1e6:,.2f} M of {parameters / 1e6:,.2f} M"
        f" parameters and {(held[0] - held[1]) / 1e9:.2f} of {held[0] / 1e9:.2f} GB of a GPU's memory less"
    )


def _most_learned(config: Config, plan: Plan) -> int:
    """Return how many learned tokens one forward pass may meet: the most that rows which stand together have."""
    rows, per_row = config.train.rows_at_once, plan.learned_per_row()
    return int(max((per_row[i : i + rows].sum() for i in range(0, len(per_row), rows)), default=0))


def rows_for(config: Config, capacity: int) -> int:
    """Return how many rows at once a GPU of `capacity` bytes is given: as many as are sure to fit and divide the batch.

    Rows are shared out equally among the workers, or in an elastic run none of them is left without. Raises UserError.
    """
    train, (low, high) = config.train, config.scaling.workers
    skeleton = build_skeleton(config.model, config.storage, train.full)
    learned = int(train.row_tokens * LEARNED_SHARE[config.prompt.learn])
    held = _held(config, skeleton, simulate_pass(skeleton, 1, train.row_tokens, learned), train.zero)
    most, shared = rows_that_fit(held, 1, int(USABLE * capacity)), low if low == high else 1
    fitting = range(2, min(most, train.batch_rows // high) + 1)
    return max((rows for rows in fitting if train.batch_rows % (rows * shared) == 0), default=1)


def _held(config: Config, skeleton: nn.Module, found: Pass, stage: int) -> Footprint:
    is_compiled = config.train.compile and not config.model.gradient_checkpointing
    train = config.train
    return footprint(skeleton, found, stage, config.scaling.workers[0], train.offload, is_compiled, train.optimizer)


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"


def _duration(in_hours: float) -> str:
    minutes = in_hours * 60
    return f"{in_hours:.1f} h" if in_hours >= 1 else f"{minutes:.0f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"
