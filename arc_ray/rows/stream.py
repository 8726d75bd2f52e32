"""Rows on their way: what makes them is in Ray's store, and Ray Data makes them on CPUs while the workers train."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import ray

from arc_ray.cluster.roles import data_selector, live_room
from arc_ray.config import Config
from arc_ray.rows.maker import Batch, RowMaker, ValidationSet
from arc_ray.rows.plan import Plan
from arc_ray.rows.prepare import Prepared, keep, plan_key, prepare
from arc_ray.storage import Folder

BLOCK_TOKENS = 2**21
"""Places for tokens in the rows that one data task makes: 25 MB, a tenth of a second. Smaller blocks would spend most of
their time on Ray's scheduling, which looks for finished tasks every 0.1 s."""

STEP_SECONDS = 0.02
"""Pause between two looks of Ray Data at its tasks. While blocks that are made wait for the model, each look ends at once:
without a pause they take a core, and Python's lock from the thread that trains."""

DATA_TASKS = 2
"""Data tasks at a time for one training worker. Each makes millions of tokens a second, more than a GPU takes; every
further one is a process that has to start, with 250 MB, before the first step."""


class SharedRows(NamedTuple):
    """What workers make rows and validate with, in Ray's object store or as it is."""

    plan: Plan
    maker: "ray.ObjectRef[RowMaker] | RowMaker"
    validation: "ray.ObjectRef[ValidationSet | None] | ValidationSet | None"


def in_store(prepared: Prepared) -> SharedRows:
    """Put what workers need into the store; it stays there as long as this process has a reference."""
    return SharedRows(prepared.plan, ray.put(prepared.maker), ray.put(prepared.validation))


def held(shared: Any) -> Any:
    """Return what is in the store, or was given as it is."""
    return ray.get(shared) if isinstance(shared, ray.ObjectRef) else shared


class Preparer:
    """An actor that prepares the trials of a search; what it puts into Ray's object store stays as long as it lives."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}
        self._shared: dict[str, SharedRows] = {}

    def plan(self, config: Config) -> Plan:
        """Return the plan that a trial would have. Raises UserError."""
        return prepare(config, known=self._known).plan

    def share(self, config: Config, folder: Folder) -> SharedRows:
        """Prepare a trial whose folder is claimed. Raises UserError."""
        prepared, key = prepare(config, folder, self._known), plan_key(config)
        kept = keep(prepared, folder)
        if kept is not prepared:  # it goes on with the plan that it began with
            return in_store(kept)
        if key not in self._shared:
            self._shared[key] = in_store(prepared)
        return self._shared[key]


def stream_rows(
    maker: "ray.ObjectRef[RowMaker] | RowMaker",
    rows: npt.NDArray[np.int64],
    rows_per_batch: int,
    row_tokens: int,
    data_cpus: float,
) -> Iterator[Batch]:
    """Return batches of these rows, in this order; each data task makes a block of rows, a few blocks ahead.

    Nothing depends on how Ray cuts blocks: a row is a pure function of (plan, number), and order is preserved. Rows that
    are less than a block are made here: the processes that Ray Data starts would take seconds. So are all rows where there
    is no store: on a CPU a model takes a hundred times as long to learn from a row.
    """
    num_blocks = min(-(-len(rows) * row_tokens // BLOCK_TOKENS), len(rows))
    if num_blocks <= 1 or not isinstance(maker, ray.ObjectRef):
        here = held(maker)
        return (here.make(rows[i : i + rows_per_batch]) for i in range(0, len(rows), rows_per_batch))
    # 0.4 s, and not needed otherwise; by the caller's thread, for two threads that import at once can wait for ever.
    from ray.data import TaskPoolStrategy, from_items
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Pause(ExecutionCallback):
        """What Ray Data calls after each look at its tasks."""

        def on_execution_step(self, executor: object) -> None:
            time.sleep(STEP_SECONDS)

    # One item a block: from_numpy would run a task for each before the first row, 3 s of them for a million rows.
    items = [{"rows": block} for block in np.array_split(rows, num_blocks)]
    dataset = from_items(items, override_num_blocks=num_blocks).map_batches(
        _make_rows,  # pyright: ignore[reportArgumentType]
        batch_size=None,
        num_cpus=data_cpus,
        compute=TaskPoolStrategy(size=min(DATA_TASKS, num_blocks)),
        fn_kwargs={"maker": maker},
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.label_selector = data_selector()
    # Ray's guard would kill a training that pauses for half an hour, such as one in a long validation.
    context.execution_no_progress_timeout_s = -1
    context.custom_execution_callback_classes = [Pause]
    batches: Any = dataset.iter_batches(batch_size=rows_per_batch, prefetch_batches=4)
    return chain.from_iterable([batches])  # it begins when it is first asked


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Have the first batch made from now on, in the background: data tasks take seconds to start."""
    pool = ThreadPoolExecutor(1)
    first = pool.submit(list, islice(batches, 1))
    pool.shutdown(wait=False)
    return chain.from_iterable(part() for part in (first.result, lambda: batches))


def settle_data_scheduling() -> None:
    """Let the actor that shares resources out to Ray Data live on this node, the driver's.

    It stays for good where it is first asked for. That would be a training worker's node, and after that node's death
    every stream of rows, and an elastic run's count of machines, would wait for an answer for ever. One machine has no
    other node.
    """
    if live_room().is_one_machine:
        return
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

    get_or_create_autoscaling_coordinator()


def _make_rows(batch: dict[str, npt.NDArray[np.int64]], maker: "ray.ObjectRef[RowMaker]") -> Batch:
    [rows] = batch["rows"]
    return _fetched(maker).make(rows)


@lru_cache(maxsize=2)
def _fetched(maker: "ray.ObjectRef[RowMaker]") -> RowMaker:
    """Keep a worker's row maker between blocks: its arrays are shared memory, but its look-up tables are not."""
    return ray.get(maker)
