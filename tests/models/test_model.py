"""Models: packed rows give the losses of their views alone, and weights survive every way out and in."""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from builders import codec_of, puzzles, tiny_model, tiny_tokenizer
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3MoeConfig,
)
from typer.testing import CliRunner

from arc_ray.cli.looking import app
from arc_ray.config import Config, config_from
from arc_ray.config.model import LoraConfig, ModelConfig, ScratchConfig
from arc_ray.errors import UserError
from arc_ray.models.build import (
    build_model,
    check_model,
    load_for_inference,
    load_for_tuning,
    merge_checkpoint,
    save_weights,
    served,
    trainable,
)
from arc_ray.models.lora import merged
from arc_ray.models.loss import LearnedLoss, inputs_of
from arc_ray.models.weights import attention_implementation, load_base
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.rows.maker import IGNORED, Encoded, write_rows
from arc_ray.runs.base import model_path
from arc_ray.runs.starts import lineage
from arc_ray.train.checkpoint import describe_checkpoint
from arc_ray.train.run import check_training
from arc_ray.views.view import plain_views

SCRATCH = ScratchConfig(hidden_size=32, layers=2, heads=2, intermediate_size=64)


@cache
def encoded() -> tuple[Encoded, ...]:
    """Five views of different lengths."""
    table = puzzles(5, num_train=2, most=5)
    views = plain_views(table, 2)
    return tuple(codec_of(tiny_tokenizer(), learn="all").encode(table, views))


def tensors(rows: Sequence[Sequence[Encoded]], width: int) -> dict[str, Any]:
    return inputs_of(write_rows(rows, width, 0), torch.device("cpu"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small base model."""
    folder = tmp_path_factory.mktemp("base")
    model = tiny_model()
    save_weights(model, trainable(model), tiny_tokenizer(), folder)
    return str(folder)


def logits_of(model: Any) -> torch.Tensor:
    """Logits of one view, as the model gives them to anybody."""
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(encoded()[0][0]).long()[None]).logits


def moved(model: nn.Module) -> nn.Module:
    """The model after a training: every trainable weight is changed a little."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def test_a_packed_row_gives_the_losses_of_its_views_alone():
    """Would catch attention from one view into another, which lowers the training loss and ruins the model."""
    loss_of = LearnedLoss(tiny_model()).eval()
    width = sum(len(ids) for ids, _ in encoded()) + 37
    packed, right = loss_of(**tensors([encoded()], width))
    alone = [loss_of(**tensors([[view]], len(view[0]))) for view in encoded()]
    torch.testing.assert_close(packed, torch.cat([losses for losses, _ in alone]), atol=1e-5, rtol=1e-5)
    assert torch.equal(right, torch.cat([is_right for _, is_right in alone]))
    leaking = write_rows([encoded()], width, 0)
    leaking["position_ids"] = np.arange(width)[None]
    assert (loss_of(**inputs_of(leaking, torch.device("cpu")))[0] - packed).abs().max() > 1e-3, (
        "this model does not notice the views before"
    )


def test_several_rows_come_in_row_major_order():
    loss_of = LearnedLoss(tiny_model())
    rows = [encoded()[:2], [], encoded()[2:]]
    together, _ = loss_of(**tensors(rows, 600))
    one_by_one = [loss_of(**tensors([row], 600))[0] for row in rows]
    torch.testing.assert_close(together, torch.cat(one_by_one), atol=1e-5, rtol=1e-5)


def test_losses_are_those_of_the_logits_of_all_positions():
    """Would catch a shift by one between hidden states and targets."""
    model = tiny_model()
    rows = write_rows([encoded()[:3], encoded()[3:]], 500, 0)
    inputs = inputs_of(rows, torch.device("cpu"))
    losses, right = LearnedLoss(model).eval()(**inputs)
    logits = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False).logits
    targets = torch.from_numpy(rows["labels"]).long()[:, 1:]
    full = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(losses, full[targets != IGNORED], atol=1e-5, rtol=1e-5)
    assert torch.equal(right, (logits[:, :-1].argmax(-1) == targets)[targets != IGNORED])
    assert len(losses) == sum(mask.sum() for _, mask in encoded())


def test_a_batch_without_learned_tokens_has_a_gradient_of_zero():
    """The last batch may hold empty rows only: a worker with none must still take part in the step."""
    model = tiny_model()
    losses, right = LearnedLoss(model)(**tensors([[]], 40))
    assert len(losses) == 0
    assert right is None, "training has no use for it, and it is a pass over all logits"
    losses.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_random_weights_follow_from_the_seed_and_disturb_no_other_randomness():
    """Would catch workers that start from different weights."""
    torch.manual_seed(7)
    before = torch.rand(1)
    torch.manual_seed(7)
    a, b, other = (build_model(ModelConfig(scratch=SCRATCH), "", seed, True, tiny_tokenizer()) for seed in (1, 1, 2))
    assert torch.rand(1) == before
    torch.testing.assert_close(logits_of(a), logits_of(b), atol=0, rtol=0)
    assert (logits_of(a) - logits_of(other)).abs().max() > 1e-3


def test_a_scratch_model_has_the_shape_that_was_asked_for():
    model: Any = tiny_model()
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size) == (32, 2, 384)
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)


def test_what_is_trained(base: str):
    """Would catch a frozen model that trains nothing, and an adapter whose base is trained along."""
    full = build_model(ModelConfig(base=base), "", 0, True, None)
    assert len(trainable(full)) == len(list(full.parameters()))
    adapted = build_model(ModelConfig(base=base, lora=LoraConfig(r=4)), "", 0, False, None)
    names = list(trainable(adapted))
    assert names
    assert all("lora_" in name for name in names)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    some = build_model(ModelConfig(base=base, lora=LoraConfig(r=4, targets=["q_proj"])), "", 0, False, None)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable(some)} == {"q_proj"}
    torch.testing.assert_close(logits_of(adapted), logits_of(full), atol=1e-6, rtol=0)


def test_a_whole_model_survives_saving_and_loading(tmp_path: Path, base: str):
    """Would catch tied embeddings that come apart, and a folder that plain transformers cannot read."""
    model = moved(build_model(ModelConfig(base=base), "", 0, True, None))
    save_weights(model, {name: p.detach().clone() for name, p in trainable(model).items()}, tiny_tokenizer(), tmp_path)
    expected = logits_of(model)
    loaded: Any
    for loaded in (
        load_base(ModelConfig(base=str(tmp_path)), ""),
        load_for_inference(ModelConfig(scratch=SCRATCH), "", str(tmp_path)),
        AutoModelForCausalLM.from_pretrained(tmp_path),
    ):
        torch.testing.assert_close(logits_of(loaded), expected, atol=1e-6, rtol=0)
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tiny_tokenizer().get_vocab()
    assert load_tokenizer(ModelConfig(base=str(tmp_path)), "").get_vocab() == tiny_tokenizer().get_vocab()


LORAS = {"plain": {}, "rslora": {"rslora": True}, "dora": {"dora": True}, "some": {"targets": ["q_proj", "down_proj"]}}


@pytest.mark.parametrize("kind", LORAS)
def test_an_adapter_survives_saving_loading_and_merging(kind: str, tmp_path: Path, base: str):
    """Would catch an adapter saved as it was at the start, scaled otherwise or merged twice, or of other bytes each time."""
    config = ModelConfig(base=base, lora=LoraConfig(r=4, alpha=8, **LORAS[kind]))  # pyright: ignore
    model = moved(build_model(config, "", 0, False, None))
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    weights = {name: p.detach().clone() for name, p in trainable(model).items()}
    expected = logits_of(model)
    assert (expected - logits_of(load_base(config, ""))).abs().max() > 1e-2, "the adapter does nothing"
    save_weights(model, weights, tiny_tokenizer(), adapter)
    reached = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    assert reached == sorted(reached), "in the order of a set"
    merge_checkpoint(config, "", str(adapter), merged)
    plain: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    continued = build_model(config.model_copy(update={"adapter": str(adapter)}), "", 5, False, None)
    as_base = {"adapter": str(adapter), "adapter_use": "merge"}
    for loaded in (
        plain,
        continued,
        build_model(config.model_copy(update=as_base), "", 5, False, None),
        build_model(config.model_copy(update=as_base), "", 5, True, None),
        load_for_inference(config, "", str(adapter)),
        load_for_inference(config.model_copy(update={"adapter": str(adapter)}), "", None),
        AutoModelForCausalLM.from_pretrained(merged),
    ):
        torch.testing.assert_close(logits_of(loaded), expected, atol=1e-4, rtol=0)
    assert trainable(continued).keys() == weights.keys()
    assert not any("lora_" in name for name in load_for_inference(config, "", str(adapter)).state_dict())


def test_a_merged_weight_is_rounded_once(tmp_path: Path, base: str):
    """Would catch an update that is rounded to bfloat16 before it is added: then twice as much of a small one is lost.

    What is less than half a step of a weight's own grid, 0.2 to 0.4 % of it, cannot be kept in a merged weight.
    """
    config = ModelConfig(base=base, lora=LoraConfig(r=4, alpha=12), dtype="bfloat16")
    model = moved(build_model(config, "", 0, False, None))
    save_weights(model, trainable(model), tiny_tokenizer(), tmp_path / "adapter")
    merge_checkpoint(config, "", str(tmp_path / "adapter"), tmp_path / "merged")
    found = [
        load_for_inference(config, "", str(tmp_path / "adapter")),
        load_base(config.model_copy(update={"base": str(tmp_path / "merged")}), ""),
    ]
    name, kept = "model.layers.1.mlp.down_proj.weight", []
    before, inside = load_base(config, "").state_dict()[name], f"base_model.model.{name}".removesuffix(".weight")
    b, a = (trainable(model)[f"{inside}.lora_{x}.default.weight"].detach() for x in "BA")
    assert (a.dtype, before.dtype) == (torch.float32, torch.bfloat16)
    for loaded in found:
        weight = loaded.state_dict()[name]
        assert torch.equal(weight, (before.float() + 3 * (b @ a)).bfloat16())
        kept.append((weight != before).float().mean())
    assert min(kept) > 0.9


def test_an_adapter_upon_a_merged_adapter_is_loaded_with_both(tmp_path: Path, base: str):
    """Would catch an evaluation that forgets the starting adapter a run was trained upon."""
    first = moved(build_model(ModelConfig(base=base, lora=LoraConfig(r=4)), "", 0, False, None))
    save_weights(first, trainable(first), tiny_tokenizer(), tmp_path / "first")
    config = ModelConfig(base=base, lora=LoraConfig(r=4), adapter=str(tmp_path / "first"), adapter_use="merge")
    second = moved(build_model(config, "", 0, False, None))
    save_weights(second, trainable(second), tiny_tokenizer(), tmp_path / "second")
    torch.testing.assert_close(
        logits_of(load_for_inference(config, "", str(tmp_path / "second"))), logits_of(second), atol=1e-4, rtol=0
    )


def test_one_plain_adapter_is_served_beside_its_base_and_others_merged(tmp_path: Path, base: str):
    """Would catch an adapter that an engine takes for another kind of LoRA, and one of two that is left out."""
    kinds = {"plain": LoraConfig(r=4), "dora": LoraConfig(r=4, dora=True)}
    for name, lora in kinds.items():
        model = build_model(ModelConfig(base=base, lora=lora), "", 0, False, None)
        save_weights(model, trainable(model), tiny_tokenizer(), tmp_path / name)
    plain, dora = (ModelConfig(base=base, adapter=str(tmp_path / name)) for name in kinds)
    assert served(ModelConfig(base=base), "", None, tmp_path / "merged") == (base, None)
    assert served(plain, "", None, tmp_path / "merged") == (base, (plain.adapter, 4))
    assert not (tmp_path / "merged").exists()
    two = plain.model_copy(update={"adapter_use": "merge"})
    for config, checkpoint in ((dora, None), (two, str(tmp_path / "plain"))):
        assert served(config, "", checkpoint, tmp_path / "merged") == (str(tmp_path / "merged"), None)
        assert (tmp_path / "merged" / "model.safetensors").exists()
        shutil.rmtree(tmp_path / "merged")


def test_the_command_merges_a_run_into_a_plain_folder(tmp_path: Path, base: str):
    """Would catch a run that can be used by this package only, and a merge over somebody's files."""
    config = ModelConfig(base=base, lora=LoraConfig(r=4, alpha=8))
    model = moved(build_model(config, "", 0, False, None))
    checkpoint = tmp_path / "runs" / "mine" / "checkpoint-000007"
    save_weights(model, trainable(model), tiny_tokenizer(), checkpoint)
    (checkpoint / "arc_ray.json").write_text("{}")
    tree = {"name": "mine", "storage": str(tmp_path / "runs"), "model": config.model_dump(mode="json")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    words = ["merge", str(tmp_path / "config.yaml"), "--to", str(tmp_path / "merged")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged), logits_of(model), atol=1e-4, rtol=0)
    assert not any("lora" in name for name in merged.state_dict())
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab() == tiny_tokenizer().get_vocab()
    tuned_further = config_from({"model": {"base": str(tmp_path / "merged")}}, {})
    assert [run.name for run in lineage(tuned_further).values()] == ["mine"], "what it learned would be forgotten"
    with pytest.raises(UserError, match="already there"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_recomputing_activations_changes_no_gradient(base: str):
    """Would catch an adapter that learns nothing because its inputs carry no gradient, and a loaded base that recomputes
    nothing, as it is in the mode for answering until a validation has ended."""
    gradients = []
    for checkpointing in (False, True):
        config = ModelConfig(base=base, lora=LoraConfig(r=4), gradient_checkpointing=checkpointing)
        model, passes = moved(build_model(config, "", 0, False, None)), list[bool]()
        model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda mlp, *_, p=passes: p.append(mlp.training))
        LearnedLoss(model)(**tensors([encoded()[:2]], 300))[0].sum().backward()
        assert passes == [True] * (2 if checkpointing else 1)
        gradients.append({name: parameter.grad for name, parameter in trainable(model).items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.any(), name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_the_arithmetic_is_the_one_that_was_asked_for(base: str):
    for dtype in ("float32", "bfloat16"):
        model: Any = load_base(ModelConfig(base=base, dtype=dtype), "")
        assert next(model.parameters()).dtype == getattr(torch, dtype)
        assert LearnedLoss(model)(**tensors([encoded()[:1]], 200))[0].dtype == torch.float32
    assert attention_implementation(ModelConfig(base=base, attention="eager"), LlamaForCausalLM) == "eager"
    if not torch.cuda.is_available():
        model = load_base(ModelConfig(base=base, dtype="bfloat16"), "")
        assert model.config._attn_implementation == "sdpa"


def test_auto_attention_is_one_that_the_model_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch models without PyTorch's attention, or without flash attention, that load under no `auto`."""
    mamba = MambaConfig(vocab_size=len(tiny_tokenizer()), hidden_size=32, num_hidden_layers=1, state_size=4)
    config = ModelConfig(base=saved(mamba, tmp_path), dtype="bfloat16", attention="auto")
    for device in ("cpu", "meta"):
        assert load_base(config, "", device).config._attn_implementation == "eager"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert attention_implementation(config, MambaForCausalLM) is None
    assert attention_implementation(config, LlamaForCausalLM) == "flash_attention_2"


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, base: str):
    """Would catch an adapter that is added to weights it was not trained on: nothing fails, all answers are wrong."""
    model = build_model(ModelConfig(base=base, lora=LoraConfig(r=4)), "", 0, False, None)
    save_weights(model, trainable(model), tiny_tokenizer(), tmp_path)
    (tmp_path / "arc_ray.json").write_text(json.dumps({"base": "another/base"}))
    with pytest.raises(UserError, match=r"was trained on the base another/base, not on"):
        build_model(ModelConfig(base=base, adapter=str(tmp_path)), "", 0, False, None)


def test_an_adapter_is_known_by_the_weights_it_was_trained_on(tmp_path: Path, base: str):
    """Would catch an adapter refused because its base moved or has another name now, cut into other files or saved by
    another version; and one taken for weights of the same shapes that are not the same, also as a checkpoint."""
    adapter, moved_base, other = tmp_path / "adapter", tmp_path / "moved", tmp_path / "other"
    config = Config(model=ModelConfig(base=base, lora=LoraConfig(r=4)), storage=str(tmp_path))
    model = build_model(config.model, "", 0, False, None)
    save_weights(model, trainable(model), tiny_tokenizer(), adapter)
    (adapter / "arc_ray.json").write_text(json.dumps(describe_checkpoint(config, 1)))
    same: Any = load_base(config.model, "")
    same.save_pretrained(moved_base, max_shard_size="20KB")
    assert len(list(moved_base.glob("*.safetensors"))) > 1
    about = json.loads((moved_base / "config.json").read_text())
    (moved_base / "config.json").write_text(json.dumps({**about, "transformers_version": "4.0", "_name_or_path": "x"}))
    build_model(ModelConfig(base=str(moved_base), adapter=str(adapter)), "", 0, False, None)
    load_for_inference(ModelConfig(base=str(moved_base)), "", str(adapter))
    different: Any = moved(load_base(config.model, ""))
    different.save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    for load in (
        lambda: build_model(ModelConfig(base=str(other), adapter=str(adapter)), "", 0, False, None),
        lambda: load_for_inference(ModelConfig(base=str(other)), "", str(adapter)),
        lambda: load_for_tuning(ModelConfig(base=str(other)), "", str(adapter), False, 0),
    ):
        with pytest.raises(UserError, match=f"was trained on the base {base}, not on {other}"):
            load()
    with pytest.raises(UserError, match=f"was trained on the base {base}, not on {other}"):
        check_model(ModelConfig(base=str(other), adapter=str(adapter)), "", False, 16)
    old = {key: value for key, value in describe_checkpoint(config, 1).items() if key != "base_fingerprint"}
    (adapter / "arc_ray.json").write_text(json.dumps(old))
    load_for_inference(ModelConfig(base=str(moved_base)), "", str(adapter))  # as before there were fingerprints


def test_an_adapter_of_a_built_in_model_s_folder_is_one_of_its_name(tmp_path: Path):
    """Would catch old adapters, which name the folder that `fetch` wrote, being refused since configs name the model."""
    model = tiny_model()
    save_weights(model, trainable(model), tiny_tokenizer(), tmp_path / "models" / "smollm2")
    adapted = build_model(ModelConfig(base="smollm2", lora=LoraConfig(r=4)), str(tmp_path), 0, False, None)
    save_weights(adapted, trainable(adapted), tiny_tokenizer(), tmp_path / "adapter")
    (tmp_path / "adapter" / "arc_ray.json").write_text(json.dumps({"base": f"{tmp_path}/models/smollm2"}))
    build_model(ModelConfig(base="smollm2", adapter=str(tmp_path / "adapter")), str(tmp_path), 0, False, None)


MOE = Qwen3MoeConfig(
    vocab_size=len(tiny_tokenizer()),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
)


def saved(config: Any, folder: Path) -> str:
    """The folder of a base with random weights."""
    torch.manual_seed(4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("targets", "reached"),
    [("all-linear", 14), (["q_proj", "down_proj"], 4), (["experts.gate_up_proj"], 2), (["q_proj"], 2)],
)
def test_an_adapter_reaches_experts(targets: Any, reached: int, tmp_path: Path):
    """Would catch experts, nearly all weights of such a model, that "all-linear" leaves out in silence, since no linear
    layer holds them; and an adapter of them that plain peft, or a merge, reads otherwise."""
    base = saved(MOE, tmp_path / "base")
    model = moved(build_model(ModelConfig(base=base, lora=LoraConfig(r=4, targets=targets)), "", 0, False, None))
    adapters = {name.rsplit(".lora_", 1)[0] for name in trainable(model)}
    assert len(adapters) == reached
    assert any(".experts" in name for name in adapters) == (targets != ["q_proj"])
    save_weights(model, trainable(model), tiny_tokenizer(), tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(base)
    merge_checkpoint(ModelConfig(base=base), "", str(tmp_path / "adapter"), tmp_path / "merged")
    expected = logits_of(model)
    assert (logits_of(plain) - expected).abs().max() > 1e-3
    for found in (
        load_for_inference(ModelConfig(base=base), "", str(tmp_path / "adapter")),
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
        PeftModel.from_pretrained(plain, str(tmp_path / "adapter")),
    ):
        torch.testing.assert_close(logits_of(found), expected, atol=1e-4, rtol=0)
    with merged(model):
        torch.testing.assert_close(logits_of(model), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(model), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("key", ["dropout", "dora"])
def test_what_experts_cannot_have_is_refused(key: str, tmp_path: Path):
    config = ModelConfig(
        base=saved(MOE, tmp_path), lora=LoraConfig.model_validate({key: True if key == "dora" else 0.1})
    )
    with pytest.raises(UserError, match=rf"model.lora.{key} does not go with experts, .*experts.down_proj.* set it to"):
        check_model(config, "", False, 64)
    named = LoraConfig.model_validate({key: True if key == "dora" else 0.1, "targets": ["q_proj"]})
    check_model(config.model_copy(update={"lora": named}), "", False, 64)


@pytest.mark.parametrize(
    ("tied", "targets", "train", "reason"),
    [
        (False, ["lm_head"], {"engine": "trl"}, "train.engine=trl reads the output layer's weight without its adapter"),
        (True, ["embed_tokens"], {"engine": "trl"}, "train.engine=trl reads the output layer's weight without its"),
        (True, ["embed_tokens"], {"zero_stage": 3}, "an adapter of embeddings that are the output layer does not wait"),
        (False, "all-linear", {"zero_stage": 3}, "an adapter of experts does not wait for: set train.zero_stage to"),
    ],
)
def test_an_engine_that_would_leave_a_part_out_is_refused(
    tied: bool, targets: Any, train: dict[str, Any], reason: str, tmp_path: Path
):
    """Would catch an adapter that never learns, and a traceback of a worker's."""
    tied_or_not = Qwen3MoeConfig(**{**MOE.to_dict(), "tie_word_embeddings": tied})
    tree = {
        "model": {"base": saved(tied_or_not, tmp_path), "dtype": "float32", "lora": {"targets": targets}},
        "train": {"row_tokens": 64, **train},
    }
    with pytest.raises(UserError, match=reason):
        check_training(config_from(tree, {}))


@pytest.mark.parametrize(
    "targets", [["embed_tokens"], ["lm_head", "q_proj"], ["embed_tokens", "lm_head", "q_proj"], None]
)
def test_embeddings_that_are_the_output_layer_stay_so(targets: list[str] | None, tmp_path: Path):
    """Would catch one weight that becomes two: an adapter at one end only, which a merge puts at both, so that a model
    answers otherwise than it was trained; None trains all weights."""
    tied = Qwen3Config(**{**MOE.to_dict(), "model_type": "qwen3", "intermediate_size": 64, "tie_word_embeddings": True})
    config = ModelConfig(base=saved(tied, tmp_path / "base"))
    if targets:
        config = config.model_copy(update={"lora": LoraConfig(r=4, targets=targets)})
    model = moved(build_model(config, "", 0, not targets, None))
    save_weights(model, trainable(model), tiny_tokenizer(), tmp_path / "trained")
    merge_checkpoint(config, "", str(tmp_path / "trained"), tmp_path / "merged")
    expected = logits_of(model)
    assert (logits_of(load_base(config, "")) - expected).abs().max() > 1e-3
    for found in (
        load_for_inference(config, "", str(tmp_path / "trained")),
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
    ):
        torch.testing.assert_close(logits_of(found), expected, atol=1e-4, rtol=0)
        assert found.get_input_embeddings().weight is found.get_output_embeddings().weight
    if targets:
        continued = config.model_copy(update={"adapter": str(tmp_path / "trained")})
        plain = PeftModel.from_pretrained(load_base(config, ""), str(tmp_path / "trained"))
        for found in (build_model(continued, "", 0, False, None), plain):
            torch.testing.assert_close(logits_of(found), expected, atol=1e-6, rtol=0)
        with merged(model):
            torch.testing.assert_close(logits_of(model), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(logits_of(model), expected, atol=1e-6, rtol=0)


def test_a_model_that_scales_its_logits_is_refused(tmp_path: Path, base: str):
    """LearnedLoss leaves out what comes after the output layer, so such a model would learn another function."""
    for file in Path(base).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "final_logit_softcapping": 30.0}))
    with pytest.raises(UserError, match="changes its logits after the output layer"):
        build_model(ModelConfig(base=str(tmp_path)), "", 0, True, None)


def test_what_is_no_model_is_the_users_mistake(tmp_path: Path, base: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    for path, reason in (
        (None, "model.base is not set"),
        (str(tmp_path / "nothing"), "there is no such folder"),
        ("./nothing", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        (str(tmp_path / "empty"), "is no model: it has no config.json"),
        ("@run", "has no checkpoint"),
    ):
        with pytest.raises(UserError, match=reason):
            model_path(path, str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded as a model"):
        load_base(ModelConfig(base=str(tmp_path / "broken")), "")
    with pytest.raises(UserError, match="holds no adapter_config"):
        build_model(ModelConfig(base=base, adapter=str(tmp_path / "empty")), "", 0, False, None)


def test_a_reference_is_the_checkpoint_of_a_run(tmp_path: Path):
    model = moved(tiny_model())
    save_weights(model, trainable(model), tiny_tokenizer(), tmp_path / "count" / "checkpoint-000003")
    (tmp_path / "count" / "checkpoint-000003" / "arc_ray.json").write_text("{}")
    loaded = load_base(ModelConfig(base="@count"), str(tmp_path))
    torch.testing.assert_close(logits_of(loaded), logits_of(model), atol=1e-6, rtol=0)
    again = load_for_inference(ModelConfig(scratch=SCRATCH), str(tmp_path), "@count")
    torch.testing.assert_close(logits_of(again), logits_of(model), atol=1e-6, rtol=0)


def test_the_views_used_here_are_of_several_lengths():
    assert len({len(ids) for ids, _ in encoded()}) > 2
    assert np.mean([mask.mean() for _, mask in encoded()]) < 0.5
