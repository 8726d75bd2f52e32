"""What a GPU computes in fewer kernels: LoRA as one autograd function of eight matrix products, layers by torch.compile.

peft computes LoRA from five modules, a scaled copy and a sum for each linear layer: on a GPU twice the kernels, and
thrice the memory traffic of the products. On the CPU peft's own forward stays: there the products are what takes time, and
their order decides the last bits of losses, which old runs must find again when they go on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer
from torch import nn

from arc_ray.errors import UserError
from arc_ray.models.attention import attends_at_once, reads_one_by_one, use_by_view

DEVICES = {"cuda"}
"""Types of device on which LoRA is fused."""


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
