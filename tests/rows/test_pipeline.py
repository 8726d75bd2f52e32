"""Streaming under Ray Data: a consumer that pauses is no fault."""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from test_rows import maker, same

from arc_ray.rows.maker import Batch
from arc_ray.rows.stream import STEP_SECONDS, stream_rows

GUARD_SECONDS = 1


@pytest.mark.slow
def test_a_training_that_pauses_is_not_killed_by_rays_guard(ray_session: None) -> None:
    """Catches Ray Data's no-progress guard (half an hour by default), which ends the stream of a training in validation.

    With the guard set to seconds a plain dataset dies of the same pause, so the pause is long enough to tell.
    """
    import ray
    import ray.data
    import ray.data.exceptions

    context = ray.data.DataContext.get_current()
    before, context.execution_no_progress_timeout_s = context.execution_no_progress_timeout_s, GUARD_SECONDS
    try:
        numbers = np.arange(10_000) % 7
        rows = stream_rows(ray.put(maker()), numbers, rows_per_batch=8, row_tokens=8192, data_cpus=0.25)
        first = next(rows)
        time.sleep(5 * GUARD_SECONDS)
        rest = [next(rows) for _ in range(1_249)]
        assert first["input_ids"].shape == rest[-1]["input_ids"].shape
        plain = ray.data.range(40_000, override_num_blocks=400).map_batches(_widen)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ray.data.exceptions.ExecutionTimeoutError):
            _consume_slowly(plain.iter_batches(batch_size=100))
    finally:
        context.execution_no_progress_timeout_s = before


@pytest.mark.slow
def test_rows_that_wait_for_the_model_leave_it_pythons_lock(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches Ray Data's scheduler at a thousand looks a second, while rows wait: the thread that trains got no further."""
    import ray
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    looks, look = [0], StreamingExecutor._scheduling_loop_step

    def counted(executor: StreamingExecutor, topology: Any) -> bool:
        looks[0] += 1
        return look(executor, topology)

    monkeypatch.setattr(StreamingExecutor, "_scheduling_loop_step", counted)
    rows = stream_rows(ray.put(maker()), np.arange(60_000) % 7, rows_per_batch=8, row_tokens=8192, data_cpus=0.25)
    next(rows)
    begun, before = time.monotonic(), looks[0]
    time.sleep(10)
    assert 10 <= looks[0] - before <= (time.monotonic() - begun) / STEP_SECONDS + 1


@pytest.mark.slow
def test_less_than_a_block_is_made_in_place_to_the_same_bytes(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a short training that starts four processes for a tenth of a second of work, or gets other rows without."""
    import ray
    import ray.data

    shared, numbers = ray.put(maker()), np.array([3, 0, 6, 2, 5, 10_000, 1])

    def made() -> list[Batch]:
        return list(stream_rows(shared, numbers, rows_per_batch=3, row_tokens=256, data_cpus=0.25))

    monkeypatch.setattr("arc_ray.rows.stream.BLOCK_TOKENS", 512)
    streamed = made()
    monkeypatch.undo()
    monkeypatch.setattr(ray.data, "from_items", None)
    here = made()
    assert [len(batch["input_ids"]) for batch in here] == [3, 3, 1]
    assert all(same(*pair) for pair in zip(streamed, here, strict=True))


def _widen(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"wide": np.zeros((len(batch["id"]), 4096), np.int64)}


def _consume_slowly(batches: Iterable[object]) -> None:
    for _ in batches:
        time.sleep(5 * GUARD_SECONDS)
