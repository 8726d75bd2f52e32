"""What a model must be like for rows of packed views, for a loss that computes logits at learned positions only, and for
layers that are compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from arc_ray.errors import UserError, one_line
from arc_ray.models.attention import (
    attend_within_views,
    attends_at_once,
    attends_to_all,
    hidden_states,
    packs,
    read_one_by_one,
    reads_one_by_one,
    use_by_view,
)
from arc_ray.prompts.tokenizer import frame_of, tiny_corpus

VIEW_TOKENS = 8
FLASH_ON_CPU = "flash_on_cpu"
LEAK = {torch.float32: 1e-4, torch.bfloat16: 0.01, torch.float16: 0.01}
"""Share of a view's own change from which a change of its neighbour is a leak; bfloat16 rounds to 0.004."""
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
"""Keys of transformers' configs by which models change their logits after the output layer."""

LENGTH_ROPES = ("longrope", "dynamic")
"""Rotations of all tokens in a batch that follow its longest view."""

SEES_MORE = (
    "a token sees others than those before it in its view, so it would learn from other tasks, or from the answer"
)
TURNS = "all views of a batch are read otherwise once one is longer (RoPE that follows the longest)"
CHANGES_LOGITS = "its logits are not what its output layer makes of the last hidden state"
TAKE_ANOTHER = "take a causal language model of another kind, such as Qwen3, SmolLM3, Llama, Gemma 3 or Qwen3.5"


def longest_view(about: Any) -> int | None:
    """Return the most tokens of a view that a model can read beside others, by its config; None if any number.

    That is how many positions it has, or fewer where the rotations of all tokens in a batch change beyond a position.
    """
    about = about.get_text_config()
    most = getattr(about, "max_position_embeddings", None)
    found = getattr(about, "rope_parameters", None) or {}
    switches = []
    for rope in found.values() if any(isinstance(value, dict) for value in found.values()) else [found]:
        kind, original = rope.get("rope_type"), rope.get("original_max_position_embeddings") or most
        if kind in LENGTH_ROPES and original:
            switches.append(int(original))
        elif kind in ("linear", "yarn") and most:
            most = max(most, int(original * rope.get("factor", 1)))
    return min(switches, default=most)


def check_row_tokens(about: Any, row_tokens: int) -> None:
    """Refuse rows in which a view could be longer than a model's positions, by its config. Raises UserError."""
    most = longest_view(about)
    if most is not None and row_tokens > most:
        raise UserError(
            f"train.row_tokens is {row_tokens}, but the model has {most} positions, or reads all views of a batch otherwise"
            f" once one is longer (RoPE of kind longrope or dynamic): set train.row_tokens to at most {most}"
        )


def check_tokens(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that writes our prompts, or pads them, with ids that the model has no embedding for."""
    frame = frame_of(tokenizer)
    texts = [*tiny_corpus(), "0123456789", frame.begin, frame.answer, frame.end, frame.between]
    used = {token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids}
    used |= {token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None}
    rows = model.get_input_embeddings().weight.shape[0]
    if beyond := sorted(token for token in used if token >= rows):
        names = ", ".join(f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})" for token in beyond[:3])
        raise UserError(
            f"the tokenizer writes ids beyond the model's {rows} embeddings: {names}; take the tokenizer that belongs to the"
            f" model, or resize the embeddings and save the model anew"
        )


def check_logits(about: Any) -> None:
    """Refuse a model whose config says that logits are changed after the output layer. Raises UserError."""
    about = about.get_text_config()
    if changed := [name for name in LOGIT_CHANGES if getattr(about, name, None) not in (None, 0.0, 1.0)]:
        raise UserError(
            f"a model of kind {about.model_type} changes its logits after the output layer ({changed[0]}), which the loss"
            f" leaves out: {TAKE_ANOTHER}"
        )


def check_positions(model: Any) -> None:
    """Refuse a model that cannot be told positions other than those of a sequence. Raises UserError."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if not attends_to_all(model) or rope.get("rope_type") in (None, *LENGTH_ROPES):
        raise UserError(
            f"prompt.positions grid: {type(model).__name__} has other layers than full attention, or positions that are not"
            f" rotary or follow the longest view; set prompt.positions=sequence, or take a model from scratch"
        )


def check_supported(model: Any, row_tokens: int | None = None) -> None:
    """Refuse models that would learn something else than their loss says. `row_tokens` bounds views. Raises UserError."""
    if row_tokens is not None:
        check_row_tokens(model.config, row_tokens)
    check_logits(model.config)
    if faults := keep_views_apart(model, row_tokens or VIEW_TOKENS):
        raise UserError(f"{type(model).__name__} cannot be trained here: {faults[0]}: {TAKE_ANOTHER}")


def keep_views_apart(model: Any, longest: int = VIEW_TOKENS) -> list[str]:
    """Try with a few tokens how a model reads packed rows, and let it read views one by one if it must; return its faults.

    The model is in eval mode; a view may have `longest` tokens.
    """
    faults = _faults(model, longest) if packs(model) else [SEES_MORE]
    if SEES_MORE in faults and hasattr(model, "get_decoder"):
        read_one_by_one(model)
        faults = _faults(model, longest)
    return faults


def _faults(model: Any, longest: int) -> list[str]:
    try:
        return [fault for fault, is_so in _tried(model, longest).items() if is_so]
    except (AttributeError, ImportError, IndexError, RuntimeError, TypeError, ValueError) as error:
        return [one_line(error), SEES_MORE]


@torch.no_grad()
def _tried(model: Any, longest: int) -> dict[str, bool]:
    """Read two rows of two views that differ in the first view and in the last token, at near positions and far ones.

    The first view may reach to position `longest` - 1. Attention that transformers does not mask (Falcon's) and recurrent
    states (Mamba's) let the second view see the first; some rotations follow the longest view. Experts round a token
    otherwise with others beside it: how much is seen where the first view only moves a little.
    """
    second = torch.arange(VIEW_TOKENS)  # [0 1 2 3 4 5 6 7]
    moved = second - (second > 1).long()  # [0 1 1 2 3 4 5 6]
    ids = torch.stack([torch.cat([second, second]), torch.cat([second.flip(0), second[:-1], second[:1]])]).to(
        model.device
    )
    far = torch.linspace(0, longest - 1, VIEW_TOKENS).long()
    places = [torch.cat([first, second]).repeat(2, 1).to(model.device) for first in (second, moved, far)]
    with kernels_of_cpus(model):
        near, shifted, reaching = (hidden_states(model, ids, positions).float() for positions in places)
        logits = model(input_ids=ids[:1, :VIEW_TOKENS], use_cache=False).logits.float()
    own_logits = model.get_output_embeddings()(near[:1, :VIEW_TOKENS].to(model.dtype)).float()
    change = near.diff(dim=0).abs().amax((0, 2))
    rounded, turned = ((read - near)[:, VIEW_TOKENS:].abs().max() for read in (shifted, reaching))
    rounded = torch.maximum(rounded, torch.finfo(model.dtype).eps * near.abs().max())
    return {
        SEES_MORE: bool(change[VIEW_TOKENS:-1].max() >= LEAK[model.dtype] * change.max()),
        # Rotations differ little at so few positions: in float32 100 roundings just beyond their switch, experts 8.
        TURNS: bool(turned > 16 * rounded),
        CHANGES_LOGITS: bool((own_logits - logits).abs().max() > 0.02 * logits.abs().max()),
    }


@contextmanager
def kernels_of_cpus(model: Any) -> Iterator[None]:
    """Put attention that any CPU computes in the place of a GPU's kernels, for trying a model where it was loaded.

    Flash attention runs on GPUs only. Flex attention would be compiled for minutes; "eager" has the same mask.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.integrations.flex_attention import flex_attention_forward
    from transformers.masking_utils import flash_attention_mask

    name = model.config._attn_implementation
    stand_ins = {flash_attention_forward: FLASH_ON_CPU, flex_attention_forward: "eager"}
    stand_in = stand_ins.get(AttentionInterface().get(name))  # pyright: ignore[reportArgumentType, reportCallIssue]
    if stand_in is None or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(FLASH_ON_CPU, attend_like_flash)
    AttentionMaskInterface.register(FLASH_ON_CPU, flash_attention_mask)
    model.config._attn_implementation = stand_in
    try:
        yield
    finally:
        model.config._attn_implementation = name


def attend_like_flash(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as flash attention does: within the cumulative lengths over all rows, or without them over whole rows."""
    if cu_seq_lens_q is None:
        return attend_within_views(module, query, key, value, attention_mask, **kwargs)
    in_one_row = (tensor.transpose(0, 1).flatten(1, 2)[None] for tensor in (query, key, value))
    lengths = [cu_seq_lens_q.diff().tolist()]
    attended, _ = attend_within_views(module, *in_one_row, attention_mask=None, view_lengths=lengths, **kwargs)
    return attended.view(query.shape[0], query.shape[2], *attended.shape[2:]), None


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Let torch.compile fuse what the layers of a model do between their matrix products; all share what one compiles.

    Raises UserError where nothing can be compiled, or nothing for long.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if reads_one_by_one(model):
        raise UserError(
            f"train.compile: {type(model).__name__} reads views one by one, and every new length would be compiled; set"
            f" train.compile=false"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and use_by_view(model) and not attends_at_once(model, device):
        raise UserError(
            f"train.compile: in {str(model.dtype).removeprefix('torch.')} on this GPU attention goes view by view, and every"
            f" new length would be compiled; set train.compile=false, or model.dtype=bfloat16 on an Ampere GPU or newer"
        )
    try:
        torch.compile(torch.exp, backend=backend)(torch.ones(8, device=device))
    except RuntimeError as error:
        raise UserError(
            f"train.compile: nothing can be compiled on this machine ({one_line(error)}); install a C++ compiler such as g++,"
            f" or set train.compile=false"
        ) from error
    # The number of views, and the longest, are new in most batches: they are not to be compiled in.
    torch.compiler.config.dynamic_sources = "L['kwargs']['cu_seq_lens_q'],L['kwargs']['max_length_q']"
    # Layers with and without a gradient of their input, in training and validation, are compiled apart; beyond the usual
    # limit of 8 nothing would be compiled any more.
    torch._dynamo.config.recompile_limit = 64
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(backend=backend)
