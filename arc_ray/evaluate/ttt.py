"""Test-time training: an adapter takes k steps on leave-one-out views of a task's shown pairs, then the task is answered.

Without DeepSpeed: a task is tuned on one device, and a DeepSpeed engine for each would cost more to set up than the
steps. Views, packing, the loss on learned tokens divided by their number, and the schedule are those of training.

A pool of actors takes the tasks, the longest first. An actor keeps the model between tasks and starts each from the same
weights, so order and number of workers change nothing but the time. Answers, and scores of their candidates under all
views (the adapters are not kept, so whatever selection may ask for is made now), come into tuned/, then the task's
record: a killed evaluation goes on. Every task has been answered untuned before and else keeps those answers.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from arc_ray.cluster.roles import reachable_room
from arc_ray.config import Config
from arc_ray.config.searching import TttConfig
from arc_ray.config.training import TrainConfig
from arc_ray.errors import TooLargeError
from arc_ray.evaluate.answering import Answerer
from arc_ray.evaluate.pool import Hosts, outcomes
from arc_ray.evaluate.predictions import SCORES_SUFFIX, by_output, distinct_answers
from arc_ray.evaluate.questions import Prompt, Work, works_of
from arc_ray.models.attention import place
from arc_ray.models.build import load_for_tuning, trainable
from arc_ray.models.loss import LearnedLoss, inputs_of
from arc_ray.models.weights import is_quantized
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.lengths import fit_views
from arc_ray.rows.maker import IGNORED, Batch, write_rows
from arc_ray.rows.plan import pack
from arc_ray.seeding import digest64
from arc_ray.storage import Folder
from arc_ray.tasks.task import Task, TaskTable, without_tests
from arc_ray.train.loop import NonFiniteLossError, learning_rate
from arc_ray.train.optimizer import make_optimizer
from arc_ray.views.view import draw_views, keys_of

Record = dict[str, Any]
"""What became of a task: set, task, status, seconds, and if tuned first_loss and last_loss.

The status is "tuned"; "no_views" where there is nothing to learn from (fewer than two shown pairs, or all too long);
"budget" where time ran out; or "failed" at every attempt.
"""


def tuning_works(set_name: str, tasks: Sequence[Task], works: Sequence[Work]) -> list[Work]:
    """Make a work of each task that has a prompt; `works` are the set's, as they are answered untuned."""
    prompts: dict[str, list[Prompt]] = {}
    for work in works:
        for prompt in work.prompts:
            prompts.setdefault(prompt.task, []).append(prompt)
    return [
        Work(f"{set_name}-{i:05d}", tuple(prompts[task.id]), task=without_tests(task), set_name=set_name)
        for i, task in enumerate(tasks)
        if task.id in prompts
    ]


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
            in_rows = [[encoded[here[i]] for i in row] for row in rows]
            batches.append(write_rows(in_rows, width, pad_id=0, positions=codec.positions))
    return batches


class Adapter:
    """The trainable weights of a model as they were when it was loaded, to start every task from."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._initial = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}

    def tune(self, batches: Sequence[Batch], train: TrainConfig, seed: int) -> tuple[float, float]:
        """Throw away what the last task left and take one step a batch; return the losses of the first and the last.

        What comes out depends on the arguments alone, dropout included: not on tasks before or on who calls.
        Raises NonFiniteLossError.
        """
        with torch.no_grad():
            for name, parameter in trainable(self._model).items():
                # Not merged into the base and subtracted again: rounding would carry a little of each task to the next.
                parameter.copy_(self._initial[name])
                parameter.grad = None
        with torch.random.fork_rng(devices=[0] if next(self._model.parameters()).is_cuda else []):
            torch.manual_seed(seed)
            losses = _fit(self._model, batches, train)
        return losses[0], losses[-1]


def _fit(model: nn.Module, batches: Sequence[Batch], config: TrainConfig) -> list[float]:
    """Take a step of AdamW on each batch; return the mean loss per learned token of each."""
    parameters = list(trainable(model).values())
    optimizer = make_optimizer(model, config)
    # Embeddings' own weights have the model's dtype; in bfloat16 they would lose steps that are small.
    whole = {p: p.detach().float() for p in parameters if p.dtype != torch.float32}
    for group in optimizer.param_groups:
        group["params"] = [whole.get(p, p) for p in group["params"]]
    loss_of, device = LearnedLoss(model).train(), parameters[0].device
    means = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, len(batches), group["peak_lr"])
        learned, total = int((batch["labels"] != IGNORED).sum()), torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, len(batch["labels"]), config.rows_at_once):
            rows = slice(start, start + config.rows_at_once)
            losses, _ = loss_of(**inputs_of({name: array[rows] for name, array in batch.items()}, device))
            loss = losses.sum() / learned
            loss.backward()
            total += loss.detach()
        mean, norm = float(total), float(nn.utils.clip_grad_norm_(parameters, config.clip or math.inf))
        for what, number in (("loss", mean), ("gradient's norm", norm)):
            if not math.isfinite(number):
                raise NonFiniteLossError(
                    f"test-time training, step {step}: the {what} is {number}; try a lower evaluate.ttt.lr"
                )
        for rounded, exact in whole.items():
            exact.grad = rounded.grad.float() if rounded.grad is not None else None
        optimizer.step()
        with torch.no_grad():
            for rounded, exact in whole.items():
                rounded.copy_(exact)
        model.zero_grad()
        means.append(mean)
    model.eval()
    return means


class Tuner:
    """A model that is tuned on one task after another; each actor of the pool holds one."""

    def __init__(self, config: Config, folder: Folder, codec: Codec) -> None:
        assert config.evaluate.ttt
        self._config, self._ttt, self._folder = config, config.evaluate.ttt, folder
        self._asking, self._learning = codec, replace(codec, learn=config.prompt.learn)

    def load(self) -> None:
        """Load the model. Raises UserError."""
        config, ttt = self._config, self._ttt
        # Not the machine's cores shared among the workers: sums would round differently on another number of workers.
        torch.set_num_threads(config.scaling.threads or max(1, int(config.scaling.cpus_per_worker)))
        asked, fresh = config.evaluate.checkpoint, ttt.adapter == "new"
        loaded = load_for_tuning(config.model, config.storage, asked, fresh, config.seed, config.train.row_tokens)
        model: Any = place(loaded, config.scaling.on_gpu)
        if config.scaling.on_gpu and config.model.dtype != "float32":
            # An adapter with dropout or DoRA, which is not fused, multiplies in float32 beside a bfloat16 model.
            torch.set_float32_matmul_precision("high")
        self._model, self._adapter = model, Adapter(model)
        # Rows at once were chosen for a whole GPU.
        rows = int(config.train.rows_at_once * (ttt.gpus if config.scaling.on_gpu else 1))
        embedding_lr = ttt.lr * (config.train.embedding_lr or config.train.lr) / config.train.lr
        rates = {"lr": ttt.lr, "embedding_lr": embedding_lr if config.train.embedding_lr else None}
        self._train = config.train.model_copy(update={"micro_rows": max(1, rows), **rates})
        self._answerer = Answerer(config, self._folder, self._asking, model.get_base_model())

    def do(self, work: Work) -> Record:
        """Tune on a task and write its answers; return its record."""
        from arc_ray.models.lora import merged  # peft takes seconds to import

        assert work.task, "there is nothing to tune on"
        begun, record = time.monotonic(), {"set": work.set_name, "task": work.task.id}
        batches = leave_one_out_batches(self._config, self._ttt, self._learning, work.set_name, work.task)
        if not batches:
            return {**record, "status": "no_views", "seconds": 0.0}
        # Dropout's seed follows from names, like the views.
        seed = digest64(self._config.seed, "ttt", work.set_name, work.task.id) % 2**63
        first, last = self._adapter.tune(batches, self._train, seed)
        tuning_seconds = round(time.monotonic() - begun, 3)
        # On the CPU products take the time, not kernels, and unmerged answers are what old evaluations go on with.
        with merged(self._model) if self._config.scaling.on_gpu and not is_quantized(self._model) else nullcontext():
            self._answer(work)
        seconds = {"seconds": round(time.monotonic() - begun, 3), "tuning_seconds": tuning_seconds}
        return {**record, "status": "tuned", **seconds, "first_loss": first, "last_loss": last}

    def _answer(self, work: Work) -> None:
        """Answer the prompts of a task and score all candidates under all of its views."""
        evaluate, name, prompts = self._config.evaluate, work.name, work.prompts
        answers = self._answerer.write(f"{name}.parquet", works_of(name, prompts, evaluate))
        scoring = works_of(name, prompts, evaluate, distinct_answers(by_output(answers.to_pylist())))
        self._answerer.write(f"{name}{SCORES_SUFFIX}.parquet", scoring or [Work("none", candidates=())])


def tune_all(
    hosts: Hosts,
    config: Config,
    folder: Folder,
    codec: Codec,
    works: Sequence[Work],
    progress: Callable[[int, int], None],
) -> list[Record]:
    """Tune and answer every task that has no record yet, within the budget; return the records of all, in their order.

    `progress` gets (done, total). Raises UserError, and whatever failed where no task could be tuned at all.
    """
    ttt = config.evaluate.ttt
    assert ttt
    records: dict[str, Record] = {
        work.name: found for work in works if (found := folder.read_json(f"{work.name}.json", dict[str, Any]))
    }
    spent = max((record["at"] for record in records.values()), default=0.0)
    left = sorted((work for work in works if work.name not in records), key=lambda work: (-work.size, work.name))
    progress(len(records), len(works))
    begun, share = time.monotonic() - spent, ttt.gpus if config.scaling.on_gpu else 0
    num_workers = ttt.num_workers or max(1, reachable_room().holds(config.scaling.cpus_per_worker, share))
    # What only one task need have: no other is given up for it, and it is not tried again.
    own_failures = NonFiniteLossError, TooLargeError
    arguments, deadline = (config, folder, codec), begun + (ttt.budget_seconds or math.inf)
    tuned = outcomes(hosts, config, Tuner, arguments, left, num_workers, ttt.gpus, ttt.retries, deadline, own_failures)
    failures: dict[str, Exception] = {}
    for work, outcome in tuned:
        if isinstance(outcome, Exception):
            failures[work.name] = outcome
            continue
        records[work.name] = {**outcome, "at": round(time.monotonic() - begun, 3)}
        folder.write_json(f"{work.name}.json", records[work.name])
        progress(len(records), len(works))
    if failures and len(failures) == len(works):
        raise next(iter(failures.values()))
    for work in works:
        if work.name not in records and work.task:
            failure = failures.get(work.name)
            about = {"status": "failed", "error": str(failure)} if failure else {"status": "budget"}
            records[work.name] = {"set": work.set_name, "task": work.task.id, "seconds": 0.0, **about}
    return [records[work.name] for work in works]
