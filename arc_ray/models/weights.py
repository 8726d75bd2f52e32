"""Weights read from folders and hubs: found by name, held against the model, or refused in one message."""

import importlib.util
from collections.abc import Collection
from typing import Any, Literal

import torch

from arc_ray.config.section import BUILT_IN
from arc_ray.config.training import ModelConfig
from arc_ray.errors import UserError
from arc_ray.models.supported import TAKE_ANOTHER, longest_view
from arc_ray.runs.base import explained, model_path
from arc_ray.runs.obtain import obtaining

DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCRATCH_POSITIONS = 32768


def load_base(config: ModelConfig, storage: str, device: Literal["cpu", "meta"] = "cpu") -> Any:
    """Load the base model's weights; on "meta" only names and shapes are read, if they are here, to see whether they fit.

    Raises UserError, also for weights that the model has no place for and for places without weights.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    path = model_path(config.base, storage, weights=device == "cpu")
    about = read_config(path)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(about)]
    with explained(path):
        if quantized := getattr(about, "quantization_config", None):
            method = dict(quantized if isinstance(quantized, dict) else vars(quantized)).get("quant_method")
            raise UserError(
                f"model.base {path}: its weights are quantized ({method}), which cannot be trained here;"
                f" take the model that it was made from"
            )
        if (
            device == "meta" and config.base not in BUILT_IN and any(obtaining([config.base], storage))
        ):  # weights come later
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(about, dtype=DTYPES[config.dtype])
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[config.dtype],
            attn_implementation=attention_implementation(config, kind) if device == "cpu" else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            device_map=None if device == "cpu" else device,
        )
    model, found = loaded
    refuse_misfits(
        f"model.base {path}",
        missing=found["missing_keys"],
        unexpected=found["unexpected_keys"],
        mismatched=[f"{name} is {tuple(there)}, not {tuple(asked)}" for name, there, asked in found["mismatched_keys"]],
    )
    return model


def read_config(path: str) -> Any:
    """Read a model's config. Raises UserError where transformers knows no causal language model of its kind."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig, __version__

    with explained(path):
        written, _ = PreTrainedConfig.get_config_dict(path)
        kind = written.get("model_type")
        named = (
            f"model.base {path}: its architecture is {kind} ({', '.join(written.get('architectures') or ['unnamed'])}),"
        )
        if kind and kind not in CONFIG_MAPPING:
            own = ", and code that comes with a model is not run" if written.get("auto_map") else ""
            raise UserError(
                f"{named} which transformers {__version__} does not know{own}: a newer transformers may; else {TAKE_ANOTHER}"
            )
        about = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if type(about) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UserError(f"{named} which is no causal language model, one that continues a text: {TAKE_ANOTHER}")
    return about


def refuse_misfits(
    place: str, missing: Collection[str], unexpected: Collection[str] = (), mismatched: Collection[str] = ()
) -> None:
    """Raise UserError where weights and model do not fit: else what is missing would stay random, in silence."""
    said = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing),
            ("unknown to the model", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    if said:
        raise UserError(
            f"{place}: the weights do not fit the model: {'; '.join(said)}; they must be named and shaped as transformers"
            f" and peft save them (no `module.` or `_orig_mod.` before names, no ZeRO-3 shards), for this very model"
        )


def most_tokens(config: ModelConfig, storage: str) -> int | None:
    """Return the most tokens that the model of a config reads alike, whatever is beside them; None if any number."""
    if config.scratch:
        return SCRATCH_POSITIONS
    return longest_view(read_config(model_path(config.base, storage, weights=False)))


def attention_implementation(config: ModelConfig, kind: Any) -> str | None:
    """Choose how a class of models attends: by flash attention where it is installed with a GPU; None is the class's own."""
    if config.attention != "auto":
        return config.attention
    has_flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if has_flash and kind._supports_flash_attn and config.dtype != "float32" else None


def with_saved_adapter(model: Any, path: str, trainable: bool) -> Any:
    """Put the LoRA adapter of a folder around a model; on "meta", only names and shapes are compared. Raises UserError."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftConfig, PeftType, get_peft_model

    from arc_ray.models.lora import fuse_lora

    with explained(path, "adapter"):
        about = PeftConfig.from_pretrained(path)
        if not isinstance(about, PeftLoraConfig):
            raise UserError(
                f"adapter {path}: its kind is {PeftType(about.peft_type).value}; only LoRA can be trained and merged here"
            )
        about.inference_mode = not trainable
        adapted: Any = get_peft_model(model, about)
        # As peft's own from_pretrained does, which keeps to itself what did not fit.
        renamed = getattr(model, "_checkpoint_conversion_mapping", {})
        how = {"torch_device": "cpu", "key_mapping": renamed, "ignore_mismatched_sizes": False}
        found = adapted.load_adapter(path, "default", is_trainable=trainable, **how)
    refuse_misfits(f"adapter {path}", found.missing_keys, found.unexpected_keys)
    fuse_lora(adapted)
    return adapted
