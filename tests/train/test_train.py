"""Training under Ray: the same losses on any number of workers and at any ZeRO stage, and bit-equal after a kill -9.

Each run starts processes and imports torch in them, which is why these are marked slow.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import smollm_like_tokenizer
from training import adapter, counting_tree, ends_well, records, running, wait_for

from arc_ray.cli import notebook
from arc_ray.config import load_config
from arc_ray.config.model import ModelConfig, ScratchConfig
from arc_ray.models.build import build_model

pytestmark = pytest.mark.slow

TOKENIZER = smollm_like_tokenizer()
"""It has words that grids do not need."""

TINY = counting_tree(
    examples=48,
    hidden_size=32,
    layers=1,
    train={
        "lr": 1e-2,
        "row_tokens": 256,
        "batch_rows": 4,
        "micro_rows": 2,
        "epochs": 2,
        "checkpoint_every": 3,
        "keep_checkpoints": 9,
        "embedding_lr": 2e-3,
    },
    scaling={"threads": 1, "data_cpus": 0.25},
)
# The base's vocabulary is cut on the way, and its embeddings learn: what holds below holds of these too.
TINY |= {"runs": {}, "model": {"vocabulary": "cells", "lora": {"r": 4, "alpha": 8, "train_embeddings": "full"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder beside the tiny base, shared by the runs of this module."""
    path = tmp_path_factory.mktemp("train")
    scratch = ScratchConfig(hidden_size=32, layers=1, heads=2, intermediate_size=64)
    for part in (build_model(ModelConfig(scratch=scratch), "", 0, True, TOKENIZER), TOKENIZER):
        part.save_pretrained(path / "base")
    tree = {**TINY, "storage": str(path / "runs"), "model": {**TINY["model"], "base": str(path / "base")}}
    (path / "config.yaml").write_text(yaml.safe_dump(tree))
    deep = path / ("deep" * 16)  # too long for Ray's sockets
    deep.mkdir()
    train(path, "name=unbroken", TMPDIR=str(deep))
    return path


def train(folder: Path, *overrides: str, **variables: str) -> None:
    """Run `arc-ray train` to its end in a process of its own."""
    with running("train", str(folder / "config.yaml"), *overrides, **variables) as run:
        ends_well(run)


def train_here(folder: Path, overrides: dict[str, Any]) -> None:
    """Train in this process, by workers of the tests' Ray."""
    notebook.train(load_config(folder / "config.yaml", overrides))


def losses(folder: Path, name: str) -> np.ndarray:
    return np.array([record["train/loss"] for record in records(folder, name)])


def test_training_learns_and_leaves_an_adapter_that_is_not_empty(folder: Path) -> None:
    """Catches a silent no-op: losses that do not fall, and the empty adapters that peft writes under ZeRO."""
    found = losses(folder, "unbroken")
    assert found[-3:].mean() < found[:3].mean() - 0.05
    trained = adapter(folder, "unbroken")
    assert trained
    assert all(np.abs(tensor).max() > 0 for name, tensor in trained.items() if "lora_B" in name)
    assert len(trained["base_model.model.model.embed_tokens.weight"]) < len(TOKENIZER)


def test_losses_depend_neither_on_workers_nor_zero_stage_nor_engine(ray_session: None, folder: Path) -> None:
    """Catches a mean of means, a batch that depends on the cluster, and rows that go to the wrong step.

    All at once: what is wrong in one shows in all losses. tests/train/test_exact.py takes them one by one, without Ray.
    """
    other = {"train.engine": "trl", "scaling.num_workers": 2, "train.zero_stage": 0}
    train_here(folder, {"name": "other", **other})
    np.testing.assert_allclose(losses(folder, "other"), losses(folder, "unbroken"), rtol=1e-5)


def test_killed_run_of_trl_ends_with_the_same_bytes(folder: Path) -> None:
    """Catches lost optimizer state, and replayed or skipped rows; tests/train/test_faults.py kills our own engine's."""
    train(folder, "name=whole", "train.engine=trl")
    np.testing.assert_allclose(losses(folder, "whole"), losses(folder, "unbroken"), rtol=1e-5)
    with running("train", str(folder / "config.yaml"), "name=killed", "train.engine=trl") as run:  # killed at its end
        wait_for(lambda: list((folder / "runs" / "killed").glob("checkpoint-*/arc_ray.json")), run)
    assert not (folder / "runs" / "killed" / "result.json").exists(), "the run had ended already, so nothing was tested"
    train(folder, "name=killed", "train.engine=trl")
    np.testing.assert_array_equal(losses(folder, "killed"), losses(folder, "whole"))
    resumed, unbroken = adapter(folder, "killed"), adapter(folder, "whole")
    assert resumed.keys() == unbroken.keys()
    for name, tensor in unbroken.items():
        assert tensor.tobytes() == resumed[name].tobytes(), name


def test_resumed_with_other_workers_rows_at_once_and_stage_goes_on_with_the_same_losses(
    ray_session: None, folder: Path
) -> None:
    """Catches optimizer state that only fits the number of workers, or the ZeRO stage, that wrote it.

    And, with our own engine, a mean of means, and rows that go to the wrong step.
    """
    moved = folder / "runs" / "moved"
    shutil.copytree(folder / "runs" / "unbroken", moved)
    made_by = moved / "config.yaml"
    made_by.write_text(made_by.read_text().replace("name: unbroken", "name: moved"))
    (moved / "result.json").unlink()
    for path in moved.glob("checkpoint-*"):
        if path.name != "checkpoint-000003":
            shutil.rmtree(path)
    other = {"train.zero_stage": 3, "scaling.num_workers": 2, "train.micro_rows": 1}
    train_here(folder, {"name": "moved", **other})
    np.testing.assert_allclose(losses(folder, "moved"), losses(folder, "unbroken"), rtol=1e-5)
