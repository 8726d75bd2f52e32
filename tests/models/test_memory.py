"""What fits: the simulated pass against formulas that can be done by hand, and the shares of ZeRO."""

from typing import Any, Literal

import pytest
import torch
from builders import tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3_5TextConfig

from arc_ray.config.model import LoraConfig, ModelConfig, ScratchConfig
from arc_ray.models.build import build_model, build_skeleton, matrices
from arc_ray.models.estimate import flops_per
from arc_ray.models.lora import with_lora
from arc_ray.models.memory import RUNTIME_BYTES, Pass, _LiveBytes, footprint, rows_that_fit, simulate_pass

SHAPE = ScratchConfig(hidden_size=64, layers=2, heads=2, intermediate_size=96)


def skeleton(full: bool = False, **changes: Any) -> nn.Module:
    model = ModelConfig(scratch=SHAPE, lora=LoraConfig(r=4)).model_copy(update=changes)
    return build_skeleton(model, "", full)


@pytest.mark.parametrize("full", [True, False])
def test_the_skeleton_is_the_model_without_its_weights(full: bool) -> None:
    """Catches an estimate of another model than the one that is trained: other names, shapes, or trained parts."""
    config = ModelConfig(scratch=SHAPE, lora=LoraConfig(r=4))
    real, bare = build_model(config, "", 0, full, tiny_tokenizer()), skeleton(full)
    about = [{name: (p.shape, p.requires_grad) for name, p in m.named_parameters()} for m in (real, bare)]
    assert about[0] == about[1]
    assert all(p.is_meta for p in bare.parameters())
    assert sum(p.numel() for p in bare.parameters()) == sum(p.numel() for p in real.parameters()), (
        "tied ones count once"
    )


def test_live_bytes_are_those_of_tensors_that_something_holds() -> None:
    """Catches views counted twice, freed tensors still counted, and weights counted as activations."""
    weight = torch.zeros(100)
    with _LiveBytes([weight]) as live:
        kept = torch.ones(1000)
        assert live.peak == 4000
        views = [kept[:10], kept.view(10, 100), weight.view(10, 10)]
        assert live.peak == 4000
        torch.ones(500)
        assert live.peak == 6000
        torch.ones(500)
        assert live.peak == 6000, "the first of two tensors that nothing holds was counted on"
        assert len(views) == 3


def test_activations_grow_with_rows_and_logits_with_learned_tokens_only() -> None:
    """Catches logits computed for all positions, and activations that depend on what is learned."""
    few, many = (simulate_pass(skeleton(), 1, 256, learned) for learned in (192, 256))
    one, two_rows = simulate_pass(skeleton(), 1, 256, 1), simulate_pass(skeleton(), 2, 256, 192)
    assert few.activations == many.activations == pytest.approx(one.activations + one.logits, rel=0.01)
    assert two_rows.activations == pytest.approx(2 * few.activations, rel=0.02)
    # Log-probabilities, their gradient and that of the logits are there at once, in float32.
    assert many.logits - few.logits == pytest.approx(64 * len(tiny_tokenizer()) * 4 * 3, rel=0.05)


@pytest.mark.parametrize(("full", "changes"), [(True, {}), (False, {}), (False, {"gradient_checkpointing": True})])
def test_a_few_layers_tell_what_all_take(full: bool, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an estimate that is another one where most layers were not run."""
    bare = skeleton(full, scratch=SHAPE.model_copy(update={"layers": 5}), **changes)
    found = simulate_pass(bare, 2, 256, 100)
    monkeypatch.setattr("arc_ray.models.memory._shapes", id)
    assert simulate_pass(bare, 2, 256, 100) == found


def test_checkpointed_layers_keep_their_inputs_only() -> None:
    """Catches an estimate that does not know of gradient checkpointing, or a model that does not do it."""
    plain = [
        simulate_pass(skeleton(scratch=SHAPE.model_copy(update={"layers": n})), 1, 512, 1).activations for n in (4, 8)
    ]
    saving = [
        simulate_pass(skeleton(scratch=SHAPE.model_copy(update={"layers": n}), gradient_checkpointing=True), 1, 512, 1)
        for n in (4, 8)
    ]
    per_layer = (saving[1].activations - saving[0].activations) / 4
    assert per_layer == pytest.approx(512 * 64 * 4, rel=0.05)
    assert per_layer < (plain[1] - plain[0]) / 4 / 5


def test_zero_shards_the_optimizer_then_the_gradients_then_the_weights() -> None:
    """Catches a stage that is reckoned as sharding too much or too little."""
    bare, nothing = skeleton(full=True), Pass(0, 0)
    number = sum(p.numel() for p in bare.parameters())
    held = {stage: footprint(bare, nothing, stage, 4) for stage in range(4)}
    assert [held[stage].optimizer for stage in range(4)] == pytest.approx(
        [8 * number] + 3 * [12 * number / 4], rel=1e-3
    )
    assert held[1].weights == held[2].weights == 4 * number
    alone = [footprint(bare, nothing, stage, 1) for stage in (1, 2)]
    assert alone[0] == alone[1], "with one worker there is nothing to share"
    moved = footprint(bare, nothing, 2, 4, offload=True)
    assert moved.optimizer == 0


def test_an_optimizer_takes_what_it_remembers() -> None:
    """Catches an estimate that knows of AdamW only, and one in which Muon steps embeddings, which are few in a cut model."""
    bare, nothing = skeleton(full=True), Pass(0, 0)
    number = sum(p.numel() for p in bare.parameters())
    inner = sum(p.numel() for p in matrices(bare))
    assert 0 < inner < number - bare.get_input_embeddings().weight.numel()  # pyright: ignore
    held = [footprint(bare, nothing, 0, 4, optimizer=o).optimizer for o in ("adamw", "adamw_8bit", "muon")]
    assert held == pytest.approx([8 * number, (2 + 1 / 32) * number, 8 * number - 4 * inner], rel=1e-3)
    shared = footprint(bare, nothing, 2, 4, optimizer="adamw_8bit").optimizer
    assert shared == pytest.approx((6 + 1 / 32) * number / 4, rel=1e-3)


def test_trained_embeddings_take_gradients_and_moments() -> None:
    """Catches an estimate that leaves them out, or counts a weight twice that is embeddings and output layer."""
    kinds: tuple[Literal["none", "full"], ...] = ("none", "full")
    bare = [skeleton(lora=LoraConfig(r=8, train_embeddings=kind)) for kind in kinds]
    without, held = (footprint(model, Pass(0, 0), 0, 1) for model in bare)
    rows = bare[0].get_input_embeddings().weight.numel()  # pyright: ignore
    assert held.gradients - without.gradients == 4 * rows
    assert held.optimizer - without.optimizer == 8 * rows
    assert held.weights == without.weights


def test_rows_that_fit_fill_a_gpu_and_no_more() -> None:
    """Catches an answer that is one row too many, and one for a model that does not fit at all."""
    held = footprint(skeleton(), simulate_pass(skeleton(), 2, 256, 200), 2, 1)
    per_row = (held.activations + held.logits) / 2
    fixed = held.total - 2 * per_row + RUNTIME_BYTES
    assert rows_that_fit(held, 2, int(fixed + 5.01 * per_row)) == 5
    assert rows_that_fit(held, 2, int(fixed + 4.99 * per_row)) == 4
    assert rows_that_fit(held, 2, int(RUNTIME_BYTES)) == 0


def test_work_counts_linear_layers_once_and_the_output_layer_apart() -> None:
    """Catches embeddings counted as multiplications, and an adapter counted as frozen."""
    per_layer = 4 * 64 * 64 + 3 * 64 * 96
    adapter, head = 2 * 4 * (4 * (64 + 64) + 3 * (64 + 96)), len(tiny_tokenizer()) * 64
    assert flops_per(skeleton()).tolist() == [4 * 2 * per_layer + 6 * adapter, 4 * head, 12 * 2 * 64]
    assert flops_per(skeleton(full=True)).tolist() == [6 * 2 * per_layer, 6 * head, 12 * 2 * 64]


SHAPES = {
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    | {"num_key_value_heads": 3, "vocab_size": 49152},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    | {"num_key_value_heads": 2, "vocab_size": 151936},
}


@pytest.mark.parametrize(
    ("shape", "rows", "is_compiled", "gigabytes"),
    [
        ("135m", 4, False, 25.47),
        ("135m", 8, True, 40.51),
        ("0.5b", 4, True, 41.34),
    ],
)
def test_what_an_h100_held_was_foreseen(shape: str, rows: int, is_compiled: bool, gigabytes: float) -> None:
    """Catches an estimate that parts from a GPU: LoRA on all linear layers, ZeRO 1, rows of 8,192 tokens, a tenth learned.

    The figures are from tests/benchmarks/README.md, "On a GPU".
    """
    with torch.device("meta"):
        base = LlamaForCausalLM._from_config(
            LlamaConfig(**SHAPES[shape], tie_word_embeddings=True), dtype=torch.bfloat16
        )
        bare = with_lora(base, LoraConfig()).to(torch.bfloat16)
    found = simulate_pass(bare, rows, 8192, learned=900 * rows)
    held = footprint(bare, found, 1, 1, is_compiled=is_compiled)
    assert held.total / 1e9 == pytest.approx(gigabytes, rel=0.08)


@pytest.mark.slow
def test_turns_and_parts_tell_what_a_hybrid_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an estimate that is another one where most turns of a hybrid's layers, and most of a row, were not run."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "vocab_size": 64, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    kinds = ["linear_attention", "full_attention"] * 3
    about = Qwen3_5TextConfig(
        **shape, **heads, linear_key_head_dim=8, linear_value_head_dim=8, layer_types=kinds, tie_word_embeddings=True
    )
    with torch.device("meta"):
        bare = with_lora(AutoModelForCausalLM.from_config(about), LoraConfig(r=4)).train()
    found = simulate_pass(bare, 2, 768, 90)
    monkeypatch.setattr("arc_ray.models.memory._turn", len)
    monkeypatch.setattr("arc_ray.models.memory.RECURRENT_TOKENS", 768)
    whole = simulate_pass(bare, 2, 768, 90)
    assert found.activations + found.logits == pytest.approx(whole.activations + whole.logits, rel=0.08)
