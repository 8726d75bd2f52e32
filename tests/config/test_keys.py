"""The reference of keys and the schema: complete, true to the tree, and what shipped configs are checked by."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from arc_ray.config.files import Loader
from arc_ray.config.keys import all_keys, json_schema, keys_below
from arc_ray.config.tree import SOURCE_KINDS, known_keys
from arc_ray.errors import UserError
from arc_ray.prompts.encoders import ENCODERS, TRAVERSALS
from arc_ray.prompts.formats import FORMATS

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMA = CONFIGS / "config.schema.json"


def test_every_key_is_explained() -> None:
    """Catches a key without a sentence, and one that the walk through the schema loses or makes up."""
    keys = all_keys()
    assert [key.name for key in keys if not key.meaning] == []
    assert {key.name for key in keys if not key.kinds} == known_keys()
    assert {kind for key in keys for kind in key.kinds} == SOURCE_KINDS.keys()


def test_a_key_says_what_it_may_be() -> None:
    """Catches bounds, choices and defaults that the reference tells wrongly or not at all."""
    lines = {key.name: key.line() for key in all_keys() if not key.kinds}
    assert lines["train.lr"] == "number > 0; default 0.0002"
    assert lines["train.micro_rows"] == 'auto | integer >= 1; default "auto"'
    assert lines["evaluate.ttt"] == "section | null; default null"
    assert lines["starts"] == '{NAME: {KEY: value}}; default {"base": {}}'
    assert lines["scaling.num_workers"] == 'auto | integer | [integer, integer]; default "auto"'
    path = next(key for key in all_keys() if key.name == "data.sources.NAME.challenges")
    assert path.line() == "text; must be given; kind: kaggle"


@pytest.mark.parametrize(
    ("prefix", "first", "last"),
    [
        ("train.lr", "train.lr", "train.lr"),
        ("model.lora", "model.lora", "model.lora.dora"),
        ("data.sources.counting", "data.sources.NAME.kind", "data.sources.NAME.seed"),
        ("data.sources.mine.tasks", "data.sources.NAME.tasks", "data.sources.NAME.tasks"),
        ("evaluate.au", "evaluate.audit", "evaluate.audit.sources"),
        ("", "name", "ray.object_store_mib"),
    ],
)
def test_a_prefix_selects_a_section(prefix: str, first: str, last: str) -> None:
    """Catches `train.lr` that also shows `train.lrs`, a section without its keys, a kind of source that is no prefix, and
    half a word that is none."""
    found = keys_below(prefix)
    assert (found[0].name, found[-1].name) == (first, last)
    if prefix == "data.sources.counting":
        assert all("counting" in key.kinds for key in found)


@pytest.mark.parametrize(("prefix", "hint"), [("lr", "train.lr or evaluate.ttt.lr"), ("trian.lr", "train.lr")])
def test_an_unknown_prefix_gets_a_hint(prefix: str, hint: str) -> None:
    """Catches an empty answer to a misspelt key."""
    with pytest.raises(UserError, match=f"begins with {prefix}; did you mean {hint}"):
        keys_below(prefix)


def test_names_that_the_code_knows_are_in_the_reference() -> None:
    """Catches an encoder or prompt format that no user can find."""
    meanings = {key.name: key.meaning for key in all_keys()}
    encoders = [*ENCODERS, *(f"-{order}" for order in TRAVERSALS[1:])]
    assert [name for name in encoders if name not in meanings["prompt.encoder"]] == []
    assert [name for name in FORMATS if name not in meanings["prompt.format"]] == []


def test_the_schema_file_is_the_tree() -> None:
    """Catches a schema that editors read and that the code has left behind: arc-ray keys --json-schema > the file."""
    assert json.loads(SCHEMA.read_text()) == json_schema()


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_name_the_schema_and_fit_it(path: Path) -> None:
    """Catches a config that an editor would mark as wrong, or that it cannot check for want of the line that says how."""
    text = path.read_text()
    named = [line.split("$schema=")[1] for line in text.splitlines() if line.startswith("# yaml-language-server:")]
    assert [(path.parent / name).resolve() for name in named] == [SCHEMA.resolve()]
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.load(text, Loader=Loader))
