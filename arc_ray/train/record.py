"""The record of a training: what the loop logs, on its way into metrics.jsonl, a tracker and what is reported."""

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from arc_ray.config import Config
from arc_ray.runs.folder import MetricsFile, run_folder
from arc_ray.train.loop import Metrics
from arc_ray.train.trackers import make_tracker

WRITE_METRICS_SECONDS = {"local": 1.0, "bucket": 15.0}
"""Time between writes of metrics; a bucket is given the whole file each time."""


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
        """Go on after the records up to `first_step`; `begun` is `worker.Job`'s, `ready` is `worker.Worker`'s."""
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
        record = {"step": step, "seconds": round(time.time() - self._begun, 3), **finite}
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
