"""The main job end to end, small: real generators, a tiny model from scratch, Tune, evaluation and report."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from small_study import small_study

pytestmark = pytest.mark.slow

RULES = ("per_output", "per_task_mean", "strict")


def start(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from arc_ray.cli import main; main()", "study", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)


def run(config: Path) -> str:
    """Run the study to its end and return what it printed."""
    study = start(config)
    printed, _ = study.communicate(timeout=900)
    assert study.returncode == 0, printed
    return printed


def config_in(storage: Path) -> Path:
    path = storage / "small.yaml"
    path.write_text(yaml.safe_dump(small_study(storage / "runs")))
    return path


@pytest.fixture(scope="module")
def unbroken(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study run once to its end: its storage, and what it printed.

    Another Ray is on the machine: the study once hung there, because stopped trials kept their workers reserved.
    """
    storage = tmp_path_factory.mktemp("unbroken")
    return storage, run(config_in(storage))


def test_study_answers_and_reports(unbroken: tuple[Path, str]) -> None:
    """Catches any break between two stages, and a report without its answer."""
    storage, printed = unbroken
    folder = storage / "runs" / "quickstart"
    result = json.loads((folder / "result.json").read_text())
    assert "count minus base" in result["answer"]
    assert result["answer"] in printed
    for arm in ("base", "count"):
        for name in ("held_out", "unseen", "arc"):
            assert all(0 <= result[f"{arm}/{name}/{rule}"] <= 1 for rule in RULES)
            assert all(0 <= result[f"{arm}/{name}/greedy/{rule}"] <= 1 for rule in RULES)
    page = (folder / "report.html").read_text()
    assert "count minus base" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["train"]["lr"] == 1e-2
    counted = json.loads((storage / "runs" / "count" / "evaluate" / "result.json").read_text())
    assert 0 <= counted["counting_held_out/accuracy/objects"] <= 1


def test_a_second_call_does_nothing_but_say_where_the_report_is(unbroken: tuple[Path, str]) -> None:
    """Catches a stage that is done again."""
    storage, _ = unbroken
    before = {p: p.stat().st_mtime_ns for p in storage.rglob("*") if p.is_file()}
    assert "report.html" in run(storage / "small.yaml")
    assert {p: p.stat().st_mtime_ns for p in storage.rglob("*") if p.is_file()} == before


def killed_after(config: Path, stage: str, seconds: float) -> None:
    """Start the study and kill its driver with signal 9 some seconds after a stage was announced."""
    study = start(config)
    assert study.stdout is not None
    for line in study.stdout:
        if line.startswith(stage):
            break
    else:
        raise AssertionError(f"it ended without {stage}")
    time.sleep(seconds)
    assert study.poll() is None, "it ended before it could be killed"
    family = psutil.Process(study.pid).children(recursive=True)
    study.kill()
    study.wait()
    _, alive = psutil.wait_procs(family, timeout=300)  # its dashboard agent takes up to two minutes
    assert not alive, "Ray outlived its driver"


def test_killed_at_every_stage_it_ends_with_the_same_trials(unbroken: tuple[Path, str], tmp_path: Path) -> None:
    """Catches a stage that loses or doubles what a killed call had done: weights and answers must be equal to the byte.

    Only how far a trial of the search came may differ: ASHA decides by what it has heard, in the order it heard it.
    """
    config = config_in(tmp_path)
    for stage, seconds in (("[1/5]", 4.0), ("[2/5]", 20.0), ("[3/5]", 15.0), ("[3/5]", 25.0), ("[4/5]", 2.0)):
        killed_after(config, stage, seconds)
    run(config)
    ours, theirs = files_of(tmp_path / "runs"), files_of(unbroken[0] / "runs")
    assert {name for name in ours.keys() ^ theirs.keys() if "start-" not in name or "seed-0/" not in name} == set()
    assert len(ours.keys() & theirs.keys()) > 20
    assert [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]] == []


def files_of(storage: Path) -> dict[str, bytes]:
    """What must not depend on kills: data without its timings, weights, validations, answers and the comparison."""
    patterns = (
        "**/part-*",
        "**/checkpoint-*/*.safetensors",
        "**/validation/*.json",
        "**/answers.json",
        "**/analysis.json",
    )
    found = [path for pattern in patterns for path in storage.glob(pattern) if "timings" not in path.parts]
    return {str(path.relative_to(storage)): path.read_bytes() for path in found}
