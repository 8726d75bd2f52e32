"""Does test-time training over two workers take half the time of one? Eight RE-ARC tasks, each tuned and answered.

    python tests/benchmarks/bench_ttt.py [--steps 24] [--repetitions 3]

Seconds from the start of the first task to the end of the last one, workers being up; in turns, medians. The peer is
the same work on two plain processes against one: what this machine can give at best. One thread a worker.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ray
import torch

from arc_ray.config import Config, config_from, with_overrides
from arc_ray.config.sources import RearcSource
from arc_ray.evaluate.pool import Hosts
from arc_ray.evaluate.questions import Work, make_prompts, works_of
from arc_ray.evaluate.ttt import Tuner, tune_all, tuning_works
from arc_ray.models.build import build_model
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.prepare import codec_of
from arc_ray.storage import Folder
from arc_ray.tasks import generators
from arc_ray.tasks.task import Task, TaskTable

RULES = ("05269061", "6430c8c4", "9565186b", "6773b310", "a68b268e", "cdecee7f", "d037b0a7", "137eaa0f")
SCRATCH = {"hidden_size": 128, "layers": 4, "heads": 4, "intermediate_size": 384}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        config = make_config(Path(path), arguments.steps)
        jobs = jobs_of(config, [make_task(rule) for rule in RULES])
        ceiling = gain_of_plain_processes(config, jobs, arguments.repetitions)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=150 * 2**20, log_to_driver=False
        )
        for repetition in range(arguments.repetitions):
            for num_workers, measured in seconds.items():
                measured.append(seconds_on_ray(config, jobs, num_workers, f"{num_workers}-{repetition}"))
        ray.shutdown()
    print({workers: [round(s, 2) for s in measured] for workers, measured in seconds.items()})
    gain = median(seconds[1]) / median(seconds[2])
    print("| test-time training | figure | to reach |\n|---|---|---|")
    print(f"| 8 tasks, 2 workers over 1 (2 plain processes: {ceiling:.2f}x) | {gain:.2f}x | >= 1.8x |")


def make_config(folder: Path, steps: int) -> Config:
    """Write a tiny base model to a folder; return the config of its evaluation."""
    shared = {"storage": str(folder), "prompt": {"format": "compact", "encoder": "compact", "learn": "all"}}
    made = config_from({**shared, "model": {"scratch": SCRATCH}, "train": {"full": True}}, {})
    tokenizer = load_tokenizer(made.model, made.storage)
    model: Any = build_model(made.model, made.storage, 0, True, tokenizer)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return config_from(
        {
            **shared,
            "model": {"base": str(folder / "base"), "lora": {"r": 16, "alpha": 32}},
            "train": {"row_tokens": 512, "micro_rows": 4},
            "evaluate": {"symmetries": 2, "ttt": {"steps": steps, "views_per_step": 4, "lr": 1e-3}},
            "scaling": {"use_gpu": False, "threads": 1},
        },
        {},
    )


def make_task(rule: str) -> Task:
    """Make a task of four shown RE-ARC examples and one to answer."""
    source = RearcSource(kind="rearc", difficulty=(0.0, 0.15), max_side=10)
    examples = [generators.rearc_example(source, rule, index) for index in range(5)]
    pairs = tuple(example.pair for example in examples if example.pair)
    assert len(pairs) == 5, rule
    return Task(rule, pairs[:4], pairs[4:])


def jobs_of(config: Config, tasks: Sequence[Task]) -> list[Work]:
    """Make the works that an evaluation would make."""
    prompts = make_prompts(codec_at(config), TaskTable.of(tasks), config)
    return tuning_works("set", tasks, works_of("set", prompts, config.evaluate))


def codec_at(config: Config) -> Codec:
    """Make the codec of a config, as each process that answers is given one."""
    return codec_of(config, load_tokenizer(config.model, config.storage))


def seconds_on_ray(config: Config, jobs: Sequence[Work], num_workers: int, name: str) -> float:
    """Tune all tasks on so many workers; return the seconds from the first task's start to the last one's end."""
    config = with_overrides(config, {"evaluate.ttt.num_workers": num_workers})
    folder = Folder.at(config.storage) / name
    records = tune_all(Hosts(), config, folder, codec_at(config), jobs, lambda done, total: None)
    assert all(record["status"] == "tuned" for record in records)
    return max(r["at"] for r in records) - min(r["at"] - r["seconds"] for r in records)


def gain_of_plain_processes(config: Config, jobs: Sequence[Work], repetitions: int) -> float:
    """Return how much faster two plain processes do the work than one: what this machine can give at best."""
    gains = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(plain_work, [(config, jobs[:1])] * 2, chunksize=1)  # imports and loads in both
        for _ in range(repetitions):
            alone = pool.apply(plain_work, ((config, jobs),))
            gains.append(alone / max(pool.map(plain_work, [(config, jobs[::2]), (config, jobs[1::2])], chunksize=1)))
    return median(gains)


def plain_work(given: tuple[Config, Sequence[Work]]) -> float:
    """Tune these tasks in this process; return the seconds without loading."""
    config, jobs = given
    torch.set_num_threads(1)
    tuner = Tuner(config, Folder.at(config.storage) / "plain", codec_at(config))
    tuner.load()
    begun = time.perf_counter()
    for job in jobs:
        tuner.do(job)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
