"""Models put together: a base or random weights, a starting adapter, LoRA; and what a checkpoint folder holds."""

import contextlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arc_ray.config.model import ModelConfig, ScratchConfig
from arc_ray.errors import UserError, located
from arc_ray.models.supported import check_logits, check_row_tokens, check_supported, check_tokens, keep_views_apart
from arc_ray.models.weights import (
    DTYPES,
    SCRATCH_POSITIONS,
    is_quantized,
    load_base,
    reaches_embeddings,
    read_config,
    refuse_other_base,
    with_saved_adapter,
)
from arc_ray.prompts.tokenizer import load_tokenizer, make_tiny_tokenizer, tiny_corpus
from arc_ray.prompts.vocabulary import base_folder
from arc_ray.runs.base import explained, local_folder, model_path
from arc_ray.seeding import digest64
from arc_ray.storage import Folder

logger = logging.getLogger(__name__)

NOT_SERVED = ("use_dora", "modules_to_save", "target_parameters", "rank_pattern", "ensure_weight_tying")
"""Keys of an adapter's config that make it more than one plain LoRA: only merged can others' engines use it."""


def build_model(
    config: ModelConfig, storage: str, seed: int, full: bool, tokenizer: Any, row_tokens: int | None = None
) -> nn.Module:
    """Build the model that training starts from: base (or random weights), starting adapter, and unless `full` a LoRA.

    Random weights follow from `seed`. Raises UserError for what is no model, or none for rows of `row_tokens`.
    """
    config, adapters = _opened(config, storage)
    with _seeded(seed):
        model = scratch_model(config.scratch, tokenizer) if config.scratch else load_base(config, storage)
        with located(config.called):
            check_supported(model, row_tokens)
            if tokenizer is not None:
                check_tokens(model, tokenizer)
        return adapted(model, config, adapters, full)


def build_skeleton(config: ModelConfig, storage: str, full: bool, checkpoint: str | None = None) -> nn.Module:
    """Build the model of `build_model`, or of a checkpoint, on torch's meta device, reading names and shapes at most.

    Raises UserError.
    """
    config, adapters = _opened(config, storage, checkpoint)
    model: Any = None if config.scratch else load_base(config, storage, "meta")
    with torch.device("meta"), warnings.catch_warnings():
        # peft and we call transformers by names that it is about to change, which is no concern of the reader's.
        warnings.simplefilter("ignore", FutureWarning)
        if config.scratch:
            model = scratch_model(config.scratch, make_tiny_tokenizer(tiny_corpus()))
        model = adapted(model, config, adapters, full)
    # DeepSpeed turns all of a model to half precision, the adapter too.
    return model.to(DTYPES[config.dtype])


def check_model(config: ModelConfig, storage: str, full: bool, row_tokens: int | None) -> tuple[nn.Module, Any]:
    """Find out before any work whether a model, its tokenizer and its adapter can be loaded and trained on such rows.

    What an adapter "@run" will hold is not known yet. Returns the model's skeleton and the tokenizer. Raises UserError.
    """
    package = {"flash_attention_2": "flash_attn"}.get(
        config.attention, "kernels" if "/" in config.attention else "torch"
    )
    if importlib.util.find_spec(package) is None and "RAY_ADDRESS" not in os.environ:
        raise UserError(
            f"model.attention {config.attention}: the package {package} is not installed here; model.attention=auto takes"
            f" what is there"
        )
    if not config.scratch:
        read_config(model_path(config.base, storage, weights=False))
    tokenizer = load_tokenizer(config, storage)
    if (config.adapter or "").startswith("@"):
        config = config.model_copy(update={"adapter": None})
    model = build_skeleton(config, storage, full)
    with located(config.called):
        if row_tokens is not None:
            check_row_tokens(model.config, row_tokens)
            check_logits(model.config)
        check_tokens(model, tokenizer)
    return model, tokenizer


def adapted(model: Any, config: ModelConfig, adapters: Sequence[str], full: bool) -> nn.Module:
    """Put around a base what is trained: the starting adapter or a new LoRA, or if `full` nothing, and freeze the rest."""
    model = _with_adapters(model, adapters, keeps_last=config.adapter_use == "continue")
    if not full:
        from arc_ray.models.lora import with_lora  # peft takes seconds to import

        model = with_lora(model, config.lora)
    for parameter in model.parameters():
        parameter.requires_grad_(full or parameter.requires_grad)
    return _saving_memory(model, config)


def _opened(config: ModelConfig, storage: str, checkpoint: str | None = None) -> tuple[ModelConfig, list[str]]:
    """Return a config and the folders, on this node, of the adapters to be put around its base one upon another; a
    checkpoint of a whole model becomes the base. Raises UserError."""
    last = []
    if checkpoint:
        folder = local_folder(checkpoint, storage)
        refuse_other_base(f"checkpoint {checkpoint}", Folder(folder), config, storage, by_name=False)
        if not (Path(folder) / "adapter_config.json").exists():
            if config.vocabulary:
                places = (folder, base_folder(config, storage))
                has, asked = (read_config(path).get_text_config().vocab_size for path in places)
                if has != asked:
                    raise UserError(
                        f"checkpoint {checkpoint}: it has {has} tokens, the base cut by model.vocabulary {asked}"
                    )
            return config.model_copy(update={"base": folder, "adapter": None, "vocabulary": None}), []
        last = [folder]
    # The adapter in a checkpoint's folder holds what it was continued from.
    if not config.adapter or (checkpoint and config.adapter_use == "continue"):
        return config, last
    what, path = f"model.adapter {config.adapter}", local_folder(config.adapter, storage)
    if not (Path(path) / "adapter_config.json").exists():
        raise UserError(f"{what}: {path} holds no adapter_config.json")
    refuse_other_base(what, Folder(path), config, storage)
    return config, [path, *last]


def _with_adapters(model: Any, folders: Sequence[str], keeps_last: bool) -> Any:
    """Put adapters around a base; all, or all but the last where `keeps_last`, are merged in float32 and rounded once."""
    for number, folder in enumerate(folders, 1):
        is_kept = keeps_last and number == len(folders)
        if not is_kept and is_quantized(model):
            raise UserError(
                f"adapter {folder}: it cannot be merged into weights of 4 bits to train upon (model.quantize): continue it"
                f" (model.adapter_use=continue, evaluate.ttt.adapter=continue), or give model.base what `arc-ray merge` writes"
            )
        model = with_saved_adapter(model, folder, trainable=is_kept)
        if not is_kept:
            model = model.merge_and_unload()
    return model


def _saving_memory(model: Any, config: ModelConfig) -> nn.Module:
    """Let a model that will be trained keep, if it is asked for, only each layer's input and compute the rest again."""
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()  # a loaded one is in the mode for answering, in which nothing is computed again


def load_for_inference(config: ModelConfig, storage: str, checkpoint: str | None, is_whole: bool = False) -> Any:
    """Load a checkpoint (without one, what training would start from) merged to a plain model. Raises UserError.

    A base of 4 bits keeps the adapter beside it or, where the model must be `is_whole`, is dequantized first.
    """
    config, adapters = _opened(config, storage, checkpoint)
    model = load_base(config, storage)
    if is_whole and is_quantized(model):
        logger.warning("merged into the base as 4 bits hold it, which the adapter learned upon, not into the whole one")
        with explained(config.base or ""):
            model = model.dequantize(DTYPES[config.dtype])
    keep_views_apart(model)
    model = _with_adapters(model, adapters, keeps_last=is_quantized(model)).eval()
    return model.get_base_model() if hasattr(model, "peft_config") else model


def load_for_tuning(
    config: ModelConfig, storage: str, checkpoint: str | None, fresh: bool, seed: int, row_tokens: int | None = None
) -> nn.Module:
    """Load what `load_for_inference` does, to be trained further: with its adapter, or a new LoRA on the merged model.

    A new one is made where `fresh` or no adapter is there; its weights follow from `seed`. Raises UserError.
    """
    config, adapters = _opened(config, storage, checkpoint)
    model = load_base(config, storage)
    check_supported(model, row_tokens)
    continues = bool(checkpoint) or config.adapter_use == "continue"
    model = _with_adapters(model, adapters, keeps_last=continues and not fresh)
    with _seeded(seed):
        from arc_ray.models.lora import with_lora

        return _saving_memory(with_lora(model, config.lora), config)


def merge_checkpoint(config: ModelConfig, storage: str, checkpoint: str | None, target: Path) -> None:
    """Write a checkpoint merged into its base as a plain transformers folder."""
    load_for_inference(config, storage, checkpoint, is_whole=True).save_pretrained(target)
    load_tokenizer(config, storage).save_pretrained(target)


def served(
    config: ModelConfig, storage: str, checkpoint: str | None, target: Path
) -> tuple[str, tuple[str, int] | None]:
    """Return a checkpoint for an engine that serves adapters: folder or hub name of whole weights, and folder and rank of
    the LoRA beside them, if any. What is no plain LoRA upon a base is merged into `target`. Raises UserError."""
    opened, adapters = _opened(config, storage, checkpoint)
    is_packed = opened.quantize or getattr(read_config(base_folder(opened, storage)), "quantization_config", None)
    if not (adapters or is_packed):
        return base_folder(opened, storage), None
    about = json.loads((Path(adapters[-1]) / "adapter_config.json").read_text()) if adapters else {}
    if is_packed or len(adapters) > 1 or any(about.get(key) for key in NOT_SERVED) or reaches_embeddings(adapters[0]):
        merge_checkpoint(config, storage, checkpoint, target)
        return str(target), None
    return base_folder(opened, storage), (adapters[0], about["r"])


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def ends_of(model: Any) -> list[Any]:
    """Return a model's input embeddings and its output layer, which may have one weight together."""
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def trainable_ends(model: Any) -> set[nn.Parameter]:
    """Return what is trained of input embeddings and output layer: their weights, or an adapter's."""
    return {p for end in ends_of(model) for p in end.parameters() if p.requires_grad}


def matrices(model: nn.Module) -> set[nn.Parameter]:
    """Return what Muon steps: the trained matrices between input embeddings and output layer."""
    return {p for p in trainable(model).values() if p.ndim == 2} - trainable_ends(model)


def save_weights(model: Any, weights: Mapping[str, torch.Tensor], tokenizer: Any, path: Path) -> None:
    """Write trained weights to a folder: an adapter as plain peft reads it, or a whole model as transformers reads it.

    `weights` are whole (gathered) tensors by the names of `trainable`.
    """
    options = {}
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        from arc_ray.models.lora import with_tied

        weights = with_tied(model, weights)
        if any(".lora_" not in name for name in weights):  # embeddings' own, which peft's "auto" would leave out
            options = {"save_embedding_layers": True}
        assert get_peft_model_state_dict(model, state_dict=dict(weights)), "the adapter is empty"
        for config in model.peft_config.values():  # peft would write a set in the order of this process's hashes
            vars(config).update({key: sorted(value) for key, value in vars(config).items() if isinstance(value, set)})
    else:
        tokenizer.save_pretrained(path)
    model.save_pretrained(path, state_dict=dict(weights), **options)


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
