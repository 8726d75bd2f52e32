"""The main job end to end, small: real generators, a tiny model from scratch, Tune, evaluation and report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

RULES = ("per_output", "per_task_mean", "strict")


def small_study(storage: Path) -> dict[str, object]:
    """The quickstart, cut to two arms, one setting and one measuring seed, with rows for seconds."""
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / "quickstart.yaml").read_text())
    config["storage"] = str(storage)
    sources = config["data"]["sources"]
    few = sources["rearc"]["tasks"][:4]
    sources["rearc"] |= {"tasks": few, "examples": 8}
    sources["held_out"] |= {"tasks": few, "first": 8, "examples": 6}
    sources["grid_text"] |= {"tasks": sources["grid_text"]["tasks"][:4], "examples": 8}
    sources["unseen"] |= {"tasks": sources["unseen"]["tasks"][:2], "examples": 3}
    sources["counting"] |= {"examples": 40}
    sources["counting_held_out"] |= {"first": 40, "examples": 8}
    sources["arc"] |= {"limit": 2}
    config["data"]["mix"] = {"rearc": 12}
    config["runs"]["tiny"] |= {"data.mix": {"grid_text": 12}, "train.max_steps": 4}
    config["runs"]["tiny"]["model.scratch"] = {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64}
    config["runs"]["count"] |= {"train.epochs": 1}
    config["tune"]["space"] = {"train.lr": {"grid": [1e-2]}}
    config["study"] |= {"arms": ["base", "count"], "seeds": [1]}
    config["evaluate"] |= {"symmetries": 2}
    config["ray"] = {"object_store_mib": 100}
    return config


def run(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from arc_ray.cli import main; main()", "study", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ})


def test_study_answers_reports_and_does_nothing_the_second_time(ray_session: None, tmp_path: Path) -> None:
    """Catches any break between two stages, a stage that is done again, and a report without its answer.

    Another Ray is on the machine: the study once hung there, because stopped trials kept their workers reserved.
    """
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_study(tmp_path / "runs")))
    done = run(path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "quickstart"
    result = json.loads((folder / "result.json").read_text())
    assert "count minus base" in result["answer"]
    assert result["answer"] in done.stdout
    for arm in ("base", "count"):
        for name in ("held_out", "unseen", "arc"):
            assert all(0 <= result[f"{arm}/{name}/{rule}"] <= 1 for rule in RULES)
            assert all(0 <= result[f"{arm}/{name}/greedy/{rule}"] <= 1 for rule in RULES)
    page = (folder / "report.html").read_text()
    assert "count minus base" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["train"]["lr"] == 1e-2
    counted = json.loads((tmp_path / "runs" / "count" / "evaluate" / "result.json").read_text())
    assert 0 <= counted["counting_held_out/objects/accuracy"] <= 1
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    again = run(path)
    assert again.returncode == 0
    assert "report.html" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
