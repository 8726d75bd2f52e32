"""A small but realistic study folder, by the contract that tune, evaluate and study write by; the same on every call.

`make_study` writes a storage folder with everything beside it: the study, the runs made first, the generated data.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arc_ray.config import config_from, to_yaml
from arc_ray.scores.losses import ending_of
from arc_ray.seeding import rng_for
from arc_ray.storage import Folder

QUESTION = "Does it help to start from a model that first learned to count objects in grids?"
TASKS = ("67a3c6ac", "68b16354", "74dd1130", "ed36ccf7", "3c9b0459", "9dfd6313", "a416b8f3", "c8f0f002")
PAIRS_PER_TASK = 8
LRS = (0.0005, 0.002)
EPOCHS = (1, 2)
GAIN = {"base": 0.0, "count": 0.04, "mixed": 0.02}
"""How much better each arm really is, as a share of solved tasks."""
SETS = ("held_out", "unseen", "arc_evaluation")
KINDS = ("areas", "background", "biggest", "cells_of_color", "objects", "objects_of_color", "smallest", "symmetry")
Record = dict[str, Any]


def make_study(
    storage: Path,
    arms: Sequence[str] = ("base", "count"),
    seeds: Sequence[int] = (0, 1, 2),
    num_done: int | None = None,
) -> Path:
    """Write a study named quickstart below `storage` and return its folder.

    `num_done` trials have ended, one more runs and the study is unfinished; None finishes all, evaluates and analyses.
    """
    folder = Folder.at(str(storage)) / "quickstart"
    config = study_config(arms, seeds)
    write_run(folder, config, "study")
    settings = [(lr, epochs, arm, seed) for lr in LRS for epochs in EPOCHS for arm in arms for seed in seeds]
    num_started = len(settings) if num_done is None else num_done + 1
    for number, (lr, epochs, arm, seed) in enumerate(settings[:num_started]):
        status = "running" if number == num_done else {5: "failed", 6: "stopped", 7: "stopped"}.get(number, "done")
        overrides = {"train.lr": lr, "train.epochs": epochs, "start": arm, "seed": seed}
        write_trial(folder / "trials" / f"trial-{number:03d}", config, overrides, status)
    for name, arm in (("tiny", "base"), ("count", "count")):
        write_trial(Folder.at(str(storage)) / name, config, {"train.lr": 0.003, "train.epochs": 1, "start": arm}, None)
    write_data(Folder.at(str(storage)) / "data")
    if num_done is None:
        for arm in arms:
            write_evaluation(folder / "evaluate" / arm, arm)
        (Folder.at(str(storage)) / "count" / "evaluate").write_json("result.json", counting_scores())
        folder.write_json("analysis.json", analysis(arms, seeds))
        folder.write_json("quality.json", quality())
        folder.write_bytes("best.yaml", to_yaml(config).encode())
        folder.write_json("result.json", {"effect/count/value": 0.021})
    return folder.local_path()


def study_config(arms: Sequence[str], seeds: Sequence[int]) -> Any:
    """Make the config of the study; everything in it is checked like a user's."""
    rearc = {"kind": "rearc", "tasks": list(TASKS), "examples": 40, "max_side": 10}
    sources = {"rearc": rearc, "held_out": {**rearc, "first": 40, "examples": 32, "shown": 3}}
    sources["counting"] = {"kind": "counting", "examples": 400}
    tree = {
        "name": "quickstart",
        "storage": "/somewhere/on/a/cluster",
        "question": QUESTION,
        "starts": {arm: {} for arm in arms},
        "runs": {"tiny": {}, "count": {}},
        "data": {"sources": sources, "mix": {"rearc": 24}, "validation": ["held_out"]},
        "train": {"batch_rows": 8},
        "tune": {"space": {"train.lr": {"grid": list(LRS)}, "train.epochs": {"grid": list(EPOCHS)}}},
        "study": {"seeds": list(seeds), **({"arms": list(arms)} if len(arms) > 1 else {})},
    }
    return config_from(tree, {})


def write_run(folder: Folder, config: Any, command: str) -> None:
    """Write config.yaml and run.json."""
    versions = {"ray": "2.60.0", "torch": "2.11.0", "transformers": "5.17.0", "peft": "0.21.0", "deepspeed": "0.19.1"}
    run = {"command": command, "arguments": [command, "configs/quickstart.yaml"], "seed": 0}
    run |= {
        "started": "2026-11-22T18:15:00+00:00",
        "python": "3.11.9",
        "versions": versions,
        "git_commit": "a4551b4c0ffe",
    }
    run["hardware"] = {"machine": "x86_64", "system": "Linux", "cores": 2}
    folder.write_bytes("config.yaml", to_yaml(config).encode())
    folder.write_json("run.json", run)


def write_trial(folder: Folder, config: Any, overrides: Mapping[str, Any], status: str | None) -> None:
    """Write a trial's folder; status None is a run that no search made."""
    write_run(folder, config, "train")
    if status:
        error = "NonFiniteLossError: step 31: the loss is nan; views: rearc/68b16354/<3>"
        about = {"overrides": dict(overrides), "status": status, "error": error if status == "failed" else None}
        folder.write_json("trial.json", {"trial": folder.name, **about})
    num_steps = 60 * overrides["train.epochs"]
    last = {"running": num_steps // 3, "failed": num_steps // 2, "stopped": num_steps // 2}.get(status or "", num_steps)
    records = curve(overrides, num_steps)[: last + 1]
    folder.write_bytes("metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    for record in records:
        if "eval/solved" in record:
            name = f"step-{record['step']:06d}.json"
            (folder / "validation").write_json(name, outcomes(overrides, record["eval/solved"]))
    if status in ("done", None):
        num_views = 192 * overrides["train.epochs"]
        plan = {"plan/rows": 480, "plan/fill": 0.957, "plan/views": num_views, "plan/dropped": 7}
        plan |= {
            "plan/views/rearc": num_views - 7,
            "plan/learned_tokens": 900 * num_steps,
            "plan/tokens": 3900 * num_steps,
        }
        ended = {
            "steps": num_steps,
            "seconds": records[-1]["seconds"] + 14.2,
            "checkpoint": f"checkpoint-{num_steps:06d}",
        }
        folder.write_json("result.json", {**records[0], **records[-1], **plan, **ended})


def curve(overrides: Mapping[str, Any], num_steps: int) -> list[Record]:
    """Draw a trial's metric records: losses that fall, accuracies that rise, better for the larger learning rate."""
    rng = rng_for("curve", *sorted((k, str(v)) for k, v in overrides.items()))
    speed = 0.02 if overrides["train.lr"] > 0.001 else 0.009
    records: list[Record] = []
    for step in range(num_steps + 1):
        learned = 1 - math.exp(-speed * step)
        record: Record = {"step": step, "seconds": round(0.31 * step + 2.5, 3)}
        if step:
            record |= {"train/loss": 2.2 - 1.75 * learned + 0.06 * rng.normal(), "train/lr": overrides["train.lr"]}
            record |= {"train/grad_norm": 1 + rng.random(), "train/tokens_per_second": 12600 + 400 * rng.normal()}
            record |= {"train/fill": 0.957, "train/epoch": step / 60, "train/learned_tokens": 900 * step}
            record |= {"train/step_seconds": 0.31, "data/stall_share": 0.02 + 0.01 * rng.random()}
        if step % (num_steps // 4) == 0:
            level = max(0.0, (0.42 + GAIN[overrides["start"]]) * learned + 0.02 * rng.normal() * learned)
            record |= {
                "eval/solved": level,
                "eval/cell_accuracy": 0.35 + 0.55 * learned,
                "eval/loss": 2.3 - 1.6 * learned,
            }
        records.append({key: round(value, 6) if isinstance(value, float) else value for key, value in record.items()})
    return records


def outcomes(overrides: Mapping[str, Any], level: float) -> Record:
    """Draw what validation found, task by task: easy tasks are solved by all trials, hard ones by none."""
    rng = rng_for("outcomes", str(overrides.get("seed")), overrides["start"])
    names = [f"held_out/{task}#{k}/0" for task in TASKS for k in range(PAIRS_PER_TASK)]
    hardness = np.repeat(np.linspace(0.05, 0.95, len(TASKS)), PAIRS_PER_TASK)
    solved = rng.random(len(names)) * 0.3 + hardness < level + 0.3
    cells = np.where(solved, 1.0, np.round(0.5 + 0.45 * rng.random(len(names)), 6))
    return {
        "names": names,
        "solved": solved.astype(int).tolist(),
        "cell_accuracy": cells.tolist(),
        "loss": [0.7] * len(names),
    }


def write_evaluation(folder: Folder, arm: str, per_set: int = 25) -> None:
    """Write result.json and answers.json of one arm: voting is a little better than greedy, later sets are worse."""
    answers, scores = [], {}
    for i, name in enumerate(SETS):
        of_set = [make_answer(name, n, arm, (0.5 - 0.2 * i) + GAIN[arm]) for n in range(per_set)]
        answers += of_set
        for method, key in (("", "is_right"), ("greedy/", None)):
            right = sum(a[key] if key else a["greedy"] == a["truth"] for a in of_set)
            for rule in ("per_output", "per_task_mean", "strict"):
                base, value = f"{name}/{method}{rule}", right / per_set
                spread = 1.96 * math.sqrt(max(value * (1 - value), 0.02) / per_set)
                low, high = max(0.0, value - spread), min(1.0, value + spread)
                scores |= {base: value, f"{base}/low": low, f"{base}/high": high}
                scores |= {f"{base}/right": right, f"{base}/of": per_set}
            others = {"correct_size": 0.92, "cell_accuracy": 0.81, "unanswered": 0.04}
            scores |= {f"{name}/{method}{rule}": value for rule, value in others.items()}
    folder.write_json("answers.json", answers)
    folder.write_json("curves.json", [curve for name in SETS for curve in view_curves(name, arm)])
    version = {"arc_evaluation/version": "ARC-AGI-1 evaluation, 419 outputs"}
    folder.write_json("result.json", {**scores, **version, "seconds": 41.5})


def view_curves(name: str, arm: str, per_set: int = 25) -> list[Record]:
    """Make up what 1, 2, 4 and 8 views solve, and what the best choice among them would."""
    luck = rng_for("curves", name, arm).random(per_set)
    about = {"set": name, "axis": "views", "tasks": [f"{TASKS[i % len(TASKS)]}#{i}" for i in range(per_set)]}
    return [
        about
        | {
            "x": x,
            "passes": 20.0 * x,
            "tokens": 31.0 * x,
            "seconds": 0.4 + 0.1 * x,
            "solved": [int(p < share) for p in luck],
            "best": [int(p < share + 0.1) for p in luck],
        }
        for x, share in ((1, 0.3), (2, 0.35), (4, 0.42), (8, 0.45))
    ]


def make_answer(name: str, number: int, arm: str, skill: float) -> Record:
    """Make up a puzzle (mirror the grid and recolour it), and an answer that is right, nearly right or wrong."""
    rng = rng_for("answer", name, number)
    colors = np.array([0, *(rng.permutation(9) + 1)])

    def pair() -> tuple[np.ndarray, np.ndarray]:
        height, width = rng.integers(3, 13 if name == "held_out" else 21, size=2)
        grid = np.where(rng.random((height, width)) < 0.3, rng.integers(1, 4, size=(height, width)), 0)
        return grid, colors[grid[:, ::-1]]

    shown, (asked, truth) = [pair() for _ in range(3)], pair()
    luck = rng_for("luck", name, number, arm).random()
    wrong = truth.copy()
    num_wrong = max(1, int(truth.size * (luck - skill) / 2))
    wrong.ravel()[rng_for("wrong", name, number, arm).choice(truth.size, num_wrong, replace=False)] = 8
    first = truth if luck < skill - 0.05 else wrong if luck < 0.92 else wrong[:-1]
    attempts = [] if luck > 0.97 else [first, truth if luck < skill else wrong.T]
    is_right = any(np.array_equal(attempt, truth) for attempt in attempts)
    ending = ending_of(truth, attempts, [*attempts, truth] if luck > 0.9 else attempts, asked, luck < 0.99)
    rules = {"majority": is_right, "vote_with_log_probability": is_right and luck > 0.1}
    rules |= {"product_of_experts": ending in ("right", "not_chosen"), "votes_and_mean_log_probability": is_right}
    return {
        "set": name,
        "task": f"{TASKS[number % len(TASKS)]}#{number}",
        "output": 0,
        "shown": [{"input": a.tolist(), "output": b.tolist()} for a, b in shown],
        "input": asked.tolist(),
        "truth": truth.tolist(),
        "attempts": [attempt.tolist() for attempt in attempts],
        "greedy": first.tolist(),
        "is_right": is_right,
        "cell_accuracy": 1.0 if is_right else float((wrong == truth).mean()) if luck < 0.92 else 0.0,
        "ending": ending,
        "right_by": rules,
    }


def analysis(arms: Sequence[str], seeds: Sequence[int]) -> Record:
    """Make up what the comparison found: no effect on solved tasks, a small one on cells."""
    differences = [(arm, "eval/solved", GAIN[arm], 0.057) for arm in arms[1:]]
    differences += [(arm, "eval/cell_accuracy", 0.018, 0.011) for arm in arms[1:]]
    setting = {"train.lr": LRS[1], "train.epochs": EPOCHS[1]}
    chosen = [
        {"arm": a, "setting": setting, "value": 0.38 + GAIN[a], "value_choosing": 0.41 + GAIN[a], "seeds": list(seeds)}
        for a in arms
    ]
    return {
        "question": QUESTION,
        "compare": "start",
        "baseline": arms[0],
        "metric": "eval/solved",
        "confidence": 0.95,
        "arms": chosen,
        "effects": [effect(*difference, len(seeds)) for difference in differences],
        "loss_at_step_0": {arm: 2.3 - GAIN[arm] for arm in arms},
        "steps_to_loss": {arm: 96.0 - 300 * GAIN[arm] for arm in arms},
        "steps_to_loss_level": 0.91,
        "equal_tokens": {arm: 0.33 + GAIN[arm] for arm in arms},
        "equal_tokens_at": 61_440.0,
    }


def effect(arm: str, metric: str, value: float, reach: float, num_seeds: int) -> Record:
    """State one effect and its sentence."""
    low, high = value - reach, value + reach
    not_shown = "no effect shown at this size; an effect of 5 points takes about 6 seeds"
    sentence = (
        f"{arm} minus base: {100 * value:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f},"
        f" {num_seeds} seeds x 32 tasks): {f'{arm} is better' if low > 0 else not_shown}."
    )
    about = {"arm": arm, "metric": metric, "value": value, "low": low, "high": high, "shown": low > 0}
    return {
        **about,
        "num_seeds": num_seeds,
        "num_tasks": 32,
        "num_units": 8,
        "unit": "puzzles",
        "sentence": sentence,
        "needed": None,
    }


def counting_scores() -> dict[str, float]:
    """Make up accuracies by kind of question: the background is easy, the list of areas hard."""
    accuracies = dict(zip(KINDS, (0.31, 0.98, 0.66, 0.52, 0.83, 0.79, 0.74, 0.6), strict=True))
    by_kind = {f"counting/accuracy/{kind}": value for kind, value in accuracies.items()}
    asked = {f"{name}/of": 200 for name in by_kind}
    return {"counting/accuracy": 0.679, "counting/accuracy/of": 1600, **by_kind, **asked}


def quality() -> dict[str, Any]:
    """What `arc_ray.rows.quality` finds in data with one leak."""
    counts = {"tasks": 8, "pairs": 80, "duplicate_tasks": 0, "duplicate_pairs": 3, "degenerate": 0, "merged_colors": 0}
    counts |= {"views": 640, "distinct_views": 571, "attempts": 702, "rejected": {"too_large": 61}}
    return {
        "sources": {"rearc": counts},
        "lengths": {"rearc": {"shortest": 61, "median": 188, "p95": 242, "longest": 256}},
        "waste": {"packed": 0.021, "one_view_a_row": 0.34, "padded_to_longest": 0.31},
        "met": {"held_out": {"asked": 80, "met": 61}, "unseen": {"asked": 16, "met": 0}},
        "overlap": ["rearc and arc_evaluation: training task 40853293 equals evaluation task 070dd51e"],
    }


def write_data(folder: Folder) -> None:
    """Write the manifests of the two generated datasets."""
    rearc = {"kind": "rearc", "num_tasks": len(TASKS), "examples": 576, "attempts": 702, "gave_up": 1, "duplicates": 13}
    rearc |= {"rejected": {"too_large": 61, "verifier_disagrees": 38}, "timed_out": [["68b16354", 4]], "tasks": {}}
    counting = {"kind": "counting", "num_tasks": 400, "examples": 400, "attempts": 400, "gave_up": 0, "duplicates": 0}
    counting |= {"rejected": {}, "timed_out": [], "tasks": {}}
    for name, manifest in (("rearc", rearc), ("counting", counting)):
        (folder / name).write_json("manifest.json", manifest)
