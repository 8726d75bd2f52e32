"""What several test files share."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A property is no stop-watch: on a busy machine any example may take long.
settings.register_profile("arc_ray", deadline=None)
settings.load_profile("arc_ray")

TESTS = Path(__file__).parent
ROOMS = sorted(str(path) for path in TESTS.iterdir() if path.is_dir())

# Before anything imports Ray, which reads them once. Processes of tests find this checkout and the tests by PYTHONPATH.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    PYTHONPATH=os.pathsep.join((str(TESTS.parent), str(TESTS), *ROOMS)),
    OMP_NUM_THREADS="1",
    RAY_worker_niceness="0",  # Ray's default of 15 lets its workers starve on a busy machine, and tests time out
)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests of a session; the only place in the tests that starts one in this process."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # sockets need a short path
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=150 * 2**20,
            log_to_driver=False,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
