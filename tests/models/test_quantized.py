"""A base of 4 bits: what is learned upon it, written down, resumed, merged and estimated."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from builders import after_two_steps, tiny_model, tiny_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from arc_ray.config.model import LoraConfig, ModelConfig
from arc_ray.config.training import TrainConfig
from arc_ray.errors import UserError
from arc_ray.models.build import (
    build_model,
    build_skeleton,
    load_for_inference,
    load_for_tuning,
    merge_checkpoint,
    save_weights,
    served,
    trainable,
)
from arc_ray.models.estimate import flops_per
from arc_ray.models.lora import check_engine
from arc_ray.models.memory import footprint, simulate_pass
from arc_ray.models.weights import is_in_4_bits, load_base

IDS = torch.arange(24).reshape(2, 12) % 300


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model = tiny_model(hidden_size=64)
    save_weights(model, trainable(model), tiny_tokenizer(), folder)
    return folder


def config_of(base: Path, **keys: Any) -> ModelConfig:
    common = {"base": str(base), "quantize": "nf4", "dtype": "float32", "lora": LoraConfig(r=4)}
    return ModelConfig.model_validate(common | keys)


def trained(config: ModelConfig) -> Any:
    """A model after two steps."""
    model: Any = build_model(config, "", 0, False, tiny_tokenizer(), 64).train()
    return after_two_steps(model, torch.optim.AdamW(trainable(model).values(), lr=1e-2), IDS)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_linear_layers_alone_have_4_bits_and_an_adapter_learns_upon_them(base: Path):
    """Would catch a base that stays whole, an output layer or embeddings of 4 bits, a frozen adapter, and losses far from
    those of the whole base."""
    whole, packed = (build_model(config_of(base, quantize=q), "", 0, False, None) for q in (None, "nf4"))
    names = {name for name, layer in packed.named_modules() if isinstance(layer, Linear4bit)}
    assert len([name for name in names if name.endswith("base_layer")]) == 2 * 7
    assert all(is_in_4_bits(layer.weight) for layer in packed.modules() if isinstance(layer, Linear4bit))
    ends = packed.get_input_embeddings().weight, packed.get_output_embeddings().weight  # pyright: ignore
    assert ends[0] is ends[1]
    assert ends[0].dtype == torch.float32
    losses = [float(model(IDS, labels=IDS).loss.detach()) for model in (whole, packed)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    learned = trained(config_of(base))
    assert all(w.abs().sum() > 0 for name, w in trainable(learned).items() if "lora_B" in name)
    assert flops_per(packed) == pytest.approx(flops_per(whole))


def test_checkpointed_layers_learn_the_same(base: Path):
    """Would catch gradients that are lost where activations are computed again."""
    plain, checkpointed = (trained(config_of(base, gradient_checkpointing=c)) for c in (False, True))
    for name, weight in trainable(plain).items():
        assert torch.equal(weight, trainable(checkpointed)[name])


def test_answers_and_merging_use_what_was_learned_upon(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Would catch a merge into the whole base, whose logits are others, one that stays packed or is silent, and an adapter
    that is served beside a base that it does not know."""
    model = trained(config_of(base))
    save_weights(model, trainable(model), None, tmp_path / "adapter")
    adapter, expected = str(tmp_path / "adapter"), logits(model)
    answering = load_for_inference(config_of(base), "", adapter)
    assert torch.equal(logits(answering), expected)
    assert any(isinstance(layer, Linear4bit) for layer in answering.modules())
    tuned = load_for_tuning(config_of(base), "", adapter, fresh=False, seed=0)
    assert torch.equal(logits(tuned.eval()), expected)
    merge_checkpoint(config_of(base), "", adapter, tmp_path / "merged")
    assert "as 4 bits hold it" in caplog.text
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    whole = load_for_inference(config_of(base, quantize=None), "", adapter)
    assert (logits(whole) - expected).abs().max() > 1e-3
    assert served(config_of(base), "", adapter, tmp_path / "served") == (str(tmp_path / "served"), None)
    assert load_file(tmp_path / "served" / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()


def test_a_base_that_is_quantized_already_is_taken_as_it_is(base: Path, tmp_path: Path):
    """Would catch one that is refused, quantized a second time, or computed in the arithmetic of whoever made it."""
    made = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    packed = AutoModelForCausalLM.from_pretrained(base, quantization_config=made, device_map="cpu")
    packed.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for quantize in (None, "nf4"):
        config = config_of(tmp_path, quantize=quantize)
        loaded = load_base(config, "")
        layer, own = loaded.model.layers[1].mlp.up_proj, packed.model.layers[1].mlp.up_proj
        assert torch.equal(layer.weight, own.weight)
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        x = torch.randn(3, 64)
        torch.testing.assert_close(layer(x), x @ weight.t(), atol=1e-5, rtol=1e-4)
        assert trained(config)
        assert any(map(is_in_4_bits, build_skeleton(config, "", False).parameters()))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"full": True}, "train.full does not go with a base of 4 bits"),
        ({"zero_stage": 3}, "train.zero_stage 3 does not go with a base of 4 bits"),
        ({"engine": "trl"}, "train.engine trl does not go with a base of 4 bits"),
    ],
)
def test_what_4_bits_cannot_do_is_refused(train: dict[str, Any], message: str, base: Path):
    """Would catch an error of another library, hours later or from within."""
    skeleton = build_skeleton(config_of(base), "", train.get("full", False))
    with pytest.raises(UserError, match=message):
        check_engine(skeleton, TrainConfig.model_validate(train))
    check_engine(skeleton, TrainConfig(zero_stage=2))


def test_an_adapter_is_not_merged_into_4_bits_to_be_trained_upon(base: Path, tmp_path: Path):
    """Would catch peft's merge, which rounds the adapter away."""
    model = trained(config_of(base))
    save_weights(model, trainable(model), None, tmp_path)
    start = config_of(base, adapter=str(tmp_path), adapter_use="merge")
    for load in (
        lambda: build_model(start, "", 0, False, None),
        lambda: build_skeleton(start, "", False),
        lambda: load_for_tuning(config_of(base), "", str(tmp_path), fresh=True, seed=0),
    ):
        with pytest.raises(UserError, match="cannot be merged into weights of 4 bits"):
            load()


def test_the_estimate_knows_what_4_bits_take(base: Path):
    """Would catch an estimate of the whole base; the bytes are counted in the loaded model."""
    skeletons = [build_skeleton(config_of(base, quantize=q), "", False) for q in (None, "nf4")]
    whole, packed = (footprint(s, simulate_pass(s, 1, 64, 16), stage=1, workers=1) for s in skeletons)
    loaded = build_model(config_of(base), "", 0, False, None)
    states = [p.quant_state for p in loaded.parameters() if is_in_4_bits(p)]  # pyright: ignore
    scales = sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in states)
    assert packed.weights == pytest.approx(sum(p.nbytes for p in loaded.parameters()) + scales, rel=0.01)
    assert packed.weights < whole.weights / 2
