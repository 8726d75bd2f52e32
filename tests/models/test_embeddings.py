"""Trained embeddings: by an adapter or their own weights, tied or not; written down, read by peft, merged, tuned."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from builders import after_two_steps, config_with, tiny_tokenizer
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from arc_ray.config import config_from
from arc_ray.config.model import LoraConfig, ModelConfig
from arc_ray.config.training import TrainConfig
from arc_ray.errors import UserError
from arc_ray.evaluate.ttt import Adapter
from arc_ray.models.build import (
    build_model,
    ends_of,
    load_for_inference,
    load_for_tuning,
    merge_checkpoint,
    save_weights,
    served,
    trainable,
    trainable_ends,
)
from arc_ray.models.lora import merged
from arc_ray.models.weights import load_base
from arc_ray.rows.maker import Batch
from arc_ray.storage import Folder
from arc_ray.train.checkpoint import CheckpointWriter
from arc_ray.train.optimizer import make_optimizer
from arc_ray.train.run import check_training

SHAPE: dict[str, Any] = {
    "vocab_size": len(tiny_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
ARCHITECTURES = {
    "Llama, tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "Qwen3, apart": Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=False),
    "Gemma 3, tied and scaled": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=64, tie_word_embeddings=True),
}
IDS = torch.arange(24).reshape(2, 12) + 3
Kind = Literal["none", "lora", "full"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases of each architecture, by name."""
    path = tmp_path_factory.mktemp("bases")
    for name, config in ARCHITECTURES.items():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(path / name)
        tiny_tokenizer().save_pretrained(path / name)
    return path


def config_of(folder: Path, kind: Kind, name: str = "Llama, tied", **keys: Any) -> ModelConfig:
    lora = LoraConfig(r=4, alpha=8, train_embeddings=kind)
    return ModelConfig.model_validate({"base": str(folder / name), "dtype": "float32", "lora": lora} | keys)


def trained(model: Any) -> Any:
    """A model after two steps."""
    return after_two_steps(model, make_optimizer(model.train(), TrainConfig(lr=1e-2)), IDS)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_trained_embeddings_survive_saving_loading_and_merging(folder: Path, kind: Kind, name: str, tmp_path: Path):
    """Would catch embeddings that are left out of a file, that a merge puts at one end of a tied model only, that go on
    frozen, and linear layers that lose their adapter for them."""
    config = config_of(folder, kind, name)
    before = load_base(config, "")
    model = trained(build_model(config, "", 0, False, None))
    learned = {name.split("base_model.model.")[1] for name in trainable(model)}
    assert len([name for name in learned if "_proj.lora_A" in name]) == 2 * 7
    is_tied = before.config.tie_word_embeddings
    assert len(trainable_ends(model)) == {"lora": 2, "full": 1}[kind] * (1 if is_tied else 2)
    save_weights(model, trainable(model), None, tmp_path / "adapter")
    expected, adapter = logits(model), str(tmp_path / "adapter")
    merge_checkpoint(config, "", adapter, tmp_path / "merged")
    whole = [
        load_for_inference(config, "", adapter),
        load_for_inference(config_of(folder, "none", name), "", adapter),
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
    ]
    for found in whole:
        torch.testing.assert_close(logits(found), expected, atol=1e-4, rtol=1e-4)
        for end, old in zip(ends_of(found), ends_of(before), strict=True):
            assert (end.weight - old.weight).abs().max() > 1e-3
        assert (ends_of(found)[0].weight is ends_of(found)[1].weight) == is_tied
    continued = config.model_copy(update={"adapter": adapter})
    plain = PeftModel.from_pretrained(load_base(config, ""), adapter)
    torch.testing.assert_close(logits(plain), expected, atol=1e-6, rtol=0)
    for found in (
        build_model(continued, "", 5, False, None),
        load_for_tuning(config, "", adapter, fresh=False, seed=5),
    ):
        torch.testing.assert_close(logits(found), expected, atol=1e-6, rtol=0)
        assert trainable(found).keys() == trainable(model).keys()
    with merged(model):
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    assert served(continued, "", None, tmp_path / "served") == (str(tmp_path / "served"), None)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "served")), expected, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_an_adapter_holds_learns_on_and_what_was_merged_does_not(folder: Path, kind: Kind, tmp_path: Path):
    """Would catch embeddings that a continued training freezes, and merged ones that it moves unasked."""
    model = trained(build_model(config_of(folder, kind), "", 0, False, None))
    save_weights(model, trainable(model), None, tmp_path)
    plain = config_of(folder, "none", adapter=str(tmp_path))
    assert trainable_ends(build_model(plain, "", 0, False, None))
    merging = plain.model_copy(update={"adapter_use": "merge"})
    assert not trainable_ends(build_model(merging, "", 0, False, None))
    assert not trainable_ends(load_for_tuning(plain, "", None, fresh=True, seed=0))
    upon = merging.model_copy(update={"lora": config_of(folder, kind).lora})
    assert trainable_ends(load_for_tuning(upon, "", None, fresh=True, seed=0))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_checkpoint_of_embeddings_is_rehearsed(folder: Path, kind: Kind, tmp_path: Path):
    """Would catch a run that ends before its first step, because a tied layer's adapter is not among one weight."""
    model = build_model(config_of(folder, kind), "", 0, False, None)
    CheckpointWriter(Folder.at(str(tmp_path)), config_with(), model, tiny_tokenizer()).rehearse()


def test_embeddings_have_a_learning_rate_of_their_own(folder: Path):
    """Would catch a rate that reaches all weights or none, and one that is set in vain."""
    model = build_model(config_of(folder, "full"), "", 0, False, None)
    usual, own = make_optimizer(model, TrainConfig(lr=1e-3, embedding_lr=1e-5)).param_groups
    assert (usual["lr"], own["lr"]) == (1e-3, 1e-5)
    assert {*own["params"]} == trainable_ends(model)
    assert len(usual["params"]) + 1 == len(trainable(model))
    assert len(make_optimizer(model, TrainConfig(lr=1e-3)).param_groups) == 1


@pytest.mark.parametrize(
    ("lora", "train", "message"),
    [
        ({}, {"embedding_lr": 1e-4}, "train.embedding_lr: no embeddings are trained; set model.lora.train_embeddings"),
        ({"train_embeddings": "full", "targets": ["lm_head"]}, {}, "train_embeddings full: .* have an adapter already"),
        ({"train_embeddings": "lora"}, {"engine": "trl"}, "train.engine=trl reads the output layer's weight without"),
        (
            {"train_embeddings": "lora"},
            {"zero_stage": 3},
            "train.zero_stage 3 .* an adapter of embeddings that are the",
        ),
        ({"train_embeddings": "lora", "dora": True}, {}, "model.lora.dora: embeddings that are the output layer"),
    ],
)
def test_what_embeddings_cannot_have_is_refused_before_work(folder: Path, lora: Any, train: Any, message: str):
    tree = {
        "model": {"base": str(folder / "Llama, tied"), "dtype": "float32", "lora": lora},
        "train": {"row_tokens": 64, **train},
    }
    with pytest.raises(UserError, match=message):
        check_training(config_from(tree, {}))


def test_an_adapter_without_embeddings_does_not_get_one_of_them(folder: Path, tmp_path: Path):
    """Would catch embeddings that were to learn and do not, in silence."""
    model = build_model(config_of(folder, "none"), "", 0, False, None)
    save_weights(model, trainable(model), None, tmp_path)
    with pytest.raises(UserError, match="train_embeddings lora: the adapter that is continued has none"):
        build_model(config_of(folder, "lora", adapter=str(tmp_path)), "", 0, False, None)
    assert trainable_ends(build_model(config_of(folder, "full", adapter=str(tmp_path)), "", 0, False, None))


def rows_of(number: int) -> list[Batch]:
    ids = IDS.numpy().astype("int32")[:1]
    places = torch.arange(ids.shape[1])[None].numpy().astype("int32")
    return [{"input_ids": ids, "position_ids": places, "labels": ids}] * number


def test_embeddings_in_bfloat16_are_tuned_by_steps_that_it_cannot_hold(folder: Path):
    """Would catch test-time training whose embeddings stand still: a step is less than half a unit of their last place."""
    steps, ends = rows_of(20), []
    for dtype in ("float32", "bfloat16"):
        model = load_for_tuning(config_of(folder, "full", dtype=dtype), "", None, fresh=True, seed=0)
        before = ends_of(model)[0].weight.detach().float().clone()
        Adapter(model).tune(steps, TrainConfig(lr=1e-4, micro_rows=1, schedule="constant", warmup=0), seed=0)
        ends.append((ends_of(model)[0].weight.detach().float() - before)[IDS[0]].abs())
    moved = ends[0] > 1e-3
    assert moved.float().mean() > 0.5
    assert ends[1][moved].mean() > 0.5 * ends[0][moved].mean()
