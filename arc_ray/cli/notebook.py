"""The commands as functions, for notebooks and scripts.

    from arc_ray.cli import notebook as arc

    config = arc.load_config("configs/quickstart.yaml", {"train.lr": 1e-3})
    report = arc.study(config)                      # goes on where it was, as the command does
    report.trials.sort_values("eval/solved")        # what frames there are: arc_ray.report.frames
    arc.tasks(config, "arc_evaluation")[0]          # shows its grids in colour

A Ray that is running in the process is used; else one is joined or started, and ends with the call.
"""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from arc_ray.cli import settle_environment
from arc_ray.cli.console import Terminal
from arc_ray.config import Config, load_config
from arc_ray.progress import Progress
from arc_ray.runs.folder import as_made, claim, is_finished, run_folder
from arc_ray.runs.owner import clear_after_kill
from arc_ray.runs.shapes import ResultShape
from arc_ray.runs.starts import with_start
from arc_ray.storage import Folder

__all__ = [
    "audit",
    "dataset",
    "evaluate",
    "frames",
    "generate",
    "load_config",
    "result_grid",
    "study",
    "tasks",
    "train",
    "tune",
]

if TYPE_CHECKING:
    import datasets
    from ray.data import Dataset
    from ray.tune import ResultGrid

    from arc_ray.report import Report
    from arc_ray.study.needs import Command
    from arc_ray.tasks.task import Task
    from arc_ray.train.alone import OneWorker


def generate(config: Config, address: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Make the examples that the config's sources need; return the manifest of each dataset. Raises UserError."""
    settle_environment()
    from arc_ray.cli.joining import connected
    from arc_ray.datasets.generate import ensure_datasets

    with connected(config, address):
        return ensure_datasets(config.data.sources, Folder.at(config.storage), progress or Terminal())


def train(config: Config, address: str | None = None, progress: Progress | None = None) -> "Report":
    """Train the config's run, whatever it needs first included. Raises UserError."""
    run("train", config, address, progress or Terminal())
    return frames(run_folder(with_start(config)).uri)


def tune(config: Config, address: str | None = None, progress: Progress | None = None) -> "Report":
    """Search over `tune.space`; `trials` of what is returned has a row a trial. Raises UserError."""
    run("tune", config, address, progress or Terminal())
    return frames(run_folder(config).uri)


def result_grid(config: Config) -> "ResultGrid":
    """Open a search, or a study's last one, as Ray Tune's own `ResultGrid`. Raises UserError where it has not run.

    It unpickles files: open only folders that you trust.
    """
    settle_environment()
    from arc_ray.tune.search import open_results

    return open_results(config)


def evaluate(config: Config, address: str | None = None, progress: Progress | None = None) -> "Report":
    """Answer `evaluate.sets` and score the answers. Raises UserError."""
    run("evaluate", config, address, progress or Terminal())
    return frames(run_folder(with_start(config)).uri)


def audit(config: Config, address: str | None = None, progress: Progress | None = None) -> "Report":
    """Tell memory from skill; `audit` of what is returned has a row an answered output. Raises UserError."""
    run("audit", config, address, progress or Terminal())
    return frames((run_folder(with_start(config)) / "audit").uri)


def study(config: Config, address: str | None = None, progress: Progress | None = None) -> "Report":
    """Answer the config's question; `analysis` of what is returned holds the answer. Raises UserError."""
    run("study", config, address, progress or Terminal())
    return frames(run_folder(config).uri)


def run(command: "Command", config: Config, address: str | None, progress: Progress) -> Mapping[str, Any]:
    """Do what a command does, unless it is done; return the content of result.json. Raises UserError."""
    settle_environment()
    own = config if command in ("study", "tune") else with_start(config)
    if command == "audit":
        from arc_ray.evaluate.audit import audited, run_audit

        own = audited(own)
    folder = run_folder(own)
    if command == "evaluate":
        from arc_ray.evaluate.evaluation import needs_model, run_evaluation

        if not needs_model(own.evaluate, folder):
            clear_after_kill(folder)
            return run_evaluation(as_made(folder, own), progress.advance)
    elif is_finished(folder):
        claim(folder, own, command)
        clear_after_kill(folder)
        progress.note("already done")
        return folder.read_json("result.json", ResultShape) or {}
    with worker_ahead(command, own, address) as worker:
        from arc_ray.cli.session import placed
        from arc_ray.study import stages
        from arc_ray.train.run import own_rows, run_training

        with placed(config, command, address, progress) as needs:
            progress.note(f"`arc-ray report {shlex.quote(folder.uri)} --watch` shows it as a page while it goes on")
            if command == "study":
                return stages.run_study(needs, progress)
            if command == "tune":
                return stages.run_tune(needs, progress)
            trains = run_training
            if worker and needs.trains_alone:
                trains = partial(run_training, share=own_rows, train=worker.train)
            elif worker:
                worker.end()
            stages.ensure(needs, progress, train=trains)
            if command == "train":
                return stages.train_watched(needs.variants[0], progress, trains)
            answers = run_audit if command == "audit" else run_evaluation
            return answers(needs.variants[0], progress.advance)


@contextmanager
def worker_ahead(command: "Command", config: Config, address: str | None) -> "Iterator[OneWorker | None]":
    """Start the process of a training that most likely needs no Ray; it imports while this one imports and checks."""
    has_ray = address or os.environ.get("RAY_ADDRESS") or ("ray" in sys.modules and sys.modules["ray"].is_initialized())
    scaling = config.scaling
    if command != "train" or has_ray or scaling.use_gpu is True or scaling.num_workers not in (1, "auto"):
        yield None
        return
    from arc_ray.train.alone import OneWorker, OwnProcess

    worker = OneWorker(OwnProcess)
    try:
        yield worker
    finally:
        worker.end()


def tasks(config: Config, source: str) -> "list[Task]":
    """Read the tasks of one of `data.sources`; generated examples must be there. Raises UserError."""
    settle_environment()
    from arc_ray.datasets.reading import load_source
    from arc_ray.errors import UserError, nearest

    if source not in config.data.sources:
        raise UserError(f"data.sources has no {source}{nearest(source, config.data.sources)}")
    return load_source(config.data.sources[source], Folder.at(config.storage))


def dataset(config: Config, kind: Literal["datasets", "ray"] = "datasets") -> "datasets.Dataset | Dataset":
    """Return the rows that a training would see, in its order: input_ids, position_ids and labels, int32 (row_tokens,) each.

    A row is made when it is asked for, whether by a `datasets.Dataset` or by a `ray.data.Dataset`. Raises UserError.
    """
    settle_environment()
    from arc_ray.rows.prepare import prepare

    maker = prepare(with_start(config)).maker
    number = maker.plan.num_steps * maker.plan.batch_rows
    if kind == "ray":
        import ray.data

        return ray.data.range(number).map_batches(lambda batch: maker.make(np.asarray(batch["id"])))
    import datasets

    return datasets.Dataset.from_dict({"row": range(number)}).with_transform(lambda batch: maker.make(batch["row"]))


def frames(folder: str) -> "Report":
    """Read the frames of a study, search or run, finished or not. Raises UserError."""
    from arc_ray.report import load

    return load(folder)
