"""Small real things that several tests use: tokenizers of several kinds, tasks, tables, codecs, a model."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from arc_ray.config import Config, config_from
from arc_ray.config.model import ModelConfig, ScratchConfig
from arc_ray.config.training import PromptConfig
from arc_ray.models.build import build_model
from arc_ray.models.loss import LearnedLoss, inputs_of
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import SYMBOLS
from arc_ray.prompts.formats import Learn
from arc_ray.prompts.sample import make_codec
from arc_ray.prompts.tokenizer import make_tiny_tokenizer, tiny_corpus
from arc_ray.rows.maker import Batch
from arc_ray.tasks.counting import CountingSource, counting_task
from arc_ray.tasks.task import Grid, Pair, Task, TaskTable
from arc_ray.views.augmentation import Augmentation

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou solve puzzles.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tiny_tokenizer() -> Any:
    """The package's own tokenizer."""
    return make_tiny_tokenizer(tiny_corpus())


def _trained(splits: list[Any], texts: list[str], size: int, own_regex: bool = False, **kwargs: Any) -> Any:
    """A byte-level BPE tokenizer with these splits before it, and GPT-2's unless they are its `own_regex`."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not own_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in dict.fromkeys(kwargs.values()) if token != CHAT_TEMPLATE]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kwargs)


torch.set_num_threads(1)  # Two threads on a busy machine wait for each other ten times longer than they work.

PLAIN = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


@cache
def smollm_like_tokenizer() -> Any:
    """Like SmolLM2's: digits one by one, merges in text and of newlines, a chat template."""
    texts = [*tiny_corpus(), "```grid\n```", "\n\n", "\n\n\n", "||", "system user assistant"] * 3
    digits = pre_tokenizers.Digits(individual_digits=True)
    special = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    return _trained([digits], texts, 600, **special, chat_template=CHAT_TEMPLATE)


@cache
def qwen_like_tokenizer() -> Any:
    """Like Qwen2's: its regex splits digits, but newlines merge with each other and with the end of a fence."""
    regex = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    seams = ["``"] * 900 + ["`\n"] * 800 + ["\n\n"] * 700 + [":\n", "|\n", "```", ">\n"] * 100
    splits = [pre_tokenizers.Split(Regex(regex), "isolated")]
    special = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    return _trained(splits, [*tiny_corpus(), *seams], 500, own_regex=True, **special, chat_template=CHAT_TEMPLATE)


PHI_TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"


@cache
def phi_like_tokenizer() -> Any:
    """Like Phi-3's and Llama 2's sentencepiece: a space before every text, no splits, bytes for what it has no token for."""
    merges = [("`", "`"), ("``", "`"), ("▁", "E"), ("I", "n"), ("▁", "1"), ("▁", "▁"), ("e", "s")]
    characters = ["▁", *map(chr, range(33, 127)), *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = ["<unk>", *characters, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(
        models.BPE(dict(zip(tokens, range(len(tokens)), strict=True)), merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[0-9]"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in ("<|user|>", "<|assistant|>", "<|end|>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|end|>",
        pad_token="<unk>",
        chat_template=PHI_TEMPLATE,
    )


def cut_tokenizer(characters: str, loses: Literal["them", "as <unk>"]) -> Any:
    """Knows only these characters and its three special tokens; what it does not know vanishes, or becomes <unk>."""
    tokens = [*PLAIN.values(), *characters, *(["<unk>"] if loses == "as <unk>" else [])]
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>" if loses == "as <unk>" else None))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **PLAIN)


@cache
def one_pair_tokenizer(pair: str = "37") -> Any:
    """Keeps all digits apart but these."""
    return _trained(
        [pre_tokenizers.Split(Regex(f"{pair}|[0-9]"), "isolated")], [*tiny_corpus(), *[pair] * 2000], 420, **PLAIN
    )


@cache
def merging_tokenizer() -> Any:
    """Like GPT-2's: digits merge into tokens of several, so a cell is not a token."""
    rng = np.random.default_rng(0)
    texts = ["".join(str(c) for c in rng.integers(0, 10, 40)) for _ in range(60)] + ["0" * 30, "00", "000000"] * 20
    return _trained([], texts, 420, **PLAIN)


@cache
def grouping_tokenizer() -> Any:
    """Like Llama 3's: up to three digits are one token, which is what the encoder `repeated` is for."""
    groups = pre_tokenizers.Split(Regex("[0-9]{1,3}"), "isolated")
    return _trained([groups], [*tiny_corpus(), *(3 * str(d) for d in range(10) for _ in range(50))], 420, **PLAIN)


@cache
def spacing_tokenizer() -> Any:
    """Like sentencepiece's: a space is put before every text, so pieces do not add up to their whole."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([metaspace, pre_tokenizers.Digits(individual_digits=True)])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", *PLAIN.values()],
        show_progress=False,
        initial_alphabet=["\n", *map(chr, range(32, 127)), *SYMBOLS],
    )
    tokenizer.train_from_iterator([*tiny_corpus(), "0123456789"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **PLAIN)


def codec_of(
    tokenizer: Any,
    encoder: str = "compact",
    format: str = "compact",
    learn: Learn = "asked",
    quiet: bool | None = False,
    positions: Literal["sequence", "grid"] = "sequence",
) -> Codec:
    """The codec of these names. A warning about the slow path fails the test; is ignored if `quiet`; or, if None, heard."""
    make = _make_codec if quiet is None else _codec_once
    return make(tokenizer, encoder, format, learn, positions, quiet)


def _make_codec(tokenizer: Any, encoder: str, format: str, learn: Any, positions: Any, quiet: bool | None) -> Codec:
    prompt = PromptConfig(format=format, encoder=encoder, learn=learn, positions=positions)
    with warnings.catch_warnings(action=None if quiet is None else "ignore" if quiet else "error"):
        return make_codec(tokenizer, prompt)


_codec_once = lru_cache(maxsize=32)(_make_codec)
"""Of a tokenizer that stays what it is: a test that changes one makes another."""


def grid_of(rng: np.random.Generator, most: int = 6) -> Grid:
    """A grid of random shape and colours."""
    height, width = rng.integers(1, most + 1, 2)
    return rng.integers(0, 10, (height, width)).astype(np.uint8)


def puzzle(task_id: str, num_train: int = 4, num_test: int = 1, most: int = 6, hidden: bool = False) -> Task:
    """A puzzle of random grids that follow from its id."""
    rng = np.random.default_rng(list(task_id.encode()))
    pairs = [Pair(grid_of(rng, most), grid_of(rng, most)) for _ in range(num_train + num_test)]
    test = [Pair(pair.input, None) if hidden else pair for pair in pairs[num_train:]]
    return Task(task_id, tuple(pairs[:num_train]), tuple(test), description=f"Rule {task_id}: fill it, then turn it.")


def augmented(task: Task, augmentation: Augmentation) -> Task:
    """Every grid of a task transformed; questions and description are dropped, because they may no longer be true."""

    def both(pair: Pair) -> Pair:
        return Pair(augmentation.apply(pair.input), None if pair.output is None else augmentation.apply(pair.output))

    return Task(task.id, tuple(map(both, task.train)), tuple(map(both, task.test)))


def counting(index: int = 0) -> Task:
    """A counting task: a grid and questions about it."""
    return counting_task(CountingSource(kind="counting", max_side=6), index)


def puzzles(number: int, **kwargs: Any) -> TaskTable:
    """A table of puzzles."""
    return TaskTable.of(puzzle(f"p{i}", **kwargs) for i in range(number))


def config_with(**overrides: Any) -> Config:
    """The default config, placed on CPUs, with dotted keys over it, `__` for a dot."""
    placed = {"model": {"dtype": "float32"}, "scaling": {"use_gpu": False, "num_workers": 1}}
    return config_from(placed, {key.replace("__", "."): value for key, value in overrides.items()})


def tiny_model(seed: int = 0, hidden_size: int = 32, layers: int = 2) -> Any:
    """A small Llama from random weights, for the tiny tokenizer."""
    scratch = ScratchConfig(hidden_size=hidden_size, layers=layers, heads=2, intermediate_size=2 * hidden_size)
    return build_model(ModelConfig(scratch=scratch), "", seed, full=True, tokenizer=tiny_tokenizer())


class Engine:
    """What validation uses of a DeepSpeed engine."""

    def __init__(self, model: Any) -> None:
        self.model, self.device, self.passes = LearnedLoss(model), torch.device("cpu"), 0

    def __call__(self, **inputs: torch.Tensor) -> Any:
        self.passes += 1
        return self.model(**inputs)

    def eval(self) -> None:
        self.model.eval()

    def train(self) -> None:
        self.model.train()


def overfit(model: Any, batch: Batch, steps: int, lr: float = 3e-3) -> float:
    """Train a model on one batch; return its last loss."""
    loss_of, inputs = LearnedLoss(model), inputs_of(batch, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        loss = loss_of(**inputs)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss)


def after_two_steps(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> Any:
    """Train a model on texts of these ids, int64 (texts, tokens), for two steps, and return it as it answers."""
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@contextmanager
def answering_here() -> Iterator[list[str]]:
    """Have evaluations answer in this process; yields the names of the files that are made."""
    from arc_ray.evaluate import evaluation  # with Ray, which few users of this file need
    from arc_ray.evaluate.answering import Answerer

    made: list[str] = []

    def do_all(hosts: Any, config: Any, folder: Any, codec: Any, works: Any, progress: Any) -> None:
        answerer = Answerer(config, folder, codec)
        for work in [work for work in works if work.name not in folder.names()]:
            answerer.do(work)
            made.append(f"{folder.name}/{work.name}")

    with mock.patch.object(evaluation, "answer_all", do_all):
        yield made
