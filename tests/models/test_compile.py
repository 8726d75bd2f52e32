"""Layers that torch.compile has fused compute what they did."""

from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_model
from torch import nn

from arc_ray.config.model import LoraConfig
from arc_ray.errors import UserError
from arc_ray.models import lora
from arc_ray.models.build import trainable
from arc_ray.models.lora import with_lora
from arc_ray.models.loss import LearnedLoss, inputs_of
from arc_ray.models.supported import compile_layers
from arc_ray.models.weights import compiled_when_called

pytestmark = pytest.mark.slow


@pytest.fixture
def fresh() -> Any:
    """Nothing that was compiled before, and nothing left of it."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.compiler.config.patch(dynamic_sources=""):  # pyright: ignore[reportAttributeAccessIssue]
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh")
def test_compiled_layers_have_the_same_losses_and_gradients(monkeypatch: pytest.MonkeyPatch):
    """Would catch a layer that is cut into pieces by what cannot be traced, and fused arithmetic that is another one."""
    monkeypatch.setattr(lora, "DEVICES", {"cpu"})
    model: Any = with_lora(tiny_model(layers=2), LoraConfig(r=4, alpha=8))
    for name, weight in trainable(model).items():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    ids = np.random.default_rng(0).integers(3, 300, (2, 40), dtype=np.int32)
    places = np.tile(np.arange(40, dtype=np.int32) % 25, (2, 1))
    batch: Any = {"input_ids": ids, "position_ids": places, "labels": ids}
    inputs, loss_of, found = inputs_of(batch, torch.device("cpu")), LearnedLoss(model).train(), []
    for _ in range(2):
        losses, _ = loss_of(**inputs)
        found.append((losses.detach(), torch.autograd.grad(losses.sum(), list(trainable(model).values()))))
        compile_layers(model)
    (losses, gradients), (compiled_losses, compiled_gradients) = found
    torch.testing.assert_close(compiled_losses, losses, rtol=1e-5, atol=1e-5)
    for ours, wanted in zip(compiled_gradients, gradients, strict=True):
        assert (ours - wanted).norm() <= 1e-5 * wanted.norm()
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == 3, "the probe, the first layer, and one for all others"
    assert not counted["graph_break"]


@pytest.mark.usefixtures("fresh")
def test_what_is_given_to_the_compiler_early_is_compiled_at_its_first_call():
    """Would catch a library's function that is never compiled, or without the options that it was given with."""
    made = []

    def backend(graph: Any, _: Any) -> Any:
        made.append(graph)
        return graph.forward

    with compiled_when_called():
        double = torch.compile(backend=backend)(lambda x: 2 * x)
    assert torch.compile.__module__ == "torch"
    assert not made
    assert [double(torch.tensor(number)).item() for number in (3, 4)] == [6, 8]
    assert len(made) == 1


def test_a_gpu_that_attends_view_by_view_is_not_compiled_for(monkeypatch: pytest.MonkeyPatch):
    """Would catch a run on an old card, or in float32, that compiles for each new length and never trains."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match="in float32 on this GPU attention goes view by view"):
        compile_layers(tiny_model())


@pytest.mark.usefixtures("fresh")
def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch):
    """Would catch a traceback of inductor's from every worker, after the model was loaded and wrapped."""
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(UserError, match=r"train\.compile: nothing can be compiled on this machine"):
        compile_layers(tiny_model())
