"""What the arms of a study score: every measured trial answers the evaluation sets, and an arm's scores are over its seeds.

evaluate/<arm>/seed-<n>/ is an evaluation as any other, evaluate/<arm>/result.json what the arm's seeds come to.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arc_ray.config import Config, value_name, with_overrides
from arc_ray.config.searching import EvaluateConfig
from arc_ray.evaluate.audit import audited, run_audit
from arc_ray.evaluate.evaluation import run_evaluation
from arc_ray.evaluate.pool import Hosts
from arc_ray.evaluate.questions import rows_of
from arc_ray.evaluate.results import Answers, Ways, compared, right_answers
from arc_ray.progress import Progress
from arc_ray.runs.folder import run_folder
from arc_ray.runs.shapes import AnswerShape
from arc_ray.runs.starts import with_start
from arc_ray.scores.intervals import paired_effect, share_over_seeds, units_of
from arc_ray.scores.records import FloatArray, ScorePath, flat_record, read_record
from arc_ray.storage import Folder
from arc_ray.study.comparing import split, trainings
from arc_ray.tune.space import Point, as_word, trial_config
from arc_ray.tune.trials import Trial

Result = Mapping[str, Any]
"""result.json of an evaluation."""
Averaged = dict[ScorePath, tuple[FloatArray, list[str]]]
"""What a score is the mean of, (num_seeds, outputs or tasks), and the tasks that these belong to."""


def evaluate_arms(config: Config, trials: Sequence[Trial], progress: Progress) -> dict[str, float]:
    """Let each arm's measured trials answer the evaluation sets; return the arms' scores by "<arm>/<set>/<rule>"."""
    asked = evaluations(config, trials) if config.evaluate.sets else {}
    total = sum(map(len, asked.values()))
    if total > len(asked):
        progress.note(
            f"{total} trained models answer, every seed of each arm; study.evaluate_seeds=one takes one an arm"
        )
    numbers, scores, done = itertools.count(1), {}, list[Config]()
    with Hosts() as hosts:
        for arm, by_seed in asked.items():
            results = []
            for seed, evaluation in by_seed.items():
                what = f"model {next(numbers)} of {total}: {arm}, seed {seed}"
                results.append(_evaluate(hosts, evaluation, what, done, progress))
                done.append(evaluation)
            answers = [read_answers(config, arm, seed) for seed in by_seed]
            found = arm_scores(results, answers, config.study.confidence)
            about = {"arm": arm, "seeds": list(by_seed), "confidence": config.study.confidence}
            about |= {key: value for key, value in results[0].items() if key.endswith("/version")}
            arm_folder(config, arm).write_json("result.json", about | found)
            progress.note(f"{arm}: " + shares(found))
            scores |= {f"{arm}/{key}": value for key, value in found.items()}
    return scores


def evaluations(config: Config, trials: Sequence[Trial]) -> dict[str, dict[int, Config]]:
    """Return arm -> seed -> the evaluation that is made of it; arms that others may take predictions over from come first."""
    found: dict[str, dict[int, Config]] = {}
    for arm in config.study.arms:
        own = found.setdefault(value_name(arm), {})
        for trial in trials:
            trained, _, seed = split(config, trial.point)
            is_asked = config.study.evaluate_seeds == "all" or not own
            is_measured = trial.status == "done" and seed in config.study.all_seeds
            if is_asked and is_measured and trained == trainings(config)[value_name(arm)]:
                own[seed] = _evaluation(config, arm, trial.point)
    largest = sorted(
        filter(found.get, found), key=lambda arm: -max(num_answers(o.evaluate) for o in found[arm].values())
    )
    return {arm: found[arm] for arm in largest}


def arm_config(config: Config, arm: Any) -> Config:
    """Return the config of an arm at no setting and seed of its own. Raises UserError."""
    return with_start(with_overrides(config, {config.study.compare: arm}, f"study.arms {value_name(arm)}"))


def arm_folder(config: Config, arm: str) -> Folder:
    """Return the folder of what an arm answered, by its name."""
    return run_folder(config) / "evaluate" / as_word(arm)


def _evaluation(config: Config, arm: Any, point: Point) -> Config:
    """Return the config by which an arm answers with the checkpoint of the trial at `point`."""
    trained = trial_config(config, point)
    evaluate = arm_config(config, arm).evaluate.model_copy(update={"checkpoint": f"@{trained.name}"})
    place = f"{config.name}/evaluate/{as_word(value_name(arm))}/seed-{point['seed']}"
    return trained.model_copy(update={"name": place, "evaluate": evaluate, "start": arm_config(config, arm).start})


def num_answers(evaluate: EvaluateConfig) -> int:
    """Count the most answers that are written to an output."""
    return evaluate.symmetries * evaluate.copies * rows_of(evaluate)


def _evaluate(hosts: Hosts, evaluation: Config, what: str, done: Sequence[Config], progress: Progress) -> Result:
    def advance(part: str, number: int, total: int) -> None:
        progress.advance(f"{what}, {part}", number, total)

    same = [other for other in done if other.evaluate.checkpoint == evaluation.evaluate.checkpoint]
    result = run_evaluation(evaluation, advance, hosts=hosts, others=same)
    if evaluation.evaluate.audit.fresh:
        run_audit(audited(evaluation), advance, hosts, [audited(other) for other in same])
    return result


def read_answers(config: Config, arm: str, seed: int) -> Mapping[str, Ways]:
    """Read what a seed of an arm answered, by set; a set's outputs are in the same order for all seeds and ways."""
    folder = arm_folder(config, arm) / f"seed-{seed}"
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for way, file in (("", "answers"), ("untuned", "answers-untuned"), ("generated", "answers-generated")):
        for answer in folder.read_json(f"{file}.json", list[AnswerShape]) or ():
            ways = found.setdefault(answer["set"].removesuffix(f"/{way}"), {})
            ways.setdefault(way, []).append(answer)
    return found


def arm_scores(results: Sequence[Result], answers: Sequence[Mapping[str, Ways]], confidence: float) -> dict[str, float]:
    """Return an arm's scores: means over seeds with intervals over seeds and tasks, counts (`/right`, `/of`) added up.

    `results` and `answers` are of one seed each. A single seed keeps the intervals of its own evaluation, over tasks.
    """
    by_seed = [read_record(result) for result in results]
    if len(by_seed) == 1:
        return flat_record(by_seed[0])
    scores: dict[ScorePath, dict[str, float]] = {}
    for path, first in by_seed[0].items():
        total = {field: sum(found[path][field] for found in by_seed) for field in first if field not in ("low", "high")}
        scores[path] = total | {"value": total["value"] / len(by_seed)}
    for path, (values, tasks) in _outcomes(answers).items():
        if path in scores and values.shape[1] > 1:
            if path[-1] == "gain":
                effect = paired_effect(values, np.zeros_like(values), tasks, confidence)
                low, high = effect.low, effect.high
            else:
                low, high = map(float, share_over_seeds(values, units_of(tasks)[0], confidence))
            scores[path] |= {"low": low, "high": high}
    return flat_record(scores)


def _outcomes(answers: Sequence[Mapping[str, Ways]]) -> Averaged:
    """Return what scores by the three rules, and gains, are means of."""
    found: Averaged = {}
    for name, ways in answers[0].items():
        if any(row["truth"] is None for row in ways[""]):
            continue
        by_seed = [seed[name] for seed in answers]
        for way in ways:
            path = (name, way) if way else (name,)
            found |= _rules(path, [seed[way] for seed in by_seed])
        tasks, pairs = [row["task"] for row in ways[""]], [compared(seed) for seed in by_seed]
        found |= {(name, *path): (np.array([np.subtract(*seed[path]) for seed in pairs]), tasks) for path in pairs[0]}
    return found


def _rules(path: ScorePath, by_seed: Sequence[Answers]) -> Averaged:
    tasks = [row["task"] for row in by_seed[0]]
    names = list(dict.fromkeys(tasks))
    member = np.array([[task == name for name in names] for task in tasks], float)
    found: Averaged = {}
    for greedy, index in (((), 1), (("greedy",), 2)):
        right = np.array([right_answers(answers)[index] for answers in by_seed])
        per_task = right @ member / member.sum(axis=0)
        found[*path, *greedy, "per_output"] = found[*path, *greedy, "vote_at_2"] = right, tasks
        found[*path, *greedy, "per_task_mean"] = per_task, names
        found[*path, *greedy, "strict"] = (per_task == 1).astype(float), names
    return found


def shares(result: Result) -> str:
    """Name the main scores of an evaluation in a line."""
    scores = read_record(result).items()
    main = [(path[0], score["value"]) for path, score in scores if path[1:] in (("per_output",), ("accuracy",))]
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in main)
