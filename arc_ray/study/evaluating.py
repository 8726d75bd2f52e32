"""What the arms of a study score: every measured trial answers the evaluation sets, and an arm's scores are over its seeds.

evaluate/<arm>/seed-<n>/ is an evaluation as any other, evaluate/<arm>/result.json what the arm's seeds come to.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from arc_ray.config import Config
from arc_ray.evaluate.evaluation import run_evaluation
from arc_ray.progress import Progress
from arc_ray.runs.folder import run_folder
from arc_ray.scores.intervals import paired_effect, share_over_seeds, units_of
from arc_ray.study.comparing import split
from arc_ray.tune.space import as_word, trial_config
from arc_ray.tune.trials import Trial

Result = Mapping[str, Any]
"""result.json of an evaluation."""
Answers = Mapping[str, Sequence[Mapping[str, Any]]]
"""Set, with `/untuned` or `/generated` where it was answered that way, -> one record a test output."""
FloatArray = npt.NDArray[np.float64]


def evaluate_arms(config: Config, trials: Sequence[Trial], progress: Progress) -> dict[str, float]:
    """Let each arm's measured trials answer the evaluation sets; return the arms' scores by "<arm>/<set>/<rule>"."""
    measured: dict[str, list[Trial]] = {}
    for trial in trials:
        if config.evaluate.sets and trial.status == "done" and trial.point["seed"] in config.study.seeds:
            measured.setdefault(split(config, trial.point)[0], []).append(trial)
    if config.study.evaluate_seeds == "one":
        measured = {arm: of_arm[:1] for arm, of_arm in measured.items()}
    total = sum(map(len, measured.values()))
    if total > len(measured):
        progress.note(
            f"{total} trained models answer, every seed of each arm; study.evaluate_seeds=one takes one an arm"
        )
    number, scores = 0, {}
    for arm, of_arm in measured.items():
        results: dict[int, Result] = {}
        for trial in of_arm:
            number, seed = number + 1, trial.point["seed"]
            results[seed] = _evaluate(config, arm, trial, f"model {number} of {total}: {arm}, seed {seed}", progress)
        answers = [read_answers(config, arm, seed) for seed in results]
        found = arm_scores(list(results.values()), answers, config.study.confidence)
        folder = run_folder(config) / "evaluate" / as_word(arm)
        folder.write_json(
            "result.json", {"arm": arm, "seeds": list(results), "confidence": config.study.confidence, **found}
        )
        progress.note(f"{arm}: " + shares(found))
        scores |= {f"{arm}/{key}": value for key, value in found.items()}
    return scores


def _evaluate(config: Config, arm: str, trial: Trial, what: str, progress: Progress) -> Result:
    trained = trial_config(config, trial.point, config.name)
    evaluation = trained.model_copy(
        update={
            "name": f"{config.name}/evaluate/{as_word(arm)}/seed-{trial.point['seed']}",
            "evaluate": config.evaluate.model_copy(update={"checkpoint": f"@{trained.name}"}),
        }
    )
    return run_evaluation(evaluation, lambda part, done, total: progress.advance(f"{what}, {part}", done, total))


def read_answers(config: Config, arm: str, seed: int) -> Answers:
    """Read what a seed of an arm answered, set by set; each set's outputs are in the same order for all seeds."""
    folder = run_folder(config) / "evaluate" / as_word(arm) / f"seed-{seed}"
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name in folder.names():
        if name.startswith("answers"):
            for answer in folder.read_json(name):
                found.setdefault(answer["set"], []).append(answer)
    return found


def arm_scores(results: Sequence[Result], answers: Sequence[Answers], confidence: float) -> dict[str, float]:
    """Return an arm's scores: means over seeds with intervals over seeds and tasks, counts (`/right`, `/of`) added up.

    `results` and `answers` are of one seed each. A single seed keeps the intervals of its own evaluation, over tasks.
    """
    numbers: list[dict[str, float]] = [
        {k: v for k, v in r.items() if "/" in k and isinstance(v, int | float)} for r in results
    ]
    if len(numbers) == 1:
        return numbers[0]
    scores: dict[str, float] = {}
    for key in numbers[0]:
        if not key.endswith(("/low", "/high")):
            values = [of_seed[key] for of_seed in numbers]
            scores[key] = sum(values) if key.endswith(("/right", "/of")) else float(np.mean(values))
    for key, (values, tasks) in _per_task(answers).items():
        if key in scores and values.shape[1] > 1:
            if key.endswith("/gain"):
                effect = paired_effect(values, np.zeros_like(values), tasks, confidence)
                low, high = effect.low, effect.high
            else:
                low, high = map(float, share_over_seeds(values, units_of(tasks)[0], confidence))
            scores |= {f"{key}/low": low, f"{key}/high": high}
    return scores


def _per_task(answers: Sequence[Answers]) -> dict[str, tuple[FloatArray, list[str]]]:
    """Return what scores by the three rules, and gains, are means of: (num_seeds, outputs or tasks), and whose they are."""
    found: dict[str, tuple[FloatArray, list[str]]] = {}
    right: dict[str, FloatArray] = {}
    known = [name for name, rows in answers[0].items() if all(row["truth"] is not None for row in rows)]
    tasks = {name: [row["task"] for row in answers[0][name]] for name in known}
    for name in known:
        by_seed = [of_seed[name] for of_seed in answers]
        right[name] = np.array([[row["is_right"] for row in of_seed] for of_seed in by_seed], float)
        right[f"{name}/greedy"] = np.array([[r["truth"] == r["greedy"] for r in rows] for rows in by_seed], float)
        first = np.array([[r["truth"] in r["attempts"][:1] for r in rows] for rows in by_seed], float)
        found |= _rules(name, right[name], tasks[name]) | _rules(f"{name}/greedy", right[f"{name}/greedy"], tasks[name])
        found[f"{name}/voting/gain"] = first - right[f"{name}/greedy"], tasks[name]
        found[f"{name}/voting/two_attempts/gain"] = right[name] - right[f"{name}/greedy"], tasks[name]
    for name in known:
        for gain, better, worse in (
            ("tuning/gain", name, f"{name}/untuned"),
            ("tuning/greedy/gain", f"{name}/greedy", f"{name}/untuned/greedy"),
            ("generated/gain", f"{name}/generated", name),
        ):
            if better in right and worse in right:
                found[f"{name}/{gain}"] = right[better] - right[worse], tasks[name]
    return found


def _rules(prefix: str, right: FloatArray, tasks: list[str]) -> dict[str, tuple[FloatArray, list[str]]]:
    names = list(dict.fromkeys(tasks))
    member = np.array([[task == name for name in names] for task in tasks], float)
    per_task = right @ member / member.sum(axis=0)
    return {
        f"{prefix}/per_output": (right, tasks),
        f"{prefix}/vote_at_2": (right, tasks),
        f"{prefix}/per_task_mean": (per_task, names),
        f"{prefix}/strict": ((per_task == 1).astype(float), names),
    }


def shares(result: Result) -> str:
    """Name the main scores of an evaluation in a line."""
    main = [key for key in result if key.endswith(("/per_output", "/accuracy")) and "greedy" not in key]
    return ", ".join(f"{key.split('/', 1)[0]} {100 * result[key]:.1f} %" for key in main)
