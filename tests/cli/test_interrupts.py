"""Ctrl-C, a real SIGINT to the command's process group, at every stage: exit code 130, one sentence, and it goes on.

A training is interrupted in tests/train/test_faults.py, a study in tests/study/test_study.py.
"""

import json
import signal
from pathlib import Path

import pytest
import yaml
from small_study import small_search
from training import press_ctrl_c, running, wait_for

from arc_ray.cli import notebook
from arc_ray.config import load_config

pytestmark = pytest.mark.slow

RATES = [1e-2, 5e-3, 2e-3, 1e-3, 5e-4]


def test_a_search_that_was_interrupted_is_not_ended(ray_session: None, tmp_path: Path) -> None:
    """Catches half a grid that is taken for the whole: best.yaml and exit code 0 after Ctrl-C."""
    config, folder = tmp_path / "search.yaml", tmp_path / "search"
    tree = small_search(tmp_path, {"train.lr": {"grid": RATES}})
    tree["train"] |= {"epochs": 5}  # the trials that are left take longer than the signal
    config.write_text(yaml.safe_dump(tree))

    def statuses() -> list[str]:
        return sorted(json.loads(path.read_text())["status"] for path in folder.glob("trials/*/trial.json"))

    with running("tune", str(config)) as search:
        wait_for(lambda: "done" in statuses(), search)
        press_ctrl_c(search)
    assert statuses() != ["done"] * len(RATES)
    assert not (folder / "result.json").exists()
    notebook.tune(load_config(config))
    assert statuses() == ["done"] * len(RATES)


def test_looking_ends_too_also_while_libraries_are_imported(tmp_path: Path) -> None:
    """Catches a signal that is lost in an import, so that the command goes on, or that ends as an error of a library's."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(small_search(tmp_path / "none", {"train.lr": {"grid": [1e-3]}})))
    for library, number in (
        ("_multiarray_umath", signal.SIGINT),  # from early to late
        ("_multiarray_umath", signal.SIGTERM),
        ("_raylet", signal.SIGINT),
        ("libtorch_cpu", signal.SIGINT),
        ("libtorch_cpu", signal.SIGTERM),
    ):
        with running("check", str(config)) as look:
            loaded = Path(f"/proc/{look.pid}/maps")
            wait_for(lambda loaded=loaded, library=library: library in loaded.read_text(), look)
            press_ctrl_c(look, number)
