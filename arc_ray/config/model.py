"""Which weights training starts from, and what is put around them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from arc_ray.config.section import KERNEL_FORM, ModelName, Section


class ScratchConfig(Section):
    """A small Llama, from random weights, with its own grid-and-text vocabulary."""

    hidden_size: int = Field(default=128, ge=8)
    """Width of the model: a multiple of 2 x heads."""
    layers: int = Field(default=4, ge=1)
    """Transformer layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of each layer."""
    intermediate_size: int = Field(default=384, ge=8)
    """Width of each layer's MLP."""

    @model_validator(mode="after")
    def _divides(self) -> "ScratchConfig":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 2 x heads = {2 * self.heads}")
        return self


class LoraConfig(Section):
    """Low-rank adapters (peft)."""

    r: int = Field(default=32, ge=1)
    """Rank."""
    alpha: int = Field(default=64, ge=1)
    """Scale: updates are multiplied by alpha / r (rsLoRA: alpha / sqrt(r))."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are zeroed in training."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the linear layers that get an adapter."""
    train_embeddings: Literal["none", "lora", "full"] = "none"
    """Let input embeddings and output layer learn as well: by an adapter of their own, or their own weights, which are few
    with `model.vocabulary`. Where one weight is both, it stays one. `train.embedding_lr` is their learning rate."""
    rslora: bool = False
    """Scale updates by alpha / sqrt(r), so that a larger rank needs no other learning rate."""
    dora: bool = False
    """Weight-decomposed adapters: slower, and vLLM does not serve them."""


HubKernel = Annotated[str, Field(pattern=KERNEL_FORM)]
"""Attention from a hub, as transformers names it: owner/name, a revision, a function."""


class ModelConfig(Section):
    """Which weights training starts from."""

    base: ModelName | None = None
    """Name, built in (smollm2) or of a hub (owner/name, perhaps @revision), obtained when needed into <storage>/models;
    folder; or "@run": the final checkpoint of a run named under `runs` or in the storage folder."""
    scratch: ScratchConfig | None = None
    """Instead of a base: a small model from random weights (use with train.full)."""
    vocabulary: Literal["cells"] | Annotated[list[str], Field(min_length=1)] | None = None
    """cells: leave out of the base every token that no prompt format, grid encoder or counting question can produce, or give
    texts whose tokens stay as well; null keeps the whole vocabulary. The base, cut, is made once, in <storage>/models."""
    quantize: Literal["nf4"] | None = None
    """nf4: hold the weights of the base's linear layers, but for the output layer, in 4 bits, and let an adapter learn upon
    them; needs `pip install 'arc_ray[quantize]'`. null takes the base as it is, also one that was quantized so before."""
    adapter: ModelName | None = None
    """An adapter to start from: folder or "@run"; null starts a new one."""
    adapter_use: Literal["continue", "merge"] = "continue"
    """Train the adapter further, or merge it into the base and start a new one."""
    lora: LoraConfig = LoraConfig()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the forward pass; "auto" is bfloat16 on GPUs that compute in it, else float32, and a run keeps what
    it began with. float16 diverged after an hour for others."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "flex_attention", "eager"] | HubKernel = "auto"
    """Attention implementation; "auto" takes flash_attention_2 where it is installed with a GPU, else sdpa, which
    computes nothing between two views unless the model's attention is windowed. A hub's kernel, such as
    kernels-community/flash-attn2, needs the package kernels."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about 30 % more time."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if self.base and self.scratch:
            raise ValueError("base and scratch exclude each other: set one of them to null")
        if self.scratch and self.vocabulary:
            raise ValueError("a model from scratch has a small vocabulary already: set vocabulary to null")
        if self.scratch and self.adapter:
            raise ValueError("an adapter belongs to a base; a model from scratch has none: set adapter to null")
        return self

    @property
    def called(self) -> str:
        """How a message names the model."""
        return f"model.base {self.base}" if self.base else "model.scratch"
