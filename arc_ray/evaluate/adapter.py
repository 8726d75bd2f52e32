"""Test-time training of one task: its shown pairs become leave-one-out views, and an adapter takes k steps on them.

Plain torch AdamW, not a DeepSpeed engine: a task is tuned whole on one device within seconds to minutes, there is
nothing to shard, and an engine a task would cost more to set up than the steps. Views, packing, the loss on learned
tokens divided by their number, and the schedule are those of training.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from arc_ray.config import Config
from arc_ray.config.searching import TttConfig
from arc_ray.config.training import TrainConfig
from arc_ray.models.build import trainable
from arc_ray.models.loss import LearnedLoss, inputs_of
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.lengths import fit_views
from arc_ray.rows.maker import IGNORED, Batch, write_rows
from arc_ray.rows.plan import pack
from arc_ray.seeding import digest64
from arc_ray.tasks.task import Task, TaskTable, without_tests
from arc_ray.train.loop import NonFiniteLossError, learning_rate
from arc_ray.views.view import draw_views, keys_of


def leave_one_out_batches(config: Config, ttt: TttConfig, codec: Codec, set_name: str, task: Task) -> list[Batch]:
    """Write the rows of each step: every view asks for one shown pair of the task and shows others, augmented.

    Views follow from (seed, set, task, number). Empty where the task has fewer than two shown pairs or where none of
    its views fits into `train.row_tokens`. Arrays are those of `rows.Batch`, each step as wide as its fullest row.
    """
    if len(task.train) < 2:
        return []
    table = TaskTable.of([without_tests(task)])
    number = np.arange(ttt.steps * ttt.views_per_step)
    key = keys_of(config.seed, f"ttt/{set_name}", table, np.zeros_like(number), number, 0)
    # A one-sided change makes another puzzle, which the test pair does not follow.
    changes = {"symmetries": ttt.symmetries, "colors": ttt.colors, "shuffle_pairs": True, "one_sided": 0.0}
    view = config.view.model_copy(update={name: value for name, value in changes.items() if value is not None})
    views = draw_views(view, table, np.zeros_like(number), key)
    shown, (tokens, _) = fit_views(codec, table, views, config.train.row_tokens, drop=config.train.too_long == "drop")
    fits = np.flatnonzero(shown >= 0)
    encoded = codec.encode(table, views.showing(np.maximum(shown, 0)).take(fits))
    batches = []
    for step in range(ttt.steps):
        here = np.flatnonzero(fits // ttt.views_per_step == step)
        if len(here):
            rows = pack(tokens[fits[here]], config.train.row_tokens)
            width = max(int(tokens[fits[here[row]]].sum()) for row in rows)
            # Padding is masked wherever it is, so its number is free to choose: any token that exists.
            batches.append(write_rows([[encoded[here[i]] for i in row] for row in rows], width, pad_id=0))
    return batches


class Adapter:
    """The trainable weights of a model as they were when it was loaded, to start every task from."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._initial = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}

    def tune(self, batches: Sequence[Batch], train: TrainConfig, lr: float, seed: int) -> tuple[float, float]:
        """Throw away what the last task left and take one step a batch; return the losses of the first and the last.

        What comes out depends on the arguments alone, dropout included: not on tasks before or on who calls.
        Raises NonFiniteLossError.
        """
        self._reset()
        devices = [0] if next(self._model.parameters()).is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            losses = _fit(self._model, batches, train.model_copy(update={"lr": lr}))
        return losses[0], losses[-1]

    @torch.no_grad()
    def _reset(self) -> None:
        for name, parameter in trainable(self._model).items():
            # Not merged into the base and subtracted again: rounding would carry a little of each task to the next.
            parameter.copy_(self._initial[name])
            parameter.grad = None


def _fit(model: nn.Module, batches: Sequence[Batch], config: TrainConfig) -> list[float]:
    """Take a step of AdamW on each batch; return the mean loss per learned token of each."""
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    loss_of, device = LearnedLoss(model).train(), parameters[0].device
    means = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, len(batches))
        learned, total = int((batch["labels"] != IGNORED).sum()), torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, len(batch["labels"]), config.rows_at_once):
            rows = slice(start, start + config.rows_at_once)
            losses, _ = loss_of(**inputs_of({name: array[rows] for name, array in batch.items()}, device))
            loss = losses.sum() / learned
            loss.backward()
            total += loss.detach()
        if not math.isfinite(mean := float(total)):
            raise NonFiniteLossError(
                f"test-time training, step {step}: the loss is {mean}; try a lower evaluate.ttt.lr"
            )
        if config.clip is not None:
            nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        optimizer.zero_grad()
        means.append(mean)
    model.eval()
    return means


def tuning_seed(config: Config, set_name: str, task_id: str) -> int:
    """Return the seed of a task's dropout; it follows from names, like the views."""
    return digest64(config.seed, "ttt", set_name, task_id) % 2**63
