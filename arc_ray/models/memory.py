"""What fits: the bytes one training worker needs. The very model is run forwards and backwards on tensors that have
shapes but no memory (torch's FakeTensorMode), and the bytes that are alive at each moment are counted."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arc_ray.config.training import GRADIENT_BUCKET
from arc_ray.models.attention import Spans, hidden_states, packs
from arc_ray.models.build import matrices, trainable
from arc_ray.models.weights import is_in_4_bits

RUNTIME_BYTES = int(1.2e9)
"""What a GPU worker needs besides: CUDA's context and libraries (0.5 GB), NCCL's buffers, and memory that the allocator
holds in pieces too small. An assumption; the rest is computed."""

STAGES = (0, 1, 2, 3)
MOMENTS_BYTES = {"adamw": 8, "adamw_8bit": 2 + 8 / 256, "muon": 4}
"""What an optimizer remembers of a trained weight: two moments in float32, or in 8 bits with a scale of 256 numbers, or, of
a matrix that Muon steps, one."""
MASTER_BYTES = 4
"""ZeRO's own copy of a trained weight, or of its gradient while the optimizer steps, float32."""
PACKED_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight of 4 bits, with the scales of 64 weights in 8 bits and of 256 scales in float32."""
LIVE_WEIGHTS = 10**9
"""DeepSpeed's stage3_max_live_parameters."""
RECURRENT_TOKENS = 256
"""Tokens of the parts of a row that a model with recurrent layers is run over."""
COMPILED_SHARE = 0.77
"""Share of the activations that compiled layers keep, as fused ones are computed again: 0.74 to 0.80 on an H100."""


@dataclass(frozen=True)
class Pass:
    """Bytes alive at the highest moment of a forward and backward pass; weights and their gradients apart."""

    activations: int
    """Without logits."""
    logits: int
    """What computing logits and loss at all learned positions adds to that."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that one worker needs, by what for."""

    weights: int
    gradients: int
    optimizer: int
    """Moments, and the float32 master weights that ZeRO keeps."""
    activations: int
    logits: int
    step: int
    """What the optimizer's step needs in passing, when activations and logits are gone."""

    @property
    def total(self) -> int:
        """The peak: during a pass, or during the optimizer's step."""
        return self.weights + self.gradients + self.optimizer + max(self.activations + self.logits, self.step)


def footprint(
    skeleton: nn.Module,
    found: Pass,
    stage: int,
    workers: int,
    offload: bool = False,
    is_compiled: bool = False,
    optimizer: str = "adamw",
) -> Footprint:
    """Add up what one worker holds; what is sharded at which ZeRO stage is from Rajbhandari et al., 2020, figure 1.

    At stage 3, with more than one worker, the whole weights are there during a pass besides the shard, up to the 10^9 that
    DeepSpeed lets live. `is_compiled` tells whether layers are compiled and keep more than their inputs.
    tests/benchmarks/bench_memory.py compares with what DeepSpeed really takes.
    """
    tensors = list(skeleton.parameters())
    trained = list(trainable(skeleton).values())
    size, packed = tensors[0].element_size(), [p.numel() for p in tensors if is_in_4_bits(p)]
    weights, gradients = sum(p.nbytes for p in tensors), sum(p.nbytes for p in trained)
    weights -= int(sum(packed) * (size - PACKED_BYTES))
    shards = workers if stage > 0 else 1
    own = sum(p.numel() for p in trained) // shards
    is_elsewhere = offload and stage > 0
    # ZeRO's step flattens the gradients, makes them float32 and hands them to Adam, which makes one tensor more.
    passing = MASTER_BYTES if stage == 0 else size + MASTER_BYTES * (1 if size == MASTER_BYTES else 2)
    masters = own * MASTER_BYTES if stage > 0 or size < MASTER_BYTES else 0
    if stage == 3 and workers > 1:
        weights = min(weights, LIVE_WEIGHTS * size) + (0 if is_elsewhere else weights // workers)
    if stage >= 2:
        gradients = min(gradients, own * size + GRADIENT_BUCKET * size)
    return Footprint(
        weights=weights,
        gradients=gradients,
        optimizer=0 if is_elsewhere else moments_bytes(skeleton, optimizer) // shards + masters,
        # A weight of 4 bits is unpacked whenever it is multiplied by.
        activations=int(found.activations * (COMPILED_SHARE if is_compiled else 1)) + max(packed, default=0) * size,
        logits=found.logits,
        step=0 if is_elsewhere else own * passing,
    )


def moments_bytes(skeleton: nn.Module, optimizer: str) -> int:
    """Return the bytes of what an optimizer remembers of all that is trained."""
    exempt = {*trainable(skeleton).values()} - matrices(skeleton) if optimizer == "muon" else set()
    sizes = (p.numel() * MOMENTS_BYTES["adamw" if p in exempt else optimizer] for p in trainable(skeleton).values())
    return int(sum(sizes))


def rows_that_fit(held: Footprint, rows: int, capacity: int) -> int:
    """Return how many rows at once fit into a GPU of `capacity` bytes, where `rows` at once need what `held` says."""
    fixed = held.weights + held.gradients + held.optimizer + RUNTIME_BYTES
    if fixed + held.step > capacity:
        return 0
    return (capacity - fixed) * rows // max(held.activations + held.logits, 1)


def simulate_pass(skeleton: Any, rows: int, row_tokens: int, learned: int) -> Pass:
    """Run a model of the meta device over fake rows; `learned` is the number of learned tokens in all rows together.

    Recurrent layers, which take minutes, are run over one and two parts of a row: each further one adds what the second does.
    """
    parts = 1 if packs(skeleton) else max(row_tokens // RECURRENT_TOKENS, 1)
    of_parts = [
        _peaks_of_layers(skeleton, rows, n * row_tokens // parts, max(n * learned // parts, 1))
        for n in range(1, 3)[:parts]
    ]
    activations, whole = of_parts[0] + (parts - 1) * (of_parts[-1] - of_parts[0])
    return Pass(int(activations), int(whole - activations))


def _peaks_of_layers(skeleton: Any, rows: int, row_tokens: int, learned: int) -> npt.NDArray[np.int64]:
    """Return the highest numbers of bytes alive during a pass: without logits and what is made of them, and of all.

    Of many layers that are alike only the first two and three are run: each further one adds what the third does. Where
    layers of several kinds take turns, one turn and two are.
    """
    decoder = skeleton.get_decoder()
    layers = getattr(decoder, "layers", ())
    turn = _turn([_shapes(layer) for layer in layers])
    turns, rest = divmod(len(layers), turn)
    few = 2 if turn == 1 else 1
    if turns < few + 2:
        return _peaks(skeleton, rows, row_tokens, learned)
    try:
        decoder.layers = layers[: few * turn + rest]
        peaks = _peaks(skeleton, rows, row_tokens, learned)
        decoder.layers = layers[: (few + 1) * turn + rest]
        return peaks + (turns - few) * (_peaks(skeleton, rows, row_tokens, learned) - peaks)
    finally:
        decoder.layers = layers


def _turn(kinds: Sequence[Any]) -> int:
    """Return after how many layers their kinds come again; 1 where all are alike."""
    alike = (n for n in range(1, len(kinds)) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))
    return next(alike, max(len(kinds), 1))


def _shapes(layer: nn.Module) -> tuple[Any, ...]:
    return tuple((name, weight.shape, weight.requires_grad) for name, weight in layer.named_parameters())


def _peaks(skeleton: Any, rows: int, row_tokens: int, learned: int) -> npt.NDArray[np.int64]:
    with FakeTensorMode(), _experts_multiplied(), _fake_weights(skeleton) as weights, _LiveBytes(weights) as live:
        for weight in trainable(skeleton).values():
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))  # counted apart
        ids, places = (torch.zeros(rows, row_tokens, dtype=torch.long) for _ in range(2))
        spans = Spans([[row_tokens]] * rows, row_tokens * torch.arange(rows + 1))
        hidden = hidden_states(skeleton, ids, places, spans)
        hidden.register_hook(live.end_of_head)
        live.is_in_head = True
        index = torch.zeros(learned, dtype=torch.long)
        logits = skeleton.get_output_embeddings()(hidden.flatten(0, 1).index_select(0, index)).float()
        loss = nn.functional.cross_entropy(logits, index, reduction="none").sum()
        del hidden, logits
        loss.backward()
    return np.array([live.peak_without_head, live.peak])


@contextmanager
def _experts_multiplied() -> Iterator[None]:
    """Let experts be multiplied by transformers' own operator: PyTorch's takes no fake tensors but of bfloat16."""
    from transformers.integrations import moe

    chosen, moe._can_use_grouped_mm = moe._can_use_grouped_mm, lambda *_: False
    try:
        yield
    finally:
        moe._can_use_grouped_mm = chosen


@contextmanager
def _fake_weights(skeleton: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Put fake tensors in the place of a model's meta tensors and yield them; then put back what was there."""
    tables: list[dict[str, Any]] = [t for module in skeleton.modules() for t in (module._parameters, module._buffers)]
    before = [dict(table) for table in tables]
    made: dict[int, Any] = {}
    for table in tables:
        for name, old in table.items():
            if old is not None and id(old) not in made:
                new = torch.empty(old.shape, dtype=old.dtype)
                made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            table[name] = made.get(id(old))
    try:
        yield list(made.values())
    finally:
        for table, old in zip(tables, before, strict=True):
            table.update(old)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations have made, and that something still holds; weights apart."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self.peak = self.peak_without_head = 0
        self.is_in_head = False
        """Whether what is made now belongs to the output layer and the loss."""
        self._now = self._of_head = 0
        self._bytes: dict[int, int] = {}
        self._head: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)):
            if storage._cdata not in self._bytes and storage._cdata not in self._weights:
                self._bytes[storage._cdata] = size = storage.nbytes()
                self._now += size
                if self.is_in_head:
                    self._head.add(storage._cdata)
                    self._of_head += size
                self._look()
                weakref.finalize(storage, self._forget, storage._cdata)
        return found

    def end_of_head(self, gradient: torch.Tensor) -> None:
        """Go on with the layers: backwards, from the gradient of their output."""
        self.is_in_head = False
        self._leave_head(gradient.untyped_storage()._cdata)
        self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, self._now)
        self.peak_without_head = max(self.peak_without_head, self._now - self._of_head)

    def _leave_head(self, key: int) -> None:
        if key in self._head:
            self._head.remove(key)
            self._of_head -= self._bytes[key]

    def _forget(self, key: int) -> None:
        self._leave_head(key)
        self._now -= self._bytes.pop(key)
