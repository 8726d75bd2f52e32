"""Checkpoints: written whole by rank 0 on a thread beside the training, `arc_ray.json` last; found again, and pruned."""

import hashlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from arc_ray.config import Config
from arc_ray.contents import damaged, parse_json
from arc_ray.errors import UserError, one_line
from arc_ray.models.build import save_weights, trainable
from arc_ray.models.weights import not_finite
from arc_ray.prompts.tokenizer import frame_of
from arc_ray.prompts.vocabulary import base_folder
from arc_ray.runs.base import fingerprint
from arc_ray.runs.folder import checkpoint_name, checkpoint_steps
from arc_ray.runs.shapes import CheckpointShape
from arc_ray.storage import Folder
from arc_ray.train.engine import State, weights_in
from arc_ray.train.optimizer import MOMENTS, MOMENTUM

WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"


class CheckpointWriter:
    """Writes checkpoints one after another on a thread of its own, so that training waits for no disk."""

    def __init__(self, folder: Folder, config: Config, model: nn.Module, tokenizer: Any) -> None:
        self._folder, self._config, self._model, self._tokenizer = folder, config, model, tokenizer
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._last = self._thread.submit(lambda: None)

    def rehearse(self) -> None:
        """Save the model with one weight for all, which costs nothing, to nowhere. Raises UserError where that fails.

        A model or tokenizer that cannot be saved is found before the first step, not after hours.
        """
        name, weight = min(trainable(self._model).items(), key=lambda item: item[1].numel())
        try:
            list(self._files({name: weight.detach().cpu()}))
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            base = self._config.model.base
            raise UserError(f"model.base {base} cannot be saved in a checkpoint: {one_line(error)}") from error

    def write(self, step: int, state: State, after: "Future[None] | None" = None) -> None:
        """Begin to write the state of a step; waits for the checkpoint before it, and raises what went wrong there.

        It is complete only `after` the metrics up to it are written, which a run that goes on from it keeps.
        """
        self.wait()
        self._last = self._thread.submit(self._write, step, state, after)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete."""
        self._last.result()

    def _files(self, weights: State) -> Iterator[tuple[str, bytes]]:
        """Yield what plain peft or transformers loads, file by file: path within the checkpoint, and content."""
        with tempfile.TemporaryDirectory() as scratch:
            save_weights(self._model, weights, self._tokenizer, Path(scratch))
            for path in sorted(Path(scratch).rglob("*")):
                if path.is_file():
                    yield path.relative_to(scratch).as_posix(), path.read_bytes()

    def _write(self, step: int, state: State, after: "Future[None] | None") -> None:
        target = self._folder / checkpoint_name(step)
        weights, moments = weights_in(state), {name: t for name, t in state.items() if not name.startswith("weight.")}
        for name, content in self._files(weights):
            target.write_bytes(name, content)
        digests = {}
        for name, tensors in ((WEIGHTS_FILE, weights), (OPTIMIZER_FILE, moments)):
            content = save_tensors(tensors)
            digests[name] = _digest(content)
            target.write_bytes(name, content)
        if after:
            after.result()
        about = {"frame": asdict(frame_of(self._tokenizer)), "digests": digests}
        target.write_json("arc_ray.json", describe_checkpoint(self._config, step) | about)
        for old in checkpoint_steps(self._folder)[: -self._config.train.keep_checkpoints]:
            # The marker goes first, so that a checkpoint half deleted is one that is not there.
            (self._folder / checkpoint_name(old)).delete("arc_ray.json")
            self._folder.delete(checkpoint_name(old))


def describe_checkpoint(config: Config, step: int) -> dict[str, Any]:
    """Say what a checkpoint is: base, prompt, step. Loading refuses a mismatch."""
    base = config.model.base
    return {
        "step": step,
        "base": base,
        "base_fingerprint": fingerprint(base_folder(config.model, config.storage))
        if base and not config.train.full
        else None,
        "vocabulary": config.model.vocabulary,
        "is_adapter": not config.train.full,
        "prompt": config.prompt.model_dump(include={"format", "encoder", "positions"}),
        "run": config.name,
    }


def read_state(folder: Folder, step: int) -> State:
    """Read the whole training state of a checkpoint. Raises UserError where a part of it is damaged."""
    source = folder / checkpoint_name(step)
    about = source.read("arc_ray.json", partial(parse_json, shape=CheckpointShape))
    digests = about.get("digests", {})  # older checkpoints have none
    try:
        weights, moments = (
            source.read(file, partial(_tensors_in, digest=digests.get(file))) for file in (WEIGHTS_FILE, OPTIMIZER_FILE)
        )
        with damaged(f"{source.uri}/{OPTIMIZER_FILE}"):
            _check_moments(weights, moments)
    except UserError as error:
        raise UserError(
            f"{error}; or delete the folder {source.uri}, and the run goes on from the checkpoint before it"
        ) from error
    return {f"weight.{name}": tensor for name, tensor in weights.items()} | moments


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _tensors_in(content: bytes, digest: str | None) -> State:
    if digest not in (None, _digest(content)):
        raise ValueError("it is not what was written")
    tensors = load_tensors(content)
    if lost := not_finite(tensors.items()):
        raise ValueError(f"{lost[0]} holds numbers that are not finite")
    return tensors


def _check_moments(weights: State, moments: State) -> None:
    """Raise ValueError where an optimizer's state is not that of these weights."""
    shapes = {
        f"{kind}.{name}": tensor.shape
        for name, tensor in weights.items()
        for kind in ((MOMENTUM,) if f"{MOMENTUM}.{name}" in moments else MOMENTS)
    }
    found = {name: tensor.shape for name, tensor in moments.items()}
    for name in sorted(shapes.keys() | found.keys()):
        if shapes.get(name) != found.get(name):
            raise ValueError(f"{name} is missing, of another shape, or of no weight")
