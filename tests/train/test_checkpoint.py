"""Checkpoints: written beside the training, complete or absent, old ones dropped last thing first."""

import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CHAT_TEMPLATE, config_with, tiny_model, tiny_tokenizer
from transformers import AutoTokenizer

from arc_ray.config.model import ModelConfig
from arc_ray.errors import UserError
from arc_ray.models.build import build_model, save_weights, trainable
from arc_ray.runs.folder import checkpoint_steps
from arc_ray.storage import Folder
from arc_ray.train import checkpoint
from arc_ray.train.checkpoint import CheckpointWriter, read_state


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
    assert checkpoint_steps(Folder.at(str(tmp_path))) == []
    may_go_on.set()
    writer.wait()
    assert checkpoint_steps(Folder.at(str(tmp_path))) == [3]
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


@pytest.fixture
def many_templates() -> Any:
    """A tokenizer with several chat templates, which transformers saves into a folder within the folder."""
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": CHAT_TEMPLATE}
    return tokenizer


def test_folders_within_a_checkpoint_are_saved(
    tmp_path: Path, state: dict[str, torch.Tensor], many_templates: Any
) -> None:
    """Catches a run that fails at every checkpoint, after hours, because one of its files is a folder."""
    writer = CheckpointWriter(Folder.at(str(tmp_path)), config_with(train__full=True), tiny_model(), many_templates)
    writer.rehearse()
    writer.write(1, state)
    writer.wait()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "checkpoint-000001")
    assert loaded.chat_template == many_templates.chat_template


def test_a_model_that_cannot_be_saved_is_found_before_the_first_step(tmp_path: Path) -> None:
    """Catches settings of generation that load and train, but that transformers refuses to write."""
    model = tiny_model()
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = False
    writer = CheckpointWriter(Folder.at(str(tmp_path)), config_with(train__full=True), model, tiny_tokenizer())
    with pytest.raises(UserError, match=r"cannot be saved in a checkpoint: .*temperature"):
        writer.rehearse()
    assert not list(tmp_path.iterdir())


def test_rehearsing_writes_and_changes_nothing(tmp_path: Path) -> None:
    """Catches a rehearsal that is found as a checkpoint, and one that only works for whole models."""
    base = tmp_path / "base"
    save_weights(tiny_model(), trainable(tiny_model()), tiny_tokenizer(), base)
    adapted = build_model(ModelConfig(base=str(base)), "", 0, False, None)
    for model, full in ((tiny_model(), True), (adapted, False)):
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        config = config_with(train__full=full, model__base=str(base))
        CheckpointWriter(Folder.at(str(tmp_path / "run")), config, model, tiny_tokenizer()).rehearse()
        assert not (tmp_path / "run").exists()
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("has_digests", [True, False])
@pytest.mark.parametrize("file", ["optimizer.safetensors", "weights.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_whole(
    tmp_path: Path, state: dict[str, torch.Tensor], file: str, has_digests: bool
) -> None:
    """Catches a moment of which a bit fell over, and NaN in a checkpoint of earlier versions, that training goes on from."""
    folder, writer = Folder.at(str(tmp_path)), writer_of(tmp_path)
    for step in (1, 2):
        writer.write(step, state)
        writer.wait()
    content = bytearray((tmp_path / "checkpoint-000002" / file).read_bytes())
    if has_digests:
        content[-1] ^= 1
    else:
        content[-4:] = b"\xff" * 4
        about = folder.read_json("checkpoint-000002/arc_ray.json")
        del about["digests"]
        folder.write_json("checkpoint-000002/arc_ray.json", about)
    (tmp_path / "checkpoint-000002" / file).write_bytes(content)
    said = "it is not what was written" if has_digests else "not finite"
    with pytest.raises(UserError, match=rf"{file} is damaged.*{said}.*delete the folder .*checkpoint-000002"):
        read_state(folder, 2)
    folder.delete("checkpoint-000002")
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in read_state(folder, checkpoint_steps(folder)[-1]).items()
    )
