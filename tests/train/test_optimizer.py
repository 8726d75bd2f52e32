"""Optimizers: what they step, and that what they remember survives being written down to the last bit."""

from typing import Any

import pytest
import torch
from builders import config_with, tiny_model, tiny_tokenizer
from torch import nn

from arc_ray.config.training import TrainConfig
from arc_ray.errors import UserError
from arc_ray.models.build import ends_of, matrices, trainable
from arc_ray.storage import Folder
from arc_ray.train.checkpoint import CheckpointWriter, read_state
from arc_ray.train.optimizer import MOMENTS, MOMENTUM, make_optimizer, moments_in, remembered

IDS = torch.arange(24).reshape(2, 12) + 3


def stepped(model: Any, optimizer: torch.optim.Optimizer, steps: int = 3) -> Any:
    for _ in range(steps):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def refreshed(model: Any, optimizer: torch.optim.Optimizer, train: TrainConfig, step: int) -> torch.optim.Optimizer:
    """A new optimizer with what the old one remembers, through float32."""
    fresh = make_optimizer(model, train)
    for parameter in trainable(model).values():
        moments = {kind: moment.clone() for kind, moment in moments_in(optimizer.state[parameter]).items()}
        assert all(m.shape == parameter.shape and m.dtype == torch.float32 for m in moments.values())
        fresh.state[parameter] = remembered(fresh, parameter, moments, step)
    return fresh


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "muon"])
def test_what_an_optimizer_remembers_goes_through_float32_to_the_last_bit(kind: Any):
    """Would catch moments of 8 bits that are quantized anew, a little otherwise, whenever a run goes on."""
    train = TrainConfig(optimizer=kind, lr=1e-2, weight_decay=0.1)
    ends = []
    for goes_on in (False, True):
        model = tiny_model(hidden_size=64)
        optimizer = make_optimizer(model, train)
        stepped(model, optimizer)
        if goes_on:
            before, optimizer = optimizer, refreshed(model, optimizer, train, 3)
            for p in trainable(model).values():
                old, new = moments_in(before.state[p]), moments_in(optimizer.state[p])
                assert all(torch.equal(old[kind].view(torch.int32), new[kind].view(torch.int32)) for kind in old)
        ends.append(stepped(model, optimizer))
    for first, second in zip(*(trainable(model).values() for model in ends), strict=True):
        assert torch.equal(first, second)


def test_blocks_of_8_bits_are_found_again_whatever_is_largest_in_them():
    """Would catch a scale that is lost where a block's largest number is negative (its code is not -1), or where all are 0."""
    weight = nn.Parameter(torch.zeros(17, 300))
    train = TrainConfig(optimizer="adamw_8bit")
    model = nn.Module()
    model.weight = weight
    model.get_input_embeddings = model.get_output_embeddings = lambda: nn.Identity()  # pyright: ignore
    optimizer = make_optimizer(model, train)
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        gradient = torch.randn(weight.shape, generator=generator) * 10.0 ** (number % 7 - 6)
        gradient.view(-1)[:256] = -gradient.view(-1)[:256].abs()
        gradient.view(-1)[1024:1400] = 0
        weight.grad = gradient
        optimizer.step()
        state = optimizer.state[weight]
        assert state["state1"].dtype == torch.uint8
        found = remembered(optimizer, weight, moments_in(state), number + 1)
        is_zero = state["absmax1"].repeat_interleave(256)[: weight.numel()].view_as(weight) == 0
        assert is_zero.any()
        for key in ("state1", "state2"):
            assert torch.equal(found[key][~is_zero], state[key][~is_zero])
        for key in ("absmax1", "absmax2"):
            assert torch.equal(found[key].view(torch.int32), state[key].view(torch.int32))


def test_moments_of_8_bits_are_nearly_those_of_32():
    """Would catch a map of codes that belongs to the other moment."""
    both = []
    for kind in ("adamw", "adamw_8bit"):
        model = tiny_model(hidden_size=64)
        optimizer = make_optimizer(model, TrainConfig(optimizer=kind, lr=1e-6))
        stepped(model, optimizer)
        both.append([moments_in(optimizer.state[p]) for p in trainable(model).values()])
    for exact, found in zip(*both, strict=True):
        for kind in MOMENTS:
            assert (found[kind] - exact[kind]).norm() < 0.03 * exact[kind].norm()


def test_muon_steps_matrices_and_adamw_the_rest():
    """Would catch embeddings or norms that are orthogonalized, groups left out, and another decay or rate than the config's."""
    train = TrainConfig(optimizer="muon", lr=1e-2, embedding_lr=1e-3, weight_decay=0.1)
    model, alone = tiny_model(), tiny_model()
    stepped(model, make_optimizer(model, train))
    inner = [p for p in alone.parameters() if p.ndim == 2 and p is not ends_of(alone)[0].weight]
    assert len(inner) == len(matrices(alone)) == 2 * 7
    parts = [
        torch.optim.Muon(inner, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([ends_of(alone)[0].weight], lr=1e-3, betas=train.betas, weight_decay=0.1),
        torch.optim.AdamW([p for p in alone.parameters() if p.ndim == 1], lr=1e-2, betas=train.betas, weight_decay=0.1),
    ]
    for _ in range(3):
        alone(IDS, labels=IDS).loss.backward()
        for part in parts:
            part.step()
        alone.zero_grad()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(trainable(model)[name], parameter, msg=name)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_muon_takes_whole_matrices(stage: Any):
    """Would catch an orthogonalized part of a flat tensor, which is nobody's matrix."""
    with pytest.raises(
        ValueError, match=f"muon needs whole matrices, which zero_stage {stage} cuts .*: set it to 0 or auto"
    ):
        TrainConfig(optimizer="muon", zero_stage=stage)
    assert TrainConfig(optimizer="muon", full=True).zero == 0
    with pytest.raises(ValueError, match="offload needs something to move"):
        TrainConfig(optimizer="muon", offload=True)


def test_moments_of_another_optimizer_are_refused():
    model = tiny_model()
    weight = trainable(model)["model.layers.0.mlp.up_proj.weight"]
    others: Any = (("adamw", {MOMENTUM: weight}), ("muon", dict.fromkeys(MOMENTS, weight)))
    for kind, moments in others:
        with pytest.raises(UserError, match=r"are not those of train\.optimizer"):
            remembered(make_optimizer(model, TrainConfig(optimizer=kind)), weight, moments, 1)


def test_a_checkpoint_of_muon_is_whole_or_damaged(tmp_path: Any):
    """Would catch a checkpoint whose one moment is taken for two that were lost, and one that lost it."""
    model, train = tiny_model(), TrainConfig(optimizer="muon", lr=1e-2)
    optimizer = make_optimizer(model, train)
    stepped(model, optimizer)
    state = {f"weight.{name}": p.detach() for name, p in trainable(model).items()}
    for name, p in trainable(model).items():
        state |= {f"{kind}.{name}": moment for kind, moment in moments_in(optimizer.state[p]).items()}
    assert any(name.startswith(MOMENTUM) for name in state)
    folder = Folder.at(str(tmp_path))
    writer = CheckpointWriter(folder, config_with(train__full=True), model, tiny_tokenizer())
    writer.write(1, state)
    lost = f"{MOMENTUM}.model.layers.0.mlp.up_proj.weight"
    writer.write(2, {name: tensor for name, tensor in state.items() if name != lost})
    writer.wait()
    read = read_state(folder, 1)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
    with pytest.raises(UserError, match=r"exp_avg\.model\.layers\.0\.mlp\.up_proj\.weight is missing"):
        read_state(folder, 2)
