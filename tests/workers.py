"""Training without Ray: both engines on the processes of one torch process group, and plain PyTorch to compare with."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import forks
import numpy as np

HEAVY = [*forks.IMPORTED, "arc_ray.rows.prepare", "arc_ray.train.run", "arc_ray.train.sft", "warm"]
"""Imported once, by the process that the workers are forked from."""

State = dict[str, np.ndarray]
"""What `gather_state` gathers, as numpy arrays."""


def on_workers(number: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call function(rank, number, *arguments) on new processes that form a process group; return what each returns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(number, mp_context=context) as pool:
        pending = [pool.submit(_join, rank, number, port, function, arguments) for rank in range(number)]
        return [future.result(timeout=400) for future in pending]


def _join(rank: int, number: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(number),
        LOCAL_WORLD_SIZE=str(number),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    import torch.distributed

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    try:
        return function(rank, number, *arguments)
    finally:
        torch.distributed.destroy_process_group()


def train_on(
    rank: int,
    num_workers: int,
    tree: Mapping[str, Any],
    overrides: Mapping[str, Any],
    start_step: int = 0,
    start_state: State | None = None,
) -> tuple[np.ndarray, dict[int, State], np.ndarray]:
    """Train a config as a worker of Ray Train does, but with rows made in place; from a state that was saved, if given.

    Returns the losses of the steps, the states that were to be saved, by step, and what validation would have summed
    over the first two rows each time: losses and hits.
    """
    import torch

    from arc_ray.config import config_from
    from arc_ray.models.build import build_model
    from arc_ray.models.loss import inputs_of
    from arc_ray.prompts.tokenizer import load_tokenizer
    from arc_ray.rows.prepare import prepare
    from arc_ray.train.engine import Start, gather_state, load_weights
    from arc_ray.train.loop import Hooks
    from arc_ray.train.record import Measures
    from arc_ray.train.sft import fit_with_trl

    config = config_from(dict(tree), overrides)
    maker, tokenizer = prepare(config).maker, load_tokenizer(config.model, config.storage)
    model = build_model(config.model, config.storage, config.seed, config.train.full, tokenizer)
    start = Start()
    if start_state is not None:
        start = Start(start_step, {name: torch.from_numpy(array) for name, array in start_state.items()})
        load_weights(model, start.state or {})
    measures = Measures(model, maker.plan, num_workers, None)
    losses: list[float] = []
    states: dict[int, State] = {}
    scores: list[list[float]] = []
    first_rows = inputs_of(maker.make([0, 1]), torch.device("cpu"))

    def make_hooks(engine: Any, scoring: Any) -> Hooks:
        def score(_: int) -> dict[str, float]:
            scoring.eval()
            with torch.no_grad():
                scores.append([float(found.double().sum()) for found in scoring(**first_rows)])
            scoring.train()
            return {}

        def log(step: int, metrics: dict[str, float]) -> None:
            losses.extend([metrics["train/loss"]] if step else [])

        def save(step: int) -> None:
            states[step] = {name: tensor.numpy() for name, tensor in gather_state(engine, model).items()}

        return Hooks(measures, log, score, save, lambda _: [])

    if config.train.engine == "trl":
        from huggingface_hub.utils import _telemetry

        os.environ.pop("CI", None)  # where trl is silent anyway
        fit_with_trl(model, tokenizer, maker, config, start, num_workers, make_hooks)
        assert _telemetry._TELEMETRY_THREAD is None, "it told its maker about this run"
    else:
        _fit(config, model, maker, start, rank, num_workers, make_hooks)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    return np.array(losses), states, np.array(scores)


def train_and_resume(
    rank: int, num_workers: int, tree: Mapping[str, Any], overrides: Mapping[str, Any]
) -> list[tuple[np.ndarray, dict[int, State], np.ndarray]]:
    """Do what `train_on` does, then again from the state after the first step."""
    unbroken = train_on(rank, num_workers, tree, overrides)
    return [unbroken, train_on(rank, num_workers, tree, overrides, 1, unbroken[1][1])]


def _fit(config: Any, model: Any, maker: Any, start: Any, rank: int, num_workers: int, make_hooks: Any) -> None:
    from arc_ray.models.loss import LearnedLoss
    from arc_ray.train.engine import begin, make_engine
    from arc_ray.train.loop import Steps, fit
    from arc_ray.train.worker import rows_of_rank

    engine = make_engine(LearnedLoss(model), config.train, config.model, num_workers)
    begin(engine, model, start)
    rows, micro = rows_of_rank(maker.plan, config, rank, num_workers, start.step), config.train.rows_at_once
    batches = (maker.make(rows[i : i + micro]) for i in range(0, len(rows), micro))
    hooks = make_hooks(engine, engine)
    fit(Steps(engine, maker.plan, config.train, config.seed, start.step, rank, hooks), batches, num_workers)


def waits_of_a_step(_: int, num_workers: int, tree: Mapping[str, Any]) -> list[int]:
    """Train four steps; return how often each micro-batch of the last would wait for a GPU: for a number, or for all work."""
    from deepspeed.accelerator import get_accelerator
    from torch.utils._python_dispatch import TorchDispatchMode

    from arc_ray.config import config_from
    from arc_ray.models.build import build_model
    from arc_ray.models.loss import LearnedLoss, inputs_of
    from arc_ray.prompts.tokenizer import load_tokenizer
    from arc_ray.rows.prepare import prepare
    from arc_ray.train.engine import Start, accumulation_steps, begin, make_engine

    config, waits = config_from(dict(tree), {}), [0]

    class Numbers(TorchDispatchMode):
        """Counts operations that tell the host something."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            waits[-1] += func.__name__.split(".")[0] in (
                "_local_scalar_dense",
                "nonzero",
                "masked_select",
                "unique_dim",
                "equal",
            )
            return func(*args, **(kwargs or {}))

    maker, tokenizer = prepare(config).maker, load_tokenizer(config.model, config.storage)
    model = build_model(config.model, config.storage, config.seed, config.train.full, tokenizer)
    engine = make_engine(LearnedLoss(model), config.train, config.model, num_workers)
    begin(engine, model, Start())
    accumulation = accumulation_steps(config.train, num_workers)
    device: Any = get_accelerator()
    device.synchronize = lambda *_: waits.__setitem__(-1, waits[-1] + 1)
    with Numbers():
        for number in range(4 * accumulation):  # DeepSpeed's timers begin with the third step
            losses, _ = engine(**inputs_of(maker.make([number % accumulation]), engine.device))
            engine.backward(losses.sum())
            engine.step()
            waits.append(0)
    return waits[-accumulation - 1 : -1]


def train_in_plain_pytorch(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[np.ndarray, State, State]:
    """Train a config with nothing but PyTorch: views one by one, logits of all positions, one process.

    Returns the losses of the steps, the gradient of the first step before clipping, and the weights at the end.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from arc_ray.config import config_from
    from arc_ray.models.build import build_model, trainable
    from arc_ray.prompts.tokenizer import load_tokenizer
    from arc_ray.rows.prepare import prepare
    from arc_ray.train.loop import learning_rate

    config = config_from(dict(tree), overrides)
    maker, train = prepare(config).maker, config.train
    model: Any = build_model(
        config.model, config.storage, config.seed, train.full, load_tokenizer(config.model, config.storage)
    )
    weights = trainable(model)
    groups: list[list[Any]] = [[], []]
    for name, weight in weights.items():
        groups["embed" in name or "lm_head" in name].append(weight)
    optimizer = torch.optim.AdamW(
        [{"params": group} for group in groups], betas=train.betas, weight_decay=train.weight_decay
    )
    losses, gradient = [], {}
    for step in range(maker.plan.num_steps):
        rows = [row for row in maker.plan.rows_of_step(step) if row < maker.plan.num_rows]
        views = maker.encode(np.concatenate([np.arange(*maker.plan.first_view[row : row + 2]) for row in rows]))
        num_learned, total = sum(int(learned.sum()) for _, learned in views), 0.0
        for numbers, learned in views:
            ids = torch.from_numpy(numbers).long()
            at, where = torch.from_numpy(learned)[1:], torch.from_numpy(maker.codec.positions.of(numbers)).long()
            # With a mask, or transformers would take each jump of positions for the beginning of another view.
            seen = {"position_ids": where[None], "attention_mask": torch.ones_like(ids)[None]}
            logits = model(input_ids=ids[None], **seen).logits[0, :-1]
            loss = cross_entropy(logits[at], ids[1:][at], reduction="sum")
            (loss / num_learned).backward()
            total += float(loss.detach())
        losses.append(total / num_learned)
        if step == 0:
            gradient = {name: p.grad.numpy().copy() for name, p in weights.items() if p.grad is not None}
        if train.clip:
            torch.nn.utils.clip_grad_norm_(weights.values(), train.clip)
        rate = learning_rate(train, step, maker.plan.num_steps)
        for group, times in zip(optimizer.param_groups, (1, (train.embedding_lr or train.lr) / train.lr), strict=True):
            group["lr"] = rate * times
        optimizer.step()
        optimizer.zero_grad()
    return np.array(losses), gradient, {name: p.detach().numpy() for name, p in weights.items()}


def kind_of(state: State, kind: str) -> State:
    """Return one kind of a state (weight, exp_avg, exp_avg_sq) by parameter name."""
    return {name.removeprefix(f"{kind}."): array for name, array in state.items() if name.startswith(f"{kind}.")}
