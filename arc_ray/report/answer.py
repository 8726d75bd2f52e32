"""What the page begins with: how far it is, the answer in sentences, the arms, and what to know before believing it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from arc_ray.report import tables
from arc_ray.report.frames import DataFrame, config_value
from arc_ray.report.load import Report
from arc_ray.report.words import RULES, in_points, is_number, level, number, percent, setting, show, word
from arc_ray.scores.contrasts import ASKED_KINDS, TASK_GROUPS, by_task, contrasts, in_group, share, task_difference

MOST_AUDITED = 20
"""Audited tasks that are shown, those with the largest difference."""
MOST_NAMED = 10
"""Overlaps that a warning names."""
MET_SHARE = 0.05
"""A set is warned of if more than this share of its asked pairs equal a training pair: then it moves a score."""
SPOKEN_GAINS = ("voting/two_attempts", "tuning", "tuning/greedy", "generated")
"""What a report of an evaluation says of what ways of answering gain, by the names of `tables.GAINS`."""


def progress(report: Report) -> str:
    """Say in a few words how far it is."""
    if report.kind == "run":
        return "finished" if report.is_finished else "running or cut off"
    if not report.num_expected:
        return "no trial yet"
    statuses = report.trials["status"].tolist()
    done, stopped, running, failed = map(statuses.count, ("done", "stopped", "running", "failed"))
    what = "runs" if report.kind == "runs" else "trials"
    parts = [f"{done + stopped + failed} of {report.num_expected} {what} finished"]
    beside = ((stopped, "of them stopped early"), (failed, "failed"), (running, "running or cut off"))
    return ", ".join(parts + [f"{count} {state}" for count, state in beside if count])


def sentences(report: Report) -> list[str]:
    """Give the answer: the analysis's own sentences about the metric asked for, or what can be said without one.

    The page tells the warnings of an effect below.
    """
    analysis = report.analysis or {}
    if found := [_short(e) for e in analysis.get("effects", ()) if e["metric"] == report.asked_metric]:
        return found + [cost["sentence"] for cost in analysis.get("costs", ())]
    if report.is_evaluation:
        return [*_evaluated(report), *_audited(report)] or [no_scores(report)]
    so_far = _best_so_far(report)
    if not report.is_search or (report.kind == "tune" and report.is_finished):
        return [so_far]
    wait = "This page will say more when the search is over."
    if report.kind == "study":
        wait = "There is no answer yet: this page will say more when every arm has a setting finished with all seeds."
    return [f"{progress(report).capitalize()}. {wait}", so_far]


def _short(effect: Mapping[str, Any]) -> str:
    if "result" not in effect:  # an older analysis
        return str(effect["sentence"])
    return "; ".join(filter(None, (effect["result"], effect.get("needed")))) + "."


def no_scores(report: Report) -> str:
    """Say why there are no scores to show."""
    if not report.is_evaluation:
        later = "What each arm measures will be scored here by the three rules, greedy and voting."
        return f"Nothing is evaluated yet. {later}"
    if report.is_finished:
        return "All tasks are answered; their outputs are hidden, so nothing is scored. The answers are in submission.json."
    return "Nothing is evaluated yet."


def warnings_of(report: Report) -> list[str]:
    """Say what a reader must know before believing a number."""
    found, quality = [], report.quality or {}
    if config_value(report.config, "data.allow_overlap") and not report.is_audit:
        found.append(
            "This config allows training on tasks that are also validated or evaluated on (data.allow_overlap):"
            " scores may be memory rather than skill."
        )
    if overlap := [*quality.get("overlap", ()), *report.overlap]:
        rest = f"; and {len(overlap) - MOST_NAMED} more" if len(overlap) > MOST_NAMED else ""
        found.append(f"What is evaluated was trained on: {'; '.join(overlap[:MOST_NAMED])}{rest}.")
    return found + [
        f"{counts['met']} of the {counts['asked']} pairs that {name} asks equal a training pair up to symmetry and"
        f" colours: its scores may be memory rather than skill."
        for name, counts in quality.get("met", {}).items()
        if counts["met"] > MET_SHARE * counts["asked"]
    ]


def audit_view(report: Report) -> dict[str, Any]:
    """Lay out audits: `audits` has an entry a set and arm, `audit_axis` is one for all differences."""
    confidence, audits = report.confidence, []
    for (name, arm), rows in report.audit.groupby(["set", "arm"], sort=False):
        tasks = by_task(rows.to_dict("records"))
        shares = [
            {"group": group, "kind": kind, "of": len(own), "found": share(own, kind, confidence)}
            for group in TASK_GROUPS
            for kind in ASKED_KINDS
            if (own := in_group(tasks, group, kind))
        ]
        differences = [
            {"group": group, "kind": kind, "of": of, "found": found}
            for (kind, group), (of, found) in contrasts(tasks, confidence).items()
        ]
        with_fresh = {task: task_difference(own, "fresh", confidence) for task, own in tasks.items() if own.of("fresh")}
        largest = sorted(with_fresh, key=lambda task: (-with_fresh[task].low, -with_fresh[task].value))
        sizes = rows.groupby(["task", "kind"])[["cells", "difficulty"]].mean().unstack()
        audits.append(
            {
                **{"set": name, "arm": arm, "shares": shares, "differences": differences},
                "tasks": [{"task": t, "own": tasks[t], "found": with_fresh[t]} for t in largest[:MOST_AUDITED]],
                "above": [task for task in largest if with_fresh[task].low > 0],
                "with_fresh": len(with_fresh),
                "cells": np.exp(np.log(sizes["cells", "fresh"] / sizes["cells", "published"]).mean()),
                "difficulty": (sizes["difficulty", "fresh"] - sizes["difficulty", "published"]).mean(),
                "too_long": rows[~rows["asked"].astype(bool)]["kind"].value_counts().to_dict(),
            }
        )
    axis = tables.effect_axis([vars(row["found"]) for audit in audits for row in audit["differences"]])
    return {
        "audits": audits,
        "audit_axis": axis,
        "kinds": ASKED_KINDS,
        "groups": TASK_GROUPS,
        "level": level(confidence),
    }


def _audited(report: Report) -> Iterable[str]:
    """Say for each audited set and group of tasks what is solved of the published pairs and not of fresh ones."""
    view = audit_view(report)
    for audit in view["audits"]:
        for row in (row for row in audit["differences"] if row["kind"] == "fresh"):
            found, tasks = row["found"], f"{row['of']} tasks"
            if row["group"] != "all":
                tasks += f" {view['groups'][row['group']]}"
            verdict = (
                "published pairs are solved that fresh ones are not"
                if found.low > 0
                else "no memory shown at this size"
            )
            yield (
                f"{audit['set']}, published − fresh: {in_points(found.value)} points over {tasks} ({view['level']} interval"
                f" {in_points(found.low)} to {in_points(found.high)}): {verdict}."
            )


def _best_so_far(report: Report) -> str:
    best = tables.best_trial(report)
    if best is None:
        return "No validation has been made yet."
    trial = report.trials.set_index("trial").loc[best]
    value = f"{show(trial[report.metric], report.metric)} ({word(report.metric).label})"
    after = f"{value} on the validation outputs after {number(trial['steps'])} steps"
    if report.kind == "run":
        return f"{after}."
    if report.kind == "runs":
        return f"Best of {len(report.trials)} runs: {best}, {after}."
    values = setting({key: trial[key] for key in report.varied})
    about = ", ".join(filter(None, [str(trial["arm"]), values, f"seed {trial['seed']}"]))
    num_measured = len(report.measured)
    flatters = f" It was picked as the best of {num_measured}, which flatters it." if num_measured > 1 else ""
    return f"The best trial{'' if report.is_finished else ' so far'} is {best} ({about}): {after}.{flatters}"


def _evaluated(report: Report) -> Iterable[str]:
    """Say for each set how much of it is solved and what voting and tuning gain; of questions, how many are right."""
    gains = [gain for gain in tables.gain_table(report) if gain["question"] in SPOKEN_GAINS]
    for name, rows in tables.score_table(report).items():
        score = next(row for row in rows if row["method"] == "voting")["scores"][RULES[0]]
        yield (
            f"{name}: {percent(score['value'])} of {number(score['of'])} outputs solved in two attempts"
            f" ({level(score['confidence'])} interval {percent(score['low'], 0)} to {percent(score['high'], 0)})."
        )
        for gain in (gain for gain in gains if gain["set"] == name):
            interval = f"{level(gain['confidence'])} interval {in_points(gain['low'])} to {in_points(gain['high'])}"
            shown = "." if gain["low"] > 0 or gain["high"] < 0 else ": no effect shown at this size."
            yield f"{name}, {gain['words']}: {in_points(gain['value'])} points ({interval}){shown}"
    for name, kinds in tables.question_table(report).items():
        for arm, score in kinds["all"].items():
            yield f"{name}: {percent(score['value'])} of {number(score['of'])} questions answered right by {arm}."


def answer_view(report: Report) -> dict[str, Any]:
    """Lay out the effects, those asked about first, and the arms with headings of further findings; all as written."""
    analysis, metric = report.analysis or {}, report.asked_metric
    arms = analysis.get("arms", [])
    loss, tokens = analysis.get("steps_to_loss_level"), analysis.get("equal_tokens_at")
    titles = {
        "loss_at_step_0": "validation loss before step 1",
        "steps_to_loss": f"steps to loss {number(loss)}" if is_number(loss) else "steps to the same loss",
        "equal_tokens": f"{word(report.metric).label} at {number(tokens) if is_number(tokens) else 'equal'} learned tokens",
    }
    titles = {
        key: title for key, title in titles.items() if len({a["arm"] for a in arms} & {*(analysis.get(key) or {})}) > 1
    }
    rows = [
        {
            "name": arm["arm"],
            "setting": setting(arm.get("setting") or {}) or "the only one",
            "value": show(arm.get("value"), metric),
            "value_choosing": show(arm.get("value_choosing"), metric),
            "findings": [
                show(analysis[k].get(arm["arm"]), report.metric if k == "equal_tokens" else "") for k in titles
            ],
            "num_seeds": len(arm.get("seeds") or ()),
        }
        for arm in arms
    ]
    effects = sorted(analysis.get("effects", ()), key=lambda effect: effect["metric"] != metric)
    axis = tables.effect_axis(effects)
    return {"effects": effects, "axis": axis, "findings": list(titles.values()), "arm_rows": rows}


def side_by_side(views: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Lay out what was asked about in several studies on one axis: `rows` of study and effect; None for less than two."""
    rows = [
        {"number": number, "view": view, "effect": effect}
        for number, view in enumerate(views, 1)
        for effect in view["effects"]
        if effect["metric"] == view["report"].asked_metric
    ]
    if len({row["number"] for row in rows}) < 2:
        return None
    return {"rows": rows, "axis": tables.effect_axis([row["effect"] for row in rows])}


def sharing(report: Report) -> str:
    """Say which arms answer with the same trained models; empty where all have their own."""
    trained = report.trained_as
    groups = [
        [arm for arm, own in trained.items() if own == arm_trained] for arm_trained in dict.fromkeys(trained.values())
    ]
    shared = [" and ".join(filter(None, (", ".join(arms[:-1]), arms[-1]))) for arms in groups if len(arms) > 1]
    return " ".join(f"{arms} answer with the same trained models, seed by seed." for arms in shared)


def pairing(report: Report, chosen: Mapping[str, DataFrame]) -> str | None:
    """Say which arms were trained on the same rows in the same order, seed by seed, as their plans show.

    `chosen` has each arm's trials. None before the analysis, where plans were not copied along, and of one training.
    """
    chosen = {arm: trials for arm, trials in chosen.items() if report.trained_as.get(arm, arm) == arm}
    if len(chosen) < 2:
        return None
    seeds = sorted({seed for arm in (report.analysis or {}).get("arms", ()) for seed in arm.get("seeds") or ()})
    digests = {arm: trials.drop_duplicates("seed").set_index("seed")["plan_digest"] for arm, trials in chosen.items()}
    plans = pd.DataFrame(digests).reindex(seeds)
    if plans.empty or plans.isna().any(axis=None):
        return None
    # Arms with the same number were trained on the same rows.
    numbers, *others = {tuple(pd.factorize(row)[0]) for row in plans.to_numpy()}
    if others:
        return "Which arms trained on the same rows differs from seed to seed."
    groups = [list(arms) for _, arms in pd.Series(plans.columns).groupby(list(numbers))]
    alone = [arms[0] for arms in groups if len(arms) == 1]
    if len(alone) == len(groups):
        return "The arms were trained on different rows: their data or their epochs differ."
    together = (" and ".join(arms) for arms in groups if len(arms) > 1)
    parts = [f"{arms} were trained on the same rows in the same order" for arms in together]
    parts += [f"{', '.join(alone)} on rows of {'its' if len(alone) == 1 else 'their'} own"] if alone else []
    return f"With each seed, {'; '.join(parts)}."
