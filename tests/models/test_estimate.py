"""Rows at once: as many as a GPU is sure to hold, chosen before a run begins and kept."""

from pathlib import Path
from typing import Any

import pytest
from builders import tiny_tokenizer
from training import counting_tree

from arc_ray.config import Config, config_from
from arc_ray.models.estimate import LEARNED_SHARE, USABLE, rows_for
from arc_ray.models.memory import RUNTIME_BYTES, Setting, footprint, simulate_pass
from arc_ray.models.skeleton import build_skeleton
from arc_ray.runs.folder import claim, run_folder
from arc_ray.train.run import with_rows

ROW_TOKENS = 512


def asked(storage: Path, **overrides: Any) -> Config:
    """A full training of a small model on GPUs, whose rows at once are open."""
    tree = counting_tree(40, 32, 1, {"batch_rows": 24, "row_tokens": ROW_TOKENS, "full": True}, {"use_gpu": True})
    tree |= {"storage": str(storage), "model": {"scratch": tree["runs"]["base"]["model.scratch"], "dtype": "bfloat16"}}
    placed = {"runs": {}, "scaling.num_workers": 1}
    return config_from(tree, {**placed, **{k.replace("__", "."): v for k, v in overrides.items()}})


def bytes_of(config: Config, rows: int) -> int:
    """What a GPU needs for so many rows at once of the model of `asked`."""
    skeleton = build_skeleton(config.model, config.storage, True, tiny_tokenizer())
    learned = int(rows * ROW_TOKENS * LEARNED_SHARE["asked"])
    return footprint(skeleton, simulate_pass(skeleton, rows, ROW_TOKENS, learned), Setting(2, 1)).total + RUNTIME_BYTES


@pytest.mark.parametrize(("fitting", "workers", "rows"), [(5, 1, 4), (9, 2, 6), (None, 8, 3), (None, 1, 24)])
def test_rows_fit_and_are_shared_out_equally(fitting: int | None, workers: int, rows: int, tmp_path: Path):
    """Would catch a GPU that is filled to the last byte, and a batch that some workers have fewer passes of."""
    config = asked(tmp_path, scaling__num_workers=workers)
    most = (bytes_of(config, fitting) + bytes_of(config, fitting + 1)) / 2 if fitting else 80e9
    capacity = int(most / USABLE)
    assert rows_for(config, capacity) == rows
    config_from(config.model_dump(mode="json"), {"train.micro_rows": rows})


def test_a_gpu_that_is_too_small_is_given_one_row(tmp_path: Path):
    """Would catch a choice of none, which is no number of rows."""
    assert rows_for(asked(tmp_path), RUNTIME_BYTES) == 1


def test_every_worker_of_an_elastic_run_has_rows(tmp_path: Path):
    """Would catch workers that have nothing to do once all have come."""
    assert rows_for(asked(tmp_path, scaling__num_workers=[1, 8]), 80 * 10**9) == 3


def test_a_run_keeps_the_rows_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch a run that goes on with other sums on another GPU, and a CPU that is asked for its GPU's memory."""
    monkeypatch.setattr("arc_ray.train.run.least_gpu_memory", lambda: 80 * 10**9)
    began = with_rows(asked(tmp_path))
    assert began.train.micro_rows == 24
    claim(run_folder(began), began, "train")
    assert run_folder(began).read_json("run.json")["placement"]["micro_rows"] == 24
    monkeypatch.delattr("arc_ray.train.run.least_gpu_memory")
    assert with_rows(asked(tmp_path)).train.micro_rows == 24
    assert with_rows(asked(tmp_path, train__micro_rows=2)).train.micro_rows == 2
    on_cpu = {"scaling__use_gpu": False, "model__dtype": "float32"}
    assert with_rows(asked(tmp_path, name="other", **on_cpu)).train.micro_rows == 1
