"""A bucket that fails, and a few faults of the campaign."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from arc_ray.cli.console import Terminal
from arc_ray.errors import StorageError, unwrapped
from arc_ray.runs.folder import MetricsFile, read_metrics
from arc_ray.runs.owner import owned
from arc_ray.storage import Folder

pytest.importorskip("moto", reason="moto is not installed: pip install '.[dev]'")

from chaos import Alone, hurt
from faults import Fault, preloaded
from storage_server import BUCKET_FAULTS, StorageServer

pytestmark = pytest.mark.usefixtures("unforked")

SEEDS = int(os.environ.get("CHAOS_SEEDS", "8"))
SHORT_FAULTS = [fault for fault in BUCKET_FAULTS if fault != "hangs"]


@pytest.fixture
def server() -> Iterator[StorageServer]:
    server = StorageServer()
    yield server
    server.close()


@pytest.mark.slow
def test_a_bucket_that_is_away_for_ten_seconds_is_waited_for(server: StorageServer) -> None:
    """Catches a training of days that ends by a hiccup: pyarrow would give up after six seconds."""
    folder = Folder.at(server.bucket("bucket"))
    server.fail("503", 10**6)
    threading.Timer(10.0, server.fail, ("503", 0)).start()
    folder.write_bytes("file", b"content")
    assert folder.read_bytes("file") == b"content"


@pytest.mark.parametrize("fault", ["truncates", "hangs up", "loses the reply"])
def test_a_lost_request_is_made_again(server: StorageServer, fault: str) -> None:
    """Catches half a file that is taken for a whole one."""
    folder = Folder.at(server.bucket("bucket"))
    for number in range(3):
        server.fail(fault, 1)  # pyright: ignore[reportArgumentType]
        folder.write_bytes("file", bytes([number]) * 100_000)
        server.fail(fault, 1)  # pyright: ignore[reportArgumentType]
        assert folder.read_bytes("file") == bytes([number]) * 100_000


def test_a_bucket_that_is_gone_is_named_in_one_line(server: StorageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback through pyarrow where the storage cannot be read."""
    monkeypatch.setattr("arc_ray.storage.S3_ATTEMPTS", 1)
    folder = Folder.at(server.bucket("bucket"))
    folder.write_bytes("file", b"content")
    server.fail("500", 10**6)
    for read in (folder.names, folder.files, folder.exists, lambda: folder.read_bytes("file"), folder.delete):
        with pytest.raises(StorageError, match=r"the storage does not answer as it should: .*goes on"), unwrapped():
            read()


def train(folder: Folder, steps: int) -> None:
    """Write the metrics of steps and a checkpoint every third, as a training does, from the newest checkpoint on."""
    done = (folder.read_json("checkpoint.json") or {"step": 0})["step"]
    metrics = MetricsFile(folder, done)
    for step in range(done + 1, steps + 1):
        metrics.append([{"step": step}])
        if step % 3 == 0 or step == steps:
            folder.write_json("checkpoint.json", {"step": step})


@pytest.mark.parametrize("seed", range(SEEDS))
def test_metrics_in_a_bucket_that_fails_lose_no_record(
    server: StorageServer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a record that is lost or written twice where the run is called again after any answer of the storage.

    `CHAOS_SEEDS` asks for more of chance.
    """
    monkeypatch.setattr("arc_ray.storage.S3_ATTEMPTS", 1)
    rng, folder, calls = Random(seed), Folder.at(server.bucket("bucket")) / f"seed-{seed}", 0

    def fail_later() -> None:
        """Have the server fail once it has answered some more requests; what hangs up at once is asked again by the client."""
        server.fail(rng.choice(SHORT_FAULTS) if calls else "500", int(calls < 4), after=rng.randrange(30))

    fail_later()
    while True:
        calls += 1
        assert calls < 20, "it never ends"
        try:
            with unwrapped():
                train(folder, steps=8)
            break
        except StorageError:
            fail_later()
    server.faults = 0
    assert [record["step"] for record in read_metrics(folder)] == list(range(1, 9))
    assert calls > 1, "no fault hit it, so nothing was tested"


def work(folder: Folder) -> None:
    """Be the driver of a run that writes twelve steps; end this process."""
    try:
        with owned(folder, "train", Terminal()):
            folder.clear_leftovers()
            train(folder, steps=12)
            folder.write_json("result.json", {})
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)


def test_a_driver_killed_at_any_moment_loses_no_record(tmp_path: Path) -> None:
    """Catches a file that a kill -9 leaves half, a record lost or doubled, and an owner that keeps the next one out.

    Moments are shares of what the work takes on this machine; `CHAOS_SEEDS` asks for more of them.
    """
    rng, kills, seconds, folder = Random(0), 0, 0.0, Folder.at(str(tmp_path / "run-0"))
    while kills < 3 * SEEDS:
        begun, child = time.monotonic(), os.fork()
        if child == 0:
            work(folder)
        if seconds:
            time.sleep(rng.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        kills += code != 0
        if code == 0:
            seconds = seconds or time.monotonic() - begun
            assert [record["step"] for record in read_metrics(folder)] == list(range(1, 13))
            assert set(folder.names()) == {"checkpoint.json", "metrics.jsonl", "result.json"}
            folder = Folder.at(str(tmp_path / f"run-{kills}"))


@pytest.mark.slow
def test_a_command_that_is_hurt_goes_on_to_the_same_bytes(server: StorageServer, tmp_path: Path) -> None:
    """Catches what a fault loses or doubles, a call that hangs, and one that ends without saying why."""
    fault = Fault("generate", "head", "killed", moment=0.2, delay=0.0, amount=0.0)
    found = hurt(fault, tmp_path / "hurt", Alone(tmp_path / "alone"), server)
    assert found["happened"], "it was over before, so nothing was tested"
    assert found["wrong"] == []


CHANGES = """
import sys
from arc_ray.storage import Folder

folder = Folder.at(sys.argv[1])
folder.write_bytes("a", b"1")
folder.write_bytes("b", b"2")
folder.delete("a")
folder.write_bytes("late", b"3")
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize(("number", "change", "there"), [(2, "written b", {"a", "b"}), (3, "deleted a", {"b"})])
def test_a_process_is_stopped_right_after_the_change_that_is_chosen(
    number: int, change: str, there: set[str], tmp_path: Path
) -> None:
    """Catches a library that counts nothing, so that a campaign of cuts cuts nowhere, or one change too late."""
    storage, reached = tmp_path / "runs", tmp_path / "reached"
    own = {"CHAOS_STORAGE": str(storage), "CHAOS_COUNT": str(tmp_path / "count"), "CHAOS_REACHED": str(reached)}
    own |= {"CHAOS_NUMBER": str(number), **preloaded("writes.c", tmp_path)}
    with subprocess.Popen([sys.executable, "-c", CHANGES, str(storage)], env=os.environ | own) as process:
        while not reached.exists():
            assert process.poll() is None, "it was not stopped"
            time.sleep(0.01)
        process.kill()
    assert reached.read_text() == f"{change}\n"
    assert {path.name for path in storage.iterdir()} == there
