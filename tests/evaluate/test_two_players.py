"""Two players: one describes a task, the other draws its output from the words, given or generated."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import codec_of, overfit, tiny_model, tiny_tokenizer

from arc_ray.config import config_from
from arc_ray.errors import UserError
from arc_ray.evaluate.evaluation import run_evaluation
from arc_ray.rows.maker import write_rows
from arc_ray.tasks.task import Pair, Task, TaskTable, task_to_json
from arc_ray.views.view import plain_views

INPUT = np.array([[1, 2], [3, 4]], np.uint8)
TASKS = {
    "flip": ("mirror", lambda grid: grid[:, ::-1]),
    "turn": ("upside down", lambda grid: grid[::-1]),
}
"""Two rules that answer the same input: only the words can tell them apart."""


def make_tasks() -> list[Task]:
    shown = [np.array([[5, 6, 0]], np.uint8).repeat(2, 0), np.array([[7], [8]], np.uint8).repeat(2, 1)]
    return [
        Task(name, tuple(Pair(g, rule(g)) for g in shown), (Pair(INPUT, rule(INPUT)),), description=words)
        for name, (words, rule) in TASKS.items()
    ]


def train(path: Path, format: str, descriptions: Mapping[str, str]) -> str:
    """Teach a tiny model the tasks with these descriptions by heart; return its folder."""
    table = TaskTable.of(replace(task, description=descriptions[task.id]) for task in make_tasks())
    codec = codec_of(tiny_tokenizer(), format=format)
    encoded = codec.encode(table, plain_views(table, 2))
    torch.manual_seed(0)
    model = tiny_model(hidden_size=48)
    assert overfit(model, write_rows([[view] for view in encoded], max(len(i) for i, _ in encoded), 0), 150) < 0.05
    model.save_pretrained(path / format)
    tiny_tokenizer().save_pretrained(path / format)
    about = {"base": None, "prompt": {"format": format, "encoder": "compact"}}
    (path / format / "arc_ray.json").write_text(json.dumps(about))
    return str(path / format)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The tasks with their true descriptions, and a second player that has learned them."""
    path = tmp_path_factory.mktemp("players")
    (path / "tasks").mkdir()
    for task in make_tasks():
        (path / "tasks" / f"{task.id}.json").write_text(json.dumps(task_to_json(task)))
    train(path, "implement", {name: words for name, (words, _) in TASKS.items()})
    return path


def evaluate(folder: Path, name: str, describer: str, **overrides: Any) -> dict[str, Any]:
    config = config_from(
        {
            "name": name,
            "storage": str(folder / "runs"),
            "data": {"sources": {"set": {"kind": "folder", "path": str(folder / "tasks")}}},
            "view": {"symmetries": False, "colors": "keep", "max_shown": 2},
            "prompt": {"format": "implement", "encoder": "compact"},
            "model": {"base": str(folder / "implement")},
            "evaluate": {
                "sets": ["set"],
                "symmetries": 1,
                "checkpoint": str(folder / "implement"),
                "describer": describer,
            },
            "scaling": {"use_gpu": False, "threads": 1, "cpus_per_worker": 0.5},
        },
        overrides,
    )
    return run_evaluation(config, lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize(("swapped", "share"), [(False, 1.0), (True, 0.0)])
def test_both_sides_are_scored_from_their_own_descriptions(
    folder: Path, tmp_path: Path, swapped: bool, share: float
) -> None:
    """Catches a second player that is shown the given words, or the pairs, when it should have the first player's."""
    words = [words for words, _ in TASKS.values()]
    says = dict(zip(TASKS, reversed(words) if swapped else words, strict=True))
    result = evaluate(folder, f"swapped-{swapped}", train(tmp_path, "describe", says))
    assert result["set/per_output"] == 1.0
    assert result["set/generated/per_output"] == share
    assert result["set/generated/gain"] == share - 1
    written = json.loads((folder / "runs" / f"swapped-{swapped}" / "descriptions.json").read_text())
    assert [(d["task"], d["given"], d["generated"]) for d in written] == [
        (name, words, says[name]) for name, (words, _) in TASKS.items()
    ]


def test_players_in_each_others_place_are_refused(folder: Path) -> None:
    """Catches an evaluation that runs for hours with checkpoints that have learned something else."""
    with pytest.raises(UserError, match=r"evaluate.describer .* learned the prompt"):
        evaluate(folder, "same", str(folder / "implement"))
    with pytest.raises(UserError, match=r"set prompt\.format=implement"):
        evaluate(
            folder, "compact", str(folder / "implement"), **{"prompt.format": "compact", "evaluate.checkpoint": None}
        )
