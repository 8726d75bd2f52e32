"""Numbers derived from the config: the learning rate of a step, accumulation, and DeepSpeed's dict."""

import math
from typing import Any, Literal

from arc_ray.config.training import GRADIENT_BUCKET, ModelConfig, TrainConfig


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0): a linear rise, then linear, cosine or constant."""
    warmup = math.ceil(config.warmup * num_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(num_steps - warmup, 1)
    return config.lr * _decay(config.schedule, done)


def _decay(schedule: Literal["linear", "cosine", "constant"], done: float) -> float:
    match schedule:
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case "constant":
            return 1.0


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
        # The optimizer is torch's own AdamW: the same arithmetic on CPU and GPU.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": model.dtype == "bfloat16"},
        "fp16": {"enabled": model.dtype == "float16"},
        "steps_per_print": 10**9,
        # DeepSpeed's throughput timer waits for the device before and after every micro-batch.
        "timers": {"throughput": {"enabled": False}},
    }
    return _merged(derived, config.deepspeed)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
