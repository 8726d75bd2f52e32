"""Guessing ahead, sampling, search, grammar and scoring: each against the plain way of doing the same."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise, product
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from builders import (
    codec_of,
    grouping_tokenizer,
    overfit,
    phi_like_tokenizer,
    puzzles,
    qwen_like_tokenizer,
    smollm_like_tokenizer,
    tiny_model,
    tiny_tokenizer,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from arc_ray.decode import likelihood
from arc_ray.decode.continuations import CachedRows
from arc_ray.decode.grammar import GridGrammar
from arc_ray.decode.likelihood import find_answers, score_answers
from arc_ray.decode.writer import MOST_READ, Writer, copied_draft, generate_greedily, generate_samples
from arc_ray.models.attention import attends_to_all
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import encoder_named
from arc_ray.rows.maker import write_rows
from arc_ray.seeding import rng_for
from arc_ray.views.view import plain_views

END, PAD = 2, 0


@cache
def trained(steps: int = 60) -> tuple[Any, list[Any], list[Any]]:
    """A model that knows some answers and is unsure of others, with prompts of different lengths."""
    table = puzzles(8, num_train=2, most=4)
    codec = codec_of(tiny_tokenizer())
    encoded = codec.encode(table, plain_views(table, 2))
    model = tiny_model(hidden_size=48)
    overfit(model, write_rows([[view] for view in encoded[:5]], 120, PAD), steps=steps)
    prompts = [codec.prompt_ids(table, plain_views(table, 2), i) for i in range(len(encoded))]
    return model.eval(), prompts, [ids[learned] for ids, learned in encoded]


@cache
def toy(vocabulary: int = 5, seed: int = 1) -> Any:
    """A model of so few tokens that all its completions can be listed; token 0 ends."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.5,
            pad_token_id=1,
        )
        return LlamaForCausalLM(config).eval()


def log_probability(model: Any, prompt: Any, answer: Any) -> float:
    """The plain way: one forward pass over the whole, no cache, no batch."""
    ids = np.concatenate([prompt, answer]).astype(np.int64)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0].double().log_softmax(-1)
    at = np.arange(len(prompt), len(ids))
    return float(logits[at - 1, ids[at]].sum())


def texts(answers: Any) -> list[list[int]]:
    return [answer.ids.tolist() for answer in answers]


# Guessing ahead


@pytest.mark.parametrize("lookahead", [1, 3, 8, 40])
def test_guessing_ahead_writes_the_same_in_fewer_passes(lookahead: int):
    """Would catch a wrong guess that stays, a column of it that is still attended to, and positions that count it."""
    model, prompts, _ = trained()
    limits = [40, 9, 40, 23, 40, 40, 1, 40]
    plain = generate_greedily(Writer(model, [END], PAD), prompts, limits)
    fast = generate_greedily(Writer(model, [END], PAD), prompts, limits, lookahead)
    assert texts(fast) == texts(plain)
    assert [a.is_complete for a in fast] == [a.is_complete for a in plain]
    for a, b in zip(fast, plain, strict=True):
        assert a.log_probability == pytest.approx(b.log_probability, abs=1e-3)
        assert a.passes <= b.passes == len(b.ids) + b.is_complete
    assert sum(a.passes for a in fast) < 0.9 * sum(a.passes for a in plain)


def test_guesses_that_are_all_wrong_change_nothing(monkeypatch: pytest.MonkeyPatch):
    """Every pass rejects its guesses: the cache is squeezed again and again, and rows differ in what they keep."""
    model, prompts, _ = trained()
    plain = generate_greedily(Writer(model, [END], PAD), prompts, [30] * 8)
    rng = rng_for("wrong guesses")
    monkeypatch.setattr(
        "arc_ray.decode.writer.copied_draft",
        lambda context, size: rng.integers(5, 40, size=rng.integers(0, size + 1)).astype(np.int32),
    )
    wrong = generate_greedily(Writer(model, [END], PAD), prompts, [30] * 8, lookahead=12)
    assert texts(wrong) == texts(plain)
    assert [a.log_probability for a in wrong] == pytest.approx([a.log_probability for a in plain], abs=1e-3)


def test_guesses_that_are_partly_right_change_nothing(monkeypatch: pytest.MonkeyPatch):
    """Would catch rows that keep different numbers of tokens and are mixed up when the cache is squeezed."""
    model, prompts, _ = trained()
    plain = generate_greedily(Writer(model, [END], PAD), prompts, [30] * 8)
    rng, sizes = rng_for("partly right guesses"), []

    def draft(context: Any, size: int) -> Any:
        i = next(i for i, prompt in enumerate(prompts) if np.array_equal(context[: len(prompt)], prompt))
        right = plain[i].ids[len(context) - len(prompts[i]) :][: rng.integers(0, size + 1)]
        sizes.append(size)
        return np.concatenate([right, rng.integers(5, 40, size - len(right))]).astype(np.int32)

    monkeypatch.setattr("arc_ray.decode.writer.copied_draft", draft)
    mixed = generate_greedily(Writer(model, [END], PAD), prompts, [30] * 8, lookahead=12)
    assert texts(mixed) == texts(plain)
    assert {1, 2, 4} < set(sizes), "guesses of all sizes were to be tried"


class StandIn:
    """Calls again what a graph would replay, as a graph would: on the memory of its own inputs, never asking the device."""

    recorded: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, run: Any, like: torch.Tensor) -> None:
        self._run, self._inputs = run, like.clone()
        self.recorded.append(tuple(like.shape))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        self._inputs.copy_(inputs)
        with NoWaiting():
            return self._run(self._inputs)


class NoWaiting(TorchDispatchMode):
    """Refuses operators that a CUDA graph cannot hold: values that go to the host, tensors that come from it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "lift_fresh", "masked_select", "unique")
        assert func._schema.name.removeprefix("aten::").split(".")[0] not in asks, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lookahead", [0, 3, 12])
def test_replayed_steps_write_the_same(monkeypatch: pytest.MonkeyPatch, lookahead: int):
    """Would catch a shape that is replayed on other rows, padding that is kept, and a step that asks the device."""
    model, prompts, _ = trained()
    writer, numbers, limits = Writer(model, [END], PAD), draws(prompts, 2, 20), [40, 9, 40, 23, 40, 40, 1, 40]
    plain = generate_greedily(writer, prompts, limits), generate_samples(writer, prompts, [20] * 8, numbers, 1.0)
    monkeypatch.setattr("arc_ray.decode.continuations.can_replay", lambda model: True)
    monkeypatch.setattr("arc_ray.decode.kernels.Recording", StandIn)
    StandIn.recorded.clear()
    again = (
        generate_greedily(writer, prompts, limits, lookahead),
        generate_samples(writer, prompts, [20] * 8, numbers, 1.0, lookahead),
    )
    assert texts(again[0]) == texts(plain[0])
    assert [texts(own) for own in again[1]] == [texts(own) for own in plain[1]]
    assert {n for _, _, n in StandIn.recorded} <= {1, 9, 17}
    assert len({rows for _, rows, _ in StandIn.recorded}) > 1, "rows that have ended were to be dropped"


class Waits(TorchFunctionMode):
    """Counts calls that wait for a device to bring values to the host."""

    number = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")
        self.number += getattr(func, "__name__", "") in names
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("constrain", [False, True])
def test_a_pass_waits_for_the_device_once(constrain: bool):
    """Would catch log-probabilities, guesses or masks that go to the host one by one: each stops a GPU for its way back."""
    _, grammar, end = grammar_of("tiny", "compact")
    writer, prompts = Writer(trained()[0], [end], PAD, grammar if constrain else None), trained()[1]
    for lookahead in (0, 6):
        with Waits() as waits:
            answers = generate_greedily(writer, prompts, [30] * 8, lookahead)
        assert waits.number == max(answer.passes for answer in answers)
        with Waits() as waits:
            found = find_answers(writer, prompts, [30] * 8, 0.05, lookahead)
        assert any(found)
        assert waits.number <= 2 * 30


@pytest.mark.parametrize("is_right", [True, False])
def test_wrong_guesses_make_fewer_and_right_ones_go_on(monkeypatch: pytest.MonkeyPatch, is_right: bool):
    """Would catch a model whose answers repeat nothing and that reads nine tokens for each that it writes."""
    model, prompts, _ = trained()
    [plain] = generate_greedily(Writer(model, [END], PAD), prompts[:1], [30])
    assert len(plain.ids) > 12
    sizes = []

    def draft(context: Any, size: int) -> Any:
        sizes.append(size)
        at = len(context) - len(prompts[0])
        return plain.ids[at : at + size] if is_right else (plain.ids[at : at + size] + 1) % 40

    monkeypatch.setattr("arc_ray.decode.writer.copied_draft", draft)
    generate_greedily(Writer(model, [END], PAD), prompts[:1], [30], lookahead=4)
    assert set(sizes) == {4} if is_right else sizes == [4] + [1] * (len(sizes) - 1)


def test_a_draft_is_what_followed_the_longest_match():
    """Would catch the first place instead of the best one, and a draft that runs over the end."""
    context = np.array([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], np.int32)
    assert copied_draft(context, 3).tolist() == [4, 9, 2]
    assert copied_draft(context[1:], 2).tolist() == [5, 1]
    assert copied_draft(np.array([7, 7, 7], np.int32), 8).tolist() == [7]
    assert copied_draft(np.array([1, 2, 3], np.int32), 8).tolist() == []
    assert copied_draft(np.array([1], np.int32), 8).tolist() == []


def test_a_model_with_a_window_is_told_apart():
    """Gaps in the cache would shift a window: such a model must not guess."""
    assert attends_to_all(toy())
    windowed = LlamaConfig(vocab_size=8, hidden_size=16, num_attention_heads=2)
    windowed.sliding_window = 16
    assert not attends_to_all(type("M", (), {"config": windowed})())


# Sampling


def draws(prompts: list[Any], number: int, limit: int, seed: int = 0) -> list[Any]:
    return [np.stack([rng_for(seed, "sample", i, k).random(limit) for k in range(number)]) for i in range(len(prompts))]


def test_a_sample_depends_on_its_own_numbers_only():
    """Would catch a global generator, and a batch whose neighbours change what is drawn."""
    model, prompts, _ = trained(20)
    writer, numbers = Writer(model, [END], PAD), draws(prompts, 3, 20)
    together = generate_samples(writer, prompts, [20] * 8, numbers, 1.0)
    assert len({str(texts(of_prompt)) for of_prompt in together}) == 8
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for i in (0, 3, 7):
        (alone,) = generate_samples(writer, [prompts[i]], [20], [numbers[i][1:]], 1.0)
        assert texts(alone) == texts(together[i])[1:]
    assert torch.equal(torch.get_rng_state(), state)
    again = generate_samples(writer, prompts[::-1], [20] * 8, numbers[::-1], 1.0, lookahead=6)[::-1]
    assert [texts(of_prompt) for of_prompt in again] == [texts(of_prompt) for of_prompt in together]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_models_distribution(temperature: float):
    """Chi-square of 4,000 answers of one token; the log-probability is the model's, whatever the temperature."""
    model, prompt = toy(), np.array([3, 2, 4], np.int32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt.tolist()])).logits[0, -1].double()
    expected = 4000 * torch.softmax(logits / temperature, -1).numpy()
    (samples,) = generate_samples(Writer(model, [0], 1), [prompt], [1], draws([prompt], 4000, 1), temperature)
    counts = Counter(a.ids.tolist()[0] if len(a.ids) else 0 for a in samples)
    chi_square = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in range(5))
    assert chi_square < 23.5, "a chance of 1 in 10,000 with 4 degrees of freedom"
    for answer in samples[:20]:
        token = answer.ids.tolist()[0] if len(answer.ids) else 0
        assert answer.log_probability == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)


def test_a_low_temperature_is_greedy():
    model, prompts, _ = trained()
    writer = Writer(model, [END], PAD)
    cold = generate_samples(writer, prompts, [30] * 8, draws(prompts, 1, 30), 1e-4)
    assert [texts(of_prompt)[0] for of_prompt in cold] == texts(generate_greedily(writer, prompts, [30] * 8))


# Search


@cache
def all_completions(prompt: tuple[int, ...], limit: int) -> dict[tuple[int, ...], float]:
    """Every answer of the toy model shorter than `limit` tokens, with its log-probability."""
    answers = [answer for n in range(limit) for answer in product(range(1, 5), repeat=n)]
    return {answer: log_probability(toy(), np.array(prompt, np.int32), [*answer, 0]) for answer in answers}


@pytest.mark.parametrize("lookahead", [0, 3])
@pytest.mark.parametrize("threshold", [0.2, 0.03, 0.004])
def test_search_finds_exactly_the_completions_above_the_threshold(threshold: float, lookahead: int):
    """Against all 4^0 + ... + 4^4 completions of a toy model: none missing, none too many, none twice."""
    prompts = [np.array(p, np.int32) for p in ([3], [2, 4, 1], [4, 4, 2, 3])]
    limits = [5, 5, 3]
    found = find_answers(Writer(toy(), [0], 1), prompts, limits, threshold, lookahead)
    sizes = []
    for prompt, limit, of_prompt in zip(prompts, limits, found, strict=True):
        known = all_completions(tuple(prompt.tolist()), limit)
        assert min(abs(log - np.log(threshold)) for log in known.values()) > 1e-4, "too close to tell"
        expected = {answer for answer, log in known.items() if log > np.log(threshold)}
        assert sorted(tuple(ids) for ids in texts(of_prompt)) == sorted(expected)
        for answer in of_prompt:
            assert answer.is_complete
            assert answer.log_probability == pytest.approx(known[tuple(answer.ids.tolist())], abs=1e-4)
        assert all(a.log_probability >= b.log_probability for a, b in pairwise(of_prompt))
        sizes.append(len(of_prompt))
    assert max(sizes) > 1 or threshold == 0.2
    assert threshold != 0.004 or max(sizes) > 10


@contextmanager
def counted_passes() -> Iterator[list[int]]:
    """The tokens of each pass after that over the prompts."""
    sizes, inner = list[int](), CachedRows.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedRows, "step", lambda rows, ids, *at: sizes.append(ids.size) or inner(rows, ids, *at))
        yield sizes


@pytest.mark.parametrize("way", ["copied", "wrong", "partly right", "constrained", "padded", "replayed"])
def test_a_search_that_guesses_finds_the_same_in_fewer_passes(monkeypatch: pytest.MonkeyPatch, way: str):
    """Would catch a branch at a guess that is lost or found twice, one that goes on from another row or keeps a token of the
    guess, and states of the grammar that count wrong guesses."""
    _, grammar, _ = grammar_of("tiny", "compact")
    model, prompts, _ = trained(25)
    writer = Writer(model, [END], PAD, grammar if way == "constrained" else None)
    limits, threshold = [40, 9, 40, 23, 40, 40, 1, 40], 0.01
    if way == "padded":
        monkeypatch.setattr("arc_ray.decode.continuations.use_by_view", lambda model: False)
    if way == "replayed":
        monkeypatch.setattr("arc_ray.decode.continuations.can_replay", lambda model: True)
        monkeypatch.setattr("arc_ray.decode.kernels.Recording", StandIn)
    with counted_passes() as passes:
        plain = find_answers(writer, prompts, limits, threshold)
    assert max(map(len, plain)) > 3
    rng, known = rng_for("guesses of a search", way), [answers[0].ids if answers else prompts[0] for answers in plain]

    def draft(context: Any, size: int) -> Any:
        i = next(i for i, prompt in enumerate(prompts) if np.array_equal(context[: len(prompt)], prompt))
        right = known[i][len(context) - len(prompts[i]) :][: rng.integers(0, size + 1)] if way == "partly right" else []
        return np.concatenate([right, rng.integers(0, 40, size - len(right))]).astype(np.int32)

    if way in ("wrong", "partly right"):
        monkeypatch.setattr("arc_ray.decode.writer.copied_draft", draft)
    for lookahead in (2, 5, 40):
        with counted_passes() as fewer:
            found = find_answers(writer, prompts, limits, threshold, lookahead)
        assert [texts(own) for own in found] == [texts(own) for own in plain]
        logs = [[answer.log_probability for own in answers for answer in own] for answers in (found, plain)]
        assert logs[0] == pytest.approx(logs[1], abs=1e-3)
        assert len(fewer) <= len(passes)
        assert max(fewer, default=0) <= max(MOST_READ["cpu"], *passes, 0)
    if way in ("copied", "constrained"):
        alone = []
        for lookahead in (0, 5):
            with counted_passes() as passes:
                for prompt in prompts:
                    find_answers(writer, [prompt], limits[:1], threshold, lookahead)
            alone.append(len(passes))
        assert alone[1] < 0.9 * alone[0]


@pytest.mark.parametrize("lookahead", [0, 8])
def test_search_finds_what_greedy_writes_and_keeps_its_frontier_small(monkeypatch: pytest.MonkeyPatch, lookahead: int):
    """At most 1 / threshold branches can be that probable: the bound that memory is planned by."""
    model, prompts, _ = trained()
    seen = []
    inner = likelihood._children
    monkeypatch.setattr(
        likelihood,
        "_children",
        lambda w, alive, *rest: seen.append(Counter(p.prompt for p in alive)) or inner(w, alive, *rest),
    )
    writer = Writer(model, [END], PAD)
    found = find_answers(writer, prompts, [40] * 8, 0.05, lookahead)
    assert max(max(counts.values()) for counts in seen) <= 20
    for greedy, of_prompt in zip(generate_greedily(writer, prompts, [40] * 8), found, strict=True):
        if greedy.is_complete and greedy.log_probability > np.log(0.05):
            assert greedy.ids.tolist() in texts(of_prompt)
    assert sum(map(bool, found)) >= 4


# Grammar

CASES = [
    ("tiny", "compact"),
    ("tiny", "shape_rows"),
    ("tiny", "symbols"),
    ("tiny", "repeated"),
    ("tiny", "plain"),
    ("tiny", "shape_rows-columns"),
    ("smollm", "shape_rows"),
    ("smollm", "separated"),
    ("smollm", "compact"),
    ("qwen", "shape_rows"),
    ("qwen", "fenced"),
    ("phi", "rows"),
    ("grouping", "repeated"),
]
TOKENIZERS = {
    "tiny": tiny_tokenizer,
    "smollm": smollm_like_tokenizer,
    "qwen": qwen_like_tokenizer,
    "phi": phi_like_tokenizer,
    "grouping": grouping_tokenizer,
}


@cache
def grammar_of(tokenizer: str, encoder: str) -> tuple[Any, GridGrammar, int]:
    format = "compact" if encoder.startswith("compact") else "output_from_examples"
    codec = codec_of(TOKENIZERS[tokenizer](), encoder, format)
    return codec, GridGrammar(codec), codec.end_id


@pytest.mark.parametrize(("tokenizer", "encoder"), CASES)
def test_every_grid_is_accepted_with_the_tokenizers_own_ids(tokenizer: str, encoder: str):
    """Would catch a shape without a template, and an end that is allowed too late."""
    codec, grammar, end = grammar_of(tokenizer, encoder)
    rng = rng_for("grammar", tokenizer, encoder)
    for shape in [(1, 1), (1, 30), (30, 1), (30, 30), (10, 9), *rng.integers(1, 31, (20, 2)).tolist()]:
        text = encoder_named(encoder).render(rng.integers(0, 10, shape).astype(np.uint8))
        state = grammar.start
        for token in [*_inner_ids(codec, text), end]:
            assert token in grammar.next(state), f"{encoder} {shape}"
            state = grammar.next(state)[token]
        assert grammar.next(state) == {}


@pytest.mark.parametrize(("tokenizer", "encoder"), CASES)
def test_whatever_the_grammar_allows_is_a_grid(tokenizer: str, encoder: str):
    """Random walks to the end: would catch ragged rows, a wrong stated shape, a 31st row, a half-written cell."""
    codec, grammar, end = grammar_of(tokenizer, encoder)
    rng = rng_for("walk", tokenizer, encoder)
    shapes = set()
    for _ in range(12):
        state, written = grammar.start, []
        while True:
            tokens = sorted(grammar.next(state))
            token = end if end in tokens and rng.random() < 0.2 else int(rng.choice(tokens))
            state = grammar.next(state)[token]
            if token == end:
                break
            written.append(token)
        grid = encoder_named(encoder).parse(codec.tokenizer.decode(written))
        assert isinstance(grid, np.ndarray), f"{grid}: {codec.tokenizer.decode(written)!r}"
        assert codec.tokenizer.decode(written) == encoder_named(encoder).render(grid)
        shapes.add(grid.shape)
    assert len(shapes) > 3


def _inner_ids(codec: Codec, text: str) -> list[int]:
    """The tokenizer's own ids of an answer, which stands alone because only it is learned, without its end."""
    whole, end = (
        codec.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text + codec.frame.end, codec.frame.end)
    )
    return whole[: -len(end)]


@pytest.mark.parametrize("lookahead", [0, 6])
def test_an_untrained_model_writes_grids_if_it_is_made_to(lookahead: int):
    """Greedy, sampled and searched answers all parse, where without the grammar none of them would."""
    codec, grammar, end = grammar_of("tiny", "compact")
    model, prompts = tiny_model(layers=1).eval(), trained()[1][:2]
    free, tied = Writer(model, [end], PAD), Writer(model, [end], PAD, grammar)
    assert not any(a.is_complete for a in generate_greedily(free, prompts, [60] * 2))
    samples = generate_samples(tied, prompts, [250] * 2, draws(prompts, 4, 250), 1.0, lookahead)
    written = [(prompt, a) for prompt, answers in zip(prompts, samples, strict=True) for a in answers if a.is_complete]
    assert len(written) > 3
    for prompt, answer in written:
        assert isinstance(codec.encoder.parse(codec.tokenizer.decode(answer.ids)), np.ndarray)
        assert answer.log_probability == pytest.approx(log_probability(model, prompt, [*answer.ids, end]), abs=1e-2)
    for answer in generate_greedily(tied, prompts, [250] * 2, lookahead):
        state = grammar.start
        for token in answer.ids.tolist():
            state = grammar.next(state)[token]


def test_search_within_the_grammar_finds_the_grids_above_the_threshold_and_nothing_else():
    """Would catch restricted probabilities that are renormalised, and so pass a threshold that they do not reach."""
    codec, grammar, end = grammar_of("tiny", "compact")
    model, prompts, _ = trained()
    free = find_answers(Writer(model, [end], PAD), prompts, [40] * 8, 0.01)
    tied = find_answers(Writer(model, [end], PAD, grammar), prompts, [40] * 8, 0.01)
    grids = [
        [ids for ids in texts(of_prompt) if isinstance(codec.encoder.parse(codec.tokenizer.decode(ids)), np.ndarray)]
        for of_prompt in free
    ]
    assert [texts(of_prompt) for of_prompt in tied] == grids
    assert sum(map(len, grids)) >= 5


# Scoring


def test_answers_are_scored_as_one_pass_over_each_would(monkeypatch: pytest.MonkeyPatch):
    """Would catch padding that is counted, an end that is not, and memory chunks that mix up their answers."""
    model, prompts, answers = trained()
    writer = Writer(model, [END], PAD)
    for chunk in (2**27, 9 * 384 * 2, 1):
        monkeypatch.setattr("arc_ray.decode.likelihood.MOST_LOGITS", chunk)
        scores = score_answers(writer, prompts[0], answers)
        assert scores == pytest.approx([log_probability(model, prompts[0], a) for a in answers], abs=1e-3)
    single = score_answers(writer, prompts[1], [np.array([END], np.int32)])
    assert single == pytest.approx([log_probability(model, prompts[1], [END])], abs=1e-4)
    (greedy,) = generate_greedily(writer, [prompts[2]], [40])
    (again,) = score_answers(writer, prompts[2], [np.append(greedy.ids, END).astype(np.int32)])
    assert again == pytest.approx(greedy.log_probability, abs=1e-3)
