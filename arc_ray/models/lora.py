"""LoRA around a model: which layers and experts it reaches, what a GPU computes of it in fewer kernels, and tied embeddings.

peft computes LoRA from five modules, a scaled copy and a sum for each linear layer: on a GPU twice the kernels, and
thrice the memory traffic of the products. On the CPU peft's own forward stays: there the products are what takes time, and
their order decides the last bits of losses, which old runs must find again when they go on.

peft gives tied embeddings and output layer parameters that share memory: an optimizer would step it twice, ZeRO would part
them, and a merge would add both. Here the output layer computes with the embeddings' own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from arc_ray.config.model import LoraConfig
from arc_ray.config.training import TrainConfig
from arc_ray.errors import UserError
from arc_ray.models.build import ends_of, trainable_ends
from arc_ray.models.weights import compiled_when_called, is_quantized

with compiled_when_called():
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model
    from peft.tuners.lora.layer import Embedding, Linear, LoraLayer

DEVICES = {"cuda"}
"""Types of device on which LoRA is fused."""


def _targets(model: nn.Module, config: LoraConfig) -> tuple[str | list[str], list[str]]:
    """Return the names of the layers, and of the experts' weights, that an adapter is for. Raises UserError.

    The experts of a layer are one parameter of three dimensions, which no linear layer holds.
    """
    holders = [(name, layer) for name, layer in model.named_modules() if not isinstance(layer, nn.Conv1d)]
    stacks = [
        f"{holder}.{name}"
        for holder, layer in holders
        for name, w in layer._parameters.items()
        if w is not None and w.ndim == 3
    ]
    endings = sorted({".".join(name.split(".")[-2:]) for name in stacks})
    if config.targets == "all-linear":
        layers, experts = config.targets, endings
        if config.train_embeddings == "lora":  # peft's "all-linear" spares the output layer
            layers = [
                name for name, layer in holders if isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
            ]
    else:
        experts = [ending for ending in endings if {ending, ending.split(".")[-1]} & {*config.targets}]
        layers = [name for name in config.targets if not any(name in (e, e.split(".")[-1]) for e in experts)]
    if experts and (config.dropout or config.dora):
        raise UserError(
            f"model.lora.{'dora' if config.dora else 'dropout'} does not go with experts, whose weights are one tensor"
            f" ({', '.join(experts)}): set it to {'false' if config.dora else 0}, or name layers without experts in"
            f" model.lora.targets"
        )
    return layers, experts


def with_lora(model: Any, config: LoraConfig) -> nn.Module:
    """Put a new adapter around a model that has none, freeze what is inside, and let embeddings learn as the config says.

    Raises UserError.
    """
    if not hasattr(model, "peft_config"):
        model = _with_new_lora(model, config)
    elif config.train_embeddings == "lora" and not trainable_ends(model):
        raise UserError(
            "model.lora.train_embeddings lora: the adapter that is continued has none of embeddings; merge it and start a new"
            " one (model.adapter_use=merge, evaluate.ttt.adapter=new), or set train_embeddings to full"
        )
    if config.train_embeddings == "full":
        for end in ends_of(model):
            if isinstance(end, LoraLayer):
                raise UserError(
                    "model.lora.train_embeddings full: embeddings or output layer have an adapter already; set it to lora, or"
                    " leave them out of model.lora.targets"
                )
            end.weight.requires_grad_(True)
    return model


def _with_new_lora(model: Any, config: LoraConfig) -> nn.Module:
    layers, experts = _targets(model, config)
    ends = ends_of(model)
    names_of_ends = [name for name, layer in model.named_modules() if layer in ends]
    if config.train_embeddings == "lora":
        layers = sorted({*layers, *names_of_ends})
    reached = [name for name in names_of_ends if {name, name.rsplit(".", 1)[-1]} & {*layers}]
    is_tied = ends[0].weight is ends[1].weight and bool(reached)
    if is_tied and config.dora:
        raise UserError(
            "model.lora.dora: embeddings that are the output layer have one adapter, but would have two magnitudes; set it to"
            " false, or leave embeddings and output layer out of model.lora.targets and train_embeddings"
        )
    about = PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=layers,
        target_parameters=experts or None,
        use_rslora=config.rslora,
        use_dora=config.dora,
        # One weight that is read at both ends of a model gets one adapter there.
        ensure_weight_tying=is_tied,
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


def check_engine(model: Any, train: TrainConfig) -> None:
    """Refuse ways of training that would not reach a part of what is trained. Raises UserError."""
    layers = [type(layer).__name__ for layer in model.modules()]
    for key, is_so, reason in (
        ("train.full", train.full, "a step of training is smaller than what 4 bits tell apart: train an adapter"),
        ("train.zero_stage 3", train.zero == 3, "it shards weights of one dtype, not packed ones: set it to 0, 1 or 2"),
        (
            "train.engine trl",
            train.engine == "trl",
            "its Trainer refuses such a base without a GPU: set it to deepspeed",
        ),
    ):
        if is_so and is_quantized(model):
            raise UserError(f"{key} does not go with a base of 4 bits (model.quantize): {reason}")
    if train.engine == "trl" and "lora_A" in dict(model.get_output_embeddings().named_children()):
        raise UserError(
            "train.engine=trl reads the output layer's weight without its adapter: leave the output layer (and embeddings"
            " that are one with it) out of model.lora.targets, set model.lora.train_embeddings to full or none, or set"
            " train.engine=deepspeed"
        )
    if train.embedding_lr and not trainable_ends(model):
        raise UserError(
            "train.embedding_lr: no embeddings are trained; set model.lora.train_embeddings to lora or full"
        )
    for kind, what in (("TiedHead", "embeddings that are the output layer"), ("ParamWrapper", "experts")):
        if train.zero == 3 and kind in layers:
            raise UserError(
                f"train.zero_stage 3 gathers a layer's weights when it is called, which an adapter of {what} does not wait"
                f" for: set train.zero_stage to 0, 1 or 2, or leave them out of model.lora.targets and train_embeddings"
            )


class LoraProducts(torch.autograd.Function):
    """x W' + bias + scale (x A') B', for a frozen W: three products forwards and five backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Compute (..., out) from x (..., in), weight (out, in), a (rank, in) and b (out, rank), all of one dtype."""
        flat = x.flatten(0, -2)
        low = flat @ a.t()
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale = scale
        return _plus(nn.functional.linear(flat, weight, bias), low, b.t(), scale).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        """Compute the gradients of x, a and b."""
        x, low, weight, a, b = ctx.saved_tensors
        flat, grad = x.flatten(0, -2), grads[0].flatten(0, -2)
        grad_low = grad @ b
        # With beta=0 the first argument of addmm is not read: only a product is left, and its scale.
        grad_a = torch.addmm(a, grad_low.t(), flat, beta=0, alpha=ctx.scale)
        grad_b = torch.addmm(b, grad.t(), low, beta=0, alpha=ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _plus(grad @ weight, grad_low, a, ctx.scale).unflatten(0, x.shape[:-1])
        return grad_x, None, None, grad_a, grad_b, None


def _plus(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """Add scale (left right) to a total that nobody else holds: in place, or as torch.compile can fuse it with what follows."""
    if torch.compiler.is_compiling():
        return total + scale * (left @ right)
    return total.addmm_(left, right, alpha=scale)


class FusedLinear(Linear):
    """peft's LoRA layer, computed by `LoraProducts` where that is the same; elsewhere as peft does."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute what peft's layer does, in the dtype of x: (..., in) -> (..., out)."""
        base: Any = self.base_layer
        if args or kwargs or not self._is_plain(x, base.weight):
            return super().forward(x, *args, **kwargs)
        name = self.active_adapters[0]
        # peft keeps adapters in float32 beside a bfloat16 base: products in float32 would take ten times as long.
        a, b = (layers[name].weight.to(x.dtype) for layers in (self.lora_A, self.lora_B))
        return LoraProducts.apply(x, base.weight, base.bias, a, b, self.scaling[name])  # pyright: ignore

    def _is_plain(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        """Tell whether this is one unmerged LoRA without dropout on a frozen linear layer, and weights can be read."""
        names = self.active_adapters
        return (
            x.device.type in DEVICES
            and not (self.disable_adapters or self.merged or weight.requires_grad)
            and len(names) == 1
            and names[0] in self.lora_A
            and not (names[0] in self.lora_variant or self.lora_bias[names[0]])
            and isinstance(self.lora_dropout[names[0]], nn.Identity)
            and x.dtype == weight.dtype
            and not torch.is_autocast_enabled(x.device.type)
            # ZeRO 3 gathers a shard when its own module is called, which reading `.weight` is not.
            and not hasattr(weight, "ds_id")
        )


class TiedHead(FusedLinear):
    """The LoRA of an output layer whose weight is the embeddings': it has their adapter, and is merged when they are."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Note that the weight, which is the embeddings', has the adapter in it."""
        self.merged_adapters = [name for name in adapter_names or self.active_adapters if name in self.lora_A]


class Transposed(nn.Module):
    """A product with a matrix that is another module's parameter, transposed."""

    def __init__(self, holder: nn.ParameterDict, name: str) -> None:
        super().__init__()
        self._holder, self._name = [holder], name  # in a list it is no part of this module

    @property
    def weight(self) -> torch.Tensor:
        """The matrix of the product: (out, in)."""
        return self._holder[0][self._name].t()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute (..., in) -> (..., out)."""
        return nn.functional.linear(x, self.weight)


def fuse_lora(model: nn.Module) -> None:
    """Let the LoRA layers of a model compute by `FusedLinear` or `TiedHead`; names, and what is saved, stay peft's."""
    for layer in model.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear:
            layer.__class__ = FusedLinear
    embeddings = {layer.weight: layer for layer in model.modules() if isinstance(layer, Embedding)}
    for head in model.modules():
        if isinstance(head, FusedLinear) and (ends := embeddings.get(head.weight)):
            head.__class__ = TiedHead
            for name in head.lora_A:
                head.lora_A[name] = Transposed(ends.lora_embedding_B, name)
                head.lora_B[name] = Transposed(ends.lora_embedding_A, name)


def with_tied(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add to trained weights, whole and by name, those that a tied output layer has in peft's files."""
    paths = {layer: path for path, layer in model.named_modules()}
    shared = {
        f"{paths[part]}.weight": f"{paths[part._holder[0]]}.{part._name}"
        for part in paths
        if isinstance(part, Transposed)
    }
    found = {name: weights[source].t().contiguous() for name, source in shared.items() if source in weights}
    return {**weights, **found}


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Let a model compute with its adapter merged into its weights, which takes no kernel more than a model without one.

    Afterwards a copy is put back, free of rounding. Weights stay where they are in memory, for recorded CUDA graphs.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    weights = {weight for layer in layers for weight in layer.get_base_layer().parameters()}
    with torch.no_grad():
        kept = {weight: (weight.data, weight.clone()) for weight in weights}
        try:
            for layer in layers:
                layer.merge()
            for weight, (place, _) in kept.items():
                weight.data = place.copy_(weight)  # DoRA makes a new tensor
            yield
        finally:
            for layer in layers:
                layer.merged_adapters.clear()
            for weight, (place, own) in kept.items():
                weight.data = place.copy_(own)
