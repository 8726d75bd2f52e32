"""The config tree: what a person writes is what is meant, and a mistake is named with its cure."""

from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ray.config import (
    Config,
    config_from,
    differing_keys,
    load_config,
    parse_assignments,
    sources,
    to_yaml,
    types_of,
    with_overrides,
)
from arc_ray.config.section import Section, absolute, absolute_model
from arc_ray.config.tree import known_keys
from arc_ray.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
SOURCES = {"a": {"kind": "rearc"}, "b": {"kind": "counting"}}
PLUGIN = {"kind": "plugin", "generate": "package:function", "dataset": "own", "task_id": "own"}


def mistake(tree: dict[str, Any], overrides: dict[str, Any] | None = None) -> str:
    """The message that a person would read."""
    with pytest.raises(UserError) as caught:
        config_from(tree, overrides or {}, origin="here.yaml")
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_that_is_shipped_loads_and_comes_back_from_its_own_yaml(path: Path, tmp_path: Path):
    config = load_config(path)
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "resolved.yaml") == config


def test_there_are_configs_to_test():
    assert CONFIGS


@pytest.mark.parametrize("key", ["ray.num_cpus", "train.max_steps", "study.seeds"])
def test_a_number_that_no_computer_counts_to_is_refused(key: str):
    """Catches a number that ends in a traceback wherever it becomes a float or an array's element."""
    value = [10**400] if key == "study.seeds" else 10**400
    assert f"{key.partition('.')[2]}: no number may have more than 63 bits" in mistake({}, {key: value})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_start_run_and_point_of_a_shipped_config_is_possible(path: Path):
    """Would catch an example whose second arm or whose pre-training fails after an hour."""
    from arc_ray.runs.starts import config_of_run
    from arc_ray.tune.space import check_points, points

    config = load_config(path)
    for name in config.runs:
        config_of_run(config, name)
    for name in config.starts:
        check_points(with_overrides(config, {"start": name}), points(config))


GRID = {"prompt": {"positions": "grid"}}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": {"lrr": 1}}, "unknown key train.lrr; did you mean train.lr?"),
        ({"trian": {"lr": 1}}, "unknown key trian; did you mean train?"),
        ({"lr": 1}, "unknown key lr; did you mean train.lr?"),
        ({"batch_row": 1}, "unknown key batch_row; did you mean train.batch_rows?"),
        ({"model": {"lora": {"alhpa": 1}}}, "unknown key model.lora.alhpa; did you mean model.lora.alpha?"),
        ({"model": {"scratch": {"layer": 1}}}, "unknown key model.scratch.layer; did you mean model.scratch.layers?"),
        ({"data": {"sources": {"a": {"kind": "rearc", "exmples": 3}}}}, "did you mean data.sources.a.examples?"),
        (
            {"data": {"sources": {"kind": {"kind": "counting", "example": 3}}}},
            "did you mean data.sources.kind.examples?",
        ),
        (
            {"data": {"sources": {"a": {"kind": "folder", "zzz": 3}}}},
            "valid keys there: descriptions, exclude, kind, limit, max_side, path",
        ),
        ({"starts": {"base": {}, "x": {"train.lrr": 1}}}, "starts.x: unknown key train.lrr; did you mean train.lr?"),
        ({"runs": {"x": {"model.adaptor": 1}}}, "runs.x: unknown key model.adaptor; did you mean model.adapter?"),
        ({"tune": {"space": {"train.lrr": {"grid": [1]}}}}, "tune.space: unknown key train.lrr"),
        ({"study": {"compare": "strat"}}, "study.compare: unknown key strat; did you mean start?"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_one_named(tree: dict[str, Any], message: str):
    """Would catch a typo that trains for hours with the default, and a hint that leads to a wrong place."""
    found = mistake(tree)
    assert found.startswith("here.yaml: ")
    assert message in found


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": {"lr": "fast"}}, "train.lr: Input should be a valid number"),
        ({"train": {"lr": float("nan")}}, "train.lr: Input should be a finite number"),
        ({"train": {"lr": 0}}, "train.lr: Input should be greater than 0; got 0"),
        ({"train": {"epochs": 1.5}}, "train.epochs: Input should be a valid integer"),
        ({"train": {"zero_stage": 4}}, "train.zero_stage: Input should be 'auto', 0, 1, 2 or 3; got 4"),
        ({"train": [1]}, "train: Input should be a valid dictionary"),
        ({"name": "../up"}, "name: write letters, digits and"),
        ({"name": 7}, "name: Input should be a valid string; got 7, a number to YAML: put it in quotes"),
        ({"scaling": {"num_workers": [1, "x"]}}, "scaling.num_workers.1: Input should be a valid integer"),
        ({"scaling": {"num_workers": []}}, "scaling.num_workers.0: Field required"),
        ({"data": {"sources": {"a": {"kind": "rearc", "tasks": [123]}}}}, "data.sources.a.tasks.0: Input should"),
        ({"data": {"sources": {"a": {"kind": "raerc"}}}}, "data.sources.a.kind is one of rearc, counting"),
        ({"data": {"sources": {"a": {"kind": "raerc"}}}}, "did you mean rearc?"),
        ({"data": {"sources": {"a": {"limit": 3}}}}, "data.sources.a.kind is missing; it is one of rearc"),
        ({"data": {"sources": {"a": {"kind": "kaggle"}}}}, "data.sources.a.challenges: Field required"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_as_it_was_written(tree: dict[str, Any], message: str):
    """Would catch keys of pydantic's own, such as data.sources.a.rearc.tasks.list[str].0, in a message."""
    found = mistake(tree)
    assert message in found
    assert "list[" not in found
    assert ".rearc." not in found


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"data": {"sources": SOURCES, "mix": {"c": 1}}}, "mix names the source 'c'; data.sources has ['a', 'b']"),
        ({"data": {"sources": SOURCES, "mix": {"a": -1}}}, "negative number of views"),
        ({"data": {"sources": SOURCES, "validation": ["c"]}}, "validation names the source 'c'"),
        ({"evaluate": {"sets": ["c"]}}, "evaluate.sets names the source 'c'"),
        (
            {"data": {"sources": {"a/b": SOURCES["a"]}}},
            "data.sources.a/b: 'a/b' cannot be a name: write letters, digits",
        ),
        ({"data": {"sources": {"": SOURCES["a"]}}}, "'' cannot be a name"),
        ({"data": {"sources": {"..": SOURCES["a"]}}}, "'..' cannot be a name"),
        ({"data": {"sources": {"a b": SOURCES["a"]}}}, "'a b' cannot be a name"),
        ({"data": {"sources": {"untuned": SOURCES["a"]}}}, "'untuned' cannot be a name"),
        ({"data": {"sources": {"greedy": SOURCES["a"]}}}, "not untuned, generated, greedy, voting, tuning, files nor"),
        ({"data": {"sources": {"x-generated": SOURCES["a"]}}}, "'x-generated' cannot be a name"),
        ({"start": "count"}, "start 'count' is not under starts, which has ['base']"),
        ({"model": {"base": "x", "scratch": {}}}, "base and scratch exclude each other"),
        ({"model": {"scratch": {}}}, "set train.full to true"),
        ({"train": {"offload": True, "zero_stage": 0}}, "offload needs something to move"),
        ({"train": {"compile": True, "zero_stage": 3}}, "compile cannot see through the hooks of ZeRO 3"),
        ({"model": {"scratch": {}, "adapter": "x"}}, "an adapter belongs to a base"),
        ({"model": {"scratch": {"hidden_size": 12, "heads": 4}}}, "must be a multiple of 2 x heads = 8"),
        ({"model": {"base": "x", "adapter": "y"}, "train": {"full": True}}, "train.full trains no adapter"),
        ({"train": {"batch_rows": 3, "micro_rows": 2}}, "batch_rows 3 must be a multiple of micro_rows 2"),
        ({"scaling": {"num_workers": 3}}, "scaling.num_workers x train.micro_rows = 3 x 1"),
        ({"scaling": {"num_workers": [1, 32]}}, "= 32 x 1: some workers would have nothing to do"),
        ({"train": {"engine": "trl"}, "scaling": {"num_workers": [1, 2]}}, "is elastic, which train.engine trl is not"),
        ({"train": {"engine": "trl"}, **GRID}, "positions grid: train.engine trl takes positions for a sequence"),
        ({"evaluate": {"backend": "vllm"}, **GRID}, "set evaluate.backend to transformers, or prompt.positions to"),
        ({"model": {"attention": "eager"}, **GRID}, "set model.attention to auto, or prompt.positions to sequence"),
        ({"scaling": {"num_workers": [3, 1]}}, "give a number of at least 1, or [min, max]"),
        ({"scaling": {"num_workers": 0}}, "give a number of at least 1, or [min, max]"),
        ({"data": {"sources": {"a": {"kind": "rearc", "difficulty": [0.5, 0.1]}}}}, "give the lower bound first"),
        (
            {"data": {"sources": {"a": {**PLUGIN, "difficulty": [0.5, 0.1]}}}},
            "a.difficulty: [0.5, 0.1]: give the lower",
        ),
        ({"data": {"sources": {"a": {"kind": "rearc", "pso_quantiles": [1, 1]}}}}, "a lower and a higher quantile"),
        ({"data": {"sources": {"a": {"kind": "rearc", "pso_quantiles": [1, 0.5]}}}}, "give the lower bound first"),
        ({"tune": {"metric": "eval/loss"}}, "a search maximises eval/solved"),
        ({"tune": {"search": "optuna", "num_trials": 2}}, "draws from space, which is empty"),
        ({"tune": {"space": {"train.lr": [1, 2]}}}, "space.train.lr: write {grid: [...]}"),
        ({"tune": {"space": {"train.lr": {"grid": []}}}}, "space.train.lr.grid takes a list"),
        ({"tune": {"space": {"train.lr": {"uniform": [1, 2]}}}}, "needs search: random"),
        (
            {"tune": {"search": "random", "num_trials": 2, "space": {"train.lr": {"loguniform": [0, 1]}}}},
            "loguniform starts above 0",
        ),
        (
            {"tune": {"search": "random", "num_trials": 2, "space": {"train.lr": {"uniform": [2, 1]}}}},
            "the lower first",
        ),
        ({"tune": {"search": "random", "space": {"train.lr": {"uniform": [1, 2]}}}}, "needs num_trials"),
        ({"study": {"arms": ["base"]}}, "at least two different values"),
        ({"study": {"arms": ["base", "base"]}}, "at least two different values"),
        ({"study": {"seeds": [1, 1]}}, "seeds repeat"),
        ({"study": {"seeds": {"at_least": 3, "at_most": 3}}}, "at_most must be more than at_least"),
        ({"study": {"seeds": {"at_least": 1}}}, "at_least: Input should be greater than or equal to 2"),
        ({"study": {"seeds": {}, "evaluate_seeds": "one"}}, "all seeds must answer where seeds are added"),
        (
            {"study": {"seeds": {"at_mst": 5}}},
            "here.yaml: unknown key study.seeds.at_mst; did you mean study.seeds.at_most?",
        ),
    ],
)
def test_values_that_cannot_go_together_are_refused(tree: dict[str, Any], message: str):
    assert message in mistake(tree)


def test_elastic_workers_need_not_divide_the_batch():
    """Would catch a run that may not take the third machine: what is left of a share is filled with empty rows."""
    assert config_from({"scaling": {"num_workers": [1, 3]}}, {}).scaling.num_workers == (1, 3)


def test_several_mistakes_are_told_at_once():
    assert mistake({"train": {"lr": -1, "epochs": 0}, "seeed": 1}).count("here.yaml: ") == 3


@pytest.mark.parametrize("section", ["starts", "runs"])
def test_a_nested_key_in_a_start_is_refused_because_it_would_reset_its_section(section: str):
    """Would catch {model: {adapter: ...}}, which drops model.base, and the run trains another model."""
    nested = {"x": {"model": {"adapter": "@count"}}}
    found = mistake({section: nested | {"base": {}} if section == "starts" else nested})
    assert f"{section}.x: model would be replaced as a whole; write the dotted key model.adapter" in found
    assert "model.lora.r" in mistake({section: {"base": {}, "x": {"model.lora": {"r": 8}}}})
    config_from({section: {"base": {}, "x": {"model.scratch": {"layers": 2}, "train.deepspeed": {"a": 1}}}}, {})


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-4", 2e-4), ("1E+2", 100.0), ("2.5e3", 2500.0), ("+1e2", 100.0), (".5", 0.5), ("3", 3.0), ("1_0", 10.0)],
)
def test_numbers_are_read_as_everybody_means_them(text: str, value: float, tmp_path: Path):
    """YAML 1.1 reads 2e-4 as text; the same number must come from a file and from the command line."""
    (tmp_path / "c.yaml").write_text(f"train: {{weight_decay: {text}}}\n")
    assert load_config(tmp_path / "c.yaml").train.weight_decay == value
    assert parse_assignments([f"train.weight_decay={text}"]) == {"train.weight_decay": value}


@pytest.mark.parametrize("name", ["2e4", "2024-01-01", "null", "yes", "007", "1.5", "0x1f", "on", "1e-5"])
def test_text_that_looks_like_something_else_survives_the_yaml_that_we_write(name: str, tmp_path: Path):
    """Would catch a run named 2e4 whose own config.yaml cannot be loaded any more."""
    config = config_from({"name": name, "question": name, "storage": str(tmp_path)}, {})
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "c.yaml") == config


def test_a_date_is_text():
    """YAML makes a date of it, which used to end in a traceback."""
    assert config_from({"name": yaml.safe_load("2024-01-01")}, {}).name == "2024-01-01"
    assert config_from({}, parse_assignments(["name=2024-01-01"])).name == "2024-01-01"


def test_a_key_that_is_there_twice_is_refused_with_both_lines(tmp_path: Path):
    """Would catch the first of two sections that is dropped without a word; what `<<` merges may be said again."""
    (tmp_path / "low.yaml").write_text("train: {lr: 1.0}\nseed: 1\ntrain: {epochs: 2}\n")
    (tmp_path / "c.yaml").write_text("include: low.yaml\n")
    for name, where in (("low.yaml", ""), ("c.yaml", ", included by .*c.yaml")):
        with pytest.raises(UserError, match=f"low.yaml{where}: train is there twice, in lines 1 and 3"):
            load_config(tmp_path / name)
    (tmp_path / "c.yaml").write_text("train: {lr: 1.0, 'lr': 2.0}\n")
    with pytest.raises(UserError, match="lr is there twice, in lines 1 and 1"):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(
        "runs:\n  a: &a {train.lr: 1.0}\n  b: &b {<<: *a, train.lr: 2.0}\n  c: {<<: *b, train.lr: 3.0}\n  d: *b\n"
    )
    lrs = [run["train.lr"] for run in load_config(tmp_path / "c.yaml").runs.values()]
    assert lrs == [1.0, 2.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "is no YAML"), ("- 1\n", "the top level must be keys and values, not list"), ("7", "not int")],
)
def test_a_file_that_is_no_config_is_refused(text: str, message: str, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "c.yaml")


def test_an_empty_file_is_the_default_config(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("")
    assert load_config(tmp_path / "c.yaml", {"storage": "/runs"}) == config_from({"storage": "/runs"}, {})


def test_local_paths_are_those_of_the_directory_where_the_command_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Workers run elsewhere: would catch a relative path that means another folder there, or a hub name made a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "c.yaml").write_text("{storage: out, model: {base: models/base, adapter: owner/name}}")
    config = load_config("c.yaml", {"evaluate.checkpoint": "@run"})
    assert config.storage == str(tmp_path / "out")
    assert config.model.base == str(tmp_path / "models" / "base")
    assert (config.model.adapter, config.evaluate.checkpoint) == ("owner/name", "@run")
    assert load_config("c.yaml", {"storage": "s3://bucket/runs/"}).storage == "s3://bucket/runs"


FOLDER = {"kind": "folder", "path": "tasks"}
KAGGLE = {"kind": "kaggle", "challenges": "c.json", "solutions": "s.json", "descriptions": "d.json"}
NO_PATHS = {
    "model.attention",
    "data.sources.x.files",
    "data.sources.x.hub",
    "data.sources.x.revision",
    *("name", "question", "start", "prompt.format", "prompt.encoder", "tune.metric", "study.compare"),
    *(f"data.sources.x.{name}" for name in ("dataset", "generate", "verify", "task_id")),
}
"""Keys that hold one text and no path."""


def test_a_path_is_absolute_wherever_a_config_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch a folder source that a trial, which runs in another directory, does not find, a model folder within
    `runs` that is taken for a hub's name there, and a hub's, built-in or run's name that is made a path."""
    monkeypatch.chdir(tmp_path)
    for name in ("models/a", "owner/name", "smollm2"):
        (tmp_path / name).mkdir(parents=True)
    tree = {
        "data": {
            "sources": {"f": FOLDER, "k.1": KAGGLE, "z": {"kind": "rearc_dump", "path": "s3://b/z.zip?scheme=http"}}
        },
        "model": {"base": "smollm2", "adapter": "./new"},
        "starts": {"base": {}, "a": {"model.adapter": "models/a", "data.sources.f.path": "../f"}},
        "runs": {
            "r": {"model.base": "owner/name", "data.sources": {"f": FOLDER}, "data.sources.g": FOLDER},
            "q": {"model.base": "other/name", "model.adapter": "@r", "data.sources.f.descriptions": "d.json"},
        },
        "tune": {"space": {"model.base": {"grid": ["models/a", "gpt2", "@r"]}, "data.sources.f": {"grid": [FOLDER]}}},
        "study": {"compare": "model.adapter", "arms": ["models/a", None]},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    config, here = load_config("c.yaml", {"evaluate.checkpoint": "gs://b/c"}), str(tmp_path)
    sources = config.model_dump(mode="json")["data"]["sources"]
    assert sources["f"]["path"] == f"{here}/tasks"
    assert sources["z"]["path"] == "s3://b/z.zip?scheme=http"
    kaggle = {"challenges": f"{here}/c.json", "solutions": f"{here}/s.json", "descriptions": f"{here}/d.json"}
    assert {key: sources["k.1"][key] for key in kaggle} == kaggle
    assert (config.model.base, config.model.adapter) == ("smollm2", f"{here}/new")
    assert config.starts["a"] == {"model.adapter": f"{here}/models/a", "data.sources.f.path": f"{here}/../f"}
    fixed = {"kind": "folder", "path": f"{here}/tasks"}
    assert config.runs["r"] == {
        **{"model.base": f"{here}/owner/name", "data.sources": {"f": fixed}, "data.sources.g": fixed}
    }
    assert config.runs["q"] == {
        **{"model.base": "other/name", "model.adapter": "@r", "data.sources.f.descriptions": f"{here}/d.json"}
    }
    assert config.tune.space == {
        **{"model.base": {"grid": [f"{here}/models/a", "gpt2", "@r"]}, "data.sources.f": {"grid": [fixed]}}
    }
    assert config.study.arms == [f"{here}/models/a", None]
    assert config.evaluate.checkpoint == "gs://b/c"


def test_every_key_that_holds_a_text_is_known_to_be_a_path_or_none():
    """Would catch a new key for a path that nobody makes absolute: its type says so, or NO_PATHS names it."""
    kinds = [kind for kind in vars(sources).values() if isinstance(kind, type) and issubclass(kind, Section)]
    keys = known_keys() | {f"data.sources.x.{name}" for kind in kinds for name in kind.model_fields}
    texts = {k for k in keys if str in types_of(k) and not any(get_origin(kind) is list for kind in types_of(k))}
    paths = {key for key in texts if {absolute, absolute_model} & set(types_of(key))}
    assert paths >= {"storage", "model.base", "data.sources.x.path", "data.sources.x.solutions"}
    assert texts - paths == NO_PATHS


def test_a_missing_file_is_named_with_its_nearest_neighbour(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(UserError, match=r"config configs/quickstrt.yaml: .*did you mean configs/quickstart.yaml\?"):
        load_config("configs/quickstrt.yaml")


def test_overrides_reach_every_part_of_the_tree():
    """Would catch a dotted key within starts, runs or the space that is taken apart at its dots."""
    overrides = {
        "train.lr": 1e-3,
        "train.deepspeed.zero_optimization.overlap_comm": True,
        "model.scratch.layers": 2,
        "train.full": True,
        "data.sources.a": {"kind": "counting"},
        "data.sources.a.examples": 5,
        "data.mix.a": 2,
        "starts.base": {},
        "starts.count.model.adapter": "@count",
        "runs.count.train.lr": 1e-4,
        "tune.space.train.lr": {"grid": [1, 2]},
        "scaling.num_workers": [1, 2],
    }
    config = config_from({}, overrides)
    assert config.train.lr == 1e-3
    assert config.train.deepspeed == {"zero_optimization": {"overlap_comm": True}}
    assert config.model.scratch is not None
    assert config.model.scratch.layers == 2
    assert config.data.sources["a"].examples == 5  # pyright: ignore
    assert config.data.mix == {"a": 2}
    assert config.starts == {"base": {}, "count": {"model.adapter": "@count"}}
    assert config.runs == {"count": {"train.lr": 1e-4}}
    assert config.tune.space == {"train.lr": {"grid": [1, 2]}}
    assert config.scaling.num_workers == (1, 2)


def test_overrides_change_nothing_of_what_they_are_given():
    """Would catch trials that write into each other's overrides."""
    tree: dict[str, Any] = {"data": {"sources": {"a": {"kind": "counting"}}}}
    section = {"kind": "counting", "seed": 1}
    overrides = {"data.sources.a": section, "data.sources.a.examples": 7}
    config_from(tree, overrides)
    assert tree == {"data": {"sources": {"a": {"kind": "counting"}}}}
    assert section == {"kind": "counting", "seed": 1}


def test_an_override_below_a_value_is_refused():
    with pytest.raises(UserError, match=r"override train.lr.x: lr is a value \(0.001\), not a section"):
        config_from({"train": {"lr": 1e-3}}, {"train.lr.x": 1})


def test_overriding_back_gives_the_config_back():
    """Would catch a value that does not survive its own dump, such as a pair that comes back as a list."""
    config = config_from({"scaling": {"num_workers": [1, 4]}, "data": {"sources": SOURCES, "mix": {"a": 2}}}, {})
    changed = with_overrides(config, {"train.lr": 1.0, "data.mix.a": 3})
    assert differing_keys(config.model_dump(mode="json"), changed.model_dump(mode="json")) == ["data.mix.a", "train.lr"]
    assert with_overrides(changed, {"train.lr": config.train.lr, "data.mix.a": 2}) == config
    assert with_overrides(config, {"seed": config.seed}) == config


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.lr=2e-4", {"train.lr": 2e-4}),
        ("train.full=true", {"train.full": True}),
        ("train.clip=null", {"train.clip": None}),
        ("train.clip=", {"train.clip": None}),
        ("scaling.num_workers=[1, 2]", {"scaling.num_workers": [1, 2]}),
        ("question=is a=b?", {"question": "is a=b?"}),
        ("evaluate.checkpoint=@count", {"evaluate.checkpoint": "@count"}),
        ("name='2e4'", {"name": "2e4"}),
        ("storage=/x/my runs #1/r", {"storage": "/x/my runs #1/r"}),
        ("question=#1 of 3", {"question": "#1 of 3"}),
        ("seed=3 #x", {"seed": "3 #x"}),
        ("question='a #b'", {"question": "a #b"}),
        ("data.sources.a.path=*.json", {"data.sources.a.path": "*.json"}),
        ("question=&c", {"question": "&c"}),
        ("question=Does it help: yes?", {"question": "Does it help: yes?"}),
        ("question==", {"question": "="}),
        ("question=<<", {"question": "<<"}),
        ("train.lr= 1", {"train.lr": 1}),
        ("data.mix={a: 1}", {"data.mix": {"a": 1}}),
    ],
)
def test_assignments_are_yaml_values_and_references(word: str, expected: dict[str, Any]):
    """Would catch @run, which no YAML value may begin with, being refused, and a path that is cut at its " #"."""
    assert parse_assignments([word]) == expected


@pytest.mark.parametrize("word", ["train.lr", "=1", "a=[1", "", "a=[1] #x", "a={b: 1, b: 2}"])
def test_a_word_that_is_no_assignment_is_refused(word: str):
    with pytest.raises(UserError, match=r"changes no key|no YAML"):
        parse_assignments([word])


values = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=4)
trees = st.recursive(values, lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3))


@settings(deadline=None)
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=2), trees, max_size=3),
    st.dictionaries(st.text("abc", min_size=1, max_size=2), trees, max_size=3),
)
def test_differing_keys_are_none_if_and_only_if_trees_are_equal(a: dict[str, Any], b: dict[str, Any]):
    """Would catch a difference that goes unnamed, so that a run goes on with another config."""
    assert differing_keys(a, a) == []
    assert (differing_keys(a, b) == []) == (a == b)
    assert differing_keys(a, b) == differing_keys(b, a)


def test_defaults_are_valid_by_themselves():
    """A default is never validated by pydantic; would catch one that its own field refuses."""
    assert Config.model_validate(Config().model_dump(mode="json")) == Config()


def test_an_included_file_lies_below_the_one_that_includes_it(tmp_path: Path):
    """Would catch a section that is replaced as a whole, and a source that is a mixture of two."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "low.yaml").write_text(
        "train: {lr: 1e-3, epochs: 3}\ndata: {sources: {a: {kind: rearc, examples: 7}, b: {kind: rearc}}, mix: {a: 1}}\n"
        "tune: {space: {train.lr: {grid: [1, 2]}}}\nstarts: {base: {}, x: {train.lr: 1.0}}\n"
    )
    (tmp_path / "mid.yaml").write_text("include: shared/low.yaml\ntrain: {epochs: 4}\nstarts: {x: {train.epochs: 2}}\n")
    (tmp_path / "high.yaml").write_text(
        "include: mid.yaml\nname: high\ndata: {sources: {a: {kind: counting}}}\ntune: {space: {train.lr: {choice: [3]}}}\n"
    )
    config = load_config(tmp_path / "high.yaml", {"train.lr": 5.0, "tune.search": "random", "tune.num_trials": 1})
    assert (config.train.lr, config.train.epochs, config.name) == (5.0, 4, "high")
    assert (config.data.sources["a"].kind, config.data.sources["b"].kind) == ("counting", "rearc")
    assert config.tune.space == {"train.lr": {"choice": [3]}}
    assert config.starts == {"base": {}, "x": {"train.epochs": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: a.yaml", "includes itself"),
        ("include: nothing.yaml", "included by"),
        ("include: [a, b]", "include names one file"),
    ],
)
def test_mistakes_in_an_include_name_the_files(tmp_path: Path, text: str, message: str):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "a.yaml")
