"""Models and adapters that cannot be loaded, or not whole: one message each, before any worker starts."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from builders import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedModel,
)
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask
from typer.testing import CliRunner

from arc_ray.cli.looking import app
from arc_ray.config import load_config
from arc_ray.config.model import LoraConfig, ModelConfig
from arc_ray.errors import UserError
from arc_ray.models.attention import reads_one_by_one, takes_flash_lengths
from arc_ray.models.build import (
    build_model,
    build_skeleton,
    check_model,
    load_for_inference,
    load_for_tuning,
    merge_checkpoint,
    save_weights,
    trainable,
)
from arc_ray.models.loss import LearnedLoss, inputs_of
from arc_ray.models.supported import check_row_tokens, check_supported, longest_view
from arc_ray.models.weights import load_base
from arc_ray.rows.maker import Encoded, write_rows
from arc_ray.train.engine import load_weights

SMALL = LoraConfig(r=4)
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and an adapter of it."""
    folder = tmp_path_factory.mktemp("made")
    model = tiny_model()
    save_weights(model, trainable(model), tiny_tokenizer(), folder / "base")
    adapted = build_model(ModelConfig(base=str(folder / "base"), lora=SMALL), "", 0, False, None)
    save_weights(adapted, trainable(adapted), tiny_tokenizer(), folder / "adapter")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "models"))


def rewrite(file: Path, change: Callable[[Weights], Weights]) -> None:
    weights = change(load_file(file))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file, metadata={"format": "pt"})


def edit(file: Path, **changes: Any) -> None:
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def prefixed(prefix: str) -> Callable[[Path], None]:
    """Rename all weights as a wrapper does."""
    return lambda place: rewrite(place, lambda weights: {prefix + name: t for name, t in weights.items()})


def without_a_layer(place: Path) -> None:
    rewrite(place, lambda weights: {name: t for name, t in weights.items() if "layers.1." not in name})


def emptied(place: Path) -> None:
    """What ZeRO-3 leaves of weights that nobody gathered."""
    rewrite(place, lambda weights: dict.fromkeys(weights, torch.zeros(0)))


def with_rows(place: Path) -> None:
    """Give the embedding other rows than the config says."""
    rewrite(place, lambda ws: {name: torch.cat([t, t[:8]]) if "embed" in name else t for name, t in ws.items()})


def pointer(place: Path) -> None:
    place.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def truncated(place: Path) -> None:
    place.write_bytes(place.read_bytes()[:-64])


def newer(place: Path) -> None:
    content = json.loads(place.read_text())
    place.write_text(json.dumps({**content, "model": {"type": "FromTheFuture", "vocab": {}}}))


def templates(*names: str) -> Callable[[Path], None]:
    def write(place: Path) -> None:
        for name in names:
            (place / f"additional_chat_templates/{name}.jinja").parent.mkdir(exist_ok=True)
            (place / f"additional_chat_templates/{name}.jinja").write_text(CHAT_TEMPLATE)

    return write


WEIGHTS, ADAPTER, TOKENS = "base/model.safetensors", "adapter/adapter_model.safetensors", "base/tokenizer_config.json"
BROKEN: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "names of DDP": (
        WEIGHTS,
        prefixed("module."),
        r"do not fit the model: 21 missing .*layers.*; 20 unknown .*module\.",
    ),
    "names of compile": (WEIGHTS, prefixed("_orig_mod."), r"unknown to the model \(_orig_mod\.model\."),
    "a layer missing": (WEIGHTS, without_a_layer, r"do not fit the model: 9 missing \(model\.layers\.1\."),
    "another shape": (
        "base/config.json",
        lambda f: edit(f, intermediate_size=48),
        r"of another shape \(model\.layers\.0\.mlp",
    ),
    "resized vocabulary": (WEIGHTS, with_rows, r"of another shape \(.*is \(392, 32\), not \(384, 32\)"),
    "empty tensors": (WEIGHTS, emptied, r"of another shape .* is \(0,\), not"),
    "a pointer of LFS": (WEIGHTS, pointer, "model.safetensors only names a file of Git LFS"),
    "a truncated file": (WEIGHTS, truncated, "cannot be loaded as a model: .*not fully covered"),
    "no weights": (WEIGHTS, Path.unlink, "cannot be loaded as a model: .*model.safetensors"),
    "a newer tokenizer": ("base/tokenizer.json", newer, "cannot be loaded as a model"),
    "8 bits": (
        "base/config.json",
        lambda f: edit(f, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        r"quantized \(bitsandbytes\)",
    ),
    "GPTQ": (
        "base/config.json",
        lambda f: edit(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantized \(gptq\)",
    ),
    "an architecture of the future": (
        "base/config.json",
        lambda f: edit(f, model_type="qwen9", architectures=["Qwen9ForCausalLM"]),
        r"its architecture is qwen9 \(Qwen9ForCausalLM\), which transformers [\d.]+ does not know: .* such as Qwen3",
    ),
    "an architecture with code of its own": (
        "base/config.json",
        lambda f: edit(f, model_type="own", auto_map={"AutoConfig": "configuration_own.Config"}),
        "does not know, and code that comes with a model is not run: ",
    ),
    "an encoder and a decoder": (
        "base/config.json",
        lambda f: edit(f, model_type="t5", architectures=["T5ForConditionalGeneration"]),
        r"its architecture is t5 \(T5ForConditionalGeneration\), which is no causal language model",
    ),
    "too few embeddings": (
        "base",
        lambda f: (
            (rewrite(f / "model.safetensors", lambda ws: {k: t[:100] if "embed" in k else t for k, t in ws.items()}))
            or edit(f / "config.json", vocab_size=100)
        ),
        "ids beyond the model's 100 embeddings",
    ),
    "padding beyond": (
        TOKENS,
        lambda f: edit(f, pad_token="<later>", extra_special_tokens=["<later>"]),
        r"ids beyond the model's 384 embeddings: 384 \('<later>'\)",
    ),
    "no end token": (TOKENS, lambda f: edit(f, eos_token=None), "neither an end token"),
    "a template that raises": (
        TOKENS,
        lambda f: edit(f, chat_template="{{ raise_exception('one turn only') }}"),
        "cannot write a conversation of several turns: one turn only",
    ),
    "no default template": ("base", templates("tool_use", "rag"), "cannot write a conversation of several turns"),
    "an adapter's names": (ADAPTER, prefixed("module."), r"adapter .*do not fit the model: 28 missing .* 28 unknown"),
    "an adapter's layer": (ADAPTER, without_a_layer, r"adapter .*do not fit the model: 14 missing"),
    "another rank": (
        "adapter/adapter_config.json",
        lambda f: edit(f, r=8),
        "adapter .*cannot be loaded: .*size mismatch",
    ),
    "an empty adapter": (ADAPTER, emptied, "adapter .*cannot be loaded: .*size mismatch"),
    "an adapter's pointer": (ADAPTER, pointer, "adapter_model.safetensors only names a file of Git LFS"),
    "an adapter without weights": (ADAPTER, Path.unlink, "adapter .*cannot be loaded"),
    "an adapter of other layers": (
        "adapter/adapter_config.json",
        lambda f: edit(f, target_modules=["qkv_proj"]),
        "adapter .*cannot be loaded: .*qkv_proj",
    ),
    "prompt tuning": (
        "adapter/adapter_config.json",
        lambda f: f.write_text(
            json.dumps({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4})
        ),
        "its kind is PROMPT_TUNING",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_loaded_is_refused_before_work_and_at_loading(kind: str, folder: Path):
    """Would catch weights that stay random because their names fit nothing, a traceback of another library, and a message
    that does not say whose tokenizer or weights it is about."""
    place, breaks, message = BROKEN[kind]
    adapter = str(folder / "adapter") if place.startswith("adapter") else None
    model = ModelConfig(base=str(folder / "base"), adapter=adapter, lora=SMALL)
    check_model(model, "", False, 512)
    breaks(folder / place)
    with pytest.raises(UserError, match=f"(?s){message}") as raised:
        check_model(model, "", False, 512)
    assert str(folder) in str(raised.value)
    config = {"name": "run", "storage": str(folder / "runs"), "model": model.model_dump(mode="json")}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    found = CliRunner().invoke(app, ["check", str(folder / "config.yaml")])
    assert isinstance(found.exception, UserError), found.exception
    assert str(folder) in str(found.exception)


def spoiled(number: float) -> Callable[[Path], None]:
    """Put a number that is not finite into the last tensor of a file."""

    def change(weights: Weights) -> Weights:
        weights[max(weights)].view(-1)[-1] = number
        return weights

    return lambda file: rewrite(file, change)


UNREAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "NaN in the base": (
        WEIGHTS,
        spoiled(math.nan),
        r"model.base \S*base: model\.norm\.weight holds numbers that are not",
    ),
    "an infinite number": (ADAPTER, spoiled(math.inf), r"adapter \S*adapter: \S+v_proj\S+ holds numbers that are not"),
}
"""What is seen only where weights are read."""


@pytest.mark.parametrize("kind", [*(kind for kind in BROKEN if BROKEN[kind][0] in (WEIGHTS, ADAPTER)), *UNREAD])
def test_every_way_of_loading_refuses_weights_that_do_not_fit(kind: str, folder: Path, tmp_path: Path):
    """Would catch a way in, of training, evaluation, test-time training or merging, that takes what another refuses, and
    answers of a model that says the same token for ever."""
    place, breaks, message = (BROKEN | UNREAD)[kind]
    breaks(folder / place)
    base = ModelConfig(base=str(folder / "base"), lora=SMALL)
    checkpoint = str((folder / place).parent)
    scratch = ModelConfig(base=str(folder / "base") if place == ADAPTER else checkpoint, lora=SMALL)
    continued = base.model_copy(update={"adapter": checkpoint})
    ways: list[Callable[[], Any]] = [
        lambda: load_for_inference(scratch, "", checkpoint),
        lambda: load_for_tuning(scratch, "", checkpoint, False, 0),
        lambda: merge_checkpoint(scratch, "", checkpoint, tmp_path / "merged"),
    ]
    if place == ADAPTER:
        merged = continued.model_copy(update={"adapter_use": "merge"})
        ways += [lambda c=c: build_model(c, "", 0, False, None) for c in (continued, merged)]
        ways += [lambda: load_for_inference(continued, "", None)]
    else:
        ways += [lambda: load_base(base, ""), *([lambda: build_skeleton(base, "", False)] if kind in BROKEN else [])]
    for load in ways:
        with pytest.raises(UserError, match=f"(?s){message}"):
            load()
    assert not (tmp_path / "merged").exists()


def test_looking_at_a_model_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]):
    """Would catch bars and reports of other libraries around the one message that a mistake is told in."""
    model = ModelConfig(base=str(folder / "base"), adapter=str(folder / "adapter"))
    check_model(model, "", False, 512)
    prefixed("module.")(folder / WEIGHTS)
    with pytest.raises(UserError):
        check_model(model, "", False, 512)
    assert capfd.readouterr() == ("", "")


def test_layers_that_are_not_there_get_no_adapter(folder: Path):
    """Would catch peft's own error, which does not say which layers there are."""
    model = ModelConfig(base=str(folder / "base"), lora=LoraConfig(targets=["qkv_proj"]))
    with pytest.raises(UserError, match=r"model.lora.targets \['qkv_proj'\]: .*down_proj, gate_proj"):
        check_model(model, "", False, 512)


def test_flash_attention_that_is_not_installed_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch an ImportError in each of several attempts of the workers."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    model = ModelConfig(base=str(folder / "base"), attention="flash_attention_2", dtype="bfloat16")
    with pytest.raises(UserError, match="flash_attn is not installed"):
        check_model(model, "", False, 512)
    with pytest.raises(UserError, match=r"cannot be loaded as a model: .*model.attention=auto"):
        load_base(model, "")
    model = ModelConfig(base=str(folder / "base"), attention="kernels-community/flash-attn2", dtype="bfloat16")
    with pytest.raises(UserError, match="kernels-community/flash-attn2: the package kernels is not installed"):
        check_model(model, "", False, 512)


@pytest.mark.parametrize("name", ["kernels-community/flash-attn2", "someone/attends_fast@v1:attend"])
def test_a_kernel_of_a_hub_is_told_where_views_end(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch a name that the config refuses, and a kernel like flash-attention that is taken for another by its name,
    so that it reads a row as one view."""

    def load(self: Any, implementation: str, **kwargs: Any) -> str:
        AttentionInterface.register(implementation, flash_attention_forward)
        AttentionMaskInterface.register(implementation, flash_attention_mask)
        return implementation

    monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", load)
    model: Any = load_base(ModelConfig(base=str(folder / "base"), attention=name), "")
    check_supported(model)
    assert takes_flash_lengths(model)
    assert not reads_one_by_one(model)


def test_a_checkpoint_of_another_model_is_not_resumed(folder: Path):
    """Would catch a run that goes on with half of its weights new, and one row that is copied to all rows."""
    model = build_model(ModelConfig(base=str(folder / "base"), lora=SMALL), "", 0, False, None)
    state = {f"weight.{name}": parameter.detach().clone() for name, parameter in trainable(model).items()}
    load_weights(model, state)
    name, tensor = next(iter(state.items()))
    for broken in (
        {key: value for key, value in state.items() if key != name},
        {**state, "weight.other": tensor},
        {**state, name: tensor[:1]},
    ):
        with pytest.raises(UserError, match="the checkpoint: the weights do not fit the model: 1 "):
            load_weights(model, broken)


SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.5, 3.0, 8.0]}
PHI = Phi3Config(**SHAPE, max_position_embeddings=512, original_max_position_embeddings=64, rope_parameters=LONGROPE)
DYNAMIC = LlamaConfig(**SHAPE, max_position_embeddings=64, rope_parameters={"rope_type": "dynamic", "factor": 4.0})
GPT = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)
PLAIN = LlamaConfig(**SHAPE, max_position_embeddings=64)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (PHI, 64),
        (DYNAMIC, 64),
        (GPT, 64),
        (PLAIN, 64),
        (LlamaConfig(**SHAPE, max_position_embeddings=64, rope_parameters={"rope_type": "yarn", "factor": 4.0}), 256),
        (LlamaConfig(**SHAPE, max_position_embeddings=64, rope_parameters={"rope_type": "linear", "factor": 2.0}), 128),
    ],
)
def test_rows_are_no_longer_than_what_a_model_reads_alike(config: Any, most: int):
    """Would catch positions beyond the table, in silence beyond the context, and rotations that follow the longest view."""
    assert longest_view(config) == most
    check_row_tokens(config, most)
    with pytest.raises(UserError, match=f"train.row_tokens is {most + 1}, .* set train.row_tokens to at most {most}"):
        check_row_tokens(config, most + 1)


def test_the_ready_config_of_phi3_stays_below_its_switch():
    """Would catch a check, or a config, by which Phi-3-mini-128k cannot be trained as documented."""
    shape = {**SHAPE, "hidden_size": 384, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    config = load_config(Path(__file__).parents[2] / "configs" / "phi3.yaml", {})
    phi = Phi3Config(**shape, rope_parameters=factors)
    assert longest_view(phi) == 4096
    check_row_tokens(phi, config.train.row_tokens)


@pytest.mark.parametrize("config", [PHI, DYNAMIC])
def test_rotations_that_follow_the_longest_view_are_found_by_trying(config: Any, monkeypatch: pytest.MonkeyPatch):
    """Would catch a check that knows kinds of RoPE by name only, or tries no lengths beyond the switch."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    check_supported(model, 64)
    monkeypatch.setattr("arc_ray.models.supported.longest_view", lambda about: None)
    check_supported(model, 64)
    with pytest.raises(UserError, match="all views of a batch are read otherwise once one is longer"):
        check_supported(model, 65)


def test_experts_that_round_otherwise_beside_other_tokens_are_no_rotation() -> None:
    """Catches a mixture of experts that is refused in every third run, because experts add up a token otherwise."""
    shape = {
        **SHAPE,
        "vocab_size": 384,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "initializer_range": 0.1,
    }
    for seed in range(8):
        torch.manual_seed(seed)
        check_supported(AutoModelForCausalLM.from_config(MixtralConfig(**shape, num_local_experts=4)).eval(), 512)


def views(*lengths: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(1, 50, (length,), generator=generator).numpy().astype("int32") for length in lengths]
    return [(numbers, numbers > 0) for numbers in ids]


@pytest.mark.parametrize("config", [PHI, DYNAMIC, GPT, PLAIN])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_no_view(config: Any, attention: str):
    """Would catch padding whose positions reach further than any view: it turned longrope's views by other angles, and
    GPT-2 has no such positions."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    rows = [views(40, 9), []]

    def losses(width: int) -> torch.Tensor:
        batch = write_rows(rows, width, 0)
        assert batch["position_ids"].max() < 40
        return LearnedLoss(model)(**inputs_of(batch, torch.device("cpu")))[0]

    torch.testing.assert_close(losses(300), losses(49), atol=1e-5, rtol=0)
