"""Test-time training: what it learns from, that nothing passes from task to task, and what its scheduler keeps."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import codec_of, config_with, grid_of, puzzle, tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from training import hosts_here

from arc_ray.config import Config, config_from, with_overrides
from arc_ray.config.model import LoraConfig, ModelConfig
from arc_ray.config.searching import TttConfig
from arc_ray.config.training import TrainConfig
from arc_ray.evaluate.evaluation import run_evaluation
from arc_ray.evaluate.pool import Hosts
from arc_ray.evaluate.questions import Work, make_prompts, works_of
from arc_ray.evaluate.ttt import Adapter, Tuner, leave_one_out_batches, tuning_works
from arc_ray.models.build import load_for_tuning, trainable
from arc_ray.models.weights import is_in_4_bits
from arc_ray.prompts.encoders import encoder_named
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.prompts.vocabulary import keep_cut
from arc_ray.rows.maker import IGNORED, Batch
from arc_ray.storage import Folder
from arc_ray.tasks.task import Pair, Task, TaskTable, same_grid, task_to_json
from arc_ray.train.loop import NonFiniteLossError

CONFIG = config_with(
    prompt__format="compact", prompt__encoder="compact", train__row_tokens=512, train__lr=1e-2, train__micro_rows=2
)


def batches_of(task: Task, ttt: TttConfig, **changes: Any) -> list[Batch]:
    return leave_one_out_batches(CONFIG, ttt, codec_of(tiny_tokenizer(), **changes), "set", task)


def work_of(task: Task) -> Work:
    prompts = make_prompts(codec_of(tiny_tokenizer()), TaskTable.of([task]), CONFIG)
    (work,) = tuning_works("set", [task], works_of("w", prompts, CONFIG.evaluate))
    return work


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), num_train=st.integers(2, 5), num_test=st.integers(0, 3), hidden=st.booleans())
def test_tuning_rows_are_the_same_whatever_the_test_pairs_are(
    seed: int, num_train: int, num_test: int, hidden: bool
) -> None:
    """Catches a view that asks for, shows, or takes its size, order or key from a test pair."""
    rng = np.random.default_rng(seed)
    train = puzzle("p", num_train=num_train).train
    test = tuple(Pair(grid_of(rng), None if hidden else grid_of(rng)) for _ in range(num_test))
    ttt = TttConfig(steps=3, views_per_step=2)
    with_tests, without = batches_of(Task("p", train, test), ttt), batches_of(Task("p", train, ()), ttt)
    assert len(with_tests) == len(without) == 3
    for a, b in zip(with_tests, without, strict=True):
        assert {k: (v.shape, v.tobytes()) for k, v in a.items()} == {k: (v.shape, v.tobytes()) for k, v in b.items()}


def test_tuning_rows_have_the_positions_that_answers_have() -> None:
    """Catches a task that is tuned on as a sequence and then answered in rows and columns."""
    ttt, positions = TttConfig(steps=2, views_per_step=1), codec_of(tiny_tokenizer(), positions="grid").positions
    for batch in batches_of(puzzle("p"), ttt, positions="grid"):
        ids, found = (batch[name][0] for name in ("input_ids", "position_ids"))
        assert found.tolist() == positions.of(ids).tolist()
        assert found.max() > positions.step


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), num_test=st.integers(1, 3))
def test_a_work_holds_no_test_output(seed: int, num_test: int) -> None:
    """Catches an answer that travels to the worker: the work is the same with other outputs, and with none."""
    rng = np.random.default_rng(seed)
    shown = puzzle("p").train
    inputs = [grid_of(rng) for _ in range(num_test)]
    works = [work_of(Task("p", shown, tuple(Pair(i, grid_of(rng)) for i in inputs))) for _ in range(2)]
    works.append(work_of(Task("p", shown, tuple(Pair(i, None) for i in inputs))))
    written = [
        (
            work.name,
            task_to_json(work.task or puzzle("none")),
            [(p.output, p.augmentation, p.limit, p.ids.tobytes()) for p in work.prompts],
        )
        for work in works
    ]
    assert written[0] == written[1] == written[2]
    assert all(work.task and not work.task.test for work in works)


def test_every_view_asks_for_a_shown_pair_that_it_does_not_show() -> None:
    """Catches an answer that stands in its own prompt, and pairs that are never asked for."""
    task = puzzle("p", num_train=4)
    ttt = TttConfig(steps=24, views_per_step=1, symmetries=False, colors="keep")
    tokenizer, asked = tiny_tokenizer(), set()
    for batch in batches_of(task, ttt, learn="asked"):
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        answer = tokenizer.decode(labels[labels != IGNORED])
        end = tokenizer.eos_token
        grid = encoder_named("compact").parse(answer.removesuffix(end))
        assert isinstance(grid, np.ndarray)
        (pair,) = [i for i, p in enumerate(task.train) if same_grid(grid, p.output)]
        asked.add(pair)
        assert tokenizer.decode(ids).count("O" + answer) == 1
    assert asked == {0, 1, 2, 3}


def test_a_task_with_one_shown_pair_has_no_views() -> None:
    """Catches a view that shows nothing and learns the answer by heart."""
    assert batches_of(puzzle("p", num_train=1), TttConfig(steps=2)) == []


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny base model with its tokenizer, as a folder."""
    path = tmp_path_factory.mktemp("ttt") / "base"
    tiny_model(seed=3).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def adapter_of(base: str, dropout: float = 0.1) -> tuple[Any, Adapter]:
    config = ModelConfig(base=base, lora=LoraConfig(r=4, alpha=8, dropout=dropout))
    model = load_for_tuning(config, "", None, fresh=True, seed=0)
    return model, Adapter(model)


def weights_after(base: str, tasks: Sequence[Task]) -> dict[str, bytes]:
    """Tune one model on tasks one after another; return the last one's weights."""
    model, adapter = adapter_of(base)
    for task in tasks:
        adapter.tune(batches_of(task, TttConfig(steps=3)), CONFIG.train, seed=7)
    return {name: p.detach().numpy().tobytes() for name, p in trainable(model).items()}


def test_nothing_passes_from_task_to_task(base: str) -> None:
    """Catches weights, moments or dropout's randomness that the task before has left, to the last bit."""
    a, b = puzzle("a"), puzzle("b")
    assert weights_after(base, [a, b]) == weights_after(base, [b]) == weights_after(base, [b, a, b])
    assert weights_after(base, [a]) != weights_after(base, [b])


def test_tuning_learns_the_shown_pairs_and_moves_nothing_else(base: str) -> None:
    """Catches steps without effect and a frozen base that moves."""
    model, adapter = adapter_of(base, dropout=0.0)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    batches = batches_of(puzzle("a", most=3), TttConfig(steps=40, symmetries=False, colors="keep"))
    first, last = adapter.tune(batches, TrainConfig(micro_rows=1, lr=2e-2), seed=0)
    assert last < first - 1
    for name, value in frozen.items():
        assert torch.equal(value, dict(model.named_parameters())[name]), name


@pytest.mark.parametrize("clip", [1.0, None])
def test_the_last_steps_gradient_may_not_spoil_the_answers(base: str, clip: float | None) -> None:
    """Catches answers of weights that became NaN in the one step after which no loss is looked at."""
    model, adapter = adapter_of(base)
    next(iter(trainable(model).values())).register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NonFiniteLossError, match=r"step 0: the gradient's norm is nan; try a lower evaluate\.ttt\.lr"):
        adapter.tune(batches_of(puzzle("a"), TttConfig(steps=1)), TrainConfig(micro_rows=1, clip=clip), seed=0)


class Numbers(TorchDispatchMode):
    """Counts the numbers that tensors tell the host."""

    told = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.told += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_micro_rows_change_no_gradient(base: str) -> None:
    """Catches a mean of means: a step's loss is divided by its learned tokens, however many passes it takes; and a pass
    that waits for its loss, while a GPU has nothing to do."""
    task, ttt = puzzle("a", num_train=5), TttConfig(steps=1, views_per_step=6)
    losses, told = [], []
    for micro in (1, 8):
        config = CONFIG.train.model_copy(update={"micro_rows": micro, "row_tokens": 256})
        batches = leave_one_out_batches(
            CONFIG.model_copy(update={"train": config}), ttt, codec_of(tiny_tokenizer()), "set", task
        )
        assert len(batches[0]["labels"]) > 1
        with Numbers() as numbers:
            losses.append(adapter_of(base, dropout=0.0)[1].tune(batches, config, seed=0)[0])
        told.append(numbers.told)
    assert told[0] == told[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, base: str, ray_session: None) -> Path:
    """A storage folder with a link to the base, and a folder of five tasks, one of them with a single shown pair."""
    path = tmp_path_factory.mktemp("ttt")
    (path / "base").symlink_to(base)
    (path / "tasks").mkdir()
    for task in [*(puzzle(f"t{i}", most=4) for i in range(4)), puzzle("single", num_train=1, most=3)]:
        (path / "tasks" / f"{task.id}.json").write_text(json.dumps(task_to_json(task)))
    return path


def evaluate(folder: Path, name: str, **ttt: Any) -> dict[str, Any]:
    """Run an evaluation with test-time training; return its result."""
    return run_evaluation(config_for(folder, name, **ttt), lambda *_: None)


def config_for(folder: Path, name: str, **ttt: Any) -> Config:
    return config_from(
        {
            "name": name,
            "storage": str(folder / "runs"),
            "data": {"sources": {"set": {"kind": "folder", "path": str(folder / "tasks")}}},
            "prompt": {"format": "compact", "encoder": "compact"},
            "model": {"base": str(folder / "base"), "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
            "train": {"row_tokens": 512},
            "evaluate": {"sets": ["set"], "symmetries": 2, "ttt": {"steps": 4, "lr": 2e-2, **ttt}},
            "scaling": {"use_gpu": False, "threads": 1, "cpus_per_worker": 0.5},
        },
        {},
    )


def answered(folder: Path, name: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "runs" / name / "predictions").glob("*.parquet"))}


def tuned(folder: Path, name: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "runs" / name / "tuned").glob("*.parquet"))}


def statuses(folder: Path, name: str) -> dict[str, str]:
    return {r["task"]: r["status"] for r in json.loads((folder / "runs" / name / "tuning.json").read_text())}


def test_a_cut_base_of_4_bits_is_tuned_and_answers(base: str, tmp_path: Path) -> None:
    """Catches an adapter that is merged into packed weights, a base that moves, and ids of the whole vocabulary."""
    (tmp_path / "base").symlink_to(base)
    small = {"model.quantize": "nf4", "model.vocabulary": "cells", "model.dtype": "float32"}
    config = with_overrides(config_for(tmp_path, "small", steps=3), small)
    assert keep_cut(config.model, config.storage)
    codec = codec_of(load_tokenizer(config.model, config.storage))
    tasks = [puzzle("a", most=3), puzzle("b", most=3)]
    works = works_of("set", make_prompts(codec, TaskTable.of(tasks), config), config.evaluate)
    tuner, records = Tuner(config, Folder.at(str(tmp_path / "tuned")), codec), []
    tuner.load()
    packed = {name: p.clone() for name, p in tuner._model.named_parameters() if is_in_4_bits(p)}
    for work in tuning_works("set", tasks, works):
        records.append(tuner.do(work))
        assert len(tuner._folder.read_parquet(f"{work.name}.parquet")) == 2
    assert [record["status"] for record in records] == ["tuned", "tuned"]
    assert all(record["last_loss"] != record["first_loss"] for record in records)
    assert len(packed) == 14
    for name, value in packed.items():
        assert torch.equal(value, dict(tuner._model.named_parameters())[name]), name


TUNED = dict.fromkeys(["t0", "t1", "t2", "t3"], "tuned") | {"single": "no_views"}


@pytest.mark.slow
def test_workers_order_and_interruption_change_no_byte(folder: Path) -> None:
    """Catches leakage between tasks, threads shared by workers, what a process keeps of the model that it held before, and
    a resumed evaluation that tunes again or loses a task."""
    result = evaluate(folder, "one", num_workers=1)
    assert statuses(folder, "one") == TUNED
    tuning, curves = (
        json.loads((folder / "runs" / "one" / f"{name}.json").read_text()) for name in ("tuning", "curves")
    )
    steps = sum(record.get("tuning_seconds", 0.0) for record in tuning)
    assert 0 < steps < sum(record["seconds"] for record in tuning)
    one, both = (curve["seconds"] * len(curve["tasks"]) for curve in curves)
    assert steps < one < both, "tuning costs all, however few views are asked"
    with Hosts() as hosts:
        other = {"seed": 9, "model.dtype": "bfloat16", "scaling.threads": 2, "evaluate.decode": "sample"}
        run_evaluation(with_overrides(config_for(folder, "other", num_workers=2), other), lambda *_: None, hosts=hosts)
        used = {process.pid for process in hosts_here()}
        run_evaluation(config_for(folder, "two", num_workers=2), lambda *_: None, hosts=hosts)
        kept = {process.pid for process in hosts_here()}
        assert set[int]() != kept <= used, "one that is still loading at the end is not kept"
    assert tuned(folder, "two") == tuned(folder, "one")
    assert len(tuned(folder, "one")) == 8
    assert answered(folder, "two") == answered(folder, "one") != {}
    for name in (
        "result.json",
        "tuning.json",
        "tuned/set-00001.json",
        "tuned/set-00002.json",
        "tuned/set-00002.parquet",
    ):
        (folder / "runs" / "two" / name).unlink()
    left = folder / "runs" / "two" / "tuned" / "set-00003.parquet"
    before = left.stat().st_mtime_ns
    assert evaluate(folder, "two", num_workers=1) == {**result, "run": "two"}
    assert tuned(folder, "two") == tuned(folder, "one")
    assert left.stat().st_mtime_ns == before


@pytest.mark.slow
def test_lost_workers_are_replaced_and_their_tasks_done_again(folder: Path) -> None:
    """Catches an evaluation that hangs, gives up or answers untuned because a node went away; here, a kill -9."""
    lost: list[int] = []

    def kill_workers(*_: Any) -> None:
        if (folder / "runs" / "lossy" / "tuned").exists() and not lost:
            for worker in hosts_here():
                lost.append(worker.pid)
                worker.kill()

    run_evaluation(config_for(folder, "lossy", num_workers=2), kill_workers)
    assert lost
    assert statuses(folder, "lossy") == TUNED
    evaluate(folder, "whole", num_workers=2)
    assert tuned(folder, "lossy") == tuned(folder, "whole")


@pytest.mark.slow
def test_tasks_beyond_the_budget_keep_their_untuned_answers(folder: Path) -> None:
    """Catches a budget that is not kept, and tasks that lose their answers or pass for tuned when it ends."""
    begun = time.monotonic()
    result = evaluate(folder, "short", budget_seconds=1e-3, steps=100_000)
    assert time.monotonic() - begun < 300, "100,000 steps take hours"
    assert set(statuses(folder, "short").values()) == {"budget"}
    assert {k.removeprefix("set/untuned/"): v for k, v in result.items() if k.startswith("set/untuned/")} == {
        k: result[f"set/{k}"] for k in (k.removeprefix("set/untuned/") for k in result if k.startswith("set/untuned/"))
    }
    assert result["set/tuning/gain"] == 0.0
