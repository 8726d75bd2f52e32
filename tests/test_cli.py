"""The command line: mistakes get one message and exit code 2 before any work; --dry-run works without any data."""

import subprocess
import sys
from pathlib import Path

import pytest

from arc_ray.cli import session
from arc_ray.errors import UserError

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


def arc_ray(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "arc_ray", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study", "configs/no_such.yaml"], "no_such.yaml"),
        (["study", QUICKSTART, "train.epoch=2"], "did you mean train.epochs?"),
        (["train", QUICKSTART, "train.lr=fast"], "train.lr"),
        (["train", QUICKSTART, "train.batch_rows=3", "scaling.num_workers=2"], "batch_rows 3"),
        (["train", QUICKSTART, "train.engine=trll"], "train.engine"),
        (["train", QUICKSTART, "train.deepspeed={gradient_accumulation_steps: 4}"], "set train.batch_rows instead"),
        (["merge", QUICKSTART, "--to", "configs"], "already there"),
        (["study", QUICKSTART, "start=cuont"], "start"),
        (["study", QUICKSTART, "storage=/proc/nowhere"], "/proc/nowhere"),
        (["evaluate", QUICKSTART, "--no-such-option"], "--no-such-option"),
        (["peek", QUICKSTART, "--stage", "dream"], "task, view, prompt, tokens, predictions"),
        (["peek", QUICKSTART, "--stage", "predictions"], "holds no predictions yet"),
        (["score", "no_such.json", "arcagi1/evaluation"], "no_such.json: no such file"),
        (["evaluate", QUICKSTART, "evaluate.decode=beam"], "evaluate.decode"),
    ],
)
def test_a_mistake_gives_one_message_and_exit_code_two(words: list[str], said: str, tmp_path: Path) -> None:
    """Catches tracebacks shown to users, mistakes found only after Ray has started, and wrong exit codes."""
    if not any(word.startswith("storage=") for word in words) and words[1:2] == [QUICKSTART] and "--" not in words[-1]:
        words = [*words[:2], f"storage={tmp_path}", *words[2:]]
    done = arc_ray(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_names_every_trial_and_touches_nothing(tmp_path: Path) -> None:
    """Catches a dry run that trains, needs data, or leaves folders behind."""
    done = arc_ray("study", QUICKSTART, f"storage={tmp_path / 'runs'}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "first, once: tiny" in done.stdout
    assert done.stdout.count("start-mixed") == 4
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_every_command_explains_itself() -> None:
    """Catches a command whose help cannot be built."""
    commands = "study generate train tune evaluate score merge report peek check fetch"
    for command in commands.split():
        done = arc_ray(command, "--help")
        assert done.returncode == 0, done.stderr
        assert command in done.stdout


def test_ray_gets_a_folder_whose_sockets_have_paths_that_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches every command ending in Ray's OSError where the folder for temporary files has a long path."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert session.temporary_folder() is None
    monkeypatch.setenv("TMPDIR", "/" + 83 * "t")
    assert session.temporary_folder() == "/tmp/ray"
    monkeypatch.setattr(session, "SHORT_TEMPORARY", "/nowhere")
    with pytest.raises(
        UserError, match=r"TMPDIR /ttt.*set RAY_TMPDIR to a folder whose path has at most 32 characters"
    ):
        session.temporary_folder()
