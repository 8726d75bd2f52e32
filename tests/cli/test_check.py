"""`--dry-run` and `check` end with exit code 2 and one message where the command would, and print the rest before."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import smollm_like_tokenizer, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import CliRunner

from arc_ray.cli.looking import app
from arc_ray.config import load_config
from arc_ray.config.sources import CountingSource
from arc_ray.datasets.makers import claim_dataset
from arc_ray.errors import UserError
from arc_ray.prompts.vocabulary import kept_tokens
from arc_ray.runs.folder import claim, run_folder
from arc_ray.storage import Folder

CONFIG = """
prompt: {format: compact, encoder: compact}
data:
  sources: {set: {kind: folder, path: tasks}, count: {kind: counting, examples: 4, max_side: 4}}
  mix: {set: 1, count: 1}
  validation: [set]
  allow_overlap: true
model: {base: base}
train: {row_tokens: 256, batch_rows: 2}
study: {compare: view.colors, arms: [keep, permute]}
evaluate: {sets: [set]}
"""
FEW = "{kind: rearc, tasks: [67a3c6ac, 68b16354, 74dd1130, 3c9b0459], examples: 4, pso_quantiles: [0, 0.5], shown: 2}"
TRAINING = ("train --dry-run", "tune --dry-run", "study --dry-run", "check")
WITH_A_MODEL = (*TRAINING, "evaluate --dry-run")
MAKING_DATA = (*TRAINING, "generate --dry-run")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, its tasks and its base, and what is wrong about each."""
    folder = tmp_path_factory.mktemp("here")
    for name in ("base", "no-tokenizer", "odd-tokenizer", "no-weights", "quantized", "of-tomorrow"):
        tiny_model(seed=3).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    for path in (folder / "no-tokenizer").glob("token*"):
        path.unlink()
    odd = folder / "odd-tokenizer" / "tokenizer_config.json"
    odd.write_text(json.dumps(json.loads(odd.read_text()) | {"model_max_length": [None]}))
    (folder / "no-weights" / "model.safetensors").unlink()
    changes = {"quantized": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}
    for name, change in (
        changes | {"of-tomorrow": {"model_type": "qwen9", "architectures": ["Qwen9ForCausalLM"]}}
    ).items():
        about = folder / name / "config.json"
        about.write_text(json.dumps(json.loads(about.read_text()) | change))
    (folder / "file").touch()
    (folder / "tasks").mkdir()
    pairs = [{"input": [[i]], "output": [[i]]} for i in range(4)]
    for number in range(4):
        (folder / "tasks" / f"{number}.json").write_text(json.dumps({"train": pairs[:3], "test": pairs[3:]}))
    (folder / "c.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def said(made: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Runs a command in that folder; returns the message of the mistake that ended it, and what it printed before."""
    monkeypatch.chdir(made)

    def run(words: str, *changes: str) -> tuple[str, str]:
        command, *options = words.split()
        result = CliRunner().invoke(app, [command, "c.yaml", *changes, *options])
        assert result.exception is None or isinstance(result.exception, UserError), result.exc_info
        return str(result.exception or ""), result.output

    return run


@pytest.mark.parametrize(
    ("commands", "change", "message"),
    [
        (WITH_A_MODEL, "model.base=./nothere", "nothere: there is no such folder"),
        (WITH_A_MODEL, "model.base=no-tokenizer", "no-tokenizer: there is no tokenizer in this folder"),
        (WITH_A_MODEL, "model.base=odd-tokenizer", "odd-tokenizer: cannot be loaded as a model"),
        (WITH_A_MODEL, "model.base=no-weights", "no-weights: cannot be loaded as a model"),
        (WITH_A_MODEL, "model.base=quantized train.zero_stage=3", "quantized: its weights are quantized (gptq)"),
        (WITH_A_MODEL, "model.base=of-tomorrow", "its architecture is qwen9 (Qwen9ForCausalLM), which transformers"),
        (WITH_A_MODEL, "model.base=acme/tiny", "must not be asked (HF_HUB_OFFLINE is set)"),
        (WITH_A_MODEL, "model.adapter=base", "base holds no adapter_config.json"),
        (WITH_A_MODEL, "model.adapter=@nothere", "there is no run of this name"),
        (WITH_A_MODEL, "prompt.encoder=plian", "there is no 'plian'"),
        (WITH_A_MODEL, "data.sources.set.path=nothere", "nothere: no such folder"),
        (WITH_A_MODEL, "scaling.use_gpu=true", "on this machine it would be refused: too few GPUs"),
        (
            WITH_A_MODEL,
            f"data.sources.set={FEW}",
            "data.sources.set: a source of dataset rearc takes at most 2 examples",
        ),
        (MAKING_DATA, "storage=file/runs", "cannot write"),
        (MAKING_DATA, 'data.sources.count={kind: plugin, generate: "no:f", dataset: x, task_id: y}', "no module no;"),
        (TRAINING, "scaling.num_workers=[1, 2]", ""),
        (TRAINING[:3], "train.tracker=wandb", "the package wandb is not installed"),
        (("evaluate --dry-run",), "evaluate.checkpoint=./nothere", "nothere: there is no such folder"),
        (("evaluate --dry-run",), "evaluate.checkpoint=no-weights", "no-weights: cannot be loaded as a model"),
        (
            ("evaluate --dry-run",),
            "prompt.format=implement view={symmetries: false, colors: keep, one_sided: 0} evaluate.describer=./no",
            "/no: there is no such folder",
        ),
        (("evaluate --dry-run", "study --dry-run"), "evaluate.backend=vllm", "the package vllm is not installed"),
        (("train --dry-run", "tune --dry-run"), "evaluate.backend=vllm", ""),
    ],
)
def test_looking_fails_where_the_command_would(
    said: Callable[..., tuple[str, str]],
    commands: tuple[str, ...],
    change: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches exit code 0 for a command that would end with 2 once it is called, a message about something else, and one
    below a config of 200 lines."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for words in commands:
        mistake, printed = said(words, *re.split(r" (?=[a-z_.]+=)", change))
        assert message in mistake if message else mistake == "", words
        assert not mistake or "on this machine" in mistake or len(printed.splitlines()) < 20, words


def test_what_does_not_fit_here_is_said_after_all_else(said: Callable[..., tuple[str, str]]) -> None:
    """Catches a laptop that keeps to itself what a training on GPUs would take: it is asked for just that."""
    mistake, printed = said("train --dry-run", "scaling.use_gpu=true", "data.mix.count=0")
    assert "plan: 1 steps" in printed
    assert "this machine has 0" in mistake


def test_looking_finds_folders_of_other_configs(said: Callable[..., tuple[str, str]], made: Path) -> None:
    """Catches a study that makes data and trains for an hour before it finds that a folder is another's."""
    config = load_config(made / "c.yaml", {"storage": str(made / "other")})
    counting = config.data.sources["count"]
    assert isinstance(counting, CountingSource)
    claim_dataset(Folder.at(str(made / "other/data/counting")), counting)
    for words in MAKING_DATA:
        mistake, _ = said(words, "storage=other", "data.sources.count.max_side=5")
        assert "data/counting was made by another config (differs in: max_side)" in mistake, words
    folder = run_folder(config)
    for words in (*TRAINING[:3], "evaluate --dry-run"):
        folder.delete()
        claim(folder, config, words.split()[0])
        other = "evaluate --dry-run" if words.startswith("t") else "train --dry-run"
        assert f"other/run is of `arc-ray {words.split()[0]}`; for" in said(other, "storage=other")[0]
        mistake, _ = said(words, "storage=other", "train.row_tokens=300")
        assert "other/run was made by another config (differs in: " in mistake, words


def test_a_cut_is_told_and_written(said: Callable[..., tuple[str, str]], made: Path):
    """Would catch a check that writes the cut into the storage or is silent of what it saves, a command that leaves the
    vocabulary whole, and one that writes over a folder."""
    tokenizer = smollm_like_tokenizer()
    about = LlamaConfig(
        vocab_size=4096, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    AutoModelForCausalLM.from_config(about).save_pretrained(made / "words")
    tokenizer.save_pretrained(made / "words")
    _, told = said("check", "model.base=words", "model.vocabulary=cells", "data.mix.count=0")
    kept = len(kept_tokens(tokenizer, [], [], 4096))
    assert f"model.vocabulary: {kept} of 4096 tokens stay: {2 * 32 * (4096 - kept) / 1e6:.2f} M of" in " ".join(
        told.split()
    )
    assert not (made / "runs" / "models").exists()
    mistake, told = said("shrink --to small", "model.base=words")
    assert (mistake, told.strip()) == ("", "small")
    model = AutoModelForCausalLM.from_pretrained(made / "small")
    assert model.get_input_embeddings().weight.shape == (kept, 32)
    assert "small: already there; name a new folder" in said("shrink --to small", "model.base=words")[0]
    assert (
        "nothing to leave out" in said("shrink --to other", "model.base=null", "model.scratch={}", "train.full=true")[0]
    )
