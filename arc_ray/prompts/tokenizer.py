"""Tokenizers: the one of a base, the tiny one that is made here, and the chat frame of any."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import date
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from arc_ray.config.model import ModelConfig
from arc_ray.config.sources import CountingSource
from arc_ray.errors import UserError, one_line
from arc_ray.prompts.formats import FORMATS, Frame, Text, counting_layout, needs_description
from arc_ray.runs.base import explained
from arc_ray.tasks.counting import counting_task

SPECIAL = ("<pad>", "<bos>", "<eos>")
TODAY = date(2024, 7, 26)
"""The date in chat templates that write today's (Llama 3.1, Granite), or prompts would change from day to day. It is what
Llama's template writes where it is given none."""
TOKENIZER_FILES = ("*token*", "vocab*", "merges*", "*.model", "tekken*")
"""Names of the files that any tokenizer has one of."""
TINY_VOCABULARY = 384
"""256 bytes, the special tokens, and merges for the words of our own prompts."""


def load_tokenizer(config: ModelConfig, storage: str) -> Any:
    """Load the tokenizer of the base, or make the tiny one for a model from scratch. Raises UserError."""
    if config.scratch:
        return make_tiny_tokenizer(tiny_corpus())
    from transformers import AutoTokenizer  # which loads torch as well

    from arc_ray.prompts.vocabulary import base_folder  # which loads the base's own to cut it

    path = base_folder(config, storage, weights=False)
    if not any(file for pattern in TOKENIZER_FILES for file in Path(path).glob(pattern)):
        raise UserError(
            f"model.base {path}: there is no tokenizer in this folder (tokenizer.json, ...); save the one that the model was"
            f" trained with there: `tokenizer.save_pretrained(folder)`"
        )
    with explained(path):
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        tokenizer("0")  # which alone meets settings of another type
    return tokenizer


def make_tiny_tokenizer(texts: Iterable[str]) -> Any:
    """Train a small byte-level BPE tokenizer in which every digit and newline is a token, so every cell is one.

    `texts` should hold the words it will meet (prompts and questions); any other text still encodes, byte by byte.
    Returns a fast Hugging Face tokenizer; the same texts give the same vocabulary.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|[0-9]|\n| |[^\sA-Za-z0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=32768
    )


@cache
def tiny_corpus() -> tuple[str, ...]:
    """Collect the words of our own prompts and counting questions, which the tiny vocabulary is made from.

    Formats with descriptions give none: free text goes byte by byte anyway, and the vocabulary stays as models know it.
    """
    frame = Frame("", "", "", "")
    formats = [make for make in FORMATS.values() if not needs_description(make)]
    layouts = [make(frame, shown, "asked") for make in formats for shown in (1, 4)]
    layouts.append(counting_layout(frame, 3, ()))
    words = [segment.text for layout in layouts for segment in layout if isinstance(segment, Text)]
    counting = CountingSource(kind="counting", max_side=8)
    questions = [question for i in range(64) for question in counting_task(counting, i).questions]
    return (*words, *(question.text for question in questions), "```grid shape: 3x3\n")


def frame_of(tokenizer: Any) -> Frame:
    """Take the strings around turns from a tokenizer's chat template; without one, use its bos and eos tokens.

    Found by rendering marked turns and cutting at the marks, so any template works that keeps contents verbatim. What
    stands before the last answer is not looked at: some templates (Qwen3) write an empty thought only there.
    Raises UserError for a template that treats its first turns differently, alters what they say or fails, and where
    nothing ends an answer.
    """
    if not tokenizer.chat_template:
        if not tokenizer.eos_token:
            raise UserError(
                "the tokenizer has neither an end token (eos_token) nor a chat template: nothing ends an answer"
            )
        return Frame(begin=tokenizer.bos_token or "", answer="", end=tokenizer.eos_token, between="\n")
    marks = [f"\u241e{role}{i}\u241e" for i in range(3) for role in ("user", "assistant")]
    turns = [{"role": mark[1:-2], "content": mark} for mark in marks]
    try:
        template = re.sub(
            r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""",
            lambda call: repr(TODAY.strftime(call[2])),
            tokenizer.get_chat_template(),
        )
        text = rest = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    except Exception as error:  # what a template raises of itself is of no common kind
        raise UserError(
            f"the tokenizer's chat template cannot write a conversation of several turns: {one_line(error)}"
        ) from error
    pieces = []
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        pieces.append(piece)
        if not found:
            raise UserError(
                f"the tokenizer's chat template does not keep what a turn says, which is not supported: {text!r}"
            )
    begin, answer, between, answer_again, between_again, _ = pieces
    if (answer, between) != (answer_again, between_again):
        raise UserError(
            f"the tokenizer's chat template treats the first turn differently, which is not supported: {text!r}"
        )
    end = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(between, rest, strict=False))).rstrip(
        "\n"
    )
    # A space before the end (Llama 2) would be the first token that ends an answer, and is no end of its own.
    ending = end.strip(" ") or tokenizer.eos_token
    if not ending:
        raise UserError("the tokenizer's chat template ends no answer, and there is no end token (eos_token)")
    return Frame(begin, answer, ending, between.removeprefix(end))


def refuse_other_frame(kept: Mapping[str, str] | None, frame: Frame, what: str) -> None:
    """Raise UserError where `what` was made with another frame than the tokenizer's; None is that of older ones, unknown."""
    for part, text in asdict(frame).items():
        if kept and kept.get(part) != text:
            raise UserError(
                f"{what} learned prompts with {kept.get(part)!r} where the tokenizer's chat template now writes {text!r};"
                f" set model.base to the model as it was then, or train again"
            )
