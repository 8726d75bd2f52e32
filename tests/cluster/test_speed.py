"""What network and storage give, and what a training needs; tests/cluster/test_onprem.py measures between hosts."""

import socket
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from arc_ray.cluster import speed
from arc_ray.cluster.speed import Demand, Speed


def test_the_exchange_is_an_all_reduce_between_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches ranks that never meet, and seconds that are not those of the exchange."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        ranks = [pool.submit(speed._all_reduce, place, rank, 2, False) for rank in range(2)]
        assert all(0 < rank.result() < 60 for rank in ranks)


def test_a_file_is_written_and_read(tmp_path: Path) -> None:
    """Catches a rate of nothing: the file must have been there."""
    assert speed._write(str(tmp_path), ".trace") > 0
    assert (tmp_path / ".trace" / "speed").stat().st_size == speed.TRIAL_BYTES
    assert speed._read(str(tmp_path), ".trace") > 0


@pytest.mark.parametrize(("rate", "times"), [(25e9, None), (0.05e9, 41)])
def test_a_network_that_makes_a_run_forty_times_slower_is_told(rate: float, times: int | None) -> None:
    """Catches days of training that wait for the network, and a warning where there is nothing to warn of."""
    demand = Demand(exchanged=2e9, checkpoint=4e9, seconds=1.0, checkpoint_every=100)
    measured = Speed(write=0.1e9, read=0.2e9, exchange=rate, between="of two", accelerator="H100")
    network, storage = demand.lines(measured)
    assert "a step exchanges 2 GB" in network
    assert "it computes 1 s on H100, so 2 GB/s are needed" in network
    assert ("TOO SLOW" in network) == (times is not None)
    assert times is None or f"steps take {times} times as long" in network
    assert storage == "storage: a checkpoint of 4 GB takes 40 s to write, every 100 s"
    assert f"network: {rate / 1e9:g} GB/s in an all-reduce of two" in list(measured.lines())


def test_what_is_not_known_is_not_judged() -> None:
    """Catches a rate needed of a device whose speed nobody knows, and workers on one node called slow."""
    alone, demand = Speed(1e9, 1e9, None, "(all workers are on one node)"), Demand(2e9, 4e9)
    (storage,) = demand.lines(alone)
    assert storage == "storage: a checkpoint of 4 GB takes 4 s to write"
    assert next(alone.lines()) == "network: not measured (all workers are on one node)"
    network, _ = demand.lines(Speed(1e9, 1e9, 1e9, "of two"))
    assert network == "network: a step exchanges 2 GB, which takes 2 s"


def node(name: str, gpus: int) -> dict[str, object]:
    return {"NodeID": name, "NodeManagerHostname": name, "NodeManagerAddress": name, "Resources": {"GPU": gpus}}


@pytest.mark.parametrize(
    ("ranks", "num_workers", "said"),
    [
        ([node("a", 8)] * 8, 8, "(all workers are on one node)"),
        ([], 1, "(all workers are on one node)"),
        ([], 16, "(16 workers want two nodes with GPUs or more, up are 0: check again while they are)"),
        ([node("a", 8)] * 8, 16, "(16 workers want two nodes with GPUs or more, up are 1: check again while they are)"),
    ],
)
def test_where_there_is_nothing_to_measure_it_is_said_why(
    ranks: list[dict[str, object]], num_workers: int, said: str
) -> None:
    """Catches a cluster whose GPU nodes are not up yet called fine, or slow."""
    assert speed._exchange(ranks, True, num_workers) == (None, said)
