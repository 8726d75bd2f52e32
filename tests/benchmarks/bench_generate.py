"""How much of the machine does generation use? Cost beyond the generators' own, gain by workers, a simulated cluster.

    python tests/benchmarks/bench_generate.py [--examples 100] [--every 10] [--repetitions 3] [--times FILE]
    python tests/benchmarks/bench_generate.py --no-ray    # checks and schedule only, which a busy machine can measure
    python tests/benchmarks/bench_generate.py --arcgen CLONE [--every 10] [--examples 100]

Overhead. In one process, the CPU seconds of making examples against those of the bare calls of RE-ARC's generators and
verifiers with the same draws (it can be negative: a block pauses Python's garbage collector); then, with one worker on
Ray, the wall seconds of the whole against the sum of the examples' own wall seconds (tables, Parquet, files, Ray). The
two multiply.
Speed-up. Wall seconds of one worker over those of two, in turns, medians; workers are warm. It needs two idle cores:
what two plain processes gain on this machine is measured beside it, and the share of two workers' time that is spent
inside examples.
Schedule. All 400 tasks x 1,000 examples on 64 workers, simulated: the blocks and their order are those of
`arc-ray generate`, planned from its own estimates; the seconds of every example are drawn from a measurement of this
run. Ideal is the sum of all examples' seconds / 64.
ARC-GEN. Examples a CPU second, of a process and all that it starts, in turns: its own script's loop (seed, generate, print)
over the same draws, with the script's start once a task and without, and blocks as `arc-ray generate` writes them. Tasks of
which a draw hangs are left out of both, as their script would hang.
"""

import argparse
import csv
import heapq
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import ray

from arc_ray.config.sources import ArcGenSource, RearcSource
from arc_ray.datasets.blocks import Block, read_stats, write_block
from arc_ray.datasets.generate import DRIVER_SECONDS, bundles_of, ensure_datasets
from arc_ray.datasets.makers import maker_of
from arc_ray.datasets.manifest import Tally
from arc_ray.runs.machine import collector_paused
from arc_ray.seeding import digest64, python_random_for, rng_for
from arc_ray.storage import Folder
from arc_ray.tasks import generators
from arc_ray.tasks.examples import Example

Seconds = dict[str, npt.NDArray[np.float64]]
"""Task id -> CPU seconds of each measured example."""

SEED = 2
EXAMPLES_PER_TASK, WORKERS = 1000, 64
GAP_SECONDS = 0.13
"""What a worker waits between two bundles: Ray Data's driver looks for finished tasks every 0.1 s. Measured with bundles
that sleep, on 8 logical workers: 0.12 to 0.14 s. Besides, the driver serves workers one after the other, DRIVER_SECONDS
each."""


def main() -> None:
    """Run all three and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="examples of a task on Ray")
    parser.add_argument("--every", type=int, default=10, help="take every n-th task on Ray")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--measured", type=int, default=10, help="examples of each of the 400 tasks that are timed")
    parser.add_argument("--times", type=Path, help="write the simulation's inputs to this CSV file")
    parser.add_argument("--no-ray", action="store_true", help="only what is measured in CPU seconds")
    parser.add_argument("--arcgen", type=Path, help="a clone of ARC-GEN: measure its generators instead")
    arguments = parser.parse_args()
    if arguments.arcgen:
        compare_with_arcgen(arguments.arcgen, arguments.every, arguments.examples, arguments.repetitions)
        return
    seconds, checks = measure_examples(arguments.measured)
    if arguments.times:
        write_times(arguments.times, seconds)
    efficiency, ideal = simulate(seconds, WORKERS)
    schedule = f"| 400 x 1,000 on {WORKERS} workers, ideal {ideal:.0f} s | {efficiency:.3f} of ideal | >= 0.95 |"
    if arguments.no_ray:
        print(f"| seeds and checks over the generators' and verifiers' own time | {checks:+.1%} | |\n{schedule}")
        return
    source = RearcSource(
        kind="rearc", tasks=list(generators.rearc_ids()[:: arguments.every]), examples=arguments.examples, seed=SEED
    )
    ceiling = gain_of_plain_processes(arguments.repetitions)
    runs = run_on_ray(source, arguments.repetitions)
    slowest = sorted(seconds, key=lambda task_id: -seconds[task_id].mean())[:10]
    share = sum(seconds[t].mean() for t in slowest) / sum(s.mean() for s in seconds.values())
    print(f"\nseconds per example: mean {fmean(s.mean() for s in seconds.values()):.4f}, the ten slowest tasks take")
    print(f"{share:.0%} of the time: " + ", ".join(f"{t} {seconds[t].mean():.3f}" for t in slowest))
    print(f"{len(source.tasks)} tasks x {source.examples} on Ray, (wall seconds, seconds inside examples) by workers:")
    print({workers: [(round(wall, 2), round(inside, 2)) for wall, inside in runs[workers]] for workers in runs}, "\n")
    speedup = median(wall for wall, _ in runs[1]) / median(wall for wall, _ in runs[2])
    busy = median(inside / wall / 2 for wall, inside in runs[2])
    around = median(wall / inside for wall, inside in runs[1]) - 1
    print("| generation | figure | to reach |\n|---|---|---|")
    print(f"| 2 workers over 1 (2 plain processes: {ceiling:.2f}x; busy share {busy:.1%}) | {speedup:.2f}x | >= 1.9x |")
    print(f"| over the generators' and verifiers' own time | {(1 + checks) * (1 + around) - 1:+.1%} | <= 3 % |")
    print(f"| of it: seeds and checks / tables, files, Ray | {checks:+.1%} / {around:+.1%} | |")
    print(schedule)


def measure_examples(count: int) -> tuple[Seconds, float]:
    """Time examples of all tasks on this core, in turns with the bare generators and verifiers on the same draws.

    Returns the CPU seconds of each example, and the share by which making them takes longer than the bare calls.
    """
    bare, seconds = 0.0, {}
    for task_id in generators.rearc_ids():
        attempts = [make(task_id, index).attempts for index in range(count)]
        bare += bare_seconds(task_id, attempts)
        with collector_paused():  # as in a block
            times = [time.process_time(), *(make(task_id, i) and time.process_time() for i in range(count))]
        seconds[task_id] = np.diff(times)
    return seconds, sum(float(times.sum()) for times in seconds.values()) / bare - 1


def make(task_id: str, index: int) -> Example:
    """Make an example of the default source."""
    return generators.rearc_example(RearcSource(kind="rearc", seed=SEED), task_id, index)


def bare_seconds(task_id: str, attempts: Sequence[int]) -> float:
    """Return the CPU seconds of the generator's and the verifier's calls for examples 0, 1... and nothing else."""
    generate, verify = generators._library().generate[task_id], generators._library().verify[task_id]
    keys = [(index, attempt) for index, number in enumerate(attempts) for attempt in range(number)]
    rngs = [python_random_for(SEED, "rearc", task_id, *key) for key in keys]
    started = time.process_time()
    for rng in rngs:
        with suppress(Exception):  # some attempts are rejected
            verify(generate(rng, 0.0, 1.0)["input"])
    return time.process_time() - started


def simulate(seconds: Seconds, num_workers: int) -> tuple[float, float]:
    """Play the schedule: each free worker takes the next bundle. Return (ideal / makespan, ideal seconds)."""
    rng = rng_for("bench_generate")
    estimates = {task_id: maker_of(RearcSource(kind="rearc")).seconds(task_id) for task_id in seconds}
    blocks = [b for t, each in estimates.items() for b in Tally(t, each, probe=False).blocks_to(EXAMPLES_PER_TASK)]
    free, total, driver = [0.0] * num_workers, 0.0, 0.0
    for bundle in bundles_of(blocks, estimates, num_workers):
        duration = sum(float(rng.choice(seconds[b.task_id], b.stop - b.start).sum()) for b in bundle)
        total += duration
        driver = max(driver + DRIVER_SECONDS, free[0] + GAP_SECONDS)
        heapq.heapreplace(free, driver + duration)
    assert sum(block.stop - block.start for block in blocks) == EXAMPLES_PER_TASK * len(seconds)
    return total / num_workers / max(free), total / num_workers


ARCGEN_LOOP = """
import json, random, sys, task_list
examples = []
for task_id, seeds in json.load(open(sys.argv[1])).items():
    generator, _ = task_list.task_list()[task_id]
    for seed in seeds:
        random.seed(seed)
        examples.append(generator())
    print(examples)
    examples.clear()
"""
"""What `arc_gen.py generate` does, for many tasks and with seeds of ours."""


def compare_with_arcgen(clone: Path, every: int, count: int, repetitions: int) -> None:
    """Measure examples a CPU second of ARC-GEN's own loop and of ours, in turns."""
    source = ArcGenSource(kind="arcgen", path=str(clone), seed=SEED)
    blocks = [Block(task_id, 0, count) for task_id in generators.arcgen_ids(source.path)[::every]]
    with tempfile.TemporaryDirectory() as place:
        folder = Folder.at(place)
        for block in blocks:
            write_block(source, block, folder)
        stats = {block: read_stats(folder, [block]).to_pydict() for block in blocks}
        hung = sum(column["outcome"].count("timed_out") for column in stats.values())
        steady = {
            block: column["attempts"] for block, column in stats.items() if set(column["outcome"]) == {"accepted"}
        }
        draws = {
            block.task_id: [
                digest64(SEED, "arcgen", block.task_id, index, attempt)
                for index, number in enumerate(attempts)
                for attempt in range(number)
            ]
            for block, attempts in steady.items()
        }
        (Path(place) / "draws.json").write_text(json.dumps(draws))
        (Path(place) / "none.json").write_text("{}")
        starts, loops, ours = [], [], []
        for _ in range(repetitions):
            start, whole = (arcgen_cpu_seconds(clone, Path(place) / name) for name in ("none.json", "draws.json"))
            before = own_cpu_seconds()
            for block in steady:
                write_block(source, block, folder)
            generators._PROCESSES.pop(source.path).end()  # a process counts when it has ended
            ours.append(own_cpu_seconds() - before)
            starts.append(start)
            loops.append(whole - start)
    print(f"{len(blocks)} tasks x {count}: {hung} draws hang, each for {source.time_limit_seconds} s;", end=" ")
    print(f"of {len(steady)} tasks none does, which are measured")
    print(f"CPU seconds: their loop {np.round(loops, 2)}, their start {np.round(starts, 2)}, ours {np.round(ours, 2)}")
    scripts = np.array(loops) + len(steady) * np.array(starts)
    script, loop, here = (count * len(steady) / median(seconds) for seconds in (scripts, loops, ours))
    print(
        f"| ARC-GEN, examples/s of a core: its script / its loop alone / ours | {script:.0f} / {loop:.0f} / {here:.0f} | |"
    )
    print(f"| ours over its script / its loop alone | {here / script:.3f} / {here / loop:.3f} | >= 0.95 |")


def arcgen_cpu_seconds(clone: Path, draws: Path) -> float:
    """Return the CPU seconds of a process that makes these draws in ARC-GEN's own way, its start included."""
    before = own_cpu_seconds()
    subprocess.run([sys.executable, "-c", ARCGEN_LOOP, draws], cwd=clone, stdout=subprocess.DEVNULL, check=True)
    return own_cpu_seconds() - before


def own_cpu_seconds() -> float:
    """Return the CPU seconds of this process and of those of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def run_on_ray(source: RearcSource, repetitions: int) -> dict[int, list[tuple[float, float]]]:
    """Generate with one and two workers in turns; return number of workers -> (wall seconds, seconds inside examples)."""
    runs: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    os.environ["RAY_DATA_METADATA_PREFETCH_ON_THREAD"] = "0"  # as the command line does
    with tempfile.TemporaryDirectory() as folder:
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=150 * 2**20,
            log_to_driver=False,
        )
        ensure_datasets({"": source.model_copy(update={"examples": 10})}, Folder.at(f"{folder}/warm"))
        for repetition in range(repetitions):
            for num_workers, measured in runs.items():
                storage = Folder.at(f"{folder}/{num_workers}-{repetition}")
                started = time.perf_counter()
                ensure_datasets({"": source}, storage, num_workers=num_workers)
                measured.append((time.perf_counter() - started, seconds_inside(Path(storage.uri))))
        ray.shutdown()
    return runs


def gain_of_plain_processes(repetitions: int) -> float:
    """Return how much more two plain processes do than one in the same time: what this machine can give at best."""
    gains = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(plain_work, range(2), chunksize=1)  # loads the library in both
        for _ in range(repetitions):
            alone = pool.apply(plain_work, (0,))
            gains.append(2 * alone / fmean(pool.map(plain_work, range(2), chunksize=1)))
    return median(gains)


def plain_work(_: int) -> float:
    """Call generators and verifiers for some seconds; return the wall seconds."""
    started = time.perf_counter()
    for task_id in generators.rearc_ids()[::20]:
        bare_seconds(task_id, [1] * 20)
    return time.perf_counter() - started


def seconds_inside(folder: Path) -> float:
    """Sum the wall seconds that a dataset's examples took."""
    files = folder.glob("data/*/timings/*.parquet")
    return sum(sum(pq.read_table(file)["milliseconds"].to_pylist()) for file in files) / 1000


def write_times(path: Path, seconds: Mapping[str, Sequence[float] | npt.NDArray[np.float64]]) -> None:
    """Write one line a task: its id and the seconds of each measured example."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([task_id, *(f"{s:.6f}" for s in times)] for task_id, times in seconds.items())


if __name__ == "__main__":
    main()
