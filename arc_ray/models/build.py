"""Models put together: a base or random weights, a starting adapter, LoRA; and what a checkpoint folder holds."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arc_ray.config.training import LoraConfig, ModelConfig, ScratchConfig
from arc_ray.errors import UserError
from arc_ray.models.attention import attends_at_once, use_by_view
from arc_ray.models.supported import check_supported
from arc_ray.models.weights import (
    SCRATCH_POSITIONS,
    checkpoint_folder,
    load_base,
    with_saved_adapter,
    with_starting_adapter,
)
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.seeding import digest64


def build_model(
    config: ModelConfig, storage: str, seed: int, full: bool, tokenizer: Any, row_tokens: int | None = None
) -> nn.Module:
    """Build the model that training starts from: base (or random weights), starting adapter, and unless `full` a LoRA.

    Random weights follow from `seed`. Raises UserError for what is no model, or none for rows of `row_tokens`.
    """
    with _seeded(seed):
        model: Any = scratch_model(config.scratch, tokenizer) if config.scratch else load_base(config, storage)
        check_supported(model, row_tokens)
        if tokenizer is not None:
            check_tokens(model, tokenizer)
        model = adapted(model, config, storage, full)
    return checkpoint_gradients(model) if config.gradient_checkpointing else model


def adapted(model: Any, config: ModelConfig, storage: str, full: bool) -> nn.Module:
    """Put around a base what is trained: the starting adapter or a new LoRA, or if `full` nothing, and freeze the rest."""
    model = with_adapters(model, config, storage, None, keeps_last=True)
    if not full and not hasattr(model, "peft_config"):
        model = with_lora(model, config.lora)
    for parameter in model.parameters():
        parameter.requires_grad_(full or parameter.requires_grad)
    return model


def with_adapters(model: Any, config: ModelConfig, storage: str, folder: str | None, keeps_last: bool) -> Any:
    """Put the starting adapter of a config and the adapter in a checkpoint's `folder` around a base. Raises UserError.

    A checkpoint's adapter holds what it was continued from. All are merged, each in float32 and rounded once to the dtype
    of the base, except for the last one where `keeps_last` and it may be trained further.
    """
    adapters = [partial(with_saved_adapter, path=folder)] if folder else []
    if config.adapter and (folder is None or config.adapter_use == "merge"):
        adapters.insert(0, partial(with_starting_adapter, config=config, storage=storage))
    for left, adapter in zip(reversed(range(len(adapters))), adapters, strict=True):
        is_kept = keeps_last and left == 0 and (folder is not None or config.adapter_use == "continue")
        model = adapter(model, trainable=is_kept)
        if not is_kept:
            model = model.merge_and_unload()
    return model


def check_tokens(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that writes our prompts, or pads them, with ids that the model has no embedding for."""
    from arc_ray.prompts.tokenizer import frame_of, tiny_corpus

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


def checkpoint_gradients(model: Any) -> nn.Module:
    """Let a model keep only each layer's input and compute the rest again in the backward pass."""
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Let torch.compile fuse what the layers of a model do between their matrix products; all share what one compiles.

    Raises UserError where nothing can be compiled, or nothing for long.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    device, causal = torch.device("cuda" if torch.cuda.is_available() else "cpu"), without_adapter(model)
    if device.type == "cuda" and use_by_view(causal) and not attends_at_once(causal, device):
        raise UserError(
            f"train.compile: in {str(causal.dtype).removeprefix('torch.')} on this GPU attention goes view by view, and every"
            f" new length would be compiled; set train.compile=false, or model.dtype=bfloat16 on an Ampere GPU or newer"
        )
    try:
        torch.compile(torch.exp, backend=backend)(torch.ones(8, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"train.compile: nothing can be compiled on this machine ({reason}); install a C++ compiler such as g++, or set"
            f" train.compile=false"
        ) from error
    # The number of views, and the longest, are new in most batches: they are not to be compiled in.
    torch.compiler.config.dynamic_sources = "L['kwargs']['cu_seq_lens_q'],L['kwargs']['max_length_q']"
    # Layers with and without a gradient of their input, in training and validation, are compiled apart; beyond the usual
    # limit of 8 nothing would be compiled any more.
    torch._dynamo.config.recompile_limit = 64
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(backend=backend)


def load_for_inference(config: ModelConfig, storage: str, checkpoint: str | None) -> Any:
    """Load what a checkpoint is, merged to a plain model: a whole model, or an adapter on the base it was trained on.

    Without a checkpoint, the model that training would start from. Raises UserError.
    """
    config, folder = _opened(config, storage, checkpoint)
    return with_adapters(load_base(config, storage), config, storage, folder, keeps_last=False).eval()


def load_for_tuning(
    config: ModelConfig, storage: str, checkpoint: str | None, fresh: bool, seed: int, row_tokens: int | None = None
) -> nn.Module:
    """Load what `load_for_inference` does, to be trained further: with its adapter, or a new LoRA on the merged model.

    A new one is made where `fresh`, and where there is no adapter to continue; its weights follow from `seed`.
    Raises UserError.
    """
    config, folder = _opened(config, storage, checkpoint)
    model: Any = load_base(config, storage)
    check_supported(model, row_tokens)
    model = with_adapters(model, config, storage, folder, keeps_last=not fresh)
    if not hasattr(model, "peft_config"):
        with _seeded(seed):
            model = with_lora(model, config.lora)
    return checkpoint_gradients(model) if config.gradient_checkpointing else model


def _opened(config: ModelConfig, storage: str, checkpoint: str | None) -> tuple[ModelConfig, str | None]:
    """Return a checkpoint as a config with a base of its own, if it is a whole model, or as the folder of its adapter."""
    folder = checkpoint_folder(config, storage, checkpoint)
    if folder and not (Path(folder) / "adapter_config.json").exists():
        return config.model_copy(update={"base": folder, "adapter": None}), None
    return config, folder


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], tokenizer: Any, path: Path) -> None:
    """Write trained weights to a folder: an adapter as plain peft reads it, or a whole model as transformers reads it.

    `weights` are whole (gathered) tensors by the names of `trainable`.
    """
    inner: Any = model
    if hasattr(inner, "peft_config"):
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(inner, state_dict=dict(weights))
        assert state, "the adapter is empty"
        inner.save_pretrained(path, state_dict=dict(weights))
    else:
        inner.save_pretrained(path, state_dict=dict(weights))
        tokenizer.save_pretrained(path)


def merge_checkpoint(config: ModelConfig, storage: str, checkpoint: str | None, target: Path) -> None:
    """Write a checkpoint merged into its base as a plain transformers folder."""
    model: Any = load_for_inference(config, storage, checkpoint)
    model.save_pretrained(target)
    load_tokenizer(config, storage).save_pretrained(target)


def with_lora(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Put a new adapter around a model and freeze what is inside."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    from arc_ray.models.fused import fuse_lora

    about = PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets,
        use_rslora=config.rslora,
        use_dora=config.dora,
    )
    try:
        inside = get_peft_model(model, about)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        names = {name.rsplit(".", 1)[-1] for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        raise UserError(
            f"model.lora.targets {config.targets}: {error}; the linear layers of this model are {', '.join(sorted(names))}"
        ) from error
    fuse_lora(inside)
    return inside


def without_adapter(model: Any) -> Any:
    """Return the causal language model inside an adapter; one without an adapter as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def scratch_model(config: ScratchConfig, tokenizer: Any) -> nn.Module:
    """Make a small Llama from random weights, for a tokenizer's vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=SCRATCH_POSITIONS,
            tie_word_embeddings=True,
            # 0.02, the usual value, is for widths of thousands; at a width of 128 it starts the model all but silent.
            initializer_range=config.hidden_size**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw torch's random weights from a key and put the global generator back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(digest64(seed, "model") % 2**63)
        yield
