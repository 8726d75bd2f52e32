"""How a step's rows are shared among workers: each once, whatever their number; and as many to each."""

import numpy as np
from builders import config_with
from hypothesis import given
from hypothesis import strategies as st
from plans import planned

from arc_ray.train.engine import accumulation_steps
from arc_ray.train.worker import rows_of_rank


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 8), st.data())
def test_every_row_of_a_step_goes_to_one_worker_and_all_get_as_many(
    groups: int, micro: int, workers: int, data: st.DataObject
) -> None:
    """Catches rows lost or seen twice where an elastic run's workers do not divide the batch, and a worker that ends early.

    A worker with fewer passes than the others would leave them waiting for it for ever.
    """
    batch = groups * micro
    plan = planned(train__batch_rows=batch, train__micro_rows=micro)
    config = config_with(train__batch_rows=batch, train__micro_rows=micro)
    first = data.draw(st.integers(0, plan.num_steps))
    passes = accumulation_steps(config.train, workers)
    shares = [rows_of_rank(plan, config, rank, workers, first) for rank in range(workers)]
    assert {len(share) for share in shares} == {(plan.num_steps - first) * passes * micro}
    by_step = np.stack(shares).reshape(workers, plan.num_steps - first, passes * micro)
    for step in range(first, plan.num_steps):
        rows = by_step[:, step - first].ravel()
        within = rows[rows < plan.num_steps * batch]
        assert sorted(within) == list(plan.rows_of_step(step))
        assert (np.setdiff1d(rows, within) >= plan.num_rows).all(), "what fills a share must be an empty row"
