"""What is handed to `arc-ray`, by kind: a small valid world of files, which of them are mutated, and what reads them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from builders import answering_here, puzzle, tiny_model, tiny_tokenizer
from study_folder import make_study

from arc_ray.cli.notebook import run as run_command
from arc_ray.config import Config, load_config, with_overrides
from arc_ray.datasets import generate
from arc_ray.datasets.blocks import write_block
from arc_ray.datasets.reading import load_source
from arc_ray.evaluate import evaluation
from arc_ray.models.build import build_model, trainable
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.prepare import keep, prepare
from arc_ray.runs import owner
from arc_ray.runs.folder import MetricsFile, claim, run_folder
from arc_ray.storage import Folder
from arc_ray.tasks.task import Task, task_to_json
from arc_ray.train.checkpoint import CheckpointWriter, read_state
from arc_ray.train.engine import load_weights
from arc_ray.train.optimizer import MOMENTS
from arc_ray.tune.space import points
from arc_ray.tune.trials import TrialReader, known_points, write_search, write_status

Read = tuple[str, ...] | Callable[[Path], object]
"""Words for `arc-ray`, {} being the world, or what reads files as a run would."""


class Quiet:
    """Progress that nobody watches."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@dataclass(frozen=True)
class Kind:
    """Files of one kind, and what reads them."""

    files: tuple[str, ...]
    """Patterns of the files that are mutated, from the world's folder."""
    reads: tuple[Read, ...]
    made: tuple[str, ...] = ()
    """What a call may write: names of files."""
    places: tuple[str, ...] = ()
    """What a message may name in the file's place."""


def tasks() -> list[Task]:
    return [puzzle(f"p{i}", num_train=3, num_test=1 + (i == 2), most=4) for i in range(4)]


def tree(world: Path) -> dict[str, Any]:
    """The config of the world."""
    runs = str(world / "runs")
    sources: dict[str, Any] = {
        "mine": {"kind": "folder", "path": str(world / "tasks")},
        "kaggle": {
            "kind": "kaggle",
            "challenges": str(world / "kaggle" / "challenges.json"),
            "solutions": str(world / "kaggle" / "solutions.json"),
        },
        "dump": {"kind": "rearc_dump", "path": str(world / "dump"), "shown": 2},
        "lines": {"kind": "jsonl", "path": str(world / "lines.jsonl"), "columns": {"id": "id"}},
        "rows": {"kind": "parquet", "path": str(world / "rows.parquet"), "columns": {"id": "id"}},
        "counting": {"kind": "counting", "examples": 12, "max_side": 5},
    }
    return {
        "name": "run",
        "storage": runs,
        "model": {"base": str(world / "base"), "dtype": "float32", "lora": {"r": 2, "alpha": 4}},
        "data": {"sources": sources, "mix": {"mine": 2}, "validation": ["mine"], "allow_overlap": True},
        "prompt": {"format": "compact", "encoder": "compact"},
        "view": {"max_shown": 2},
        "train": {"row_tokens": 512, "batch_rows": 1, "max_steps": 3, "micro_rows": 1},
        "evaluate": {"sets": ["mine", "counting"], "symmetries": 2, "batch_tokens": 4000},
        "tune": {"space": {"train.lr": {"grid": [1e-3, 1e-2]}}, "scheduler": {"kind": "fifo"}},
        "study": {"compare": "view.colors", "arms": ["keep", "permute"], "seeds": [1]},
        "scaling": {"use_gpu": False, "num_workers": 1, "threads": 1},
    }


def config(world: Path, **overrides: Any) -> Config:
    return load_config(world / "config.yaml", {key.replace("__", "."): value for key, value in overrides.items()})


def make_world(world: Path) -> None:
    """Write a valid example of everything."""
    for name in ("tasks", "kaggle", "dump/tasks", "results"):
        (world / name).mkdir(parents=True)
    records = {task.id: task_to_json(task) for task in tasks()}
    answered = {i: [pair["output"] for pair in record["test"]] for i, record in records.items()}
    for task_id, record in records.items():
        _write(world / "tasks" / f"{task_id}.json", record)
        _write(world / "dump" / "tasks" / f"{task_id}.json", record["train"])
        attempts = [{"attempt_1": {"answer": grid, "metadata": {"pair_index": 0}}} for grid in answered[task_id]]
        _write(world / "results" / f"{task_id}.json", attempts)
    hidden = {
        i: {"train": r["train"], "test": [{"input": pair["input"]} for pair in r["test"]]} for i, r in records.items()
    }
    _write(world / "kaggle" / "challenges.json", hidden)
    _write(world / "kaggle" / "solutions.json", answered)
    submission = {i: [{"attempt_1": grid, "attempt_2": [[0]]} for grid in grids] for i, grids in answered.items()}
    _write(world / "submission.json", submission)
    rows = [{"id": i, **record} for i, record in records.items()]
    (world / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), world / "rows.parquet")
    (world / "config.yaml").write_text(yaml.safe_dump(tree(world)))
    for part in (tiny_model(layers=1), tiny_tokenizer()):
        part.save_pretrained(world / "base")
    make_study(world / "report", seeds=(0,))
    _make_experiment(world / "tune" / "experiment")
    asked = config(world)
    _make_dataset(asked)
    _make_run(asked)
    _make_search(config(world, name="search"))
    with answering_here():
        evaluation.run_evaluation(config(world, name="answered"), lambda *_: None)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _make_experiment(folder: Path) -> None:
    """What Ray Tune itself leaves."""
    trial = {"trial_id": "t1", "status": "TERMINATED", "relative_logdir": "t1", "evaluated_params": {"point/lr": 0.1}}
    failed = trial | {"trial_id": "t2", "status": "ERROR", "relative_logdir": "t2"}
    for name in ("t1", "t2"):
        (folder / name).mkdir(parents=True)
        report = {"training_iteration": 1, "time_total_s": 2.0, "eval/solved": 0.5, "eval/loss": 1.0, "config": {}}
        (folder / name / "result.json").write_text(json.dumps(report) + "\n")
    (folder / "t2" / "error.txt").write_text("ValueError: no\n")
    state = {"trial_data": [[json.dumps(trial), "{}"], [json.dumps(failed), "{}"]]}
    _write(folder / "experiment_state-2026.json", state)


def _make_dataset(asked: Config) -> None:
    def write(source: Any, folder: Folder, blocks: Any, num_workers: Any) -> list[int]:
        for block in blocks:
            write_block(source, block, folder)
        return [block.size for block in blocks]

    with mock.patch.object(generate, "_write_blocks", write):
        generate.ensure_datasets(asked.data.sources, Folder.at(asked.storage), None)


def _model(asked: Config) -> tuple[Any, Any]:
    tokenizer = load_tokenizer(asked.model, asked.storage)
    return build_model(asked.model, asked.storage, asked.seed, asked.train.full, tokenizer), tokenizer


def _make_run(asked: Config) -> None:
    """A run that was cut off after its checkpoint of step 2."""
    folder = run_folder(asked)
    claim(folder, asked, "train")
    keep(prepare(asked), folder)
    model, tokenizer = _model(asked)
    writer = CheckpointWriter(folder, asked, model, tokenizer)
    state = {f"weight.{name}": p.detach().clone() for name, p in trainable(model).items()}
    state |= {f"{kind}.{name}": torch.zeros_like(p) for name, p in trainable(model).items() for kind in MOMENTS}
    writer.write(2, state)
    writer.wait()
    MetricsFile(folder, 0).append(records())
    folder.write_json(owner.OWNER_FILE, {**owner._myself("train"), "process": 2**22 + 1})


def records() -> list[dict[str, Any]]:
    validated = {"eval/solved": 0.25, "eval/cell_accuracy": 0.5, "eval/loss": 1.0, "train/learned_tokens": 10}
    return [{"step": 0, "seconds": 1.0, **validated}, {"step": 2, "seconds": 2.0, "train/loss": 1.5, **validated}]


def _make_search(asked: Config) -> None:
    claim(run_folder(asked), asked, "tune")
    outcome = {"names": ["mine/p0/0", "mine/p1/0"], "solved": [1, 0], "cell_accuracy": [1.0, 0.5], "loss": [0.1, 1.0]}
    for number, point in enumerate(points(asked)):
        folder = run_folder(asked) / "trials" / f"trial-{number}"
        claim(folder, with_overrides(asked, point), "trial")
        MetricsFile(folder, 0).append(records())
        (folder / "validation").write_json("step-000002.json", outcome)
        folder.write_json("result.json", {"steps": 3, **records()[-1]})
        write_status(folder, point, "done")


def resume(world: Path) -> None:
    """Do what a worker does to go on from a checkpoint."""
    asked = config(world)
    state = read_state(run_folder(asked), 2)
    load_weights(_model(asked)[0], state)


def plan_again(world: Path) -> None:
    """Do what the driver does to go on with a run."""
    asked = config(world)
    folder = run_folder(asked)
    claim(folder, asked, "train")
    keep(prepare(asked), folder).maker.make(np.arange(2))


def read_trials(world: Path) -> None:
    """Do what a search does with the trials that are there."""
    asked = config(world, name="search")
    read, known = TrialReader(asked, in_study=False), known_points(asked, {})
    write_search(asked, [read(point) for point in known])


def choose_again(world: Path) -> None:
    """Choose again from the predictions of a finished evaluation."""
    run_command(
        "evaluate", config(world, name="answered", evaluate__selection="vote_with_log_probability"), None, Quiet()
    )


def own(world: Path) -> None:
    """Begin to work on a folder that somebody's owner.json is in."""
    quick = mock.patch.multiple(owner, LOST_SECONDS=0.1, BEAT_SECONDS=0.1, SETTLE_SECONDS=0.01)
    with quick, owner.owned(run_folder(config(world)), "train", Quiet()):
        pass


def dataset(world: Path) -> None:
    """Do what training and `generate` do with a dataset that is there."""
    asked = config(world)
    generate.ensure_datasets(asked.data.sources, Folder.at(asked.storage), None)
    load_source(asked.data.sources["counting"], Folder.at(asked.storage))


def peek(source: str) -> tuple[str, ...]:
    return ("peek", "{}/config.yaml", f"data.mix={{{source}: 1}}", "--stage", "task", "--count", "1")


DRY = ("train", "{}/config.yaml", "--dry-run")
REPORTED = ("report.html", "report.md", "trials.csv")
KINDS = {
    "config": Kind(
        ("config.yaml",),
        (DRY, ("tune", *DRY[1:]), ("evaluate", *DRY[1:]), ("peek", "{}/config.yaml")),
        places=("data.", "evaluate.", "tune.", "train.", "model."),
    ),
    "folder": Kind(("tasks/*",), (("score", "{}/submission.json", "{}/tasks"), peek("mine"))),
    "kaggle": Kind(
        ("kaggle/*",),
        (("score", "{}/submission.json", "{}/kaggle/challenges.json", "{}/kaggle/solutions.json"), peek("kaggle")),
    ),
    "dump": Kind(("dump/tasks/*",), (peek("dump"),), places=("dump: task p",)),
    "lines": Kind(("lines.jsonl",), (peek("lines"),)),
    "rows": Kind(("rows.parquet",), (peek("rows"),)),
    "submission": Kind(("submission.json",), (("score", "{}/submission.json", "{}/tasks"),)),
    "results": Kind(("results/*",), (("score", "{}/results", "{}/tasks"),)),
    "dataset": Kind(
        ("runs/data/counting/*", "runs/data/counting/timings/*"),
        (dataset, peek("counting"), ("generate", "{}/config.yaml", "--dry-run")),
    ),
    "base": Kind(("base/*",), (DRY, ("check", "{}/config.yaml"))),
    "run": Kind(("runs/run/*",), (DRY, plan_again, ("report", "{}/runs/run")), REPORTED),
    "owner": Kind(("runs/run/owner.json",), (own,), ("owner.json",)),
    "checkpoint": Kind(
        ("runs/run/checkpoint-000002/*",),
        (
            resume,
            ("merge", "{}/config.yaml", "--to", "{}/merged"),
            ("evaluate", "{}/config.yaml", "name=new", "evaluate.checkpoint=@run", "--dry-run"),
        ),
        ("merged",),
        ("evaluate.checkpoint @run", "has no checkpoint"),
    ),
    "trials": Kind(
        ("runs/search/trials/*/*", "runs/search/trials/*/validation/*"),
        (read_trials, ("report", "{}/runs/search")),
        (*REPORTED, "best.yaml"),
    ),
    "predictions": Kind(
        ("runs/answered/*.json", "runs/answered/predictions/*", "runs/answered/config.yaml"),
        (
            choose_again,
            ("report", "{}/runs/answered"),
            ("peek", "{}/config.yaml", "name=answered", "--stage=predictions"),
        ),
        (*REPORTED, "answers.json", "curves.json", "submission.json", "result.json", "config.yaml", "run.json"),
    ),
    "study": Kind(
        ("report/quickstart/*", "report/quickstart/*/*/*", "report/data/*/*", "report/*/*/*"),
        (("report", "{}/report/quickstart"),),
        REPORTED,
    ),
    "tune": Kind(("tune/experiment/*", "tune/experiment/*/*"), (("report", "{}/tune/experiment"),), REPORTED),
}
