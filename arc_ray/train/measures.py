"""What a training worker measures about itself besides the loop's own metrics: MFU and memory."""

import resource
from collections.abc import Mapping

import torch
from torch import nn

from arc_ray.models.flops import peak_flops
from arc_ray.models.skeleton import work_of
from arc_ray.rows.plan import Plan


class Measures:
    """Adds `train/mfu`, `train/memory_gb`, `train/workers` to a step's metrics; made before DeepSpeed shards the model."""

    def __init__(self, model: nn.Module, plan: Plan, num_workers: int, peak: float | None) -> None:
        """Take the peak of one device in FLOPs per second; None where none is known, and then there is no MFU."""
        per_step = plan.tokens_per_step(), plan.learned_per_step(), plan.squared_lengths_per_step()
        self._num_workers = num_workers
        self._flops = work_of(model).of_steps(*per_step)
        self._peak = peak * num_workers if peak else None

    def __call__(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of a step (the first is 1) with what was measured, if they are of a step at all."""
        if "train/step_seconds" not in metrics:
            return dict(metrics)
        found = {"train/memory_gb": peak_memory_gb(), "train/workers": float(self._num_workers)}
        if self._peak:
            found["train/mfu"] = float(self._flops[step - 1]) / (metrics["train/step_seconds"] * self._peak)
        return {**metrics, **found}


def device_peak() -> float | None:
    """Return the peak FLOPs per second of this worker's GPU, bfloat16; None without a GPU, or one that is not in the table."""
    return peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def peak_memory_gb() -> float:
    """Return the most memory this worker has held so far, in 10^9 bytes: of its GPU, or resident where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
