"""Products with weights by oneDNN on a CPU, where PyTorch takes MKL, which leaves half of an AMD processor idle."""

from functools import partial
from typing import Any

import torch
from torch import nn


def use_onednn(model: Any) -> Any:
    """Let the linear layers of a float32 model on a CPU multiply by oneDNN, for inference only; return the model.

    Sums round in another order, so logits differ by a few float32 roundings.
    """
    if torch.backends.mkldnn.is_available():
        for module in model.modules():
            if (
                type(module) is nn.Linear
                and module.weight.dtype == torch.float32
                and module.weight.device.type == "cpu"
            ):
                setattr(module, "forward", partial(_multiply, module))  # noqa: B010 (a type checker knows a method)
    return model


def _multiply(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, layer.weight, layer.bias, "none", [], "")
