"""The record of a training: what is measured of a step, on its way into metrics.jsonl, a tracker and what is reported."""

import ctypes
import gc
import math
import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arc_ray.config import Config
from arc_ray.models.estimate import flops_of_steps, peak_flops
from arc_ray.rows.plan import Plan
from arc_ray.runs.folder import MetricsFile, run_folder
from arc_ray.train.loop import Metrics, Step
from arc_ray.train.trackers import make_tracker

WRITE_METRICS_SECONDS = {"local": 1.0, "bucket": 15.0}
"""Time between writes of metrics; a bucket is given the whole file each time."""

RESETS_PEAK = Path("/proc/self/clear_refs")
"""Where Linux takes 5 as the order to forget the most memory that this process has held."""


class Measures:
    """Makes the metrics of steps; made before DeepSpeed shards the model."""

    def __init__(self, model: nn.Module, plan: Plan, num_workers: int, peak: float | None) -> None:
        """Take the peak of one device in FLOPs per second; None where none is known, and then there is no MFU."""
        self._plan, self._num_workers = plan, num_workers
        self._tokens, self._learned = plan.tokens_per_step(), plan.learned_per_step()
        self._flops = flops_of_steps(model, plan)
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


def forget_peak_memory() -> None:
    """Begin to measure peak memory anew, in a process that has trained before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif RESETS_PEAK.exists():
        RESETS_PEAK.write_text("5")


def free_memory() -> None:
    """Give the system, and the GPU, what nothing refers to any more.

    glibc would keep for a thread what it freed, and each trial that Tune runs in a process has a thread of its own.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # other C libraries have none
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory_gb() -> float:
    """Return the most memory this worker has held so far, in 10^9 bytes: of its GPU, or resident where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def finite_metrics(metrics: Mapping[str, Any]) -> Metrics:
    """Return metrics as JSON, and Ray's controller, take them: plain floats; what is NaN or infinite is left out."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


class MetricsLog:
    """Takes metric records: rank 0 writes them to metrics.jsonl, on a thread beside the training; all report validations."""

    def __init__(
        self,
        config: Config,
        first_step: int,
        begun: float,
        ready: float,
        is_writer: bool,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        """Go on after the records up to `first_step`; `begun` is by `time.monotonic`, `ready` is `worker.Worker`'s."""
        folder = run_folder(config)
        self._begun, self._is_writer, self._report = begun, is_writer, report
        self._ready: float | None = ready
        if not is_writer:
            return
        self._file = MetricsFile(folder, first_step)
        self._tracker = make_tracker(config, self._file.kept)
        self._every = WRITE_METRICS_SECONDS["local" if folder.is_local else "bucket"]
        self._waiting: list[dict[str, Any]] = []
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._last, self._written = self._thread.submit(lambda: None), time.monotonic()

    def __call__(self, step: int, metrics: Metrics) -> None:
        finite = finite_metrics(metrics)
        if self._ready is not None and "train/loss" in finite:
            finite["train/start_seconds"] = time.perf_counter() - self._ready
            self._ready = None
        record = {"step": step, "seconds": round(time.monotonic() - self._begun, 3), **finite}
        is_validation = any(key.startswith("eval/") for key in finite)
        if self._is_writer:
            self._waiting.append(record)
            self._tracker.add(record)
            if is_validation:
                self.flush().result()  # a trial that is stopped for what it reports leaves its record
            elif self._last.done() and time.monotonic() - self._written > self._every:
                self.flush()
        if is_validation:
            # Only validations are reported: a report is a barrier of all workers, and what Tune decides on.
            self._report(record)

    def close(self) -> None:
        """Write what is not written yet, and end."""
        if self._is_writer:
            self.flush().result()
            self._thread.shutdown()
            self._tracker.close()

    def flush(self) -> "Future[None]":
        """Have the records so far written, for the rank that writes; what goes wrong is raised by the result."""
        records, self._waiting = self._waiting, []
        self._last, self._written = self._thread.submit(self._write, records, self._last), time.monotonic()
        return self._last

    def _write(self, records: list[dict[str, Any]], before: "Future[None]") -> None:
        before.result()  # where that failed, this fails as well, until somebody hears of it
        self._file.append(records)
        self._tracker.flush()
