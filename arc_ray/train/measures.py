"""What a training worker measures: a step's speed, MFU and memory, and what the plan says of it."""

import resource
import time
from pathlib import Path

import torch
from torch import nn

from arc_ray.models.flops import peak_flops
from arc_ray.models.skeleton import flops_of
from arc_ray.rows.plan import Plan
from arc_ray.train.loop import Metrics, Step


class Measures:
    """Makes the metrics of steps; made before DeepSpeed shards the model."""

    def __init__(self, model: nn.Module, plan: Plan, num_workers: int, peak: float | None) -> None:
        """Take the peak of one device in FLOPs per second; None where none is known, and then there is no MFU."""
        self._plan, self._num_workers = plan, num_workers
        self._tokens, self._learned = plan.tokens_per_step(), plan.learned_per_step()
        self._flops = flops_of(model).of_steps(self._tokens, self._learned, plan.squared_lengths_per_step())
        self._peak = peak * num_workers if peak else None
        self._before: tuple[int, float] | None = None

    def __call__(self, step: Step) -> Metrics:
        """Return the metrics of a step that has just ended."""
        tokens, learned = int(self._tokens[step.number]), int(self._learned[step.number])
        metrics = {
            "train/loss": step.loss,
            "train/lr": step.lr,
            "train/grad_norm": step.grad_norm,
            "train/tokens_per_second": tokens / step.seconds,
            "train/learned_tokens_per_second": learned / step.seconds,
            "train/fill": tokens / (self._plan.batch_rows * self._plan.row_tokens),
            "train/step_seconds": step.seconds,
            "train/wall_seconds": self._wall_seconds(step),
            "data/stall_share": step.stalled / step.seconds,
            "train/epoch": self._plan.epoch_of_step(step.number + 1),
            "train/learned_tokens": int(self._learned[: step.number + 1].sum()),
            "train/memory_gb": peak_memory_gb(),
            "train/workers": float(self._num_workers),
        }
        if self._peak:
            metrics["train/mfu"] = float(self._flops[step.number]) / (step.seconds * self._peak)
        return metrics

    def _wall_seconds(self, step: Step) -> float:
        """Return the time of a step since the last one measured, with the logging, validation and saving between them."""
        now, before = time.perf_counter(), self._before
        self._before = step.number, now
        return (now - before[1]) / (step.number - before[0]) if before else step.seconds


def device_peak() -> float | None:
    """Return the peak FLOPs per second of this worker's GPU, bfloat16; None without a GPU, or one that is not in the table."""
    return peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


RESETS_PEAK = Path("/proc/self/clear_refs")
"""Where Linux takes 5 as the order to forget the most memory that this process has held."""


def forget_peak_memory() -> None:
    """Begin to measure peak memory anew, in a process that has trained before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif RESETS_PEAK.exists():
        RESETS_PEAK.write_text("5")


def peak_memory_gb() -> float:
    """Return the most memory this worker has held so far, in 10^9 bytes: of its GPU, or resident where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
