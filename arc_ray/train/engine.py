"""DeepSpeed, and the whole training state in and out of it.

State is kept *whole*, by parameter name, never as the shards of a certain number of workers: a run goes on with another
number of workers or another ZeRO stage. LoRA's state is small enough for that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from arc_ray.config.training import ModelConfig, TrainConfig
from arc_ray.model import trainable
from arc_ray.train.schedule import deepspeed_config

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's first and second moments, as torch.optim.AdamW names them."""

State = dict[str, torch.Tensor]
"""Whole tensors by "<kind>.<parameter name>", kind being weight or one of MOMENTS; float32, on the CPU."""


@dataclass(frozen=True)
class Start:
    """Where a worker begins: at step 0, or at a checkpoint's step with its state."""

    step: int = 0
    state: State | None = None


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """Make torch's AdamW over the trainable parameters; all of them decay alike (an adapter has no biases or norms)."""
    return torch.optim.AdamW(
        list(trainable(model).values()), lr=train.lr, betas=train.betas, weight_decay=train.weight_decay
    )


def import_deepspeed() -> Any:
    """Import DeepSpeed with a C++ extension left out that it would compile on every CPU machine.

    That takes a minute and a compiler, for an all-reduce of inference that training never calls.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def make_engine(model: nn.Module, train: TrainConfig, config: ModelConfig, num_workers: int) -> Any:
    """Wrap a model in DeepSpeed with AdamW over its trainable parameters; the process group must exist."""
    deepspeed = import_deepspeed()
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(trainable(model).values()),  # pyright: ignore[reportArgumentType]
        optimizer=make_optimizer(model, train),
        config=deepspeed_config(train, config, num_workers),
    )
    return engine


def set_learning_rate(engine: Any, lr: float) -> None:
    """Set the learning rate of the coming step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def gradient_norm(engine: Any) -> float:
    """Return the norm of the last step's gradient before clipping; NaN where DeepSpeed keeps none (ZeRO 0 without clipping)."""
    norm = engine.get_global_grad_norm()
    return float("nan") if norm is None else float(norm)


def gather_state(engine: Any, model: nn.Module) -> State:
    """Gather weights and moments of the model that the engine trains, whole, on every worker; all must call it."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state: State = {}
    for name, parameter in trainable(model).items():
        if _keeps_own_state(engine):
            moments = engine.optimizer.state[parameter]
            found = {"weight": parameter.data, **{kind: moments[kind] for kind in MOMENTS if kind in moments}}
        else:
            found = {"weight": safe_get_full_fp32_param(parameter)}
            found |= {kind: safe_get_full_optimizer_state(parameter, kind) for kind in MOMENTS}
        state |= {f"{kind}.{name}": t.detach().float().cpu().clone() for kind, t in found.items() if t is not None}
    return state


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put gathered weights into a model that DeepSpeed has not wrapped yet: its own working copies follow from them."""
    for name, parameter in trainable(model).items():
        parameter.data.copy_(state[f"weight.{name}"])


def restore_state(engine: Any, model: nn.Module, state: Mapping[str, torch.Tensor], step: int) -> None:
    """Put gathered state back, on any number of workers and at any ZeRO stage; `step` is Adam's own count.

    The model must have been given the weights by `load_weights` before it was wrapped.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if not _keeps_own_state(engine):
        _begin_moments(engine.optimizer, step)
    for name, parameter in trainable(model).items():
        if _keeps_own_state(engine):
            moments = {kind: state[f"{kind}.{name}"].to(parameter.device).clone() for kind in MOMENTS}
            engine.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
        else:
            # Master weights in float32 are finer than the bfloat16 copies they would be made from.
            safe_set_full_fp32_param(parameter, state[f"weight.{name}"].to(engine.device))
            for kind in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[f"{kind}.{name}"].to(engine.device), kind)


def _begin_moments(zero: Any, step: int) -> None:
    """Give ZeRO's flat partitions the moments that torch would make only at the first step, so that they can be set."""
    partitions = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat
    for partition in partitions:
        moments = {kind: torch.zeros_like(partition) for kind in MOMENTS}
        zero.optimizer.state[partition] = {"step": torch.tensor(float(step)), **moments}
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):  # ZeRO 1 and 2 look moments up by parameter
        zero._lazy_init_hp_params_optimizer_state()


def _keeps_own_state(engine: Any) -> bool:
    """At ZeRO 0 in float32 DeepSpeed leaves torch's optimizer as it is, and its gather functions know nothing of it."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)
