"""`keys`, `init` and shell completion, as a newcomer calls them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arc_ray.cli import main
from arc_ray.cli.configs import DATA, QUESTIONS
from arc_ray.config import load_config


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run a command in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["arc-ray", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_keys_are_printed_with_their_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches brackets that a terminal library takes for mark-up, and lines that run on."""
    assert call(monkeypatch, "keys", "train.betas") == 0
    assert capsys.readouterr().out == (
        "train.betas  [number, number]; default [0.9, 0.95]\n    AdamW's decay rates of the two moments.\n"
    )


@pytest.mark.parametrize("question", [*QUESTIONS, "train.warmup=[0.0, 0.1]"])
@pytest.mark.parametrize("data", [*DATA, "."])
def test_init_writes_a_config_that_loads(
    data: str, question: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches a beginning that the next command refuses, for any choice of data and question."""
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "init", "mine", "--model", "smollm2", "--data", data, "--question", question) == 0
    config = load_config(tmp_path / "mine.yaml")
    assert config.name == "mine"
    assert config.question.endswith("?")
    assert len(config.study.arms) == 2
    assert len((tmp_path / "mine.yaml").read_text().splitlines()) < 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "smolm2"], "--model smolm2: no folder here, and no built-in name; did you mean smollm2?"),
        (["--model", "./smollm2"], "--model ./smollm2: there is no such folder"),
        (["--data", "re-arc"], "did you mean rearc?"),
        (["--question", "colours"], "did you mean colors?"),
        (["--question", "model.lora.r=8"], "a list of at least two"),
        (["--question", "model.lora.rank=[8, 32]"], "model.lora.rank"),
    ],
)
def test_init_refuses_what_it_does_not_know(
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Catches a config that is written although its choices are none."""
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "init", "mine", *words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_init_overwrites_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Catches a config of the user's that is lost."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("name: mine")
    assert call(monkeypatch, "init", "mine") == 2
    assert "mine.yaml is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "name: mine"


@pytest.mark.parametrize(
    ("words", "completed"),
    [("arc-ray train mine.yaml train.warm", "train.warmup="), ("arc-ray keys evaluate.ttt.l", "evaluate.ttt.lr")],
)
def test_a_shell_completes_keys(words: str, completed: str) -> None:
    """Catches completion that is installed and offers nothing."""
    number = len(words.split()) - 1
    asked = {"_ARC_RAY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'arc-ray'; from arc_ray.cli import main; main()"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [completed], done.stderr
