"""Attention view by view against transformers' own block mask, on rows that hold several views."""

import ast
import inspect
import re
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.integrations.flex_attention
from builders import codec_of, puzzles, tiny_model, tiny_tokenizer
from torch.nn.attention.varlen import varlen_attn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    BertConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3_5TextConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

from arc_ray.errors import UserError
from arc_ray.models import attention
from arc_ray.models.attention import hidden_states, place, reads_one_by_one, spans_of, use_by_view
from arc_ray.models.loss import LearnedLoss, inputs_of
from arc_ray.models.supported import check_positions, check_supported, compile_layers
from arc_ray.rows.maker import write_rows
from arc_ray.views.view import plain_views

LENGTHS = [[9, 1, 14, 8], [32], [1, 31]]
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def toy(implementation: str = "sdpa") -> Any:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    model.config._attn_implementation = implementation  # set at loading, "flash" would ask for flash-attn's kernels
    return model


def flash_stand_in(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """What transformers makes of flash attention, on the CPU: views are apart by cumulative lengths over the flattened
    rows, or by positions if there is one row; else every token of a row sees all tokens before it."""
    assert mask is None
    ends, positions = kwargs.pop("cu_seq_lens_q", None), kwargs.pop("position_ids", None)
    if ends is not None:
        assert kwargs["max_length_q"] == kwargs["max_length_k"] >= int(ends.diff().max())
        assert torch.equal(ends, kwargs["cu_seq_lens_k"])
        assert ends.dtype == torch.int32
    elif len(query) == 1 and positions is not None:
        ends = torch.cat([(positions[0] == 0).nonzero().ravel(), torch.tensor([positions.shape[1]])])
    if ends is None:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)
    flat = [x.transpose(0, 1).reshape(1, x.shape[1], -1, x.shape[3]) for x in (query, key, value)]
    views = zip(*(x.split(ends.diff().tolist(), dim=2) for x in flat), strict=True)
    parts = [sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in views]
    return torch.cat(parts, 1).reshape(query.shape[0], query.shape[2], query.shape[1], -1), None


@pytest.fixture
def flash() -> str:
    """The name of an attention function that stands for flash attention."""
    AttentionInterface.register("flash_stand_in", flash_stand_in)
    AttentionMaskInterface.register("flash_stand_in", flash_attention_mask)
    return "flash_stand_in"


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    ids = torch.randint(0, 50, (3, 32))
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in LENGTHS])
    labels = torch.where((torch.rand(3, 32) < 0.5) & (positions > 0), ids, -100)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def inputs(rows: list[int] | None = None, device: str = "cpu") -> dict[str, Any]:
    """What LearnedLoss takes of some rows of the batch, or of all."""
    packed = {name: values[rows or [0, 1, 2]].numpy() for name, values in batch().items()}
    return inputs_of(packed, torch.device(device))


def losses_and_gradients(loss: LearnedLoss) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss.zero_grad()
    losses, _ = loss(**inputs())
    losses.sum().backward()
    return losses.detach(), [p.grad.clone() for p in loss.parameters() if p.grad is not None]


def test_inputs_hold_what_the_host_knows_of_the_rows():
    """Would catch places one off, a row's first token learned from the row before, and ends that forget a row."""
    labels = batch()["labels"].clone()
    labels[1, 0] = 7  # nothing predicts it
    rows = {**batch(), "labels": labels}
    found = inputs_of({name: values.numpy() for name, values in rows.items()}, torch.device("cpu"))
    assert found["spans"].lengths == LENGTHS
    assert found["spans"].ends.tolist() == [0, 9, 10, 24, 32, 64, 65, 96]
    assert found["spans"].ends.dtype == torch.int32
    assert found["spans"].longest == 512
    for name in ("input_ids", "position_ids"):
        assert torch.equal(found[name], rows[name])
    assert torch.equal(found["targets"], labels[:, 1:][labels[:, 1:] != -100])
    assert torch.equal(labels.flatten()[found["places"] + 1], found["targets"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_view_by_view_equals_the_block_mask(checkpointing: bool):
    """Would catch a view that sees its neighbour, rows that are mixed up, a key head given to the wrong query heads, and a
    backward pass that computes activations again without knowing where views end."""
    masked, by_view = toy("eager"), toy()
    if checkpointing:
        by_view.gradient_checkpointing_enable({"use_reentrant": False})
        by_view.train()
    expected, gradients = losses_and_gradients(LearnedLoss(masked))
    found, by_view_gradients = losses_and_gradients(LearnedLoss(by_view).train(checkpointing))
    assert masked.config._attn_implementation == "eager"
    assert by_view.config._attn_implementation == attention.VIEW_ATTENTION
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for mine, theirs in zip(by_view_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [[0, 1, 2], [0]])
def test_flash_attention_keeps_views_apart_for_any_number_of_rows(rows: list[int], flash: str):
    """Would catch flash attention that sees across views: transformers takes rows as packed only if there is one."""
    expected, _ = LearnedLoss(toy("eager"))(**inputs(rows))
    model = toy(flash)
    found, _ = LearnedLoss(model)(**inputs(rows))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    packed = {name: values for name, values in batch().items() if name != "labels"}
    leaking, apart = model(**packed), model(**packed, **spans_of(packed["position_ids"]).for_flash)
    assert (leaking.logits - apart.logits).abs().max() > 0.01, "the stand-in does not leak"


def varlen_stand_in(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What PyTorch's kernel computes for causal attention, which runs on GPUs only, and what it asks of its arguments."""
    assert (cu_seq_q.dtype, cu_seq_k.dtype, window_size) == (torch.int32, torch.int32, (-1, 0))
    assert max_q == max_k >= int(cu_seq_q.diff().max())
    assert all(x.dim() == 3 and x.stride(-1) == 1 for x in (query, key, value))
    assert key.shape[1] == query.shape[1] or enable_gqa or not attention.FEWER_KEY_HEADS
    assert int(cu_seq_q[-1]) == len(query) == len(key)
    views = zip(*(x.transpose(0, 1).split(cu_seq_q.diff().tolist(), 1) for x in (query, key, value)), strict=True)
    attend = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True, scale=scale, enable_gqa=True)
    return torch.cat([attend(*view) for view in views], 1).transpose(0, 1)


def test_the_stand_in_takes_what_the_kernel_takes():
    """Would catch arguments that PyTorch's kernel does not know by these names; 2.11's has no `enable_gqa`."""
    theirs = list(inspect.signature(varlen_attn).parameters)
    assert [
        name for name in inspect.signature(varlen_stand_in).parameters if name in theirs or name != "enable_gqa"
    ] == [name for name in theirs if name not in ("return_aux", "seqused_k", "block_table", "num_splits")]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_views_at_once_equal_view_by_view(checkpointing: bool, monkeypatch: pytest.MonkeyPatch):
    """Would catch heads taken for tokens, rows laid end to end in another order, a scale left out, and views that see
    each other: what a GPU computes in one call a layer is what the CPU computes view by view."""
    by_view, at_once = toy(), toy()
    if checkpointing:
        at_once.gradient_checkpointing_enable({"use_reentrant": False})
        at_once.train()
    expected, gradients = losses_and_gradients(LearnedLoss(by_view))
    calls = []
    monkeypatch.setattr(attention, "attends_at_once", lambda model, device: True)
    monkeypatch.setattr(attention, "varlen_attn", lambda *a, **k: calls.append(1) or varlen_stand_in(*a, **k))
    found, found_gradients = losses_and_gradients(LearnedLoss(at_once).train(checkpointing))
    assert len(calls) == SHAPE["num_hidden_layers"] * (2 if checkpointing else 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for mine, theirs in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, True), ({"head_dim": 12}, False), ({"head_dim": 256}, False), ({"attention_dropout": 0.1}, False)],
)
def test_what_the_kernel_cannot_do_is_done_view_by_view(
    changes: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
):
    """Would catch a kernel that stops at the first batch, or that leaves a dropout out in silence."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, **changes)).bfloat16()
    capability = (9, 0)
    assert attention.attends_at_once(model, torch.device("cuda")) is expected
    assert not attention.attends_at_once(model, torch.device("cpu"))
    assert not attention.attends_at_once(model.float(), torch.device("cuda"))
    capability = (7, 5)
    assert not attention.attends_at_once(model.bfloat16(), torch.device("cuda"))


@pytest.mark.parametrize("at_once", [False, True])
def test_a_pass_asks_the_device_for_no_number(at_once: bool, monkeypatch: pytest.MonkeyPatch):
    """Would catch a wait for the GPU in each micro-batch: lengths or learned positions read back from it, a mask of which
    the ones are counted. On torch's meta device there are no numbers, so whatever asks for one fails."""

    def shape_only(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return query * 1

    monkeypatch.setattr(attention, "attends_at_once", lambda model, device: at_once)
    monkeypatch.setattr(attention, "varlen_attn", shape_only)
    model = toy().to("meta")
    losses, _ = LearnedLoss(model)(**inputs(device="meta"))
    losses.sum().backward()
    assert losses.device.type == "meta"
    assert model.get_input_embeddings().weight.grad is not None


@pytest.mark.gpu
def test_a_gpu_computes_the_same_in_one_call_and_is_waited_for_by_nothing(monkeypatch: pytest.MonkeyPatch):
    """Would catch a kernel that lets views see each other or takes heads for others, and a wait that hides in torch."""
    found = []
    for at_once in (False, True):
        if not at_once:
            monkeypatch.setattr(attention, "attends_at_once", lambda model, device: False)
        model = toy().to("cuda", torch.bfloat16)
        loss = LearnedLoss(model)
        for mode in ("default", "error"):  # what is made at a first call may wait
            torch.cuda.set_sync_debug_mode(mode)
            try:
                model.zero_grad()
                losses, _ = loss(**inputs(device="cuda"))
                losses.sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append([losses.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        monkeypatch.undo()
    assert attention.attends_at_once(model, torch.device("cuda"))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 0.02 * one.norm()


@pytest.mark.slow
@torch.compiler.config.patch(dynamic_sources="")  # pyright: ignore[reportAttributeAccessIssue]
def test_other_lengths_of_views_are_not_compiled_anew(monkeypatch: pytest.MonkeyPatch):
    """Would catch a compilation, some twenty seconds of a GPU's time, for each new number of views or longest view."""

    @torch.library.custom_op("arc_ray_test::varlen", mutates_args=())
    def opaque(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, longest: int, scale: float
    ) -> torch.Tensor:
        causal = {"window_size": (-1, 0), "enable_gqa": True}
        return varlen_stand_in(q, k, v, ends, ends, longest, longest, scale=scale, **causal).contiguous()

    opaque.register_fake(lambda q, *_: torch.empty_like(q))
    monkeypatch.setattr(attention, "attends_at_once", lambda model, device: True)
    monkeypatch.setattr(
        attention, "varlen_attn", lambda q, k, v, a, b, m, n, *, scale, **_: opaque(q, k, v, a, m, scale)
    )
    torch._dynamo.reset()
    model = toy().eval()
    compile_layers(model, backend="eager")
    graphs, rows = [], np.arange(1600)[None]
    for lengths in ([800, 800], [100, 700, 800], [600, 1000], [1600], [200] * 8, [16] * 100, [513, 1087]):
        places = np.concatenate([np.arange(length) for length in lengths])[None]
        batch: Any = {"input_ids": rows % 50, "position_ids": places, "labels": rows % 50}
        with torch.no_grad():
            LearnedLoss(model)(**inputs_of(batch, torch.device("cpu")))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1, graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("implementation", ["sdpa", "flash_stand_in"])
def test_views_at_positions_in_grids_are_read_in_rows_as_alone(implementation: str, flash: str):
    """Would catch views cut where positions jump, at each line of cells, positions that count on from the view before, and
    a kernel that is not told them."""
    table, codec = puzzles(4, num_train=2, most=4), codec_of(tiny_tokenizer(), positions="grid")
    encoded, model = codec.encode(table, plain_views(table, 2)), tiny_model().eval()
    lengths = [[len(encoded[i][0]) for i in row] for row in ((0, 2), (1, 3))]
    rows = write_rows([[encoded[0], encoded[2]], [encoded[1], encoded[3]]], 200, 0, codec.positions)
    packed = inputs_of(rows, torch.device("cpu"))
    assert [own[:2] for own in packed["spans"].lengths] == lengths
    model.config._attn_implementation = implementation
    with torch.no_grad():
        hidden = hidden_states(model, packed["input_ids"], packed["position_ids"], packed["spans"])
        model.config._attn_implementation = "eager"
        for row, at, (ids, _) in ((0, 0, encoded[0]), (0, lengths[0][0], encoded[2]), (1, lengths[1][0], encoded[3])):
            whole = torch.from_numpy(ids.astype(np.int64))[None]
            where = torch.from_numpy(codec.positions.of(ids).astype(np.int64))[None]
            alone = model.model(input_ids=whole, position_ids=where, attention_mask=torch.ones_like(whole))
            assert torch.allclose(hidden[row, at : at + len(ids)], alone.last_hidden_state[0], atol=1e-4)
            counted = model.model(input_ids=whole, attention_mask=torch.ones_like(whole)).last_hidden_state
            assert not torch.allclose(counted, alone.last_hidden_state, atol=0.1), "positions must matter"


def test_a_model_still_generates_as_before():
    """Would catch padding of a batch that is attended to once training's attention is in place."""
    plain, trained = toy().eval(), toy().eval()
    assert use_by_view(trained)
    ids, mask = batch()["input_ids"], torch.ones(3, 32, dtype=torch.long)
    mask[1, :20] = 0
    with torch.no_grad():
        expected, found = (model(ids, attention_mask=mask).logits for model in (plain, trained))
    assert torch.equal(found, expected)


def test_windowed_attention_keeps_its_own_mask():
    """Would catch a model that suddenly sees further back than it was trained to."""
    model = AutoModelForCausalLM.from_config(MistralConfig(**SHAPE, sliding_window=8))
    assert not use_by_view(model)
    assert model.config._attn_implementation == "sdpa"


def test_attention_that_does_not_know_of_views_fails_with_their_mask(monkeypatch: pytest.MonkeyPatch):
    """Would catch a mask that stands for none and is taken for one by attention of another kind: all would see all."""
    model, packed = toy(), batch()
    assert use_by_view(model)
    model.config._attn_implementation = "sdpa"
    monkeypatch.setattr(attention, "use_by_view", lambda model: True)
    with pytest.raises(RuntimeError):
        attention.hidden_states(model, packed["input_ids"], packed["position_ids"])


LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
HYBRID = Qwen3_5TextConfig(
    **{**SHAPE, "num_hidden_layers": 4, "num_key_value_heads": 4},
    **LINEAR,
    head_dim=8,
    layer_types=["linear_attention"] * 3 + ["full_attention"],
)
PLAIN: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}
SEEING = {
    "hybrid": HYBRID,
    "falcon": FalconConfig(**PLAIN, num_attention_heads=4),
    "mamba": MambaConfig(**PLAIN, state_size=8),
    "convolution": Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]),
    "unmasked": GptOssConfig(**SHAPE, head_dim=8, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0),
}
"""Models whose packed views see each other: by states, by attention of their own, by a few tokens, by a mask left out."""


def model_of(config: Any, implementation: str | None = None) -> Any:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(deepcopy(config)).eval()
    if implementation:
        model.config._attn_implementation = implementation
    return model


@pytest.mark.parametrize("name", SEEING)
def test_models_whose_packed_views_see_each_other_read_them_one_by_one(name: str):
    """Would catch training on the pairs of the task that lies before in the row: the loss falls, nothing warns; and hidden
    states that are put back in another order, or without their gradient."""
    model = model_of(SEEING[name])
    with torch.no_grad():
        for weight in model.parameters():  # as they come, a recurrent layer is all but silent
            weight += 0.1 * torch.randn(weight.shape)
    alone = deepcopy(model)
    leaking, _ = LearnedLoss(model)(**inputs())
    check_supported(model)
    assert reads_one_by_one(model)
    found, gradients = losses_and_gradients(LearnedLoss(model))
    packed, losses = batch(), []
    for row, lengths in enumerate(LENGTHS):
        for start, end in pairwise(np.cumsum([0, *lengths])):
            ids, labels = (packed[key][row, start:end] for key in ("input_ids", "labels"))
            states = alone.get_decoder()(input_ids=ids[None], use_cache=False).last_hidden_state
            logits = alone.get_output_embeddings()(states)[0, :-1]
            learned = labels[1:] != -100
            losses.append(torch.nn.functional.cross_entropy(logits[learned], labels[1:][learned], reduction="none"))
    expected = torch.cat(losses)
    expected.sum().backward()
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(gradients, (p.grad for p in alone.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    if name != "falcon":  # which transformers keeps apart since 5.24
        assert (leaking - found).abs().max() > 1e-4, "it does not leak, so this test shows nothing"


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash_stand_in", "flash_attention_2", "flex_attention"])
def test_a_hybrid_reads_views_one_by_one_under_every_attention(implementation: str, flash: str):
    """Would catch a check that trusts an attention by its name: layers without attention carry state across views."""
    model = model_of(HYBRID, implementation)
    check_supported(model)
    assert reads_one_by_one(model)
    assert not attention.takes_flash_lengths(model), "a lone view would be told of the whole row's lengths"
    assert model.config._attn_implementation == implementation


def test_attention_that_takes_no_lengths_is_found_whatever_its_name(flash: str):
    """Would catch a check that tries one row only, or that takes "flash" for a proof."""

    def forgetful(*args: Any, cu_seq_lens_q: Any = None, **kwargs: Any) -> Any:
        return flash_stand_in(*args, **kwargs)

    AttentionInterface.register("flash_forgetful", forgetful)
    AttentionMaskInterface.register("flash_forgetful", flash_attention_mask)
    for name, is_forgetful in ((flash, False), ("flash_forgetful", True)):
        check_supported(model := toy(name).eval())
        assert reads_one_by_one(model) is is_forgetful


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BertConfig(**PLAIN, num_attention_heads=4), "a token sees others than those before it in its view"),
        (GraniteConfig(**SHAPE, logits_scaling=8.0), r"changes its logits after the output layer \(logits_scaling\)"),
        (Gemma2Config(**SHAPE), r"changes its logits after the output layer \(final_logit_softcapping\)"),
    ],
)
def test_what_no_reading_mends_is_refused(config: Any, reason: str):
    """Would catch a model that learns an answer from the answer, or another function than it computes."""
    with pytest.raises(UserError, match=f"{reason}.*take a causal language model of another kind"):
        check_supported(model_of(config))


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SHAPE, sliding_window=8),
        HYBRID,
        GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4),
        LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    ],
    ids=lambda config: config.model_type,
)
def test_positions_in_grids_are_refused_where_a_model_does_not_take_them(config: Any):
    """Would catch a window or a state that counts tokens while rotations count cells, and positions that are looked up."""
    with pytest.raises(UserError, match=r"prompt\.positions grid: .*prompt\.positions=sequence"):
        check_positions(model_of(config))
    check_positions(toy())


def test_logits_changed_by_no_known_key_are_found_by_trying():
    """Would catch a new kind of model that scales what its output layer gives, under a key that nobody has listed."""
    model = toy().eval()
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        found.logits = found.logits * 0.5
        return found

    model.forward = scaled
    with pytest.raises(UserError, match="LlamaForCausalLM cannot be trained here: its logits are not what its output"):
        check_supported(model)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash_attention_2", "flex_attention"])
@pytest.mark.parametrize(
    "config", [LlamaConfig(**SHAPE), MistralConfig(**SHAPE, sliding_window=8), Gemma3TextConfig(**SHAPE)]
)
def test_models_that_keep_packed_views_apart_are_taken(config: Any, implementation: str):
    """Would catch a check so strict that rounding, in half precision too, refuses what may be trained."""
    model = model_of(config, implementation)
    check_supported(model)
    check_supported(model.to(torch.bfloat16))
    assert not reads_one_by_one(model)


def test_trying_a_model_compiles_nothing(monkeypatch: pytest.MonkeyPatch):
    """Would catch a training that first compiles flex attention for the CPU, a minute or two at every start."""
    monkeypatch.setattr("torch.compile", lambda *_, **__: pytest.fail("compiled"))
    monkeypatch.setattr(transformers.integrations.flex_attention, "compile_friendly_flex_attention", None)
    check_supported(toy("flex_attention").eval())


MOVES = re.compile(r"""\.to\(["']cuda|\.cuda\(|deepspeed\.initialize\(|PlannedTrainer\(\n""")


def test_every_process_that_moves_a_model_to_a_gpu_keeps_cudnn_off(monkeypatch: pytest.MonkeyPatch):
    """Would catch a new place where a model gets to a GPU, and cuDNN's plans, up to a second for each new length, with it."""
    moving = {}
    for path in Path(attention.__file__).parents[1].rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and MOVES.search(body := ast.get_source_segment(text, node) or ""):
                moving[node.name] = "avoid_cudnn()" in body
    assert moving.keys() >= {"place", "make_engine", "fit_with_trl"}
    assert all(moving.values()), moving
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", (asked := []).append)
    place(model := toy(), on_gpu=False)
    assert asked == [False]
    assert model.device.type == "cpu"
