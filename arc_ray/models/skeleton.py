"""The model of a config without its weights: shapes and dtypes on torch's meta device, for estimates and counts."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arc_ray.config.training import ModelConfig
from arc_ray.errors import UserError
from arc_ray.models.build import (
    adapted,
    check_tokens,
    checkpoint_gradients,
    scratch_model,
    trainable,
    without_adapter,
)
from arc_ray.models.flops import Flops
from arc_ray.models.supported import check_row_tokens
from arc_ray.models.weights import DTYPES, load_base
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.runs.base import explained, model_path


def build_skeleton(config: ModelConfig, storage: str, full: bool, tokenizer: Any) -> nn.Module:
    """Build what `arc_ray.models.build.build_model` would, without weights: only descriptions, names and shapes are read.

    Raises UserError for what is no model, or whose weights do not fit it.
    """
    if config.scratch:
        with torch.device("meta"):
            model: Any = scratch_model(config.scratch, tokenizer)
    else:
        model = _bare_base(config, storage)
    with torch.device("meta"):
        model = adapted(model, config, storage, full)
    if config.gradient_checkpointing:
        checkpoint_gradients(model)
    # DeepSpeed turns all of a model to half precision, the adapter too.
    return model.train().to(DTYPES[config.dtype])


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of all and of the trained parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in trainable(model).values())


def flops_of(model: nn.Module) -> Flops:
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
    return Flops(
        frozen=sum(weight.numel() for weight in matrices if not weight.requires_grad),
        trained=sum(weight.numel() for weight in matrices if weight.requires_grad),
        head=head.weight.numel(),
        head_is_trained=head.weight.requires_grad,
        attention=about.num_hidden_layers * about.num_attention_heads * head_size,
    )


def check_model(config: ModelConfig, storage: str, full: bool, row_tokens: int | None) -> None:
    """Find out before any work whether a model, its tokenizer and its adapter can be loaded and trained on such rows.

    Of weights on this machine names and shapes are compared; what an adapter "@run" will hold is not known yet.
    Raises UserError.
    """
    if (
        "flash" in config.attention
        and importlib.util.find_spec("flash_attn") is None
        and "RAY_ADDRESS" not in os.environ
    ):
        raise UserError(
            f"model.attention {config.attention}: the package flash_attn is not installed here;"
            f" model.attention=auto takes it where it is"
        )
    tokenizer = load_tokenizer(config, storage)
    if (config.adapter or "").startswith("@"):
        config = config.model_copy(update={"adapter": None})
    model = without_adapter(build_skeleton(config, storage, full, tokenizer))
    if row_tokens is not None:
        check_row_tokens(model.config, row_tokens)
    check_tokens(model, tokenizer)


def _bare_base(config: ModelConfig, storage: str) -> nn.Module:
    """Make the base on the meta device: from names and shapes of its weights if they are here, else from its config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = model_path(config.base, storage)
    if Path(path).is_dir():
        return load_base(config, storage, "meta")
    with explained(path), torch.device("meta"):
        about = AutoConfig.from_pretrained(path)
        return AutoModelForCausalLM.from_config(about, dtype=DTYPES[config.dtype], attn_implementation="sdpa")
