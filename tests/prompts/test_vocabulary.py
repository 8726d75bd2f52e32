"""The vocabulary cut: the same prompts in new ids, the same logits and answers, and a folder that anything loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from builders import codec_of, puzzles
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from arc_ray.config.model import LoraConfig, ModelConfig
from arc_ray.errors import UserError
from arc_ray.models.build import build_model, load_for_inference, merge_checkpoint, save_weights, served, trainable
from arc_ray.prompts.codec import Codec
from arc_ray.prompts.encoders import ENCODERS
from arc_ray.prompts.formats import FORMATS
from arc_ray.prompts.tokenizer import frame_of, load_tokenizer
from arc_ray.prompts.vocabulary import base_folder, cut_tokenizer, keep_cut, kept_tokens
from arc_ray.runs.base import fingerprint
from arc_ray.runs.obtain import obtain
from arc_ray.storage import Folder
from arc_ray.tasks.task import TaskTable
from arc_ray.views.view import plain_views

TOKENIZERS = ("smollm_like", "qwen_like", "phi_like", "merging", "grouping", "spacing")
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
}
ARCHITECTURES: dict[str, Callable[..., PreTrainedConfig]] = {
    "Llama, tied": lambda **ids: LlamaConfig(**SHAPE, **ids, tie_word_embeddings=True),
    "Qwen3, apart": lambda **ids: Qwen3Config(**SHAPE, **ids, head_dim=8, tie_word_embeddings=False),
    "Gemma 3, tied": lambda **ids: Gemma3TextConfig(
        **SHAPE, **ids, head_dim=8, sliding_window=64, tie_word_embeddings=True
    ),
    "Phi, apart, with a bias": lambda **ids: PhiConfig(**SHAPE, **ids, tie_word_embeddings=False),
}


def tokenizer_named(name: str) -> Any:
    return getattr(builders, f"{name}_tokenizer")()


def cut(tokenizer: Any) -> tuple[Any, list[int]]:
    kept = kept_tokens(tokenizer, [], [], len(tokenizer))
    return cut_tokenizer(tokenizer, kept), kept


def written(tokenizer: Any, encoder: str, format: str, table: TaskTable) -> list[list[int]]:
    """The ids of the views of a table, by the tokenizer's own hand, in lists."""
    codec, views = (
        Codec(tokenizer, frame_of(tokenizer), ENCODERS[encoder], FORMATS[format], "all"),
        plain_views(table, 3),
    )
    return [ids.tolist() for ids, _ in codec.tokenize(table, views, codec.layouts_of(table, views))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder with a model of an architecture and a tokenizer with words that grids do not need."""

    def make(architecture: str) -> Path:
        folder = tmp_path_factory.mktemp("base")
        tokenizer = tokenizer_named("smollm_like")
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
        torch.manual_seed(0)
        # More rows than tokens, as models have that are padded to a round number.
        model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](vocab_size=len(tokenizer) + 40, **ids))
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight)
        model.generation_config = GenerationConfig(**ids | {"eos_token_id": [ids["eos_token_id"], 0]})
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_cut_tokenizer_writes_every_prompt_as_the_whole_one_does(name: str, tmp_path: Path):
    """Would catch a merge that is missing, an id that is another token's, and look-up lost, for any format and encoder."""
    whole = tokenizer_named(name)
    small, kept = cut(whole)
    assert len(small) == len(kept) <= len(whole)
    small.save_pretrained(tmp_path)
    loaded, table = AutoTokenizer.from_pretrained(tmp_path), puzzles(2, most=12)
    for encoder in ENCODERS:
        for format in FORMATS:
            before = written(whole, encoder, format, table)
            assert [[kept[i] for i in ids] for ids in written(loaded, encoder, format, table)] == before, (
                encoder,
                format,
            )
    is_fast = [codec_of(tokenizer, "shape_rows", quiet=True).is_fast for tokenizer in (loaded, whole)]
    assert is_fast == [name in ("smollm_like", "qwen_like", "phi_like", "spacing")] * 2
    assert loaded.chat_template == whole.chat_template
    roles = ("bos_token", "eos_token", "pad_token", "unk_token")
    assert [getattr(loaded, role) for role in roles] == [getattr(whole, role) for role in roles]
    text = "Ünïcode nobody expected, zażółć 漢字 and tabs\t!"
    if name != "spacing":  # it has no bytes
        assert loaded.decode(loaded(text, add_special_tokens=False)["input_ids"]).strip() == text


def test_texts_to_keep_stay_whole_words():
    """Would catch a list of texts that is read and not kept."""
    whole = tokenizer_named("smollm_like")
    text = "system user assistant"
    kept = kept_tokens(whole, [text], [], len(whole))
    small = cut_tokenizer(whole, kept)
    assert [kept[i] for i in small(text)["input_ids"]] == whole(text)["input_ids"]
    assert len(cut(whole)[0](text)["input_ids"]) > len(whole(text)["input_ids"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_answers_are_those_of_the_whole_model(
    architecture: str, base: Callable[[str], Path], tmp_path: Path
):
    """Would catch rows in another order, a bias or an untied output layer that was not cut, ids of an end token that are
    another token's now, and tied weights that came apart."""
    folder = base(architecture)
    config = ModelConfig(base=str(folder), vocabulary="cells")
    place = keep_cut(config, str(tmp_path))
    assert place is not None
    assert keep_cut(config, str(tmp_path)) is None, "it was made again"
    assert base_folder(config, str(tmp_path)) == place.uri == base_folder(config, str(tmp_path), weights=False)
    whole, small = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (folder, place.uri))
    tokenizers = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(place.uri)
    kept = kept_tokens(tokenizers[0], [], [], len(tokenizers[0]))
    assert small.get_input_embeddings().weight.shape[0] == len(kept) == len(tokenizers[1])
    is_tied = whole.get_input_embeddings().weight is whole.get_output_embeddings().weight
    assert (small.get_input_embeddings().weight is small.get_output_embeddings().weight) == is_tied
    new = {old: number for number, old in enumerate(kept)}
    assert (small.config.eos_token_id, small.config.pad_token_id) == (new[whole.config.eos_token_id],) * 2
    assert small.generation_config.eos_token_id == [new[i] for i in whole.generation_config.eos_token_id]

    compare(whole, small, tokenizers, kept, tolerance=0.0)


def compare(whole: Any, small: Any, tokenizers: Any, kept: list[int], tolerance: float) -> None:
    """Hold the logits of kept tokens, and the greedy answer to a prompt, against the whole model's."""
    table = puzzles(2, most=4)
    before, after = (written(tokenizer, "shape_rows", "output_from_examples", table)[0] for tokenizer in tokenizers)
    with torch.no_grad():
        expected = whole(torch.tensor([before])).logits[..., kept]
        torch.testing.assert_close(small(torch.tensor([after])).logits, expected, atol=tolerance, rtol=0)
        forbidden = sorted(set(range(whole.config.vocab_size)) - set(kept))
        greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        answers = small.generate(torch.tensor([after]), **greedy)[0, len(after) :].tolist()
        constrained = whole.generate(torch.tensor([before]), suppress_tokens=forbidden, **greedy)[0, len(before) :]
    assert [kept[i] for i in answers] == constrained.tolist()


@pytest.mark.slow
def test_the_real_smollm2_without_most_of_its_tokens_answers_as_the_whole_one_held_to_the_rest(tmp_path: Path):
    """Would catch what tiny models do not have: 49,152 tokens with merges of merges, 17 special ones, and trained logits."""
    config = ModelConfig(base="smollm2", vocabulary="cells")
    places = obtain("smollm2", str(tmp_path)).local_path(), base_folder(config, str(tmp_path))
    whole, small = (AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval() for place in places)
    tokenizers = [AutoTokenizer.from_pretrained(place) for place in places]
    ids, vocabulary = tokenizers[0].get_vocab(), tokenizers[1].get_vocab()
    kept = [ids[token] for token in sorted(vocabulary, key=vocabulary.__getitem__)]
    assert len(kept) == len(small.get_input_embeddings().weight) == 483
    assert whole.num_parameters() - small.num_parameters() == (49152 - 483) * 576
    compare(whole, small, tokenizers, kept, tolerance=1e-3)


def test_what_is_trained_on_a_cut_model_fits_it_only(base: Callable[[str], Path], tmp_path: Path):
    """Would catch an adapter of the whole model in a cut config, or a whole checkpoint answering cut prompts, where every id
    means another token; and an adapter that names, or is served on, another base."""
    folder, storage = base("Qwen3, apart"), str(tmp_path)
    vocabularies = (None, "cells", ("system user assistant",))
    configs = {v: ModelConfig(base=str(folder), vocabulary=v, lora=LoraConfig(r=2)) for v in vocabularies}
    place = keep_cut(configs["cells"], storage)
    assert place is not None
    for vocabulary, config in configs.items():
        path = tmp_path / f"adapter-{vocabulary and len(vocabulary)}"
        model = build_model(config, storage, 0, False, load_tokenizer(config, storage))
        save_weights(model, trainable(model), None, path)
        about = {"base": config.base, "base_fingerprint": fingerprint(base_folder(config, storage))}
        Folder.at(str(path)).write_json("arc_ray.json", about | {"vocabulary": config.vocabulary})
        for other in configs.values():
            asked = other.model_copy(update={"adapter": str(path)})
            if other == config:
                build_model(asked, storage, 0, False, None)
                continue
            for refused in (
                lambda a=asked: build_model(a, storage, 0, False, None),
                lambda o=other, p=path: load_for_inference(o, storage, str(p)),
            ):
                with pytest.raises(UserError, match=r"was trained on the base .*: model.vocabulary was .* there"):
                    refused()
    adapter = tmp_path / "adapter-5"
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == place.uri
    assert served(configs["cells"], storage, str(adapter), tmp_path / "x") == (place.uri, (str(adapter), 2))
    merge_checkpoint(configs["cells"], storage, str(adapter), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "merged")) < 600
    with pytest.raises(UserError, match=r"it has \d+ tokens, the base cut by model\.vocabulary \d+"):
        load_for_inference(configs["cells"], storage, str(folder))


def test_a_base_that_changed_is_cut_anew(base: Callable[[str], Path], tmp_path: Path):
    """Would catch a cut that is taken for that of other weights of the same name."""
    folder = base("Llama, tied")
    config = ModelConfig(base=str(folder), vocabulary="cells")
    first = keep_cut(config, str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().weight.data += 1
    model.save_pretrained(folder)
    second = keep_cut(config, str(tmp_path))
    assert first != second
    assert first
    assert second
    assert fingerprint(first.uri) != fingerprint(second.uri)


def test_what_cannot_be_cut_is_refused(base: Callable[[str], Path], tmp_path: Path):
    """Would catch a traceback, or a model from scratch whose vocabulary is silently whole."""
    with pytest.raises(ValueError, match="from scratch has a small vocabulary already"):
        ModelConfig.model_validate({"scratch": {}, "vocabulary": "cells"})
    with pytest.raises(UserError, match="is no tokenizer that can be cut"):
        kept_tokens(object(), [], [], 10)
    whole = tokenizer_named("smollm_like")
    with pytest.raises(UserError, match="beyond the model's 100 embeddings"):
        kept_tokens(whole, [], [], 100)
    digits = kept_tokens(whole, [], [], len(whole))
    digits.remove(whole.convert_tokens_to_ids("7"))
    with pytest.raises(UserError, match="cannot be cut: without its other tokens it writes"):
        cut_tokenizer(whole, digits)


def test_ids_stay_in_order():
    """Would catch a cut of a cut that numbers its tokens anew, whose adapters would fit no more."""
    small, _ = cut(tokenizer_named("qwen_like"))
    again, kept = cut(small)
    assert kept == list(range(len(small)))
    assert again.get_vocab() == small.get_vocab()
    assert written(small, "compact", "compact", puzzles(2)) == written(again, "compact", "compact", puzzles(2))
