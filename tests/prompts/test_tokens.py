"""Looked-up token ids are the tokenizer's own, lengths are exact, and what is learned is the answer and nothing else."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from builders import (
    codec_of,
    counting,
    cut_tokenizer,
    grid_of,
    grouping_tokenizer,
    merging_tokenizer,
    one_pair_tokenizer,
    phi_like_tokenizer,
    puzzle,
    qwen_like_tokenizer,
    smollm_like_tokenizer,
    spacing_tokenizer,
    tiny_tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from arc_ray.config.training import ViewConfig
from arc_ray.errors import UserError
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import ENCODERS, TRAVERSALS, encoder_named
from arc_ray.prompts.formats import FORMATS, Frame, Learn, Text, needs_description
from arc_ray.prompts.lengths import fit_views, view_lengths
from arc_ray.prompts.tokenizer import frame_of, make_tiny_tokenizer, refuse_other_frame, tiny_corpus
from arc_ray.tasks.task import Pair, Task, TaskTable
from arc_ray.views.augmentation import Augmentation
from arc_ray.views.view import Views, draw_views, keys_of, plain_views

GRID_FORMATS = [name for name, format in FORMATS.items() if not needs_description(format)]
TOKENIZERS = {
    "tiny": tiny_tokenizer,
    "smollm": smollm_like_tokenizer,
    "qwen": qwen_like_tokenizer,
    "phi": phi_like_tokenizer,
}
"""All keep cells apart; the last two merge what ends a grid with the text that follows, and texts with each other."""

TABLE = TaskTable.of(
    [puzzle("a", 5, 1, most=12), puzzle("b", 2, 2), counting(1), counting(2), puzzle("c", 1, 1, most=30)]
)


def views_of(table: TaskTable, copies: int = 3, **config: Any) -> Views:
    """Some views of every task, turned and recoloured."""
    task = np.repeat(np.arange(len(table)), copies)
    key = keys_of(0, "s", table, task, np.arange(len(task)), 0)
    return draw_views(ViewConfig(background_probability=1.0, **config), table, task, key)


traversed_encoders = st.builds(
    lambda name, order: name if order == "rows" else f"{name}-{order}",
    st.sampled_from(sorted(ENCODERS)),
    st.sampled_from(TRAVERSALS),
)


def slow(codec: Codec) -> Codec:
    """The same codec through the tokenizer."""
    return dataclasses.replace(codec, is_fast=False)


def same(a: list[tuple[Any, Any]], b: list[tuple[Any, Any]]) -> bool:
    return all(np.array_equal(x[0], y[0]) and np.array_equal(x[1], y[1]) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("encoder", [*ENCODERS, "shape_rows-columns"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_looked_up_ids_are_the_tokenizers_own(tokenizer: str, encoder: str):
    """Every format, both ways to learn, all symmetries and colours: would catch any merge that look-up does not see."""
    views = views_of(TABLE)
    for format in FORMATS:
        for learn in ("asked", "all"):
            codec = codec_of(TOKENIZERS[tokenizer](), encoder, format, learn)
            assert codec.is_fast
            encoded = codec.encode(TABLE, views)
            assert same(encoded, slow(codec).encode(TABLE, views))
            for i, (ids, learned) in enumerate(encoded):
                assert len(ids) == len(learned)
                if learn == "asked" and tokenizer != "phi":
                    whole = "".join(piece for piece, _ in codec.text(TABLE, views, i))
                    assert codec.tokenizer(whole, add_special_tokens=False)["input_ids"] == ids.tolist()


def test_the_seams_of_published_tokenizers_are_those_of_ours():
    """The families that others are tested with merge as Qwen2's and Phi-3's do; else the tests above would prove little."""
    assert qwen_like_tokenizer().tokenize("```\nOutput:\n\n#") == ["``", "`Ċ", "Output", ":", "ĊĊ", "#"]
    assert qwen_like_tokenizer().tokenize("```") == ["```"]
    assert phi_like_tokenizer().tokenize("1\n") == ["▁", "1", "<0x0A>"]


@pytest.mark.parametrize("merged", ["37", "90", "379"])
def test_a_tokenizer_that_merges_a_single_pair_or_triple_of_digits_is_found_out(merged: str):
    """Would catch a check that looks at some pairs only: one merge, and ids that the model never saw."""
    tokenizer = one_pair_tokenizer(merged)
    codec = codec_of(tokenizer, "compact", quiet=True)
    assert not codec.is_fast
    grid = np.array([[int(digit) for digit in merged]], np.uint8)
    assert codec.answer_ids(grid).tolist() == tokenizer(f"{merged}\n<eos>", add_special_tokens=False)["input_ids"]
    assert codec_of(tokenizer, "separated").is_fast


@pytest.mark.parametrize("encoder", ["shape_rows", "compact", "repeated"])
@pytest.mark.parametrize("tokenizer", ["tiny", "qwen", "merging"])
def test_one_sided_changes_are_written_as_they_are_applied(tokenizer: str, encoder: str):
    """Would catch looked-up grids or planned lengths that miss the change, or make it on the other side."""
    tok = {**TOKENIZERS, "merging": merging_tokenizer}[tokenizer]()
    codec = codec_of(tok, encoder, "output_from_examples", "all", quiet=True)
    views = views_of(TABLE, copies=12, one_sided=0.8)
    assert views.one_sided is not None
    assert len(np.unique(views.one_sided[:, 1])) == 4
    encoded = codec.encode(TABLE, views)
    assert same(encoded, slow(codec).encode(TABLE, views))
    tokens, learned = view_lengths(codec, TABLE, views)
    assert tokens.tolist() == [len(ids) for ids, _ in encoded]
    assert learned.tolist() == [int(mask.sum()) for _, mask in encoded]
    plain = dataclasses.replace(views, one_sided=None)
    changed = [not same([a], [b]) for a, b in zip(encoded, codec.encode(TABLE, plain), strict=True)]
    assert (np.array(changed) <= (views.one_sided[:, 0] > 0)).all()
    assert np.mean(changed) > 0.3


@settings(deadline=None, max_examples=40)
@given(traversed_encoders, st.integers(1, 30), st.integers(1, 30), st.integers(0, 7), st.integers(0, 99))
def test_looked_up_ids_of_any_grid_are_the_tokenizers_own(
    encoder: str, height: int, width: int, symmetry: int, seed: int
):
    """Would catch a shape whose template is wrong, such as the first one with a row number of two digits."""
    rng = np.random.default_rng(seed)
    colors = rng.permutation(10).astype(np.uint8)
    grid = rng.integers(0, 10, (height, width)).astype(np.uint8)
    text = encoder_named(encoder).render(Augmentation(symmetry, tuple(colors.tolist())).apply(grid))
    for family in ("tiny", "smollm", "qwen"):
        codec = codec_of_family(family, encoder, "compact", "asked")
        tokenizer = codec.tokenizer
        template = codec.template(height, width, symmetry)
        cells = template.ids.copy()
        cells[template.slots] = codec.cell_ids[colors][grid.ravel()]
        opening, closing = codec.text_ids(Text("", before_grid=True)), codec.text_ids(Text("", after_grid=True))
        ids = np.concatenate([opening, cells, closing])
        assert tokenizer.decode(ids) == text
        whole = tokenizer(f"O{text}I", add_special_tokens=False)["input_ids"]
        inner = (
            tokenizer("O", add_special_tokens=False)["input_ids"],
            tokenizer("I", add_special_tokens=False)["input_ids"],
        )
        assert whole == [*inner[0], *ids.tolist(), *inner[1]]


FAMILIES = {**TOKENIZERS, "merging": merging_tokenizer, "grouping": grouping_tokenizer}
FAMILIES |= {"spacing": spacing_tokenizer, "one pair": one_pair_tokenizer}
KEEPS_CELLS = {"merging": {"separated", "symbols"}, "grouping": {"separated", "symbols", "repeated"}}
KEEPS_CELLS |= {"one pair": {"separated", "symbols"}}
"""Encoders that the look-up path can be taken with; with the others, such a tokenizer merges cells or alters texts."""


@cache
def codec_of_family(family: str, encoder: str, format: str, learn: Learn) -> Codec:
    return codec_of(FAMILIES[family](), encoder, format, learn, quiet=True)


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(FAMILIES)),
    traversed_encoders,
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(["asked", "all"]),
    st.integers(0, 10**6),
    st.sampled_from([3, 12, 30]),
)
def test_any_view_is_written_as_the_tokenizer_itself_writes_it(
    family: str, encoder: str, format: str, learn: Learn, seed: int, most: int
):
    """Eight families, random puzzles of all sizes, every augmentation: would catch a merge that the sample does not have."""
    table = TaskTable.of([puzzle(f"{seed}", 3, 1, most), puzzle(f"{seed + 1}", 1, 2, most)])
    views = views_of(table, one_sided=0.5, min_shown=1)
    codec = codec_of_family(family, encoder, format, learn)
    assert codec.is_fast == (encoder.partition("-")[0] in KEEPS_CELLS.get(family, ENCODERS))
    encoded = codec.encode(table, views)
    assert same(encoded, slow(codec).encode(table, views))
    for i, (ids, learned) in enumerate(encoded):
        pieces = codec.text(table, views, i)
        whole = [codec.tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in pieces]
        assert ids.tolist() == [token for piece in whole for token in piece]
        assert learned.tolist() == [learn for piece, (_, learn) in zip(whole, pieces, strict=True) for _ in piece]


@pytest.mark.parametrize("encoder", ["plain", "shape_rows", "repeated", "compact"])
def test_a_tokenizer_that_merges_cells_is_used_slowly_and_says_so(encoder: str):
    """Would catch a look-up of digits one by one for a model that has only ever seen them in groups."""
    with pytest.warns(
        UserWarning, match=f"with encoder '{encoder}': cells have no tokens of their own.*20 times slower"
    ):
        codec = codec_of(merging_tokenizer(), encoder, quiet=None)
    assert not codec.is_fast
    views = views_of(TABLE)
    for i, (ids, learned) in enumerate(codec.encode(TABLE, views)):
        text = codec.text(TABLE, views, i)
        assert codec.tokenizer.decode(ids) == "".join(piece for piece, _ in text)
        assert codec.tokenizer.decode(ids[learned]) == "".join(piece for piece, learn in text if learn)
    assert (np.diff([len(ids) for ids, _ in codec.encode(TABLE, views)]) != 0).any()


@pytest.mark.parametrize("encoder", ["separated", "symbols"])
def test_an_encoder_that_keeps_cells_apart_is_fast_for_a_tokenizer_that_merges_digits(encoder: str):
    assert codec_of(merging_tokenizer(), encoder).is_fast


def test_three_digits_a_cell_are_one_token_for_a_tokenizer_that_groups_digits():
    codec = codec_of(grouping_tokenizer(), "repeated", "output_from_examples")
    assert codec.is_fast
    assert codec.cell_ids.shape == (10, 1)
    assert same(codec.encode(TABLE, views_of(TABLE)), slow(codec).encode(TABLE, views_of(TABLE)))
    assert not codec_of(grouping_tokenizer(), "plain", quiet=True).is_fast


@pytest.mark.parametrize("loses", ["them", "as <unk>"])
@pytest.mark.parametrize(
    ("characters", "encoder", "format"),
    [
        ("0123456789\n", "plain", "output_from_examples"),  # all words
        ("0123456789\n", "compact", "compact"),  # the markers I and O
        ("012345678\nIO", "compact", "compact"),  # a colour
        ("\nIO", "compact", "compact"),  # all colours, which look alike
        ("0123456789IO", "compact", "compact"),  # the ends of rows
        ("0123456789\nIO", "separated", "compact"),  # what separates cells
        ("0123456789\nIO", "fenced", "compact"),  # the fence
        ("0123456789\nIO`grid", "rows", "compact"),  # the space after a row's number
        ("0123456789\nIO`grid", "shape", "compact"),  # the stated shape
        ("0123456789\nIO`grid", "symbols", "compact"),  # letters for colours
    ],
)
def test_a_tokenizer_that_cannot_write_the_prompt_is_refused(characters: str, encoder: str, format: str, loses: Any):
    """Would catch training on prompts whose words, colours or row ends are lost: solved 1.000, evaluated 0 %."""
    tokenizer = cut_tokenizer(characters, loses)
    with pytest.raises(
        UserError, match=f"cannot write prompt.format {format} with prompt.encoder {encoder}: .* is read"
    ):
        codec_of(tokenizer, encoder, format, quiet=True)


@pytest.mark.parametrize("loses", ["them", "as <unk>"])
def test_a_vocabulary_of_sixteen_tokens_is_enough_for_its_own_prompt(loses: Any):
    """Winners cut theirs to that: would catch a check that asks for words which nobody writes."""
    tokenizer = cut_tokenizer("0123456789\nIO", loses)
    codec = codec_of(tokenizer, "compact", "compact")
    assert codec.is_fast
    puzzles, questions = TaskTable.of([puzzle("a")]), TaskTable.of([counting(1)])
    assert (fit_views(codec, puzzles, views_of(puzzles), 2000, drop=False)[0] > 0).all()
    with pytest.raises(UserError, match=r"cannot write prompt\.format compact .*Grid"):
        fit_views(codec, questions, views_of(questions), 2000, drop=False)


def test_cells_that_merge_are_read_back_on_the_slow_path_too():
    """Would catch a check of the look-up path only: a tokenizer that merges digits and loses newlines."""
    tokenizer = cut_tokenizer("0123456789\nIO", "them")
    tokenizer.backend_tokenizer.model = models.BPE({**tokenizer.get_vocab(), "12": 16}, [("1", "2")])
    assert not codec_of(tokenizer, "compact", "compact", quiet=True).is_fast
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if token != "\n"}
    other = cut_tokenizer("0123456789\nIO", "them")
    other.backend_tokenizer.model = models.BPE(vocabulary, [("1", "2")])
    with pytest.raises(UserError, match="cannot write"):
        codec_of(other, "compact", "compact", quiet=True)


def runs(ids: Any, learned: Any) -> Iterator[list[int]]:
    """Stretches of learned tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], learned, [False]]).astype(int)))
    yield from (ids[a:b].tolist() for a, b in edges.reshape(-1, 2))


@pytest.mark.parametrize("learn", ["asked", "all"])
@pytest.mark.parametrize("tokenizer", [*TOKENIZERS, "merging"])
@pytest.mark.parametrize("format", GRID_FORMATS)
def test_what_is_learned_is_exactly_the_answers(tokenizer: str, learn: Learn, format: str):
    """Would catch a mask that is one token off, teaches a prompt, or never teaches to stop."""
    tok = {**TOKENIZERS, "merging": merging_tokenizer}[tokenizer]()
    codec = codec_of(tok, "shape_rows", format, learn, quiet=True)
    table = TaskTable.of([puzzle("a", 4, 1), puzzle("b", 3, 2)])
    views = views_of(table)
    for i, (ids, learned) in enumerate(codec.encode(table, views)):
        augmentation = Augmentation(int(views.symmetry[i]), tuple(int(c) for c in views.colors[i]))
        pairs = [*(views.shown[i][views.shown[i] >= 0] if learn == "all" else []), views.asked[i]]
        side = format != "input_from_inputs"
        grids = [table.grid(2 * pair + side) for pair in (pairs[1:] if learn == "all" else pairs)]
        answers = [codec.encoder.render(augmentation.apply(grid)) for grid in grids]
        ends = [codec.frame.end if format == "compact" else ""] * (len(answers) - 1) + [codec.frame.end]
        assert [tok.decode(run) for run in runs(ids, learned)] == [a + e for a, e in zip(answers, ends, strict=True)]


@pytest.mark.parametrize("tokenizer", [*TOKENIZERS, "merging"])
def test_the_two_players_learn_the_rule_and_its_output(tokenizer: str):
    """Would catch a first player who learns the prompt, and a prompt of either that holds its answer."""
    tok = {**TOKENIZERS, "merging": merging_tokenizer}[tokenizer]()
    table = TaskTable.of([puzzle("a", 4, 1), puzzle("b", 3, 2)])
    views = views_of(table, symmetries=False, colors="keep")
    first, second = (codec_of(tok, "shape_rows", format, quiet=True) for format in ("describe", "implement"))
    for i, task in enumerate(views.task):
        (ids, learned), (more, learned_more) = (c.encode(table, views.take(np.array([i])))[0] for c in (first, second))
        description = table.descriptions[task]
        output = first.encoder.render(table.grid(2 * views.asked[i] + 1))
        assert [tok.decode(run) for run in runs(ids, learned)] == [f"{description}{first.frame.end}"]
        assert [tok.decode(run) for run in runs(more, learned_more)] == [output + first.frame.end]
        assert str(description) in tok.decode(more[~learned_more])
        for codec, (whole, mask) in ((first, (ids, learned)), (second, (more, learned_more))):
            assert codec.prompt_ids(table, views, i).tolist() == whole[~mask].tolist()


@pytest.mark.parametrize("format", ["describe", "implement"])
def test_a_task_without_a_description_is_left_out_of_formats_that_need_it(format: str):
    """Would catch training on the word None."""
    table = TaskTable.of([puzzle("a"), dataclasses.replace(puzzle("b"), description=None), counting(1)])
    fitting, _ = fit_views(codec_of(tiny_tokenizer(), "plain", format), table, views_of(table), 2000, drop=False)
    assert (fitting >= 0).tolist() == [True] * 3 + [False] * 3 + [True] * 3


def test_counting_learns_every_answer_and_its_end():
    table = TaskTable.of([counting(1), counting(5)])
    codec = codec_of(smollm_like_tokenizer())
    for task, (ids, learned) in enumerate(codec.encode(table, views_of(table, copies=1))):
        found = [codec.tokenizer.decode(run) for run in runs(ids, learned)]
        assert sorted(found) == sorted(q.answer + codec.frame.end for q in table.questions[task])


@pytest.mark.parametrize("learn", ["asked", "all"])
@pytest.mark.parametrize("tokenizer", [*TOKENIZERS, "merging"])
@pytest.mark.parametrize("format", FORMATS)
def test_lengths_are_those_of_the_views(tokenizer: str, learn: Learn, format: str):
    """Would catch a plan whose rows overflow, or whose learned tokens are not those the loss is divided by."""
    codec = codec_of({**TOKENIZERS, "merging": merging_tokenizer}[tokenizer](), "shape_rows", format, learn, quiet=True)
    views = views_of(TABLE, copies=6)
    tokens, learned = view_lengths(codec, TABLE, views)
    encoded = codec.encode(TABLE, views)
    assert tokens.tolist() == [len(ids) for ids, _ in encoded]
    assert learned.tolist() == [int(mask.sum()) for _, mask in encoded]
    assert len(set(tokens.tolist())) > 5


@pytest.mark.parametrize("row_tokens", [40, 90, 200, 320, 1000])
@pytest.mark.parametrize("drop", [False, True])
def test_views_keep_as_many_pairs_as_fit(row_tokens: int, drop: bool):
    """Against trying every number of pairs; would catch one pair too few, or a view that is longer than its row."""
    codec = codec_of(tiny_tokenizer(), "shape_rows", "output_from_examples")
    views = views_of(TABLE, copies=6)
    fitting, (tokens, learned) = fit_views(codec, TABLE, views, row_tokens, drop)
    for i, most in enumerate(views.num_shown()):
        tries = [most] if drop else list(range(most, min(most, 1) - 1, -1))
        lengths = {
            k: codec.encode(TABLE, views.showing(np.full(len(views), k)).take(slice(i, i + 1)))[0] for k in tries
        }
        possible = [k for k in tries if len(lengths[k][0]) <= row_tokens]
        assert fitting[i] == max(possible, default=-1)
        if possible:
            assert (tokens[i], learned[i]) == (len(lengths[fitting[i]][0]), lengths[fitting[i]][1].sum())


def test_a_view_that_asks_for_nothing_is_left_out():
    """Would catch training on the grid of another task, which is what pair -1 is."""
    table = TaskTable.of([puzzle("a"), puzzle("all hidden", 0, 2, hidden=True)])
    for tokenizer in (tiny_tokenizer(), merging_tokenizer()):
        fitting, _ = fit_views(codec_of(tokenizer, quiet=True), table, views_of(table), 1000, drop=False)
        assert (fitting >= 0).tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("format", ["output_from_examples", "describe", "implement"])
def test_a_codec_does_its_work_without_its_tokenizer(format: str, tokenizer: str):
    """Would catch a data task that loads transformers, or meets a text that nobody looked up before."""
    codec = codec_of(TOKENIZERS[tokenizer](), "shape_rows", format, "all")
    views = views_of(TABLE)
    expected = codec.encode(TABLE, views)
    fresh = dataclasses.replace(codec, _templates={}, _texts={})
    fit_views(fresh, TABLE, views, 150, drop=False)
    bare = fresh.without_tokenizer()
    assert bare.tokenizer is None
    assert same(bare.encode(TABLE, views), expected)
    bare.encode(TABLE, views.showing(np.full(len(views), 1)))


def test_the_slow_codec_keeps_its_tokenizer():
    codec = codec_of(merging_tokenizer(), quiet=True)
    assert codec.without_tokenizer().tokenizer is codec.tokenizer


def test_a_codec_that_learns_otherwise_does_not_share_layouts():
    """Would catch validation that counts a task as solved only if every shown output is predicted as well."""
    codec = codec_of(tiny_tokenizer(), "compact", "compact", "all")
    views = views_of(TABLE)
    codec.encode(TABLE, views)
    asked = dataclasses.replace(codec, learn="asked")
    assert same(
        asked.encode(TABLE, views), codec_of(tiny_tokenizer(), "compact", "compact", "asked").encode(TABLE, views)
    )
    assert not same(asked.encode(TABLE, views), codec.encode(TABLE, views))


@pytest.mark.parametrize("tokenizer", [*TOKENIZERS, "merging"])
@pytest.mark.parametrize("format", ["output_from_examples", "compact"])
def test_a_prompt_is_the_view_up_to_its_answer_and_knows_nothing_of_it(tokenizer: str, format: str):
    """Would catch an evaluation prompt that differs from what was trained, or that needs the answer."""
    codec = codec_of({**TOKENIZERS, "merging": merging_tokenizer}[tokenizer](), "shape_rows", format, quiet=True)
    tasks = [puzzle("a", 3, 2), puzzle("b", 2, 1)]
    hidden = [Task(t.id, t.train, tuple(Pair(p.input, None) for p in t.test)) for t in tasks]
    table, blind = TaskTable.of(tasks), TaskTable.of(hidden)
    for symmetry in (0, 3, 6):
        views = plain_views(table, 3, symmetry)
        for i, (ids, learned) in enumerate(codec.encode(table, views)):
            prompt = codec.prompt_ids(table, views, i)
            assert prompt.tolist() == ids[~learned].tolist()
            assert prompt.tolist() == codec.prompt_ids(blind, plain_views(blind, 3, symmetry), i).tolist()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_no_answer_is_longer_than_its_bound(encoder: str):
    """Would catch a generation that is cut before its last row."""
    rng = np.random.default_rng(0)
    for tokenizer in (tiny_tokenizer(), smollm_like_tokenizer(), merging_tokenizer()):
        codec = codec_of(tokenizer, encoder, quiet=True)
        for side in (1, 2, 9, 10, 30):
            for grid in (np.full((side, side), 9, np.uint8), grid_of(rng, side), np.zeros((side, 1), np.uint8)):
                text = codec.encoder.render(grid) + codec.frame.end
                assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= codec.text_length_bound(side)


def test_the_tiny_tokenizer_writes_digits_one_by_one_and_any_text_at_all():
    tokenizer = tiny_tokenizer()
    assert len(tokenizer("0123456789\n|", add_special_tokens=False)["input_ids"]) == 12
    for text in ("plain words", "ñòÆ 漢字 🙂", "  two  spaces\n\n\ttab", "", "a1b22c333\r\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    words = tokenizer("Apply the rule. Output:\n", add_special_tokens=False)["input_ids"]
    assert len(words) <= 8, "our own words should be tokens"
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]


def test_the_tiny_tokenizer_is_the_same_each_time():
    """Would catch a vocabulary that depends on a hash: a checkpoint would meet other ids than it learned."""
    again = make_tiny_tokenizer(list(reversed(tiny_corpus())))
    assert again.get_vocab() == tiny_tokenizer().get_vocab()


def test_frames_are_cut_from_chat_templates():
    start = "<|im_start|>system\nYou solve puzzles.<|im_end|>\n<|im_start|>user\n"
    answer, between = "<|im_end|>\n<|im_start|>assistant\n", "\n<|im_start|>user\n"
    assert frame_of(smollm_like_tokenizer()) == Frame(start, answer, "<|im_end|>", between)
    assert frame_of(tiny_tokenizer()) == Frame("<bos>", "", "<eos>", "\n")


def with_template(template: str) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer,
        chat_template=template,
        bos_token="<bos>",
        eos_token="<eos>",
    )


@pytest.mark.parametrize(
    ("template", "frame"),
    [
        (  # like Mistral's: nothing between the end of an answer and the next turn
            "<bos>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
            "{% else %} {{ m.content }}<eos>{% endif %}{% endfor %}",
            Frame("<bos>[INST] ", " [/INST] ", "<eos>", "[INST] "),
        ),
        (  # like Llama 2's: spaces around what a turn says
            "{% for m in messages %}{% if m.role == 'user' %}<bos>[INST] {{ m.content }} [/INST]"
            "{% else %} {{ m.content }} <eos>{% endif %}{% endfor %}",
            Frame("<bos>[INST] ", " [/INST] ", "<eos>", "<bos>[INST] "),
        ),
        (  # like Llama 3's: the end of a turn is not the end of text
            "<bos>{% for m in messages %}<h>{{ m.role }}</h>\n\n{{ m.content | trim }}<eot>{% endfor %}",
            Frame("<bos><h>user</h>\n\n", "<eot><h>assistant</h>\n\n", "<eot>", "<h>user</h>\n\n"),
        ),
        (  # like Qwen3's: an empty thought before the last answer only
            "{% for m in messages %}<s>{{ m.role }}\n{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
            "{{ m.content }}</s>\n{% endfor %}",
            Frame("<s>user\n", "</s>\n<s>assistant\n", "</s>", "\n<s>user\n"),
        ),
        (  # nothing marks the end of an answer
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            Frame("user: ", "\nassistant: ", "<eos>", "\nuser: "),
        ),
    ],
)
def test_frames_of_other_templates(template: str, frame: Frame):
    """Would catch a popular model that cannot be used, and a thought that ends up in every answer."""
    assert frame_of(with_template(template)) == frame


@pytest.mark.parametrize(
    "head",
    [
        # like Llama 3.1's and Granite's
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}",
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}",
    ],
)
def test_a_template_that_writes_todays_date_writes_the_same_every_day(head: str):
    """Would catch a training, its resumption and its evaluation that see other prompts because a night lies between."""
    turns = "{% for m in messages %}<h>{{ m.role }}</h>{{ m.content }}<eot>{% endfor %}"
    tokenizer = with_template(head + turns)
    today = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert not today.startswith("26 Jul 2024"), "the template does write today's date by itself"
    frame = frame_of(tokenizer)
    assert frame.begin == "26 Jul 2024<h>user</h>"
    refuse_other_frame(dataclasses.asdict(frame), frame, "run")
    refuse_other_frame(None, frame, "an older run")
    then = dataclasses.asdict(frame) | {"begin": "23 Nov 2026<h>user</h>"}
    with pytest.raises(
        UserError, match=r"run learned prompts with '23 Nov 2026<h>user</h>' where .* writes '26 Jul 2024"
    ):
        refuse_other_frame(then, frame, "run")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not keep what a turn says"),
        ("{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}", "treats the first turn differently"),
    ],
)
def test_a_template_that_cannot_be_cut_is_the_users_mistake(template: str, reason: str):
    with pytest.raises(UserError, match=reason):
        frame_of(with_template(template))
