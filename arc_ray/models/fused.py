"""LoRA on a GPU: one autograd function of eight matrix products in the place of the modules that peft calls one by one.

peft computes the same from five modules, a scaled copy and a sum for each linear layer: on a GPU twice the kernels, and
thrice the memory traffic of the products. On the CPU peft's own forward stays: there the products are what takes time, and
their order decides the last bits of losses, which old runs must find again when they go on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer
from torch import nn

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


def fuse_lora(model: nn.Module) -> None:
    """Let the LoRA layers of a model compute by `FusedLinear`; names, weights and what is saved stay peft's."""
    for layer in model.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear:
            layer.__class__ = FusedLinear


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Let a model compute with its adapter merged into its weights, which takes no kernel more than a model without one.

    Afterwards a copy is put back: an adapter that is subtracted again would leave rounding. Weights stay where they are in
    memory, for CUDA graphs that were recorded of the model.
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
