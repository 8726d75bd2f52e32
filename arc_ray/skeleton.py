"""The model of a config without its weights: shapes and dtypes on torch's meta device, for estimates and counts."""

from typing import Any

import torch
from torch import nn

from arc_ray.config.training import ModelConfig
from arc_ray.errors import UserError
from arc_ray.flops import Work
from arc_ray.model import (
    DTYPES,
    attention_implementation,
    checkpoint_gradients,
    explained,
    local_folder,
    model_path,
    scratch_model,
    trainable,
    with_lora,
    without_adapter,
)
from arc_ray.runs import resolve_reference

TYPICAL_LEARNED = 0.25
"""Share of learned tokens where no plan says it: answers are a fifth of ARC's tokens, a half where all outputs are learned."""


def build_skeleton(config: ModelConfig, storage: str, full: bool, tokenizer: Any) -> nn.Module:
    """Build what `arc_ray.model.build_model` would, without weights: only the model's own description is read.

    Raises UserError for a path that is no model.
    """
    with torch.device("meta"):
        model: Any = scratch_model(config.scratch, tokenizer) if config.scratch else _bare_base(config, storage)
        if config.adapter and config.adapter_use == "continue":
            model = _with_bare_adapter(model, config.adapter, storage)
        elif not full:
            model = with_lora(model, config.lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(full or "lora_" in name)
    if config.gradient_checkpointing:
        checkpoint_gradients(model)
    # DeepSpeed turns all of a model to half precision, the adapter too.
    return model.train().to(DTYPES[config.dtype])


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of all and of the trained parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in trainable(model).values())


def work_of(model: nn.Module) -> Work:
    """Count what the FLOPs of a model depend on; call it before DeepSpeed shards the parameters."""
    causal = without_adapter(model)
    head = causal.get_output_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) or m is head]
    matrices = [
        weight
        for module in model.modules()
        if module not in tables
        for weight in module.parameters(recurse=False)
        if weight.ndim == 2
    ]
    about = causal.config
    head_size = getattr(about, "head_dim", None) or about.hidden_size // about.num_attention_heads
    return Work(
        frozen=sum(weight.numel() for weight in matrices if not weight.requires_grad),
        trained=sum(weight.numel() for weight in matrices if weight.requires_grad),
        head=head.weight.numel(),
        head_is_trained=head.weight.requires_grad,
        attention=about.num_hidden_layers * about.num_attention_heads * head_size,
    )


def _bare_base(config: ModelConfig, storage: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = model_path(config.base, storage)
    with explained(path):
        about = AutoConfig.from_pretrained(path)
        return AutoModelForCausalLM.from_config(
            about, dtype=DTYPES[config.dtype], attn_implementation=attention_implementation(config)
        )


def _with_bare_adapter(model: nn.Module, adapter: str, storage: str) -> nn.Module:
    from peft import PeftConfig, get_peft_model

    path = local_folder(resolve_reference(adapter, storage))
    try:
        about = PeftConfig.from_pretrained(path)
    except ValueError as error:
        raise UserError(f"model.adapter {adapter}: {path} holds no adapter_config.json") from error
    return get_peft_model(model, about)  # pyright: ignore[reportArgumentType]
