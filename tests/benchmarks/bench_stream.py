"""What does Ray Data cost when rows stream to a consumer that does nothing, and does memory stay flat?

    python tests/benchmarks/bench_stream.py [--model smollm2] [--rows 1500] [--repetitions 3]
    python tests/benchmarks/bench_stream.py --flat [--row-tokens 256] [--most 1000000]
    python tests/benchmarks/bench_stream.py --waiting

The first measures tokens per second and core: rows of 8,192 tokens of ARC-AGI-1's training tasks (encoder shape_rows)
go through `stream_rows`, as in training, made by one data task at a time beside the driver, and are counted and
dropped. Beside it, in the same process and without Ray, the same rows made in a loop. CPU seconds are those of the
driver and all its children, Ray's own processes among them, so the difference is what Ray takes.
The second streams 10^4, 10^5 and 10^6 short rows and reads the peak of the proportional memory of this process and of
all its children (/proc/*/smaps_rollup), so that what is shared counts once.
The third trains a model of small kernels, which keep Python busy as a GPU's launches do, while a stream has more rows
ready than it takes: without one, with ours, and with one whose scheduler never pauses.
"""

import argparse
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import numpy as np
import ray
import torch
from bench_tokens import make_maker

from arc_ray.config.model import ModelConfig
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows import stream
from arc_ray.rows.maker import RowMaker
from arc_ray.rows.stream import BLOCK_TOKENS, stream_rows

ROWS_PER_BATCH = 16
TICK = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure one of the two and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="whose tokenizer: a name or a folder")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--waiting", action="store_true")
    parser.add_argument("--row-tokens", type=int, default=256, help="length of a row of --flat")
    parser.add_argument("--most", type=int, default=1_000_000, help="rows of the largest stream of --flat")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(ModelConfig(base=arguments.model), "runs")
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        log_to_driver=False,
    )
    if arguments.flat:
        flat_memory(make_maker(tokenizer, 60_000, arguments.row_tokens), arguments.most)
    elif arguments.waiting:
        waiting(make_maker(tokenizer, 20_000, 512), arguments.repetitions)
    else:
        throughput(make_maker(tokenizer, 6 * arguments.rows), arguments.rows, arguments.repetitions)
    ray.shutdown()


def throughput(maker: RowMaker, num_rows: int, repetitions: int) -> None:
    """Stream and make the same rows in turns; print tokens per second and core, and where the time goes."""
    rows = np.arange(num_rows) % maker.plan.num_rows
    tokens = int(maker.plan.views["tokens"].sum()) * num_rows / maker.plan.num_rows
    reference = ray.put(maker)
    block = BLOCK_TOKENS // maker.plan.row_tokens
    consume(reference, maker, rows[: 2 * block])  # the worker loads its modules and look-up tables
    streamed, plain = [], []
    for _ in range(repetitions):
        before, started = cpu_seconds(), time.perf_counter()
        assert consume(reference, maker, rows) == num_rows
        streamed.append((time.perf_counter() - started, cpu_seconds() - before))
        started = time.process_time()
        for begin in range(0, num_rows, block):
            maker.make(rows[begin : begin + block])
        plain.append(time.process_time() - started)
    wall, cpu, making = median(w for w, _ in streamed), median(c for _, c in streamed), median(plain)
    size = maker.plan.row_tokens * num_rows * 12 / 2**20
    print(f"\n{num_rows} rows of {maker.plan.row_tokens} tokens ({size:.0f} MiB), {tokens:.0f} tokens in them\n")
    print("| streaming | seconds | M tokens/s |\n|---|---|---|")
    print(f"| rows made in a loop, one core, no Ray | {making:.2f} | {tokens / making / 1e6:.2f} |")
    print(f"| through Ray Data, per CPU second of all processes | {cpu:.2f} | {tokens / cpu / 1e6:.2f} |")
    print(f"| through Ray Data, wall | {wall:.2f} | {tokens / wall / 1e6:.2f} |")
    print(
        f"| of the CPU seconds: making rows {making / cpu:.0%}, Ray (copies, scheduling, batches) {1 - making / cpu:.0%} | | |"
    )


def flat_memory(maker: RowMaker, most: int) -> None:
    """Stream ten and a hundred times as many rows; print the peak memory of each."""
    reference = ray.put(maker)
    consume(reference, maker, np.arange(4 * BLOCK_TOKENS // maker.plan.row_tokens) % maker.plan.num_rows)
    print(f"\n| rows of {maker.plan.row_tokens} tokens | seconds | peak MiB, all processes | spilled MiB |")
    print("|---|---|---|---|")
    for num_rows in (most // 100, most // 10, most):
        started = time.perf_counter()
        with watched_memory() as peak:
            assert consume(reference, maker, np.arange(num_rows) % maker.plan.num_rows) == num_rows
        print(
            f"| {num_rows} | {time.perf_counter() - started:.1f} | {peak[0]:.0f} | {spilled_mib():.0f} |",
            flush=True,
        )


def waiting(maker: RowMaker, repetitions: int) -> None:
    """Take steps beside streams that wait, in turns; print what a step takes and what this process uses of a core."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(100))).to(device)
    inputs = torch.ones(8, 32, device=device)
    rows = np.arange(60_000) % maker.plan.num_rows
    found: dict[str, list[tuple[float, float]]] = {"none": [], "ours": [], "without pauses": []}
    reference, pause = ray.put(maker), stream.STEP_SECONDS
    for name in [*found] * repetitions:
        stream.STEP_SECONDS = 0.0 if name == "without pauses" else pause
        batches = stream_rows(reference, rows if name != "none" else rows[:16], 16, 512, data_cpus=1.0)
        next(batches)
        time.sleep(8 if name != "none" else 0)  # until as many rows are ready as Ray Data lets wait
        begun, used = time.perf_counter(), time.process_time()
        for _ in range(200):
            model(inputs).sum().backward()
        seconds = time.perf_counter() - begun
        found[name].append((seconds / 200, (time.process_time() - used) / seconds))
        del batches
    print("\n| stream | ms a step | cores that this process uses |\n|---|---|---|")
    for name, times in found.items():
        print(f"| {name} | {1e3 * median(t for t, _ in times):.2f} | {median(c for _, c in times):.2f} |")


def consume(reference: "ray.ObjectRef[RowMaker]", maker: RowMaker, rows: np.ndarray) -> int:
    """Count the rows of a stream and drop them."""
    batches = stream_rows(reference, rows, ROWS_PER_BATCH, maker.plan.row_tokens, data_cpus=1.0)
    return sum(len(batch["input_ids"]) for batch in batches)


def own_processes() -> list[int]:
    """List this process and all its descendants: Ray's servers and workers are among them."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu_seconds() -> float:
    """Return the CPU seconds, of user and system, that all of them have used so far."""
    total = 0
    for pid in own_processes():
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICK


def memory_mib() -> float:
    """Return the proportional resident memory of all of them."""
    total = 0
    for pid in own_processes():
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """Read the memory twice a second while the body runs; the list holds the peak."""
    peak, is_done = [memory_mib()], threading.Event()

    def watch() -> None:
        while not is_done.wait(0.5):
            peak[0] = max(peak[0], memory_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        is_done.set()
        watcher.join()


def spilled_mib() -> float:
    """Return what the object store has written to disk for want of room, over the whole session."""
    from ray._private.internal_api import memory_summary

    words = [
        line
        for line in memory_summary(ray.get_runtime_context().gcs_address, stats_only=True).splitlines()
        if "Spilled" in line
    ]
    return float(words[0].split()[1]) if words else 0.0


if __name__ == "__main__":
    main()
