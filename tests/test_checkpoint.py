"""Checkpoints: written beside the training, complete or absent, old ones dropped last thing first."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import config_with, tiny_model, tiny_tokenizer

from arc_ray.model import save_weights, trainable
from arc_ray.runs import checkpoint_steps
from arc_ray.storage import Folder
from arc_ray.train import checkpoint
from arc_ray.train.checkpoint import CheckpointWriter, newest_checkpoint, read_state


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    names = trainable(tiny_model())
    kinds = ("weight", "exp_avg", "exp_avg_sq")
    return {f"{kind}.{name}": torch.rand_like(p.data) for kind in kinds for name, p in names.items()}


def writer_of(path: Path, **overrides: Any) -> CheckpointWriter:
    config = config_with(train__full=True, **overrides)
    return CheckpointWriter(Folder.at(str(path)), config, tiny_model(), tiny_tokenizer())


def test_training_does_not_wait_for_a_checkpoint_and_nobody_sees_it_early(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a disk that stalls the GPUs, and a checkpoint that is resumed from before it is whole."""
    may_go_on, has_begun = threading.Event(), threading.Event()

    def slow(*args: Any) -> None:
        has_begun.set()
        assert may_go_on.wait(60)
        save_weights(*args)

    monkeypatch.setattr(checkpoint, "save_weights", slow)
    writer = writer_of(tmp_path)
    writer.write(3, state)
    assert has_begun.wait(60)
    assert newest_checkpoint(Folder.at(str(tmp_path))) is None
    may_go_on.set()
    writer.wait()
    assert newest_checkpoint(Folder.at(str(tmp_path))) == 3
    read = read_state(Folder.at(str(tmp_path)), 3)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_a_checkpoint_keeps_the_text_around_its_prompts(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """Catches an evaluation that cannot tell whether it asks as training did."""
    writer = writer_of(tmp_path)
    writer.write(1, state)
    writer.wait()
    about = (Folder.at(str(tmp_path)) / "checkpoint-000001").read_json("arc_ray.json")
    assert about["frame"] == {"begin": "<bos>", "answer": "", "end": "<eos>", "between": "\n"}


@pytest.mark.parametrize("at", range(6))
def test_a_checkpoint_cut_off_at_any_file_is_not_there(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Catches a marker that is not the last file; and an error on the thread that nobody hears of."""
    write, written = Folder.write_bytes, []

    def failing(self: Folder, name: str, content: bytes) -> None:
        if len(written) == at:
            raise OSError("the disk is full")
        written.append(name)
        write(self, name, content)

    writer = writer_of(tmp_path)
    writer.write(1, state)
    writer.wait()
    monkeypatch.setattr(Folder, "write_bytes", failing)
    writer.write(2, state)
    with pytest.raises(OSError, match="the disk is full"):
        writer.wait()
    assert checkpoint_steps(Folder.at(str(tmp_path))) == [1]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """Catches a disk that fills up, and the newest checkpoint deleted for an older one."""
    writer = writer_of(tmp_path, train__keep_checkpoints=2)
    for step in (5, 10, 15, 20):
        writer.write(step, state)
    writer.wait()
    assert checkpoint_steps(Folder.at(str(tmp_path))) == [15, 20]
    assert not (tmp_path / "checkpoint-000005").exists()
