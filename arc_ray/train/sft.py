"""The other engine: trl's SFTTrainer on the same planned rows, with the same DeepSpeed dict, ending its steps alike.

It computes and scales the loss in its own way, from labels that it counts itself, so equal losses say that both are right.
Rows are a map-style dataset of row numbers with a transform: an iterable would have no length, and be sharded twice.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
import torch.distributed
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import constants
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from arc_ray.config import Config
from arc_ray.models.attention import avoid_cudnn, spans_of, takes_flash_lengths
from arc_ray.models.loss import LearnedLoss
from arc_ray.rows.maker import Batch, RowMaker
from arc_ray.train.engine import Start, begin, deepspeed_config, import_deepspeed
from arc_ray.train.loop import Hooks, Steps, learning_rate
from arc_ray.train.optimizer import make_optimizer

Engine = Any
"""DeepSpeed's engine around the bare model."""


def fit_with_trl(
    model: nn.Module,
    tokenizer: Any,
    maker: RowMaker,
    config: Config,
    start: Start,
    num_workers: int,
    make_hooks: Callable[[Engine, Any], Hooks],
) -> None:
    """Train from a start to the end of the plan; `model` has the weights of the start already.

    `make_hooks(engine, scoring)` is called once DeepSpeed's engine exists, with what validation calls for losses.
    """
    if start.step == maker.plan.num_steps:
        return  # SFTTrainer refuses a dataset without rows
    import_deepspeed()
    avoid_cudnn()
    rows = PlannedRows(maker, start.step)
    constants.HF_HUB_DISABLE_TELEMETRY = True  # its environment variable is read once, at an import before this
    with tempfile.TemporaryDirectory() as scratch, joined_process_group(config):
        trainer = PlannedTrainer(
            config,
            rows,
            model=model,  # pyright: ignore[reportArgumentType]
            args=trl_arguments(config, num_workers, scratch),
            data_collator=collate,
            train_dataset=rows.dataset(),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(StepCallback(trainer, start, make_hooks))
        trainer.train()


@contextmanager
def joined_process_group(config: Config) -> Iterator[None]:
    """Tell accelerate, which SFTTrainer leaves it to, of the process group that is there.

    Left alone on CPUs it either knows of no DeepSpeed or believes that each worker is alone: all would train on all rows.
    What it and transformers keep for the whole process is dropped at the end: the next run here may be of another kind.
    """
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    state = PartialState(backend="nccl" if config.scaling.on_gpu else "gloo")
    assert state.num_processes == torch.distributed.get_world_size()
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        unset_hf_deepspeed_config()


def trl_arguments(config: Config, num_workers: int, scratch: str) -> SFTConfig:
    """Say in trl's words what the DeepSpeed dict says; `scratch` stays empty, because checkpoints are ours."""
    deepspeed = deepspeed_config(config.train, config.model, num_workers)
    return SFTConfig(
        output_dir=scratch,
        deepspeed=deepspeed,
        accelerator_config={"use_configured_state": True},
        per_device_train_batch_size=deepspeed["train_micro_batch_size_per_gpu"],
        gradient_accumulation_steps=deepspeed["gradient_accumulation_steps"],
        max_grad_norm=deepspeed["gradient_clipping"],
        router_aux_loss_coef=0.0,  # trl would add to the loss of models with experts
        bf16=deepspeed["bf16"]["enabled"],
        fp16=deepspeed["fp16"]["enabled"],
        learning_rate=config.train.lr,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        gradient_checkpointing=config.model.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        # A forked loader process would inherit Ray's threads and locks; rows cost little beside a training step.
        dataloader_num_workers=0,
        dataloader_pin_memory=config.scaling.on_gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed % 2**32,
    )


class PlannedRows:
    """The rows of a plan from a step on, as a dataset that makes each row when it is asked for."""

    def __init__(self, maker: RowMaker, first_step: int) -> None:
        self._maker, self.plan, self.first_step = maker, maker.plan, first_step
        # The last step's empty rows are among them, so that every rank has as many micro-batches.
        self._numbers = np.arange(first_step * self.plan.batch_rows, self.plan.num_steps * self.plan.batch_rows)
        self._seconds = 0.0

    def dataset(self) -> datasets.Dataset:
        """Return the dataset: input_ids, position_ids and labels, int32 (row_tokens,) each."""
        return datasets.Dataset.from_dict({"row": self._numbers}).with_transform(self._make)

    def seconds(self) -> float:
        """Return the seconds spent on rows since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _make(self, asked: dict[str, list[int]]) -> Batch:
        begun = time.perf_counter()
        batch = self._maker.make(asked["row"])
        self._seconds += time.perf_counter() - begun
        return batch


def collate(rows: list[Batch]) -> dict[str, torch.Tensor]:
    """Stack rows to int64 (rows, row_tokens); no attention mask, so that position ids keep views apart."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])).long() for name in rows[0]}


class PlannedTrainer(SFTTrainer):
    """SFTTrainer with our optimizer and schedule, where its own would start at a rate of 0 and spare norms from decay."""

    def __init__(self, config: Config, rows: PlannedRows, **kwargs: Any) -> None:
        self.config, self.rows = config, rows
        super().__init__(**kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of packed rows, flash attention knowing where their views end."""
        if takes_flash_lengths(self.model):
            inputs |= spans_of(inputs["position_ids"]).for_flash
        return super().compute_loss(model, inputs, *args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer that the default engine makes."""
        if self.optimizer is None:
            trained: Any = model or self.model
            self.optimizer = make_optimizer(trained, self.config.train)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Make the schedule of the whole run, from the step where this attempt starts."""
        del num_training_steps  # those of this attempt
        train, first, number = self.config.train, self.rows.first_step, self.rows.plan.num_steps

        def share(step: int) -> float:
            return learning_rate(train, min(first + step, number - 1), number) / train.lr  # asked for one step too many

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share)  # pyright: ignore[reportArgumentType]
        return self.lr_scheduler


class StepCallback(TrainerCallback):
    """Restores the state once DeepSpeed is there, and begins and ends each step as the default engine's loop does."""

    def __init__(self, trainer: PlannedTrainer, start: Start, make_hooks: Callable[[Engine, Any], Hooks]) -> None:
        self._trainer, self._start, self._make_hooks = trainer, start, make_hooks

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Go on with the moments of a checkpoint, or validate what training starts from."""
        trainer, start = self._trainer, self._start
        engine: Engine = trainer.model_wrapped
        begin(engine, engine.module, start)
        hooks, config = self._make_hooks(engine, LearnedLoss(engine.module)), trainer.config
        rank, plan = trainer.args.process_index, trainer.rows.plan
        self._steps = Steps(engine, plan, config.train, config.seed, start.step, rank, hooks)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Draw the dropout of this step."""
        self._steps.begin()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """End a step: the trainer logs each one, and at last a summary without a loss."""
        if "loss" in logs:
            self._steps.end(logs["loss"], logs["learning_rate"], self._trainer.rows.seconds())
