"""Optimizers: AdamW with moments of 32 or 8 bits, or Muon for matrices; and what they remember, as float32 and back."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from arc_ray.config.training import TrainConfig
from arc_ray.errors import UserError
from arc_ray.models.build import matrices, trainable, trainable_ends

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's first and second moments, as torch.optim.AdamW names them."""
MOMENTUM = "momentum_buffer"
"""Muon's only moment, of a matrix."""
BLOCK_8BIT = 256
"""Numbers that bitsandbytes keeps by one scale, wherever a tensor's rows end."""


def check_optimizer(train: TrainConfig) -> None:
    """Refuse an optimizer whose package is not here. Raises UserError."""
    if train.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("train.optimizer adamw_8bit needs the package bitsandbytes: pip install 'arc_ray[quantize]'")


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimizer over the trainable parameters; all of them decay alike (an adapter has no biases or norms)."""
    groups = groups_of(model, train)
    about: dict[str, Any] = {"betas": train.betas, "weight_decay": train.weight_decay}
    match train.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, **about)
        case "adamw_8bit":
            from bitsandbytes.optim.adamw import AdamW8bit  # an extra

            return AdamW8bit(groups, **about)
        case "muon":
            return MuonAndAdamW(groups, **about)


def groups_of(model: nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """Divide the trainable parameters into those that are stepped alike; the highest learning rate of each is `peak_lr`."""
    ends = trainable_ends(model) if train.embedding_lr else set()
    orthogonal = matrices(model) if train.optimizer == "muon" else set()
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in trainable(model).values():
        rate = train.embedding_lr if train.embedding_lr and parameter in ends else train.lr
        found.setdefault((rate, parameter in orthogonal), []).append(parameter)
    # Those of the usual rate are first: trl logs the first one's.
    in_order = sorted(found.items(), key=lambda item: item[0][0] != train.lr)
    return [{"params": p, "lr": lr, "peak_lr": lr, "is_orthogonal": is_so} for (lr, is_so), p in in_order]


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon for the groups that are `is_orthogonal`, its AdamW for others; both see the same groups and state.

    Muon's steps are as long as AdamW's, so that both have one learning rate (Liu et al., "Muon is Scalable for LLM
    Training", 2025).
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], weight_decay: float) -> None:
        apart = [[group for group in groups if group["is_orthogonal"] == is_so] for is_so in (True, False)]
        self._parts: list[torch.optim.Optimizer] = []
        if apart[0]:
            self._parts.append(torch.optim.Muon(apart[0], weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
        if apart[1]:
            self._parts.append(torch.optim.AdamW(apart[1], betas=betas, weight_decay=weight_decay))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        for part in self._parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Step all parameters that have a gradient."""
        assert closure is None
        for part in self._parts:
            part.step()


def moments_in(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return what an optimizer remembers of a tensor, of its shape, in float32, by kind: MOMENTS or MOMENTUM.

    Of 8 bits it is told so that `remembered` finds the same ones: a block's largest number shows its scale, for which the
    lowest code, which stands for -0.993 of it, is read as -1.
    """
    if "state1" not in state:
        return {kind: state[kind] for kind in (*MOMENTS, MOMENTUM) if kind in state}
    found = {}
    for number, kind in enumerate(MOMENTS, 1):
        codes = state[f"state{number}"]
        if codes.dtype == torch.uint8:
            values, scales = state[f"qmap{number}"].clone(), state[f"absmax{number}"].repeat_interleave(BLOCK_8BIT)
            values[0] = values[0].sign()
            codes = values[codes.int()] * scales[: codes.numel()].view_as(codes) + 0.0  # no -0.0
        found[kind] = codes
    return found


def remembered(
    optimizer: torch.optim.Optimizer, weight: torch.Tensor, moments: Mapping[str, torch.Tensor], step: int
) -> dict[str, Any]:
    """Return an optimizer's state of a tensor after `step` steps from its moments. Raises UserError for another's moments."""
    moments = {kind: moment.to(weight.device) for kind, moment in moments.items()}
    is_muons = any(weight is p for group in optimizer.param_groups if group["is_orthogonal"] for p in group["params"])
    if moments.keys() != ({MOMENTUM} if is_muons else {*MOMENTS}):
        raise UserError(f"the checkpoint's moments ({', '.join(moments)}) are not those of train.optimizer")
    if is_muons:
        return dict(moments)
    if not hasattr(optimizer, "name2qmap"):
        return {"step": torch.tensor(float(step)), **moments}
    state: dict[str, Any] = {"step": step}
    own: Any = optimizer
    for number, (kind, name) in enumerate(zip(MOMENTS, ("dynamic", "udynamic"), strict=True), 1):
        state[f"state{number}"] = moments[kind]
        if weight.numel() >= own.args.min_8bit_size:
            qmap = own.name2qmap[name].to(weight.device)
            codes, scales = _quantized(moments[kind], qmap)
            state |= {f"state{number}": codes, f"absmax{number}": scales, f"qmap{number}": qmap}
    return state


def _quantized(moment: torch.Tensor, qmap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest codes of a moment, uint8 of its shape, and the scale of each block.

    bitsandbytes' own function looks small numbers up in a coarse table: it would not find the codes that they came from.
    """
    flat = moment.flatten()
    blocks = nn.functional.pad(flat, (0, -flat.numel() % BLOCK_8BIT)).view(-1, BLOCK_8BIT)
    scales = blocks.abs().amax(1)
    shares = (blocks.double() / scales.double()[:, None]).nan_to_num()  # a block of zeros has a scale of 0
    codes = torch.bucketize(shares, (qmap[1:].double() + qmap[:-1].double()) / 2)
    return codes.to(torch.uint8).flatten()[: flat.numel()].view_as(moment), scales
