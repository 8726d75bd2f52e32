"""DeepSpeed, and the whole training state in and out of it.

State is kept *whole*, by parameter name, never as the shards of a certain number of workers: a run goes on with another
number of workers or another ZeRO stage. LoRA's state is small enough for that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from arc_ray.config.training import ModelConfig, TrainConfig
from arc_ray.errors import UserError, nearest
from arc_ray.models.attention import avoid_cudnn
from arc_ray.models.build import trainable
from arc_ray.models.weights import refuse_misfits
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


class _Read(dict[str, Any]):
    """A dict that knows which of its keys were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def __copy__(self) -> "_Read":
        return self

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value and note that its key was asked for."""
        self.asked.add(key)
        return super().get(key, default)


def check_deepspeed(train: TrainConfig, model: ModelConfig) -> None:
    """Refuse a `train.deepspeed` that DeepSpeed refuses, or would ignore in part. Raises UserError."""
    own = train.deepspeed
    if not own:
        return
    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    for key, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        if key in own and (model.dtype != dtype or not own[key].get("enabled", True)):
            raise UserError(f"train.deepspeed.{key} is for model.dtype={dtype}; model.dtype is {model.dtype}")
    if '"auto"' in json.dumps(own):
        raise UserError(f"train.deepspeed: nothing fills in the value auto: {json.dumps(own)}; write numbers")
    plain = DeepSpeedConfig(deepspeed_config(train.model_copy(update={"deepspeed": {}}), model, 1))
    for key, value in own.items():
        kind = type(getattr(plain, key, None))
        if kind in (bool, int, float) and (
            isinstance(value, bool) != (kind is bool) or not isinstance(value, int | float)
        ):
            raise UserError(f"train.deepspeed.{key} is {value!r}; it must be a {kind.__name__}")
    read = _Read(deepspeed_config(train, model, 1))
    try:
        DeepSpeedConfig(read)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, DeepSpeedConfigError) as error:
        raise UserError(f"train.deepspeed: DeepSpeed refuses it: {' '.join(str(error).split())[:300]}") from error
    # At ZeRO 0 DeepSpeed refuses it, at ZeRO 1 it takes an optimizer of another kind, whose state is not known here.
    if model.dtype == "bfloat16" and train.zero < 2 and own.get("data_types", {}).get("grad_accum_dtype") == "fp32":
        raise UserError("train.deepspeed.data_types.grad_accum_dtype fp32 needs train.zero_stage 2 or 3")
    if unread := sorted(own.keys() - read.asked):
        raise UserError(f"train.deepspeed.{unread[0]}: DeepSpeed knows no such key{nearest(unread[0], read.asked)}")


def make_engine(model: nn.Module, train: TrainConfig, config: ModelConfig, num_workers: int) -> Any:
    """Wrap a model in DeepSpeed with AdamW over its trainable parameters; the process group must exist."""
    deepspeed = import_deepspeed()
    avoid_cudnn()
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
    whole = _whole_weights(engine, model)
    for name, parameter in trainable(model).items():
        if whole is not None:
            moments = _adam(engine).state[whole[name]]
            found = {"weight": whole[name], **{kind: moments[kind] for kind in MOMENTS if kind in moments}}
        else:
            found = {"weight": safe_get_full_fp32_param(parameter)}
            found |= {kind: safe_get_full_optimizer_state(parameter, kind) for kind in MOMENTS}
        state |= {f"{kind}.{name}": t.detach().float().cpu().clone() for kind, t in found.items() if t is not None}
    return state


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put gathered weights into a model that DeepSpeed has not wrapped yet: its own working copies follow from them.

    Raises UserError where the state is of another model.
    """
    trained = trainable(model)
    found = {name.removeprefix("weight."): tensor for name, tensor in state.items() if name.startswith("weight.")}
    reshaped = [name for name in trained.keys() & found.keys() if trained[name].shape != found[name].shape]
    refuse_misfits("the checkpoint", trained.keys() - found.keys(), found.keys() - trained.keys(), reshaped)
    for name, parameter in trained.items():
        parameter.data.copy_(found[name])


def begin(engine: Any, model: nn.Module, start: Start) -> None:
    """Bring a model that was just wrapped, and its optimizer, to where the run begins: new, or in a checkpoint's state.

    The state fits any number of workers and any ZeRO stage. The model must have been given its weights by
    `load_weights` before it was wrapped.
    """
    whole = _whole_weights(engine, model)
    if whole is not None:
        _forget_trial_step(engine, model, whole)
    if start.state is None:
        return
    if whole is not None:
        _restore_whole(engine, whole, start.state, start.step)
    else:
        _restore_partitions(engine, model, start.state, start.step)


def _restore_whole(engine: Any, whole: State, state: State, step: int) -> None:
    for name, weight in whole.items():
        weight.data.copy_(state[f"weight.{name}"])
        moments = {kind: state[f"{kind}.{name}"].to(weight.device).clone() for kind in MOMENTS}
        _adam(engine).state[weight] = {"step": torch.tensor(float(step)), **moments}


def _restore_partitions(engine: Any, model: nn.Module, state: State, step: int) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    _begin_moments(engine.optimizer, step)
    for name, parameter in trainable(model).items():
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


def _whole_weights(engine: Any, model: nn.Module) -> State | None:
    """Return by name the whole tensors that Adam steps at ZeRO 0, of which DeepSpeed's gather functions know nothing.

    They are the parameters themselves, or in bfloat16 and float16 copies in float32. None at the other stages.
    """
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        return dict(trainable(model))
    if hasattr(engine.optimizer, "fp32_groups"):
        return dict(zip(trainable(model), chain.from_iterable(engine.optimizer.fp32_groups), strict=True))
    return None


def _adam(engine: Any) -> torch.optim.Optimizer:
    own = engine.optimizer
    return own if isinstance(own, torch.optim.Optimizer) else own.optimizer


def _forget_trial_step(engine: Any, model: nn.Module, whole: State) -> None:
    """Undo the step without gradients by which DeepSpeed makes moments at ZeRO 0 in bfloat16: it decays and it counts."""
    _adam(engine).state.clear()
    for name, parameter in trainable(model).items():
        whole[name].data.copy_(parameter.data)
