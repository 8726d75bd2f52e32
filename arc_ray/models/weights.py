"""Weights read from folders and hubs: found by name, held against the model, or refused in one message."""

import importlib.util
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal

import torch

from arc_ray.config.model import ModelConfig
from arc_ray.config.section import BUILT_IN
from arc_ray.errors import UserError
from arc_ray.models.supported import TAKE_ANOTHER, longest_view
from arc_ray.prompts.vocabulary import base_folder
from arc_ray.runs.base import explained, fingerprint
from arc_ray.runs.folder import is_place_of
from arc_ray.runs.obtain import obtaining
from arc_ray.runs.shapes import CheckpointShape
from arc_ray.storage import Folder

DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCRATCH_POSITIONS = 32768
IN_4_BITS = "arc_ray_in_4_bits"
"""Attribute of a weight on the meta device, which has its whole shape there."""


def load_base(config: ModelConfig, storage: str, device: Literal["cpu", "meta"] = "cpu") -> Any:
    """Load the base model's weights; on "meta" only names and shapes are read, if they are here, to see whether they fit.

    Raises UserError, also for weights that the model has no place for and for places without weights.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    path = base_folder(config, storage, weights=device == "cpu")
    about = read_config(path)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(about)]
    is_packed = _is_quantized_base(about, path)
    in_4_bits = is_packed or config.quantize is not None
    if in_4_bits and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("weights of 4 bits need the package bitsandbytes: pip install 'arc_ray[quantize]'")
    with explained(path):
        comes_later = config.base not in BUILT_IN and any(obtaining([config.base], storage))
        is_description = config.vocabulary and not any(Path(path).glob("*.safetensors"))
        if device == "meta" and (is_packed or comes_later or is_description):
            about.__dict__.pop("quantization_config", None)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(about, dtype=DTYPES[config.dtype])
                return mark_4_bits(model) if in_4_bits else model
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[config.dtype],
            attn_implementation=attention_implementation(config, kind) if device == "cpu" else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            device_map=device if in_4_bits or device == "meta" else None,
            **({"quantization_config": _nf4(config)} if config.quantize and device == "cpu" and not is_packed else {}),
        )
    model, found = loaded
    refuse_misfits(
        f"model.base {path}",
        missing=found["missing_keys"],
        unexpected=found["unexpected_keys"],
        mismatched=[f"{name} is {tuple(there)}, not {tuple(asked)}" for name, there, asked in found["mismatched_keys"]],
    )
    _refuse_not_finite(f"model.base {path}", model.named_parameters())
    if in_4_bits:
        _settle_4_bits(model, DTYPES[config.dtype])
        return mark_4_bits(model) if device == "meta" else model
    return model


def _is_quantized_base(about: Any, path: str) -> bool:
    """Tell whether a base's weights are 4-bit ones of bitsandbytes already. Raises UserError for those of other kinds."""
    found = getattr(about, "quantization_config", None)
    found = dict(found if isinstance(found, dict) else vars(found)) if found else {}
    method = str(getattr(found.get("quant_method"), "value", found.get("quant_method")))
    if found and not (method == "bitsandbytes" and (found.get("load_in_4bit") or found.get("_load_in_4bit"))):
        raise UserError(
            f"model.base {path}: its weights are quantized ({method}), which cannot be trained here; take the model that it"
            f" was made from, perhaps with model.quantize=nf4"
        )
    return bool(found)


@contextmanager
def compiled_when_called() -> Iterator[None]:
    """Let functions that are given to torch.compile meanwhile be compiled when they are called first.

    bitsandbytes, which peft imports wherever it is installed, gives it some at once, and that alone loads PyTorch's compiler:
    a second of each process, few of which ever compute with 4 bits.
    """
    compile_at_once: Any = torch.compile

    def compile_when_called(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return partial(compile_when_called, **options)
        compiled: list[Callable[..., Any]] = []

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not compiled:
                compiled.append(compile_at_once(function, **options))
            return compiled[0](*args, **kwargs)

        return call

    torch.compile = compile_when_called
    try:
        yield
    finally:
        torch.compile = compile_at_once


def _nf4(config: ModelConfig) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[config.dtype],
    )


def _settle_4_bits(model: Any, dtype: torch.dtype) -> None:
    """Let 4-bit layers compute in the model's arithmetic, and keep their packing: a pass that tries a model on the CPU would
    pack it for CPUs that know bfloat16, and a GPU reads that as other weights."""
    from bitsandbytes.nn.modules import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.compute_dtype, layer.compute_type_is_set, layer.support_avx512bf16_for_cpu = dtype, True, False


def mark_4_bits(model: Any) -> Any:
    """Mark the weights of a model without memory that have 4 bits when it is loaded."""
    for layer in model.modules():
        if type(layer) is torch.nn.Linear and layer is not model.get_output_embeddings():
            setattr(layer.weight, IN_4_BITS, True)
    return model


def is_in_4_bits(weight: torch.Tensor) -> bool:
    """Tell whether a weight is packed into 4 bits, or marked as one that will be."""
    return getattr(weight, IN_4_BITS, False) or hasattr(weight, "quant_state")


def is_quantized(model: Any) -> bool:
    """Tell whether weights of a model have 4 bits: they cannot be trained, nor can an adapter be merged into them."""
    return any(map(is_in_4_bits, model.parameters()))


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


def refuse_other_base(what: str, folder: Folder, config: ModelConfig, storage: str, by_name: bool = True) -> None:
    """Refuse an adapter that was trained on other weights than those of a config's base, whatever both are called, and
    a checkpoint with another vocabulary.

    Adapters from before weights had fingerprints are refused `by_name`. Raises UserError.
    """
    made_on = folder.read_json("arc_ray.json", CheckpointShape | None) or {}
    base, name, known = config.base, made_on.get("base"), made_on.get("base_fingerprint")
    if not base or not name:
        return
    is_same_cut = made_on.get("vocabulary") == config.vocabulary
    if is_same_cut and (base == name or is_place_of(base, name) or not (known or by_name)):
        return
    if known is None or known != fingerprint(base_folder(config, storage)):
        learned, asked = made_on.get("vocabulary"), config.vocabulary
        cuts = "" if is_same_cut else f": model.vocabulary was {learned or 'null'} there and is {asked or 'null'} here"
        raise UserError(f"{what} was trained on the base {name}, not on {base}{cuts}")


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Name the tensors that hold NaN or infinite numbers; those of integers, and on the meta device, hold none."""
    read = ((name, t.detach()) for name, t in tensors if t.dtype in DTYPES.values() and t.numel() and not t.is_meta)
    return [name for name, tensor in read if not all(map(math.isfinite, tensor.aminmax()))]


def _refuse_not_finite(place: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    if lost := not_finite(tensors):
        raise UserError(f"{place}: {lost[0]} holds numbers that are not finite; put a whole copy in its place")


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
    return longest_view(read_config(base_folder(config, storage, weights=False)))


def attention_implementation(config: ModelConfig, kind: Any) -> str | None:
    """Choose how a class of models attends: by flash attention where it is installed with a GPU; None is the class's own."""
    if config.attention != "auto":
        return config.attention
    has_flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if has_flash and kind._supports_flash_attn and config.dtype != "float32" else None


def with_saved_adapter(model: Any, path: str, trainable: bool) -> Any:
    """Put the LoRA adapter of a folder around a model; on "meta", only names and shapes are compared. Raises UserError."""
    with compiled_when_called():
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
    _refuse_not_finite(f"adapter {path}", (named for named in adapted.named_parameters() if ".default" in named[0]))
    held = _names_in(path)
    for name, weight in adapted.named_parameters():
        if name in held and ".base_layer." not in name:  # the embeddings' own, beside the adapter
            weight.requires_grad_(trainable)
    fuse_lora(adapted)
    return adapted


def reaches_embeddings(path: str) -> bool:
    """Tell whether the folder of an adapter holds embeddings, or an adapter of them."""
    return any(not re.search(r"\.lora_[AB]\.", name) for name in _names_in(path))


def _names_in(path: str) -> set[str]:
    from peft.utils import load_peft_weights

    return {*load_peft_weights(path, device="cpu")}
