"""What more nodes cost: logical nodes on this machine (Ray's own multi-node test cluster), each with one CPU.

    python tests/benchmarks/bench_growth.py [--nodes 1 2 4 8 16] [--blocks 200] [--examples 2000]

All nodes share this machine's cores, so work cannot get faster; what grows with nodes is what the cluster itself costs.
Start: wall seconds until all nodes are registered, one after the other.
Rows: `stream_rows` of rows that take no time to make, in blocks as in training; wall seconds per block after a first
pass that starts the workers, and CPU time of the driver per block. Generate: wall seconds for counting examples.
Memory: resident MiB of the head's processes (gcs_server, raylet) and of the driver, the same for all numbers.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil
import ray
from ray.cluster_utils import Cluster

from arc_ray.config.sources import CountingSource
from arc_ray.datasets.generate import ensure_datasets
from arc_ray.rows.maker import Batch
from arc_ray.rows.stream import BLOCK_TOKENS, stream_rows
from arc_ray.storage import Folder

STORE_BYTES = 80 * 2**20
ROWS_PER_BLOCK = 256
"""Rows of a block, as at 8,192 tokens a row."""


class Figures(NamedTuple):
    """What was measured with one number of nodes."""

    start_seconds: float
    row_block_ms: float
    driver_ms: float
    generate_seconds: float
    gcs_mib: float
    raylet_mib: float
    driver_mib: float


class EmptyRows:
    """Stands for a `RowMaker` whose rows cost nothing, so that what is left is Ray's own time."""

    def make(self, rows: npt.NDArray[np.integer]) -> Batch:
        """Return one number a row."""
        return {"input_ids": np.asarray(rows, dtype=np.int32)[:, None]}


def main() -> None:
    """Measure each number of nodes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--blocks", type=int, default=200)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    print(
        "| nodes | start s | ms per block of rows | driver's CPU ms | generate s | gcs MiB | head's raylet MiB | driver MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for number in given.nodes:
        f = measure(number, given.blocks, given.examples, given.repetitions)
        sizes = f"{f.gcs_mib:.0f} | {f.raylet_mib:.0f} | {f.driver_mib:.0f}"
        print(
            f"| {number} | {f.start_seconds:.1f} | {f.row_block_ms:.1f} | {f.driver_ms:.1f} | {f.generate_seconds:.1f} "
            f"| {sizes} |",
            flush=True,
        )


def measure(num_nodes: int, num_blocks: int, num_examples: int, repetitions: int) -> Figures:
    """Measure one cluster; medians of the repetitions."""
    begun = time.perf_counter()
    with nodes(num_nodes) as cluster:
        started = time.perf_counter() - begun
        maker: Any = ray.put(EmptyRows())
        stream(maker, num_nodes)
        streams = [stream(maker, num_blocks) for _ in range(repetitions)]
        row_block_ms, driver_ms = (1e3 * median(seconds) for seconds in zip(*streams, strict=True))
        generating = median(generate(num_examples, seed) for seed in range(repetitions))
        processes = {p.name(): p for p in head_processes(cluster)}
        sizes = [processes[name].memory_info().rss / 2**20 for name in ("gcs_server", "raylet")]
        driver_mib = psutil.Process().memory_info().rss / 2**20
        return Figures(started, row_block_ms, driver_ms, generating, *sizes, driver_mib)


@contextmanager
def nodes(number: int) -> Iterator[Cluster]:
    """A head without CPUs and so many nodes of one CPU."""
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(number):
            cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, wait=False)
        cluster.wait_for_nodes()
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def stream(maker: Any, num_blocks: int) -> tuple[float, float]:
    """Return the wall seconds and the driver's CPU seconds per block of streaming so many blocks of rows."""
    begun, used, rows = time.perf_counter(), time.process_time(), np.arange(num_blocks * ROWS_PER_BLOCK)
    batches = stream_rows(maker, rows, ROWS_PER_BLOCK, BLOCK_TOKENS // ROWS_PER_BLOCK, data_cpus=1.0)
    got = sum(len(batch["input_ids"]) for batch in batches)
    assert got == len(rows)
    return (time.perf_counter() - begun) / num_blocks, (time.process_time() - used) / num_blocks


def generate(num_examples: int, seed: int) -> float:
    """Return the wall seconds of making counting examples in an empty folder."""
    source = CountingSource(kind="counting", examples=num_examples, max_side=6, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        ensure_datasets({"counting": source}, Folder.at(folder))
        return time.perf_counter() - begun


def head_processes(cluster: Cluster) -> list[psutil.Process]:
    """List the processes of the cluster's head."""
    kinds = cluster.head_node.all_processes.values()
    return [psutil.Process(info.process.pid) for infos in kinds for info in infos]


if __name__ == "__main__":
    main()
