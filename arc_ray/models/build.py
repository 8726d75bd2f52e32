"""Models: a base, its starting adapter and LoRA; and what a checkpoint folder holds."""

import contextlib
import importlib.util
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from arc_ray.config.section import BUILT_IN
from arc_ray.config.training import LoraConfig, ModelConfig, ScratchConfig
from arc_ray.errors import UserError
from arc_ray.models.supported import check_supported, longest_view
from arc_ray.runs.fetch import find_model, fingerprint, is_place_of, nearest_model
from arc_ray.runs.folder import resolve_reference
from arc_ray.seeding import digest64
from arc_ray.storage import Folder

DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCRATCH_POSITIONS = 32768


def load_tokenizer(config: ModelConfig, storage: str) -> Any:
    """Load the tokenizer of the base, or make the tiny one for a model from scratch. Raises UserError."""
    from transformers import AutoTokenizer

    from arc_ray.prompts.tokenizer import make_tiny_tokenizer, tiny_corpus

    if config.scratch:
        return make_tiny_tokenizer(tiny_corpus())
    path = model_path(config.base, storage)
    with explained(path):
        return AutoTokenizer.from_pretrained(path)


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
        if config.adapter:
            model = with_starting_adapter(model, config, storage, trainable=not full)
            if config.adapter_use == "merge":
                model = model.merge_and_unload()
        if not full and not (config.adapter and config.adapter_use == "continue"):
            model = with_lora(model, config.lora)
        for parameter in model.parameters():
            parameter.requires_grad_(full or parameter.requires_grad)
    return checkpoint_gradients(model) if config.gradient_checkpointing else model


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


def load_base(config: ModelConfig, storage: str, device: Literal["cpu", "meta"] = "cpu") -> nn.Module:
    """Load the base model's weights; on "meta" only names and shapes are read, to find out whether they fit.

    Raises UserError, also for weights that the model has no place for and for places without weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    path = model_path(config.base, storage)
    with explained(path):
        about = AutoConfig.from_pretrained(path)
        if quantized := getattr(about, "quantization_config", None):
            method = dict(quantized if isinstance(quantized, dict) else vars(quantized)).get("quant_method")
            raise UserError(
                f"model.base {path}: its weights are quantized ({method}), which cannot be trained here;"
                f" take the model that it was made from"
            )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[config.dtype],
            attn_implementation=attention_implementation(config) if device == "cpu" else "sdpa",
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


def refuse_misfits(
    place: str, missing: Collection[str], unexpected: Collection[str] = (), mismatched: Collection[str] = ()
) -> None:
    """Raise UserError where weights and model do not fit: else what is missing would stay random, in silence."""
    parts = {"missing": missing, "unknown to the model": unexpected, "of another shape": mismatched}
    said = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in parts.items()
        if names
    ]
    if said:
        raise UserError(
            f"{place}: the weights do not fit the model: {'; '.join(said)}; they must be named and shaped as transformers"
            f" and peft save them (no `module.` or `_orig_mod.` before names, no ZeRO-3 shards), for this very model"
        )


def load_for_inference(config: ModelConfig, storage: str, checkpoint: str | None) -> Any:
    """Load what a checkpoint is, merged to a plain model: a whole model, or an adapter on the base it was trained on.

    Without a checkpoint, the model that training would start from. Raises UserError.
    """
    folder = _checkpoint_folder(config, storage, checkpoint)
    if folder and not (Path(folder) / "adapter_config.json").exists():
        return load_base(config.model_copy(update={"base": folder}), storage).eval()
    model: Any = load_base(config, storage)
    if config.adapter and (folder is None or config.adapter_use == "merge"):
        model = with_starting_adapter(model, config, storage, trainable=False).merge_and_unload()
    if folder:
        model = with_saved_adapter(model, folder, trainable=False).merge_and_unload()
    return model.eval()


def load_for_tuning(
    config: ModelConfig, storage: str, checkpoint: str | None, fresh: bool, seed: int, row_tokens: int | None = None
) -> nn.Module:
    """Load what `load_for_inference` does, to be trained further: with its adapter, or a new LoRA on the merged model.

    A new one is made where `fresh`, and where there is no adapter to continue; its weights follow from `seed`.
    Raises UserError.
    """
    folder = _checkpoint_folder(config, storage, checkpoint)
    if folder:
        has_adapter = (Path(folder) / "adapter_config.json").exists()
    else:
        has_adapter = config.adapter is not None and config.adapter_use == "continue"
    if fresh or not has_adapter:
        model: Any = load_for_inference(config, storage, checkpoint)
        check_supported(model, row_tokens)
        with _seeded(seed):
            model = with_lora(model, config.lora)
    else:
        model = load_base(config, storage)
        check_supported(model, row_tokens)
        if folder:
            if config.adapter and config.adapter_use == "merge":
                model = with_starting_adapter(model, config, storage, trainable=False).merge_and_unload()
            model = with_saved_adapter(model, folder, trainable=True)
        else:
            model = with_starting_adapter(model, config, storage, trainable=True)
    return checkpoint_gradients(model) if config.gradient_checkpointing else model


def model_path(base: str | None, storage: str) -> str:
    """Resolve a base to a local folder or a hub name. Raises UserError where a path is meant and is no model."""
    if not base:
        raise UserError(
            f"model.base is not set: give a name ({', '.join(BUILT_IN)}), a folder, a hub name,"
            ' "@run", or model.scratch for a small new model'
        )
    if base in BUILT_IN:
        return str(find_model(base, storage).on_this_node())
    path = local_folder(resolve_reference(base, storage))
    if Path(path).is_dir():
        if not (Path(path) / "config.json").exists():
            raise UserError(f"model.base {base}: {path} is no model: it has no config.json")
    elif base.startswith(("/", ".", "~")) or base.count("/") > 1:
        raise UserError(f"model.base {base}: there is no such folder")
    elif "/" not in base and (hint := nearest_model(base)):
        raise UserError(f"model.base {base}: no folder, and no built-in model{hint}")
    return path


def most_tokens(config: ModelConfig, storage: str) -> int | None:
    """Return the most tokens that the model of a config reads alike, whatever is beside them; None if any number."""
    from transformers import AutoConfig

    if config.scratch:
        return SCRATCH_POSITIONS
    path = model_path(config.base, storage)
    with explained(path):
        return longest_view(AutoConfig.from_pretrained(path))


def attention_implementation(config: ModelConfig) -> str:
    """Choose how attention is computed: flash attention where it is installed with a GPU, else PyTorch's own."""
    if config.attention != "auto":
        return config.attention
    has_flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if has_flash and config.dtype != "float32" else "sdpa"


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


def with_starting_adapter(model: nn.Module, config: ModelConfig, storage: str, trainable: bool) -> Any:
    """Put the adapter that a config starts from around its base. Raises UserError."""
    path = local_folder(resolve_reference(config.adapter or "", storage))
    if not (Path(path) / "adapter_config.json").exists():
        raise UserError(f"model.adapter {config.adapter}: {path} holds no adapter_config.json")
    refuse_other_base(f"model.adapter {config.adapter}", Folder(path), config.base, storage)
    return with_saved_adapter(model, path, trainable)


def with_saved_adapter(model: Any, path: str, trainable: bool) -> Any:
    """Put the LoRA adapter of a folder around a model; on "meta", only names and shapes are compared. Raises UserError."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftConfig, PeftType, get_peft_model

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
        found = adapted.load_adapter(
            path,
            "default",
            is_trainable=trainable,
            torch_device="cpu",
            key_mapping=renamed,
            ignore_mismatched_sizes=False,
        )
    refuse_misfits(f"adapter {path}", found.missing_keys, found.unexpected_keys)
    return adapted


def _checkpoint_folder(config: ModelConfig, storage: str, checkpoint: str | None) -> str | None:
    """Return where a checkpoint's files are on this node. Raises UserError for an adapter of other weights."""
    if not checkpoint:
        return None
    folder = local_folder(resolve_reference(checkpoint, storage))
    refuse_other_base(f"checkpoint {checkpoint}", Folder(folder), config.base, storage, by_name=False)
    return folder


def refuse_other_base(what: str, folder: Folder, base: str | None, storage: str, by_name: bool = True) -> None:
    """Refuse an adapter that was trained on other weights than those of `base`, whatever both are called.

    Adapters from before weights had fingerprints are refused `by_name`.
    """
    made_on = folder.read_json("arc_ray.json") or {}
    name, known = made_on.get("base"), made_on.get("base_fingerprint")
    if not base or not name or base == name or is_place_of(base, name) or not (known or by_name):
        return
    if known is None or known != fingerprint(model_path(base, storage)):
        raise UserError(f"{what} was trained on the base {name}, not on {base}")


def with_lora(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Put a new adapter around a model and freeze what is inside."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

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
        return get_peft_model(model, about)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        names = {name.rsplit(".", 1)[-1] for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        raise UserError(
            f"model.lora.targets {config.targets}: {error}; the linear layers of this model are {', '.join(sorted(names))}"
        ) from error


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


def local_folder(path: str) -> str:
    """Return where the files of a folder in a bucket are on this node; local paths and hub names as they are."""
    return str(Folder.at(path).on_this_node()) if "://" in path else path


@contextlib.contextmanager
def explained(path: str, kind: Literal["base", "adapter"] = "base") -> Iterator[None]:
    """Turn what transformers, peft, tokenizers and safetensors raise for a folder that cannot be loaded into a UserError."""
    from transformers.utils import logging as reports

    # They would list weights that do not fit, which `refuse_misfits` does in short, and draw a bar each time.
    level, has_bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft and we call transformers by names that it is about to change, which is no concern of the reader's.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers and safetensors raise their own kinds, which have nothing else in common
        reason = " ".join(str(error).split())[:300]
        if pointers := [file.name for file in Path(path).glob("*") if _is_pointer(file)]:
            reason = f"{', '.join(pointers)} only names a file of Git LFS; fetch it with `git lfs pull`"
        if isinstance(error, ImportError) and "flash" in reason.lower():
            reason += "; model.attention=auto takes flash attention only where it is installed"
        place = (
            f"model.base {path}: cannot be loaded as a model" if kind == "base" else f"adapter {path}: cannot be loaded"
        )
        raise UserError(f"{place}: {reason}") from error
    finally:
        reports.set_verbosity(level)
        if has_bars:
            reports.enable_progress_bar()


def _is_pointer(file: Path) -> bool:
    """Tell whether a file is what Git leaves in the place of one that Git LFS holds."""
    if not file.is_file() or file.stat().st_size > 1024:
        return False
    return file.read_bytes().startswith(b"version https://git-lfs")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw torch's random weights from a key and put the global generator back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(digest64(seed, "model") % 2**63)
        yield
