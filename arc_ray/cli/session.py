"""Around a command: Ray started or joined, a training watched through its run folder, errors turned into exit codes."""

import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from arc_ray.config import Config
from arc_ray.errors import UserError
from arc_ray.progress import Progress, watched
from arc_ray.runs.folder import JOB_FOLDER, MetricsTail, run_folder
from arc_ray.storage import Folder

if TYPE_CHECKING:
    from arc_ray.cluster.roles import Room
    from arc_ray.rows.plan import Plan

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
STEP_METRICS = (
    ("loss", "train/loss", 3),
    ("tokens/s", "train/tokens_per_second", 0),
    ("solved", "eval/solved", 3),
    ("cells", "eval/cell_accuracy", 3),
)
"""What is shown of a training: name, metric and digits."""
SHORT_TEMPORARY = "/tmp"
MOST_TEMPORARY = 32
"""Characters: Ray adds up to 75 for its session and a socket's name, and a socket's path may have 107."""


@contextmanager
def connected(config: Config, address: str | None) -> Iterator["Room"]:
    """Join the Ray at an address (or of this job), else start one on this machine; it ends with the command.

    What there is, or may be started, is yielded for `settled`.
    """
    # New machines take minutes to come. An elastic run need not wait for them: it goes on with those that are there, and
    # should not wait long for one that is counted though it has just died.
    is_elastic = isinstance(config.scaling.num_workers, tuple)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60" if is_elastic else "900")
    # Tune would frame each search with boxes that name its scratch folder; the table of trials is shown by us.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would end the search at Ctrl-C as if it were done, and the command would go on.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    import ray

    from arc_ray.cluster.roles import reachable_room

    if is_cluster(address):
        _join(address or "auto")
    else:
        _start_ray(config)
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield reachable_room()
    finally:
        ray.shutdown()
        if os.environ.get("RAY_ADDRESS") == _own_address():
            del os.environ["RAY_ADDRESS"]


def _start_ray(config: Config) -> None:
    """Start a Ray of our own on this machine. Raises UserError where the machine is too busy for it."""
    shorten_temporary_folder()
    # Ray ends idle processes beyond the number of CPUs after a second, and the next trial pays for new ones.
    os.environ.setdefault("RAY_num_workers_soft_limit", "16")
    # Threads that wait by spinning make two busy processes on a few cores ten times slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # On one machine there is nobody to announce a preemption, and the watcher is a process for every run.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # A report, and the end of a run, wait for Ray Train's next look at its workers: every 2 s, a fourth of a short trial.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Trials keep their processes alive for a while; Ray would warn of more than three a core, as if something leaked.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    start_patiently(partial(_init, config))


def _init(config: Config) -> None:
    """Call `ray.init` with an address that is settled and told to all before Ray starts, and with the dashboard.

    Ray Train frees a stopped trial's workers through the dashboard's API, which it looks for by RAY_ADDRESS. Without that
    it looks at the machine's processes, and a second Ray on the machine would leave the workers of every stopped trial
    reserved for ever.
    """
    import ray

    from arc_ray.cluster.roles import ALONE, logical_cpus

    with socket.socket() as free:
        free.bind(("", 0))
        os.environ["RAY_GCS_SERVER_PORT"] = str(free.getsockname()[1])
    os.environ["RAY_ADDRESS"] = _own_address()
    ray.init(
        address="local",
        num_cpus=logical_cpus(config.ray.num_cpus),
        object_store_memory=config.ray.object_store_mib * 2**20,
        include_dashboard=True,
        labels={ALONE: "true"},
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def start_patiently(start: Callable[[], None]) -> None:
    """Start Ray, once more where the first try took longer than the 30 s that Ray gives itself. Raises UserError."""
    others = set(psutil.Process().children(recursive=True))
    for is_last in (False, True):
        try:
            return start()
        except Exception as error:  # Ray raises no class of its own
            if "timed out during startup" not in str(error):
                raise
            left = set(psutil.Process().children(recursive=True)) - others
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=10)
            if is_last:
                load = os.getloadavg()[0]
                raise UserError(
                    f"Ray did not start within 30 s, twice: this machine is too busy (load {load:.0f});"
                    f" call the command again when less runs on it"
                ) from error
            logger.warning("Ray did not start within 30 s, because this machine is busy; it is started once more")


def shorten_temporary_folder() -> None:
    """Give Ray's processes another folder where TMPDIR is too long for sockets, theirs and Python's. Raises UserError."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        path = os.environ.get(variable, "")
        if len(path) <= MOST_TEMPORARY:
            continue
        if not os.access(SHORT_TEMPORARY, os.W_OK):
            raise UserError(
                f"{variable} {path}: sockets that Ray makes there would have longer paths than the system allows;"
                f" set it to a folder whose path has at most {MOST_TEMPORARY} characters"
            )
        os.environ[variable] = SHORT_TEMPORARY


def _own_address() -> str:
    """Return the address of the Ray that this process starts or started."""
    import ray

    return f"{ray.util.get_node_ip_address()}:{os.environ.get('RAY_GCS_SERVER_PORT')}"


def is_cluster(address: str | None) -> bool:
    """Tell whether a command joins a Ray that is there: it was given an address, or runs as a job of `ray job submit`."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def _join(address: str) -> None:
    """Join a running Ray; what usually goes wrong becomes a UserError."""
    import ray
    from ray.exceptions import AuthenticationError

    from arc_ray.cluster.preflight import check_address

    check_address(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise UserError(
            f"--address {address}: Ray does not let this machine join: {reason}."
            f" Check RAY_AUTH_MODE and the token, and that Python and Ray are the same here and there"
        ) from error


def check_storage(config: Config, creates: bool = True) -> None:
    """Find out that nothing can be written, or that it would be lost, before any work is done. Raises UserError.

    Unless it `creates` the folder, a file without a name is written to the nearest folder that exists.
    """
    refuse_own_folder(config)
    folder = Folder.at(config.storage)
    if creates or not folder.is_local:
        folder.write_bytes(".writable", b"")
        folder.delete(".writable")
        return
    nearest = next(place for place in (folder.local_path(), *folder.local_path().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"storage {folder.uri}: nothing can be written to {nearest}: {error.strerror}") from error


def refuse_own_folder(config: Config) -> None:
    """Refuse a storage that ends with the job. Raises UserError."""
    folder = Folder.at(config.storage)
    if JOB_FOLDER in folder.uri:
        raise UserError(
            f"storage {config.storage}: a job's own folder is deleted after it; give a place that outlives it and that"
            f" all nodes see, such as storage=s3://bucket/runs or storage=/shared/runs"
        )


def train_watched(config: Config, progress: Progress) -> dict[str, Any]:
    """Train a run and show its metrics as they appear in its folder."""
    from arc_ray.train.run import run_training, with_rows

    asked, config = config, with_rows(config)
    if asked.train.micro_rows == "auto" and config.scaling.on_gpu:
        progress.note(f"{config.name}: rows at once (train.micro_rows) {config.train.rows_at_once}")
    with watched(steps_shown(run_folder(config), progress), LOOK_SECONDS):
        return run_training(config)


def steps_shown(folder: Folder, progress: Progress) -> Callable[[], None]:
    """Return a function that shows how far a run is: workers may be anywhere, their metrics are in its folder."""
    from arc_ray.rows.plan import load_plan

    metrics, plans, shown = MetricsTail(folder), list["Plan"](), -1

    def look() -> None:
        nonlocal shown
        if not plans and folder.exists("plan.parquet"):
            plans.append(load_plan(folder.read_bytes("plan.parquet")))
        metrics.look()
        if plans and metrics.newest and metrics.newest["step"] != shown:
            shown, newest = metrics.newest["step"], metrics.newest
            said = (f"{name} {newest[key]:.{digits}f}" for name, key, digits in STEP_METRICS if key in newest)
            progress.advance(f"{folder.name}, steps", shown, plans[0].num_steps, " ".join(said))

    return look


def elapsed(begun: float) -> str:
    """Write the time since `begun` (time.monotonic) as minutes and seconds."""
    seconds = int(time.monotonic() - begun)
    return f"{seconds // 60} min {seconds % 60:02d} s"
