"""Arms that differ in keys of `evaluate` are compared by what they answer: outputs solved in two attempts, and passes.

Validation, by which settings are chosen, answers greedily and cannot tell such arms apart.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from arc_ray.config import Config, value_name, with_overrides
from arc_ray.config.searching import differ_in_answering
from arc_ray.config.sources import CountingSource
from arc_ray.errors import NotMadeYetError, UserError
from arc_ray.evaluate.evaluation import asking_codec, check_evaluation
from arc_ray.evaluate.predictions import answers_alike, read_predictions, tunes_alike
from arc_ray.prompts.tokenizer import load_tokenizer
from arc_ray.runs.shapes import FilesShape, ResultShape
from arc_ray.scores.analysis import choosing_half
from arc_ray.scores.intervals import paired_effect
from arc_ray.study.comparing import ANSWERS, effect_record, look_level, spoken_arm, trainings
from arc_ray.study.evaluating import arm_config, arm_folder, num_answers, read_answers
from arc_ray.tasks.task import Task
from arc_ray.tune.space import trial_folder
from arc_ray.tune.trials import Trial, read_outcomes

Output = tuple[str, str, int]
"""Set, task id, number of the test pair."""


def compares_answers(config: Config) -> bool:
    """Tell whether the arms differ in how they answer."""
    return differ_in_answering(config.study.compare, config.study.arms, config.starts)


def check_answering(config: Config, given: Mapping[str, Sequence[Task]]) -> None:
    """Refuse arms that cannot answer, and a study of answers that has none to compare; `given` are tasks that are there.

    Raises UserError.
    """
    for arm in config.study.arms if config.evaluate.sets else ():
        own = with_overrides(arm_config(config, arm), {"evaluate.checkpoint": None})
        check_evaluation(own)
        if own.evaluate.constrain:
            with suppress(NotMadeYetError):
                asking_codec(own, load_tokenizer(own.model, own.storage))
    if not compares_answers(config):
        return
    asked = [name for name in config.evaluate.sets if not isinstance(config.data.sources[name], CountingSource)]
    if not any(name not in given or any(p.output is not None for t in given[name] for p in t.test) for name in asked):
        raise UserError(
            f"study.compare {config.study.compare}: the arms differ in how they answer, and evaluate.sets names no tasks"
            f" whose outputs are known"
        )


def shared_lines(config: Config) -> Iterator[str]:
    """Say how many trainings and evaluations a study makes after its search, and what arms have in common."""
    trained, study = trainings(config), config.study
    at_most = "at most " if len(study.looks) > 1 else ""
    yield f"{at_most}{len({*trained.values()}) * len(study.all_seeds)} trainings measure"
    for own in dict.fromkeys(trained.values()):
        if sharing := [arm for arm in trained if trained[arm] == own != arm]:
            yield f"  {', '.join(sharing)}: with the trainings of {own}"
    if not config.evaluate.sets:
        return
    num_seeds = len(study.all_seeds) if study.evaluate_seeds == "all" else 1
    yield f"{at_most}{len(study.arms) * num_seeds} evaluations"
    asked = {value_name(arm): arm_config(config, arm).evaluate for arm in study.arms}
    done: list[str] = []
    for arm in sorted(asked, key=lambda arm: num_answers(asked[arm]), reverse=True):
        before = [other for other in done if trained[other] == trained[arm]]
        alike = [other for other in before if answers_alike(asked[arm], asked[other])]
        if alike:
            tuned = any(tunes_alike(asked[arm], asked[other]) for other in before)
            views, most = (asked[name].symmetries * asked[name].copies for name in (arm, alike[0]))
            which = "views" if views <= most else f"{most} of {views} views"
            kept = "" if tuned or not asked[arm].ttt else "; tasks are tuned on anew"
            yield f"  {arm}: {which} as {alike[0]} answered them{kept}"
        done.append(arm)


def metric_of(config: Config) -> str:
    """Name what the arms' answers are compared by: `tune.metric`, of its source if that is among `evaluate.sets`."""
    _, column, *source = config.tune.metric.split("/", 2)
    return "/".join([ANSWERS, column, *(name for name in source if name in config.evaluate.sets)])


def by_answers(config: Config, analysis: Mapping[str, Any], trials: Sequence[Trial]) -> dict[str, Any]:
    """Put the comparison of what the arms answered before that of what they were trained to; return what analysis.json holds.

    Where arms have trainings of their own, the outputs that chose their settings do not measure. Raises UserError.
    """
    trained, metric = trainings(config), metric_of(config)
    baseline, *others = trained
    settings = {one["arm"]: one["setting"] for one in analysis["arms"]}
    settings = {arm: settings[own] for arm, own in trained.items()}
    seeds = arm_folder(config, baseline).read_json("result.json", ResultShape)["seeds"]
    level = look_level(config, len(seeds))
    answers = {arm: [_answers(config, arm, seed) for seed in seeds] for arm in trained}
    chose = _chose(config, trials) if len(set(trained.values())) > 1 else set()
    outputs = [
        o for o in answers[baseline][0] if o not in chose and all(o in one for own in answers.values() for one in own)
    ]
    effects, means = [], dict[str, dict[str, float]]()
    for name in dict.fromkeys([metric, f"{ANSWERS}/cell_accuracy"]):
        _, column, *source = name.split("/", 2)
        asked = [output for output in outputs if not source or output[0] == source[0]]
        if len(asked) < 2:
            raise UserError(f"{len(asked)} answered outputs measure, which gives no interval; evaluate more tasks")
        key = "is_right" if column == "solved" else column
        values = {arm: np.array([[float(one[o][key]) for o in asked] for one in own]) for arm, own in answers.items()}
        means[name] = {arm: float(found.mean()) for arm, found in values.items()}
        for arm in others:
            effect = paired_effect(values[arm], values[baseline], _tasks(asked), level)
            effects.append(effect_record(config, name, arm, effect, settings))
    return {
        **analysis,
        "metric": metric,
        "trained_as": trained,
        "arms": [
            {"arm": arm, "setting": settings[arm], "value": value, "seeds": seeds}
            for arm, value in means[metric].items()
        ],
        "effects": [*effects, *analysis["effects"]],
        "costs": _costs(config, outputs, seeds),
    }


def _tasks(outputs: Sequence[Output]) -> list[str]:
    return [f"{name}/{task}" for name, task, _ in outputs]


def _answers(config: Config, arm: str, seed: int) -> dict[Output, Mapping[str, Any]]:
    """Read what an arm answered with a seed; outputs that are hidden are not among them."""
    ways = read_answers(config, arm, seed).values()
    answered = [answer for own in ways for answer in own[""] if answer["truth"] is not None]
    return {(answer["set"], answer["task"], answer["output"]): answer for answer in answered}


def _chose(config: Config, trials: Sequence[Trial]) -> set[Output]:
    """Return the validated outputs by which settings were chosen."""
    (outcomes,) = read_outcomes(trial_folder(config, trials[-1].point), config.tune.metric)
    names = [*outcomes]
    found = set()
    for name, chooses in zip(names, choosing_half(names, config.seed), strict=True):
        source, *task, output = name.split("/")
        found |= {(source, "/".join(task), int(output))} if chooses else set()
    return found


def _costs(config: Config, outputs: Sequence[Output], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Compare the forward passes by which the arms wrote the answers to an output: the geometric mean of their ratio.

    Nothing is said of arms whose passes are the same, or of which they are no measure: searches share passes among
    answers, and test-time training takes others.
    """
    asked = {value_name(arm): arm_config(config, arm).evaluate for arm in config.study.arms}
    baseline, *others = asked
    alike = [arm for arm in others if asked[arm].ttt == asked[baseline].ttt]
    if not alike or any(asked[arm].decode == "search" for arm in (baseline, *alike)):
        return []
    logs = {arm: np.array([_log_passes(config, arm, s, outputs) for s in seeds]) for arm in (baseline, *alike)}
    found = []
    for arm in alike:
        difference = logs[arm] - logs[baseline]
        if reach := 2 * float(np.abs(difference).max()):
            # Intervals are of outcomes between 0 and 1; a half at most, since whole ones are taken for yes and no.
            scaled = difference.clip(0) / reach, (-difference).clip(0) / reach
            effect = paired_effect(*scaled, _tasks(outputs), look_level(config, len(seeds)))
            value, low, high = (math.exp(reach * end) for end in (effect.value, effect.low, effect.high))
            sentence = (
                f"{spoken_arm(arm, config)} writes with {value:.3g} times the passes of {spoken_arm(baseline, config)}"
                f" ({100 * config.study.confidence:g} % interval {low:.3g} to {high:.3g})."
            )
            found.append({"arm": arm, "value": value, "low": low, "high": high, "sentence": sentence})
    return found


def _log_passes(config: Config, arm: str, seed: int, outputs: Sequence[Output]) -> list[float]:
    folder = arm_folder(config, arm) / f"seed-{seed}" / "predictions"
    files = folder.read_json("files.json", FilesShape)
    passes = {
        (name, *key): sum(row["passes"] or 0 for row in rows)
        for name in dict.fromkeys(name for name, *_ in outputs)
        for key, rows in read_predictions(folder, files[name]).items()
    }
    # An output whose prompt was too long has none.
    return [math.log(max(1, passes.get(output, 0))) for output in outputs]
