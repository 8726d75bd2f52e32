"""The Ray of a command: the one at an address, the one of a job or of this process, or one of its own."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import AuthenticationError

from arc_ray.cli.own_ray import own_ray
from arc_ray.cluster.preflight import check_address
from arc_ray.cluster.roles import Room, reachable_room
from arc_ray.config import Config
from arc_ray.errors import UserError, one_line


@contextmanager
def connected(config: Config, address: str | None, trains_groups: bool = False) -> Iterator[Room]:
    """Join the Ray at an address (or of this job), else start one on this machine; it ends with the command.

    What there is, or may be started, is yielded for `settled`. A Ray that this process has, as in a notebook, stays; one
    that is started has a dashboard where it `trains_groups` of workers.
    """
    if ray.is_initialized():
        yield reachable_room()
        return
    # New machines take minutes to come. An elastic run need not wait for them: it goes on with those that are there, and
    # should not wait long for one that is counted though it has just died.
    wait_seconds = "10" if isinstance(config.scaling.num_workers, tuple) else "900"
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", wait_seconds)
    # Tune would frame each search with boxes that name its scratch folder; the table of trials is shown by us.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would end the search at Ctrl-C as if it were done.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    terminate = signal.getsignal(signal.SIGTERM)
    with _joined(address or "auto") if is_cluster(address) else own_ray(config.ray, trains_groups):
        if callable(terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray has put its own in this one's place
        for name in ("ray", "ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield reachable_room()


def is_cluster(address: str | None) -> bool:
    """Tell whether a command joins a Ray that is there: it was given an address, or runs as a job of `ray job submit`."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Join a running Ray."""
    try:
        _join(address)
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    """Join a running Ray; what usually goes wrong becomes a UserError."""
    check_address(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        raise UserError(
            f"--address {address}: Ray does not let this machine join: {one_line(error, 400)}."
            f" Check RAY_AUTH_MODE and the token, and that Python and Ray are the same here and there"
        ) from error
