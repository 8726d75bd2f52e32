"""Rows at once that a GPU is sure to hold; FLOPs against torch's own counter; GPUs by the names that drivers give them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import plans
import pytest
import torch
from builders import tiny_model, tiny_tokenizer
from plans import planned
from torch.utils.flop_counter import FlopCounterMode
from training import counting_tree
from transformers import AutoModelForCausalLM, Qwen3_5TextConfig, Qwen3Config

from arc_ray.config import Config, config_from
from arc_ray.models.build import build_skeleton
from arc_ray.models.estimate import (
    GPUS,
    LEARNED_SHARE,
    USABLE,
    demand,
    estimate_lines,
    expected_mfu,
    flops_per,
    hours,
    peak_flops,
    rows_for,
)
from arc_ray.models.loss import LearnedLoss, inputs_of
from arc_ray.models.memory import RUNTIME_BYTES, footprint, simulate_pass
from arc_ray.rows.maker import IGNORED
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
    skeleton = build_skeleton(config.model, config.storage, True)
    learned = int(rows * ROW_TOKENS * LEARNED_SHARE["asked"])
    return footprint(skeleton, simulate_pass(skeleton, rows, ROW_TOKENS, learned), 2, 1).total + RUNTIME_BYTES


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


@pytest.mark.parametrize("learned", [8, 60])
def test_flops_of_a_step_are_what_torch_counts(learned: int) -> None:
    """Catches a factor of two, a forgotten backward pass, and logits counted for all tokens."""
    model = tiny_model(hidden_size=64, layers=3)
    ids, positions = np.random.default_rng(0).integers(3, 30, (1, 64)), np.arange(64)[None]
    labels = np.where((positions > 0) & (positions <= learned), ids, IGNORED)
    inputs = inputs_of({"input_ids": ids, "position_ids": positions, "labels": labels}, torch.device("cpu"))
    model.config._attn_implementation = "eager"  # whose two products the counter sees on every device
    with FlopCounterMode(display=False) as counter:
        losses, _ = LearnedLoss(model)(**inputs)
        losses.sum().backward()
    assert flops_per(model) @ [64, learned, 64 * 64] == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Max-Q"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(driver: str, name: str) -> None:
    """Catches an L4 taken for an L40S, and an A10 for an A100."""
    assert peak_flops(driver) == next(gpu.tflops for gpu in GPUS if gpu.name == name) * 1e12


@pytest.mark.parametrize(
    "driver", ["Quantum Abacus 9000", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU"]
)
def test_an_unknown_device_has_no_peak(driver: str) -> None:
    """Catches an MFU made up for a device that nobody has looked up, a seventh of a GPU taken for all of it."""
    assert peak_flops(driver) is None


def test_a_larger_model_and_more_bandwidth_come_nearer_the_peak() -> None:
    """Catches hours by one flat share: 40 % is three times what LoRA on a model of 135M reaches on an H100."""
    by_name = {gpu.name: gpu for gpu in GPUS}
    found = {size: expected_mfu(size, by_name["H100"]) for size in (10**6, 135 * 10**6, 500 * 10**6, 7 * 10**9, 10**11)}
    assert [round(mfu, 6) for mfu in found.values()] == [0.13, 0.13, 0.19, 0.37, 0.37]
    of_gpus = [expected_mfu(135 * 10**6, by_name[name]) for name in ("L4", "H100", "H200", "A100", "A10G")]
    assert of_gpus == sorted(of_gpus)
    assert of_gpus[0] < 0.13 < 0.2 < of_gpus[-1] < 0.3
    compiled = [
        expected_mfu(size, by_name["H200"], is_compiled=True) for size in (135 * 10**6, 500 * 10**6, 1500 * 10**6)
    ]
    assert [round(mfu, 6) for mfu in compiled] == [0.247, 0.31, 0.41]


@pytest.mark.parametrize(("stage", "exchanged"), [(0, 2), (1, 2), (2, 3), (3, 6)])
def test_what_a_training_asks_of_a_network(stage: int, exchanged: int, tmp_path: Path) -> None:
    """Catches gradients counted once where every pass exchanges them, and weights that stage 3 gathers twice left out.

    In bytes a weight of a full training in bfloat16, two passes a step; a checkpoint has weights, copies and moments.
    """
    rows = planned()
    assert rows.batch_rows == 4
    config = asked(tmp_path, scaling__num_workers=2, train__micro_rows=1, train__zero_stage=stage, train__batch_rows=4)
    number = sum(p.numel() for p in build_skeleton(config.model, config.storage, True).parameters())
    needed = demand(config, rows, "H100")
    assert needed.exchanged == exchanged * number
    assert needed.checkpoint == (2 + 4 + 8) * number
    assert needed.checkpoint_every == math.ceil(rows.num_steps / 4)
    assert needed.seconds is not None
    assert demand(config, rows, None).seconds is None


def test_hours() -> None:
    """Catches a unit: 312 TFLOPS at half of the peak for an hour."""
    gpu = next(gpu for gpu in GPUS if gpu.name == "A100")
    assert hours(312e12 * 0.5 * 3600 * 4, gpu, num_workers=4, mfu=0.5) == pytest.approx(1.0)


def test_views_that_are_read_one_by_one_are_foreseen(tmp_path: Path) -> None:
    """Catches a plan that promises one pass a row to a model that will read each view by itself, and the other way round."""
    shape = {"vocab_size": len(tiny_tokenizer()), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    mixed = ["linear_attention", "full_attention"]
    for name, about in (("hybrid", Qwen3_5TextConfig(**shape, layer_types=mixed)), ("plain", Qwen3Config(**shape))):
        AutoModelForCausalLM.from_config(about).save_pretrained(tmp_path / name)
        placed = {"model__base": str(tmp_path / name), "scaling__num_workers": 1, "scaling__use_gpu": False}
        config = plans.config(**placed, model__dtype="float32")
        lines = list(estimate_lines(config, plans.planned()))
        assert any("each view of a row is read by itself" in line for line in lines) == (name == "hybrid")
        [per_token, _, per_square] = flops_per(build_skeleton(config.model, "", False))
        assert per_square == 12 * (1 if name == "hybrid" else 2) * 32
        assert per_token > 0
