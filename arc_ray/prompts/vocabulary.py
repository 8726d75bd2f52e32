"""The vocabulary cut: a base and its tokenizer without the tokens that no prompt of ours can hold, as a plain folder.

Embeddings and output layer lose rows, and tokens get new ids in the same order; nothing else changes. A tokenizer loses
only what it never applies to our texts: each piece that one of them is put together from stays, and so do single bytes,
in which any other text is still written.
"""

import copy
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from arc_ray.config.model import ModelConfig
from arc_ray.config.section import is_model_name
from arc_ray.config.sources import CountingSource
from arc_ray.copies import cached
from arc_ray.errors import UserError
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import ENCODERS
from arc_ray.prompts.formats import FORMATS, Frame
from arc_ray.prompts.sample import SAMPLED_SIDES
from arc_ray.prompts.tokenizer import frame_of, load_tokenizer
from arc_ray.runs.base import explained, model_path, named_model
from arc_ray.runs.folder import resolve_reference
from arc_ray.runs.obtain import put
from arc_ray.seeding import digest64
from arc_ray.storage import Folder
from arc_ray.tasks.counting import counting_task
from arc_ray.tasks.task import NUM_COLORS, Pair, Task, TaskTable
from arc_ray.views.view import plain_views

VERSION = 1
"""Raised when the same base and texts would give another cut."""
MOST_SHOWN = 10
"""Pairs that a view shows at most."""
COUNTING = 64
"""Counting tasks whose words are kept: all wordings, with one grid and several."""
TOKENIZER_KINDS = ("BPE", "Unigram", "WordLevel", "WordPiece")
"""Models of the library tokenizers that are known here."""


def base_folder(config: ModelConfig, storage: str, weights: bool = True) -> str:
    """Return the folder, on this node, of the base that a config trains on: the one it names, or that cut as it says.

    A cut that the storage does not hold yet is made in this node's cache, without `weights` as a description only.
    Raises UserError as `model_path`, and for a base that cannot be cut.
    """
    if not (config.vocabulary and config.base):
        return model_path(config.base, storage, weights)
    place = cut_place(config, storage, weights)
    if place.exists("config.json"):
        return str(place.on_this_node())
    return str(cached(f"{place.name}{'' if weights else '-described'}", partial(cut_base, config, storage, weights)))


def cut_place(config: ModelConfig, storage: str, weights: bool = True) -> Folder:
    """Return where a storage keeps the cut of a base, another place for each content of base and texts."""
    assert config.base
    is_name = is_model_name(config.base)
    whole = (
        named_model(config.base, storage, weights) if is_name else Folder.at(resolve_reference(config.base, storage))
    )
    digest = digest64(VERSION, json.dumps(config.vocabulary), whole.contents())
    name = re.sub("[^A-Za-z0-9.]+", "-", config.base).strip("-")[-40:]
    return Folder.at(storage) / "models" / f"{name}-{digest:016x}"


def keep_cut(config: ModelConfig, storage: str) -> Folder | None:
    """Put the cut of a base that is there into the storage unless it is there; return it where it is new. Raises UserError."""
    if not config.vocabulary or (place := cut_place(config, storage)).exists("config.json"):
        return None
    put(Path(base_folder(config, storage)), place, last="config.json")
    return place


def cut_base(config: ModelConfig, storage: str, weights: bool, target: Path) -> None:
    """Write a base, cut, into an empty folder: tokenizer, config and, unless only a description is wanted, `weights`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = model_path(config.base, storage, weights)
    tokenizer = load_tokenizer(config.model_copy(update={"vocabulary": None}), storage)
    with explained(path):
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto") if weights else None
        about = copy.deepcopy(model.config) if model else AutoConfig.from_pretrained(path)
        sections = [about, *([model.generation_config] if model else [])]
        sections += [inner] if (inner := about.get_text_config()) is not about else []
        named = {token for section in sections for value in _tokens_named(section).values() for token in _flat(value)}
        texts = [] if config.vocabulary == "cells" else config.vocabulary or []
        kept = kept_tokens(tokenizer, texts, named, about.get_text_config().vocab_size)
        new = {old: number for number, old in enumerate(kept)}
        for section in sections:
            for key, value in _tokens_named(section).items():
                setattr(section, key, _renumbered(value, new))
        about.get_text_config().vocab_size = len(kept)
        cut_tokenizer(tokenizer, kept).save_pretrained(target)
        if model:
            _cut_weights(model, about, kept)
            model.save_pretrained(target)
        else:
            about.save_pretrained(target)


def _cut_weights(model: Any, about: Any, kept: Sequence[int]) -> None:
    """Leave in a model the rows of these tokens, wherever a model of the config `about` has fewer."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in AutoModelForCausalLM.from_config(about).named_parameters()}
    for name, weight in model.named_parameters():  # what is tied comes once
        for dim, size in enumerate(shapes[name]):
            if weight.shape[dim] != size:
                weight.data = weight.data.index_select(dim, torch.tensor(kept))
    model.config = about


def kept_tokens(tokenizer: Any, texts: Collection[str], named: Collection[int], rows: int) -> list[int]:
    """Return the ids that prompts of ours and `texts` consist of, those that have a role or are `named`, single bytes,
    and what all these are put together from; in order. `rows` are those of the model's embeddings.

    Raises UserError for a tokenizer that cannot be cut, and one that writes ids beyond the rows.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    parts = _parts(tokenizer)
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    written = _ids(tokenizer, [*prompt_texts(frame_of(tokenizer)), *texts, *(f" {text}" for text in texts)])
    roles = [*tokenizer.special_tokens_map.values(), parts["model"].get("unk_token")]
    roles += [special["tokens"] for special in _put_around(parts["post_processor"])]
    asked = {token for ids in written for token in ids} | _cells(tokenizer)
    asked |= {vocabulary[name] for role in roles for name in _flat(role) if name in vocabulary}
    asked |= {vocabulary[byte] for byte in ByteLevel.alphabet() if byte in vocabulary}
    asked |= {token for name, token in vocabulary.items() if re.fullmatch("<0x[0-9A-F]{2}>", name)}
    asked |= {parts["model"].get("unk_id")} - {None}
    if beyond := {token for ids in written for token in ids if token >= rows}:
        raise UserError(f"the tokenizer writes ids beyond the model's {rows} embeddings, such as {min(beyond)}")
    asked |= {*named} & {*vocabulary.values()}
    return sorted(token for token in _with_pieces(parts, vocabulary, asked) if token < rows)


def _with_pieces(parts: Mapping[str, Any], vocabulary: Mapping[str, int], asked: set[int]) -> set[int]:
    """Add to tokens those that a BPE tokenizer merges on the way to them; other kinds look whole tokens up."""
    pieces: dict[str, set[str]] = defaultdict(set)
    for first, second, merged in _merges(parts["model"]):
        pieces[merged] |= {first, second}
    names = {token: name for name, token in vocabulary.items()}
    found, open_names = set[str](), {names[token] for token in asked}
    while open_names:
        found |= open_names
        open_names = {piece for name in open_names for piece in pieces.get(name, ())} - found
    return {vocabulary[name] for name in found}


def cut_tokenizer(tokenizer: Any, kept: Sequence[int]) -> Any:
    """Return a plain fast tokenizer with these ids of another one, numbered anew in their order.

    Raises UserError where it would write a prompt of ours otherwise.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    parts, new = _parts(tokenizer), {old: number for number, old in enumerate(kept)}
    model = parts["model"]
    if model["type"] == "Unigram":
        model["unk_id"] = new.get(model["unk_id"])
        model["vocab"] = [piece for old, piece in enumerate(model["vocab"]) if old in new]
    else:
        model["vocab"] = {name: new[old] for name, old in model["vocab"].items() if old in new}
    if "merges" in model:
        model["merges"] = [merge[:2] for merge in _merges(model) if {*merge} <= model["vocab"].keys()]
    parts["added_tokens"] = [t | {"id": new[t["id"]]} for t in parts["added_tokens"] if t["id"] in new]
    for special in _put_around(parts["post_processor"]):
        special["ids"] = [new[old] for old in special["ids"]]
    settings = {
        key: tokenizer.init_kwargs[key]
        for key in ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")
        if key in tokenizer.init_kwargs
    }
    roles = {role: str(name) for role, name in tokenizer.special_tokens_map.items() if isinstance(name, str)}
    small = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts | {"truncation": None, "padding": None})),
        chat_template=tokenizer.chat_template,
        **roles,
        **settings,
    )
    texts = prompt_texts(frame_of(tokenizer))
    for text, before, after in zip(texts, _ids(tokenizer, texts), _ids(small, texts), strict=True):
        if [new.get(token) for token in before] != after:
            raise UserError(
                f"model.vocabulary: the tokenizer cannot be cut: without its other tokens it writes {text[:60]!r} otherwise;"
                f" leave model.vocabulary null"
            )
    return small


@cache
def prompt_texts(frame: Frame) -> tuple[str, ...]:
    """Write prompts in a frame as the pieces that a tokenizer is given: with every format, encoder, number of shown pairs,
    side and row, each colour beside each text, and counting tasks."""
    of_shapes = [Pair(_grid(a, b), _grid(b, a)) for a, b in zip(SAMPLED_SIDES, SAMPLED_SIDES[::-1], strict=True)]
    of_colors = [(Pair(_grid(1, 1, color), _grid(1, 1, color)),) * (MOST_SHOWN + 1) for color in range(NUM_COLORS)]
    tasks = [Task(f"t{i}", tuple(p[1:]), tuple(p[:1]), description="") for i, p in enumerate([of_shapes, *of_colors])]
    counting = [counting_task(CountingSource(kind="counting", max_side=8), i) for i in range(COUNTING)]
    found = dict[str, None]()
    for encoder in ENCODERS.values():
        for number, format in enumerate(FORMATS.values()):
            for learn in ("asked", "all"):
                codec = Codec(None, frame, encoder, format, learn)
                table = TaskTable.of([*tasks, *([] if number or learn == "all" else counting)])
                views = plain_views(table, MOST_SHOWN)
                found |= {text: None for i in range(len(views)) for text, _ in codec.text(table, views, i)}
    return tuple(found)


def _grid(height: int, width: int, first: int = 0) -> Any:
    return ((np.arange(height * width) + first) % NUM_COLORS).astype(np.uint8).reshape(height, width)


def _cells(tokenizer: Any) -> set[int]:
    """Return the tokens that hold cells, numbers of rows or shapes only: which of them meet depends on the grids."""
    texts = {*"x", *(c for e in ENCODERS.values() for c in (*e.separator, *"".join(e.cells)))}
    written = re.compile(rf"\s*[{re.escape(''.join(sorted(texts)))}]+\s*")
    tokens = sorted(tokenizer.get_vocab().values())
    alone = zip(tokens, tokenizer.batch_decode([[token] for token in tokens]), strict=True)
    return {token for token, text in alone if written.fullmatch(text)}


def _parts(tokenizer: Any) -> dict[str, Any]:
    """Read a tokenizer of the library tokenizers as its JSON. Raises UserError for others."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str()) if getattr(tokenizer, "is_fast", False) else {}
    if parts.get("model", {}).get("type") not in TOKENIZER_KINDS:
        raise UserError(
            f"model.vocabulary: {type(tokenizer).__name__} is no tokenizer that can be cut (a fast one, of kind"
            f" {', '.join(TOKENIZER_KINDS)}); leave model.vocabulary null"
        )
    return parts


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []


def _merges(model: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what a BPE tokenizer merges, two tokens and the one that they become; older files write a space between two."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model.get("merges", ()):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        yield first, second, first + second.removeprefix(prefix)


def _put_around(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the tokens and ids that a post-processor's JSON puts around a text. Raises UserError for rare kinds."""
    if part and part["type"] in ("BertProcessing", "RobertaProcessing"):
        raise UserError(f"model.vocabulary: a tokenizer with {part['type']} cannot be cut; leave model.vocabulary null")
    for inner in (part or {}).get("processors", ()):
        yield from _put_around(inner)
    yield from (part or {}).get("special_tokens", {}).values()


def _tokens_named(section: Any) -> dict[str, Any]:
    """Return the keys of a model's or a generation's config that hold token ids, with what they hold."""
    names = re.compile(r".*token_ids?|.*suppress_tokens|bad_words_ids")
    return {key: value for key, value in vars(section).items() if names.fullmatch(key) and value is not None}


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _flat(inner)
    elif value is not None:
        yield value


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    """Return an id, or lists of ids, as they are after the cut; None, or a shorter list, for ids that are left out."""
    if not isinstance(value, list | tuple):
        return new.get(value)
    return [number for inner in value if (number := _renumbered(inner, new)) is not None] or None
