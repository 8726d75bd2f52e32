"""DeepSpeed, and the whole training state in and out of it.

State is kept *whole*, by parameter name, never as the shards of a certain number of workers: a run goes on with another
number of workers or another ZeRO stage. LoRA's state is small enough for that.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from arc_ray.config.model import ModelConfig
from arc_ray.config.training import GRADIENT_BUCKET, TrainConfig
from arc_ray.errors import UserError, nearest, one_line
from arc_ray.models.attention import avoid_cudnn
from arc_ray.models.build import trainable
from arc_ray.models.loss import LearnedLoss
from arc_ray.models.weights import refuse_misfits
from arc_ray.train.optimizer import MOMENTS, MOMENTUM, make_optimizer, moments_in, remembered

HALVES = {"bf16": "bfloat16", "fp16": "float16"}
"""DeepSpeed's key for each dtype of half precision."""

State = dict[str, torch.Tensor]
"""Whole tensors by "<kind>.<parameter name>", kind being weight, MOMENTUM or one of MOMENTS; float32, on the CPU."""


@dataclass(frozen=True)
class Start:
    """Where a worker begins: at step 0, or at a checkpoint's step with its state."""

    step: int = 0
    state: State | None = None


def accumulation_steps(config: TrainConfig, num_workers: int) -> int:
    """Return the forward passes per optimizer step on each worker; the last is short of rows where they do not divide."""
    return math.ceil(config.batch_rows / (num_workers * config.rows_at_once))


def deepspeed_config(config: TrainConfig, model: ModelConfig, num_workers: int) -> dict[str, Any]:
    """Derive DeepSpeed's dict from a few numbers; `train.deepspeed` is merged over it last."""
    zero: dict[str, Any] = {"stage": config.zero, "reduce_bucket_size": GRADIENT_BUCKET}
    if config.offload and config.zero > 0:
        zero["offload_optimizer"] = {"device": "cpu"}
        if config.zero == 3:
            zero["offload_param"] = {"device": "cpu"}
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.rows_at_once,
        "gradient_accumulation_steps": accumulation_steps(config, num_workers),
        "gradient_clipping": config.clip or 0.0,
        "zero_optimization": zero,
        # The optimizer is not DeepSpeed's own: the same arithmetic on CPU and GPU.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **{key: {"enabled": model.dtype == dtype} for key, dtype in HALVES.items()},
        "steps_per_print": 10**9,
        # DeepSpeed's throughput timer waits for the device before and after every micro-batch.
        "timers": {"throughput": {"enabled": False}},
    }
    return _merged(derived, config.deepspeed)


def _merged(base: Any, over: Any) -> Any:
    """Put a value over another; of two dicts, key by key."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}


def import_deepspeed() -> Any:
    """Import DeepSpeed, and keep it from compiling what is not used here: a minute of every CPU machine's time.

    That is an extension for inference, and the optimizer Muon, for which every worker would load torch's compiler. It would
    also start a compiler to find out which of its extensions can be compiled; none is used.
    """
    import deepspeed
    from deepspeed.runtime import compiler

    setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010 - made when it is first asked for, so types know none
    compiler.compile = lambda *_, **__: lambda function: function
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

    for key, dtype in HALVES.items():
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
        raise UserError(f"train.deepspeed: DeepSpeed refuses it: {one_line(error)}") from error
    # At ZeRO 0 DeepSpeed refuses it, at ZeRO 1 it takes an optimizer of another kind, whose state is not known here.
    if model.dtype == "bfloat16" and train.zero < 2 and own.get("data_types", {}).get("grad_accum_dtype") == "fp32":
        raise UserError("train.deepspeed.data_types.grad_accum_dtype fp32 needs train.zero_stage 2 or 3")
    if unread := sorted(own.keys() - read.asked):
        raise UserError(f"train.deepspeed.{unread[0]}: DeepSpeed knows no such key{nearest(unread[0], read.asked)}")


def make_engine(model: LearnedLoss, train: TrainConfig, config: ModelConfig, num_workers: int) -> Any:
    """Wrap a model in DeepSpeed with an optimizer over its trainable parameters; the process group must exist."""
    deepspeed = import_deepspeed()
    avoid_cudnn()
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(trainable(model).values()),  # pyright: ignore[reportArgumentType]
        optimizer=make_optimizer(model.model, train),
        config=deepspeed_config(train, config, num_workers),
    )
    return engine


def gather_state(engine: Any, model: nn.Module) -> State:
    """Gather weights and moments of the model that the engine trains, whole, on every worker; all must call it."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    whole, optimizer = _whole_weights(engine, model), _inner(engine)
    kept = {} if whole else {partition: optimizer.state[partition] for partition in _partitions(engine.optimizer)}
    _set_states(engine.optimizer, {partition: moments_in(state) for partition, state in kept.items()})
    state: State = {}
    for name, parameter in trainable(model).items():
        if whole is not None:
            found = {"weight": whole[name], **moments_in(optimizer.state[whole[name]])}
        else:
            found = {"weight": safe_get_full_fp32_param(parameter)}
            found |= {kind: safe_get_full_optimizer_state(parameter, kind) for kind in MOMENTS}
        state |= {f"{kind}.{name}": t.detach().float().cpu().clone() for kind, t in found.items() if t is not None}
    _set_states(engine.optimizer, kept)
    return state


def weights_in(state: Mapping[str, torch.Tensor]) -> State:
    """Return the weights of a state by parameter name."""
    return {name.removeprefix("weight."): tensor for name, tensor in state.items() if name.startswith("weight.")}


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put gathered weights into a model that DeepSpeed has not wrapped yet: its own working copies follow from them.

    Raises UserError where the state is of another model.
    """
    trained, found = trainable(model), weights_in(state)
    reshaped = [name for name in trained.keys() & found.keys() if trained[name].shape != found[name].shape]
    refuse_misfits("the checkpoint", trained.keys() - found.keys(), found.keys() - trained.keys(), reshaped)
    for name, parameter in trained.items():
        parameter.data.copy_(found[name])


def begin(engine: Any, model: nn.Module, start: Start) -> None:
    """Bring a model that was just wrapped, and its optimizer, to where the run begins: new, or in a checkpoint's state.

    The model must have been given its weights by `load_weights` before it was wrapped.
    """
    whole = _whole_weights(engine, model)
    if whole is None:
        if start.state is not None:
            _restore_partitions(engine, model, start.state, start.step)
        return
    # DeepSpeed makes moments in bfloat16 by a step without gradients, which decays and counts: it is undone.
    _inner(engine).state.clear()
    for name, parameter in trainable(model).items():
        whole[name].data.copy_(parameter.data)
    if start.state is None:
        return
    for name, weight in whole.items():
        weight.data.copy_(start.state[f"weight.{name}"])
        kinds = (kind for kind in (*MOMENTS, MOMENTUM) if f"{kind}.{name}" in start.state)
        moments = {kind: start.state[f"{kind}.{name}"].clone() for kind in kinds}
        _inner(engine).state[weight] = remembered(_inner(engine), weight, moments, start.step)


def _restore_partitions(engine: Any, model: nn.Module, state: State, step: int) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    zero = engine.optimizer
    # Optimizers make moments only at the first step: ZeRO's flat partitions are given some, so that they can be set.
    moments = {p: {kind: torch.zeros_like(p) for kind in MOMENTS} for p in _partitions(zero)}
    _set_states(zero, moments)
    for name, parameter in trainable(model).items():
        # Master weights in float32 are finer than the bfloat16 copies they would be made from.
        safe_set_full_fp32_param(parameter, state[f"weight.{name}"].to(engine.device))
        for kind in MOMENTS:
            safe_set_full_optimizer_state(parameter, state[f"{kind}.{name}"].to(engine.device), kind)
    _set_states(zero, {p: remembered(zero.optimizer, p, found, step) for p, found in moments.items()})


def _partitions(zero: Any) -> list[torch.Tensor]:
    """Return the flat tensors of all parameters of a group, or this worker's part of them, that ZeRO 1 to 3 step."""
    return getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat


def _set_states(zero: Any, states: Mapping[torch.Tensor, dict[str, Any]]) -> None:
    """Give ZeRO's partitions these states, and let stages 1 and 2 look up by parameter what is in them.

    They do so by themselves once, within the first step, when groups of parameters but the first have no state yet.
    """
    for partition, state in states.items():
        zero.optimizer.state[partition] = state
    if states and hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _whole_weights(engine: Any, model: nn.Module) -> State | None:
    """Return by name the whole tensors that Adam steps at ZeRO 0, of which DeepSpeed's gather functions know nothing.

    They are the parameters themselves, or in bfloat16 and float16 copies in float32. None at the other stages.
    """
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        return dict(trainable(model))
    if hasattr(engine.optimizer, "fp32_groups"):
        halves, wholes = (chain.from_iterable(g) for g in (engine.optimizer.fp16_groups, engine.optimizer.fp32_groups))
        whole_of = dict(zip(halves, wholes, strict=True))
        return {name: whole_of[parameter] for name, parameter in trainable(model).items()}
    return None


def _inner(engine: Any) -> torch.optim.Optimizer:
    own = engine.optimizer
    return own if isinstance(own, torch.optim.Optimizer) else own.optimizer
