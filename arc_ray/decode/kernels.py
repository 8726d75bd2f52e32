"""Passes of a model that cost less than PyTorch's own: as a CUDA graph on a GPU, by oneDNN's products on a CPU.

A graph records the kernels of a pass once and starts them together from then on.
"""

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn

Forward = Callable[[torch.Tensor], torch.Tensor]

WAITING_ROPES = ("dynamic", "longrope")
"""Position embeddings that ask the device for the longest row."""


def can_replay(model: Any) -> bool:
    """Tell whether a model runs on a GPU, the same kernels whatever its tokens are."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    return (
        next(model.parameters()).is_cuda
        and model._can_compile_fullgraph
        and rope.get("rope_type", "default") not in WAITING_ROPES
    )


def recorded(run: Forward, inputs: torch.Tensor) -> Forward:
    """Record a pass that has run once; return it as it is, with a warning, if it cannot be recorded."""
    try:
        return Recording(run, inputs)
    except RuntimeError as error:
        warnings.warn(f"writing answers is slower than it could be: no CUDA graph of a pass ({error})", stacklevel=2)
        return run


@cache
def _stream() -> torch.cuda.Stream:
    """Return the stream that graphs are recorded on: one, because cuBLAS keeps memory for each."""
    return torch.cuda.Stream()


class Recording:
    """A function of a tensor of one shape, recorded by calling it; it must have been called before, and never wait."""

    def __init__(self, run: Forward, like: torch.Tensor) -> None:
        self._inputs, self._graph = like.clone(), torch.cuda.CUDAGraph()
        _stream().wait_stream(torch.cuda.current_stream())
        # Not by torch.cuda.graph, which empties the allocator's cache each time.
        with torch.cuda.stream(_stream()):
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._outputs = run(self._inputs)
            finally:
                self._graph.capture_end()
        torch.cuda.current_stream().wait_stream(_stream())

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what the function does of other values, in memory that the next call writes over."""
        self._inputs.copy_(inputs)
        self._graph.replay()
        return self._outputs


def use_onednn(model: Any) -> Any:
    """Let the linear layers of a float32 model on a CPU multiply by oneDNN, for inference only; return the model.

    PyTorch takes MKL, which leaves half of an AMD processor idle. Sums round in another order, so logits differ by a few
    float32 roundings.
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
