"""The space of a search: its points, their names and configs, and the table of what became of them."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from arc_ray.config import Config, config_from, load_config
from arc_ray.errors import UserError
from arc_ray.report import write_report
from arc_ray.runs.folder import MetricsFile, claim, finish, run_folder
from arc_ray.runs.starts import with_start
from arc_ray.storage import Folder
from arc_ray.tune.space import (
    MOST_NAME,
    check_points,
    fixed_parts,
    num_trials,
    points,
    trial_config,
    trial_folder,
    trial_name,
)
from arc_ray.tune.trials import Trial, TrialReader, rank, to_csv, write_search, write_status


def config(tmp_path: Path | str = "runs", **overrides: Any) -> Config:
    tree = {"name": "search", "storage": str(tmp_path), "starts": {"base": {}, "low": {"train.weight_decay": 0.5}}}
    return config_from(tree, {key.replace("__", "."): value for key, value in overrides.items()})


GRID = {"train.lr": {"grid": [1e-3, 2e-4]}, "train.epochs": {"grid": [1, 2]}, "start": {"grid": ["base", "low"]}}


def test_a_grid_is_every_combination_once_with_the_first_values_first():
    found = points(config(tune__space=GRID))
    assert len(found) == 8
    assert found[0] == {"train.lr": 1e-3, "train.epochs": 1, "start": "base"}
    assert found[-1] == {"train.lr": 2e-4, "train.epochs": 2, "start": "low"}
    assert len({trial_name(point) for point in found}) == 8
    assert points(config()) == [{}]


def random(number: int, **overrides: Any) -> Config:
    space = {
        "train.lr": {"loguniform": [1e-5, 1e-1]},
        "train.weight_decay": {"uniform": [0.0, 1.0]},
        "train.epochs": {"choice": [1, 2, 3]},
        "train.schedule": {"grid": ["linear", "cosine"]},
    }
    return config(tune__space=space, tune__search="random", tune__num_trials=number, **overrides)


def test_random_points_follow_their_distributions():
    """Would catch a learning rate that is drawn uniformly: nine in ten would be in the highest decade."""
    found = points(random(2000))
    decades = np.log10([point["train.lr"] for point in found])
    assert stats.kstest((decades + 5) / 4, "uniform").pvalue > 0.001
    assert stats.kstest([point["train.weight_decay"] for point in found], "uniform").pvalue > 0.001
    epochs = np.bincount([point["train.epochs"] for point in found])[1:]
    assert stats.chisquare(epochs).pvalue > 0.001
    assert {point["train.schedule"] for point in found} == {"linear", "cosine"}
    assert abs(np.corrcoef(decades, [point["train.weight_decay"] for point in found])[0, 1]) < 0.08


def test_random_points_are_the_same_each_time_and_more_of_them_begin_alike():
    """Would catch a search that cannot go on, because its points have changed."""
    assert points(random(5)) == points(random(5))
    assert points(random(9))[:5] == points(random(5))
    assert points(random(5, seed=1)) != points(random(5))


@pytest.mark.parametrize("seed", range(20))
def test_random_points_of_lists_are_all_different(seed: int):
    """Would catch points drawn independently: of 6 in a 3 x 3 space two are equal with 18 of these seeds."""
    space = {"train.lr": {"choice": [1e-3, 2e-3, 3e-3]}, "train.epochs": {"grid": [1, 2, 3]}}
    for number in (6, 9):
        search = config(**search_keys(space, number), seed=seed)
        assert len({trial.name for trial in check_points(search, points(search))}) == number
    assert points(search)[:6] == points(config(**search_keys(space, 6), seed=seed))


def search_keys(space: dict[str, Any], number: int) -> dict[str, Any]:
    return {"tune__space": space, "tune__search": "random", "tune__num_trials": number}


@pytest.mark.parametrize(
    ("space", "size"),
    [
        ({"train.lr": {"choice": [1e-3, 1e-3, 2e-3]}, "train.epochs": {"grid": [1, 2, 3]}}, 6),
        ({"train.lr": {"uniform": [1.0, 1.00001]}}, 2),
    ],
)
def test_a_space_with_fewer_points_than_trials_is_one_message(space: dict[str, Any], size: int):
    """Would catch a search that draws for ever, and one that is told to remove repeats which its lists do not have."""
    with pytest.raises(UserError, match=rf"tune.num_trials 7: tune.space holds only {size} different points"):
        points(config(**search_keys(space, 7)))


def test_a_hundred_random_points_have_a_hundred_names():
    """Would catch names with so few digits that two trials share a folder."""
    space = {"train.lr": {"loguniform": [1e-4, 2e-4]}}
    search = config(tune__space=space, tune__search="random", tune__num_trials=100)
    assert len({trial.name for trial in check_points(search, points(search))}) == 100


@pytest.mark.parametrize(
    ("point", "name"),
    [
        ({}, "only"),
        ({"start": "count", "train.lr": 2e-3, "train.epochs": 2, "seed": 1}, "start-count_lr-0.002_epochs-2_seed-1"),
        ({"train.lr": 1e-5}, "lr-1e-05"),
        ({"train.lr": 1e18}, "lr-1e18"),
        ({"model.adapter": "@count"}, "adapter--count"),
        ({"model.adapter": None, "train.full": True}, "adapter-None_full-True"),
        ({"data.mix.my source": 3}, "my-source-3"),
        ({"train.row_tokens": 512}, "row_tokens-512"),
        ({"model.base": "a/b c"}, "base-a-b-c"),
        ({"start": "zähle"}, "start-z-hle"),
    ],
)
def test_trials_are_named_after_their_points(point: dict[str, Any], name: str):
    """Would catch a slash, a space or another letter that makes no valid folder name."""
    assert trial_name(point) == name
    config_from({"name": f"search/trials/{name}"}, {})


def test_a_trial_of_a_place_is_named_after_its_end_alone():
    """Would catch names with all folders of somebody's machine in them, two models that share one, and a job that is
    submitted again, which finds its own copy of the same folder elsewhere."""
    first, second, bucket = "/home/me/models/a b", "/home/you/models/a b", "s3://bucket/models/a?endpoint_override=x:1"
    names = [trial_name({"model.base": place}) for place in (first, second, bucket)]
    assert [re.sub("-[0-9a-f]{6}$", "", name) for name in names] == ["base-a-b", "base-a-b", "base-a"]
    assert len(set(names)) == 3
    jobs = (f"/tmp/ray/session_{i}/runtime_resources/working_dir_files/_ray_pkg_{i}f/models/a" for i in range(2))
    assert len({trial_name({"model.base": place}) for place in jobs}) == 1


def test_long_names_are_cut_and_stay_apart():
    a = {f"train.deepspeed.key{i}": "value" * 5 for i in range(9)}
    b = {**a, "train.deepspeed.key8": "other"}
    assert trial_name(a) != trial_name(b)
    assert trial_name(a)[:MOST_NAME] == trial_name(b)[:MOST_NAME]
    assert len(trial_name(a)) < 255, "no file system takes a longer name"
    assert trial_name(a) == trial_name(dict(a))


def test_a_trial_is_the_searchs_config_with_its_point_and_its_start():
    search = config(tune__space=GRID, train__weight_decay=0.1)
    base, low = (trial_config(search, {"train.lr": 1.0, "start": start}) for start in ("base", "low"))
    assert (base.train.lr, base.train.weight_decay) == (1.0, 0.1)
    assert (low.train.lr, low.train.weight_decay) == (1.0, 0.5), "what a start sets wins"
    assert base.name == "search/trials/lr-1_start-base"


def test_impossible_points_are_found_before_the_first_trial():
    with pytest.raises(UserError, match=r"trial batch_rows-3: .*batch_rows 3 must be a multiple"):
        check_points(config(train__micro_rows=2), [{"train.batch_rows": 4}, {"train.batch_rows": 3}])
    with pytest.raises(UserError, match=r"trial start-hi: start 'hi' is not under starts"):
        check_points(config(), [{"start": "hi"}])
    with pytest.raises(UserError, match="two trials have the same values"):
        check_points(config(), [{"train.lr": 0.1}, {"train.lr": 0.1}])
    assert [c.train.lr for c in check_points(config(), [{"train.lr": 0.1}, {"train.lr": 0.2}])] == [0.1, 0.2]


def trial(name: str, status: Any = "done", error: str | None = None, **metrics: float) -> Trial:
    return Trial(name, {"train.lr": name}, status, error, {k.replace("__", "/"): v for k, v in metrics.items()})


def test_optuna_searches_each_arm_of_a_study_by_itself():
    """Catches a study by Optuna in which arms share a search, or whose number of trials is announced wrongly."""
    space = {"train.lr": {"loguniform": [1e-5, 1e-1]}, "train.epochs": {"choice": [1, 2, 3]}}
    proposed = config(tune__space=space, tune__search="optuna", tune__num_trials=5)
    alone = points(proposed)
    assert fixed_parts(proposed, alone) == [{}]
    assert num_trials(proposed, alone) == 5
    arms = [{"start": arm, "seed": 0} for arm in ("base", "low")]
    both = [{**point, **arm} for point in alone for arm in arms]
    assert fixed_parts(proposed, both) == arms
    assert num_trials(proposed, both) == 10
    drawn = config(tune__space=space, tune__search="random", tune__num_trials=5)
    assert num_trials(drawn, points(drawn)) == 5


def test_trials_are_ranked_by_the_metric_then_by_cells_then_by_their_order():
    """Would catch a trial without validation that is taken for the best one, and a stopped one before finished ones."""
    trials = [
        Trial("none", {}, "done", None),
        Trial("low", {}, "done", None, {}, (0.1, 0.9)),
        Trial("stopped", {}, "stopped", None, {}, (0.9, 0.9)),
        Trial("first", {}, "done", None, {}, (0.5, 0.2)),
        Trial("second", {}, "done", None, {}, (0.5, 0.2)),
        Trial("best", {}, "done", None, {}, (0.5, 0.3)),
    ]
    assert [t.name for t in rank(trials)] == ["best", "first", "second", "low", "none", "stopped"]


def test_a_trial_is_what_its_folder_says(tmp_path: Path):
    search, point = config(tmp_path), {"train.lr": 0.1}
    assert TrialReader(search, in_study=False)(point).status == "waiting"
    folder = trial_folder(search, point)
    write_status(folder, point, "running")
    validated = {"step": 1, "eval/solved": 0.1, "eval/cell_accuracy": 0.4, "train/loss": 2.0}
    MetricsFile(folder, -1).append([validated, {"step": 2, "train/loss": 1.0}])
    found = TrialReader(search, in_study=False)(point)
    assert (found.name, found.status, found.error, found.point) == ("lr-0.1", "running", None, point)
    assert found.metrics == {**validated, "step": 2, "train/loss": 1.0}, "the newest value of each"
    assert found.merit == (0.1, 0.4)
    write_status(folder, point, "failed", "out of memory")
    assert (TrialReader(search, in_study=False)(point).status, TrialReader(search, in_study=False)(point).error) == (
        "failed",
        "out of memory",
    )


def test_the_table_has_a_line_for_each_trial_also_a_failed_one(tmp_path: Path):
    """Would catch a table that loses a column because the first trial has no metric yet."""
    trials = [
        trial("a", "failed", 'it said "no",\nand went'),
        Trial("b", {"train.epochs": 2, "view.one_sided": None}, "done", None, {"eval/solved": 0.5, "steps": 7}),
    ]
    first, second = csv.DictReader(io.StringIO(to_csv(config(tmp_path), trials)))
    assert list(first) == [
        *("study", "trial", "arm", "seed", "status", "error", "steps", "seconds"),
        *("train.epochs", "train.lr", "view.one_sided", "eval/solved"),
    ]
    assert (first["trial"], first["status"], first["error"]) == ("a", "failed", 'it said "no",\nand went')
    assert (first["train.lr"], first["train.epochs"], first["eval/solved"]) == ("a", "", "")
    assert list(second.values()) == ["search", "b", "base", "0", "done", "", "7", "0", "2", "", "null", "0.5"]


def test_a_report_writes_the_same_table_as_the_search(tmp_path: Path):
    """Would catch two tables of one name: which columns a user finds must not depend on whether a report was made."""
    search = config(tmp_path, tune__space={"train.lr": {"choice": [1e-3, 1e-2]}, "train.epochs": {"choice": [1, 2]}})
    trials = []
    for i, point in enumerate(reversed(points(search))):
        run = trial_config(search, point)
        folder = run_folder(run)
        claim(folder, run, "train")
        write_status(folder, point, "running" if i == 3 else "done")
        MetricsFile(folder, -1).append(
            [
                {"step": 0, "seconds": 1.5, "eval/solved": 0.1, "eval/cell_accuracy": 0.5},
                {"step": 4, "train/loss": 1.0 + i},
            ],
        )
        if i < 3:
            finish(folder, {"steps": 4, "seconds": 9.25, "plan/rows": 480, "checkpoint": "checkpoint-000004"})
        trials.append(TrialReader(search, in_study=False)(point))
    claim(run_folder(search), search, "tune")
    write_search(search, trials)
    written = run_folder(search).read_bytes("trials.csv")
    write_report([run_folder(search).uri])
    assert run_folder(search).read_bytes("trials.csv").decode() == written.decode()
    assert b"3 of 4 trials finished" in run_folder(search).read_bytes("report.md"), "a space of choices has its size"


def test_the_best_config_runs_by_itself(tmp_path: Path):
    """Would catch a best.yaml that needs the search, its start's overrides or another folder."""
    search = config(tmp_path, tune__space=GRID)
    trials = []
    for i, point in enumerate(points(search)):
        folder = trial_folder(search, point)
        write_status(folder, point, "done")
        MetricsFile(folder, -1).append([{"step": 1, "eval/solved": 0.5 + 0.1 * (i == 3), "eval/cell_accuracy": 0.5}])
        trials.append(TrialReader(search, in_study=False)(point))
    failed = Trial("failed", {"train.lr": 9.0}, "failed", "x", {"eval/solved": 1.0})
    write_search(search, [*trials, failed])
    assert len(run_folder(search).read_bytes("trials.csv").splitlines()) == 10
    best = load_config(tmp_path / "search" / "best.yaml")
    assert best.name == "search-best"
    assert (best.train.lr, best.train.epochs, best.start, best.train.weight_decay) == (1e-3, 2, "low", 0.5)
    assert with_start(best) == best


def test_without_an_ended_trial_there_is_no_best_config(tmp_path: Path):
    search = config(tmp_path)
    write_search(search, [trial("a", "running", eval__solved=0.1), trial("b", "done")])
    assert run_folder(search).names() == ["trials.csv"]
    assert Folder.at(str(tmp_path)).names() == ["search"]
