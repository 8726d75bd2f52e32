"""The commands in README.md and in the heads of configs: none is forgotten, each is run or looked at as it is written.

Those of clusters are run by tests/cluster, and a study of `configs/studies` alone by tests/study/test_ready_studies.py.
"""

import re
import shlex
from pathlib import Path

import pytest
from builders import smollm_like_tokenizer
from commands import DOCUMENTS, ROOT, Command, commands_in, program_of
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config
from typer.testing import CliRunner

from arc_ray.cli import configs  # noqa: F401 - adds its commands
from arc_ray.cli.looking import app

FOUND = [command for path in DOCUMENTS if path.parent.name != "cluster" for command in commands_in(path)]
OF_CLUSTERS = r"(ray|export RAY_AUTH_MODE)\b"
PLACEHOLDER = re.compile(r"\b[A-Z]{4,}\b|\[\.\.\.\]|=\.\.\.|\|")
WITH_A_DRY_RUN = ("study", "train", "tune", "evaluate", "generate")
NAMES = {
    "smollm2": LlamaConfig,
    "Qwen/Qwen2.5-0.5B-Instruct": LlamaConfig,
    "microsoft/Phi-3-mini-128k-instruct": Phi3Config,
    "Qwen/Qwen3-4B-Instruct-2507": LlamaConfig,
}
"""Models that configs name, and an architecture whose layers have the names that these configs speak of."""


def is_looked_at_here(command: Command) -> bool:
    """Tell whether a command is arc-ray's, without a placeholder, and no study that is looked at with its folder."""
    words = command.text.split()
    is_ready = len(words) == 3 and words[2].startswith("configs/studies/")
    return program_of(command.text) == "arc-ray" and not PLACEHOLDER.search(command.text) and not is_ready


COMMANDS = sorted({command.text.removeprefix(".venv/bin/") for command in FOUND if is_looked_at_here(command)})


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configs, and a storage with a tiny model under each name: a command gets it as it would the real."""
    folder, tokenizer = tmp_path_factory.mktemp("storage"), smollm_like_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    for name, kind in NAMES.items():
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        about = kind(vocab_size=len(tokenizer), max_position_embeddings=131072, num_key_value_heads=2, **sizes, **ends)
        AutoModelForCausalLM.from_config(about).save_pretrained(folder / "models" / name)
        tokenizer.save_pretrained(folder / "models" / name)
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "submission.json").write_text("{}")
    return folder


@pytest.mark.parametrize("text", COMMANDS)
def test_a_documented_command_can_be_carried_out(text: str, storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a document that names a config, a key or an option that is no longer there, or what would be refused."""
    monkeypatch.chdir(storage)
    _, command, *words = shlex.split(text)
    if command in WITH_A_DRY_RUN:
        words = [*words, f"storage={storage}", *(["train.epochs=1"] if command == "train" else []), "--dry-run"]
    result = CliRunner().invoke(app, [command, *words])
    is_to_come = "evaluate.checkpoint=@" in text and "none with a checkpoint" in str(result.exception)
    assert result.exception is None or is_to_come, result.exception


@pytest.mark.parametrize("text", [c.text for c in FOUND if program_of(c.text) != "arc-ray"])
def test_other_documented_commands_name_what_is_there(text: str) -> None:
    """Catches a target, an extra or a test that was renamed, and a program that no test looks at."""
    program, *words = shlex.split(text)
    match program:
        case "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(words) <= set(targets)
        case "pip":
            [extra] = re.findall(r"\[(\w+)\]", text)
            assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
        case "pytest":
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
        case _:
            assert re.match(OF_CLUSTERS, text), f"{text}: no test looks at it"


def test_commands_are_found() -> None:
    """Guards the tests above: without a command there would be no test."""
    assert {text.split()[1] for text in COMMANDS} >= {"study", "train", "evaluate"}
    assert {command.document for command in FOUND} >= {
        "README.md",
        "configs/quickstart.yaml",
        "configs/include/tiny.yaml",
    }
