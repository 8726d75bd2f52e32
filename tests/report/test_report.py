"""The report: frames that say what the files say, a page that stands alone, honest words in every state of a study."""

import io
import json
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from study_folder import EPOCHS, KINDS, LRS, PAIRS_PER_TASK, QUESTION, SETS, TASKS, make_study
from typer.testing import CliRunner

import arc_ray.report
from arc_ray.cli.looking import app
from arc_ray.errors import UserError
from arc_ray.report import gallery, load, load_many, tables, write_report
from arc_ray.report.answer import pairing, progress, sentences
from arc_ray.report.charts import Scale, effect_charts, equal_tokens_chart, parallel_chart
from arc_ray.report.folders import score_rows
from arc_ray.report.frames import COLUMNS
from arc_ray.report.page import view_of
from arc_ray.report.words import duration, in_points, number, percent, trial_value
from arc_ray.tasks.counting import Answered, accuracy_by_kind

VOID = {"meta", "link", "br", "hr", "img", "input"}
EVIL = "<script>alert(1)</script>{{ 7 * 7 }}\"'|"

grids = hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 9))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def page(study: Path) -> str:
    return Path(write_report([str(study)])["report.html"]).read_text()


def test_the_command_says_where_the_report_is(study: Path) -> None:
    """Would catch names of files where their places are meant, which open nothing from another folder."""
    said = CliRunner().invoke(app, ["report", str(study)], catch_exceptions=False).output.split()
    assert said == [str(study / name) for name in ("report.html", "report.md", "trials.csv")]


def test_a_watched_report_follows_the_study_to_its_end(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a page that stops following a study, one that loads itself for ever after it, and a watch without end."""
    folder = shutil.copytree(study, tmp_path / "study")
    result, page, seen = folder / "result.json", folder / "report.html", []
    result.rename(tmp_path / "result.json")

    def wait(seconds: float) -> None:
        seen.append(f'<meta http-equiv="refresh" content="{seconds}">' in page.read_text())
        if len(seen) == 2:
            (tmp_path / "result.json").rename(result)

    monkeypatch.setattr("arc_ray.cli.looking.time.sleep", wait)
    CliRunner().invoke(app, ["report", str(folder), "--watch"], catch_exceptions=False)
    assert seen == [True, True]
    assert 'http-equiv="refresh"' not in page.read_text()


def test_the_numbers_of_a_figure_are_one_click_away(study: Path, page: str) -> None:
    """Would catch a chart whose numbers cannot be had, or are not those that it draws."""
    found = {
        unescape(name): pd.read_csv(io.StringIO(unquote(text)))
        for name, text in re.findall(r'<a download="([^"]+)\.csv" href="data:text/csv;charset=utf-8,([^"]+)">', page)
    }
    assert len(found) == page.count('<figure class="chart')
    trials = load(str(study)).measured
    for key, title in (("train.lr", "solved, greedy by lr"), ("train.epochs", "every trial")):
        drawn = found[title].set_index("trial")
        assert drawn["eval/solved"].to_dict() == pytest.approx(
            trials.set_index("trial")["eval/solved"].to_dict(), rel=1e-5
        )
        assert drawn[key].to_dict() == trials.set_index("trial")[key].to_dict()
    curve = found["training loss"]
    assert {*curve["line"]} == {"thin", "mean"}
    assert curve.groupby("arm")["train/loss"].count().min() > 3


class Page(HTMLParser):
    """Collects ids and what can be read, and fails on a tag that is closed wrongly: an unescaped value would do that."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.scripts = 0
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.ids += [value for name, value in attrs if name == "id"]
        self.scripts += tag == "script"
        assert not any(name.startswith("on") for name, _ in attrs)
        self.words += [value for name, value in attrs if name in ("title", "aria-label")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        if not {"script", "style", "details"} & {*self.open}:  # config.yaml is folded away, and changes with every key
            self.words += data.split()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["report.html", "report.md", "trials.csv"])
def test_the_report_of_a_study_says_what_it_always_said(study: Path, name: str) -> None:
    """Would catch a table, a chart, a mark, a sentence or a number that is lost on the way to the page or its summary.

    Of the page, what can be read on it, and what a reader who cannot see them is told of its pictures.
    """
    written = Path(write_report([str(study)], datetime(2026, 1, 1, tzinfo=UTC))[name]).read_text()
    golden = Path(__file__).parent / "golden" / name.replace(".html", ".txt")
    said = written if name != "report.html" else textwrap.fill(" ".join(Page(written).words), 120) + "\n"
    assert said == golden.read_text()


def test_every_template_is_a_section_that_can_be_read() -> None:
    """Would catch a page that grows into lines and files that nobody can review."""
    templates = sorted((Path(arc_ray.report.__file__).parent / "templates").iterdir())
    assert len(templates) > 10
    for template in templates:
        lines = template.read_text().splitlines()
        assert max(map(len, lines)) <= 140, template.name
        assert template.suffix != ".j2" or len(lines) < 40, template.name


def test_the_page_tells_leaks_and_repeats(study: Path, page: str) -> None:
    """Would catch a report that keeps silent about what its study trained on."""
    assert page.count("training task 40853293 equals evaluation task 070dd51e") == 2
    assert "61 / 188 / 242 / 256" in page
    assert "61 of the 80 pairs that held_out asks equal a training pair" in page
    assert "pairs that unseen asks" not in page
    bare = shutil.copytree(study, study.parent / "bare")
    (bare / "quality.json").unlink()
    assert "40853293" not in Path(write_report([str(bare)])["report.html"]).read_text()


def test_frames_hold_what_the_files_say(study: Path) -> None:
    """Would catch lost rows, a wrong arm, greedy taken for voting, a task id cut at the wrong slash."""
    report = load(str(study))
    assert {name: list(getattr(report, name).columns[: len(columns)]) for name, columns in COLUMNS.items()} == {
        name: list(columns) for name, columns in COLUMNS.items()
    }
    assert report.trials.groupby(["arm", "train.lr", "train.epochs"]).size().tolist() == [3] * 8
    assert report.trials["status"].value_counts().to_dict() == {"done": 21, "stopped": 2, "failed": 1}
    assert set(report.runs["arm"]) == {"tiny", "count"}
    first = report.trials.iloc[0]
    lines = (study / "trials" / first["trial"] / "metrics.jsonl").read_text().splitlines()
    rows = report.metrics[report.metrics["trial"] == first["trial"]]
    assert len(rows) == len(lines)
    assert rows["train/learned_tokens"].tolist() == [900.0 * step for step in range(len(lines))]
    assert first["eval/solved"] == json.loads(lines[-1])["eval/solved"]
    validated = report.validation[report.validation["trial"] == first["trial"]]
    assert set(validated["task"]) == {f"{task}#{k}" for task in TASKS for k in range(PAIRS_PER_TASK)}
    result = json.loads((study / "evaluate" / "count" / "result.json").read_text())
    found = report.scores.set_index(["arm", "set", "method", "rule"]).loc[("count", "unseen", "greedy", "strict")]
    for end in ("low", "high", "right", "of"):
        assert found[end] == result[f"unseen/greedy/strict/{end}"]
    assert len(report.answers) == 2 * 25 * len(SETS)
    assert report.data.set_index("dataset").loc["rearc", ["rejected", "duplicates", "timed_out"]].tolist() == [
        99,
        13,
        1,
    ]


def test_scores_of_every_kind_are_unflattened() -> None:
    """Would catch a question kind read as a rule, and a second or an id taken for a score."""
    flat = {"s/strict": 0.5, "s/strict/of": 4, "s/greedy/strict": 0.25, "c/accuracy": 0.7, "c/accuracy/biggest": 0.9}
    rows = score_rows("study", "arm", {**flat, "c/accuracy/biggest/of": 30, "seconds": 3.0, "checkpoint": "a/b"})
    assert [(r["set"], r["method"], r["rule"], r["question"], r["value"], r.get("of")) for r in rows] == [
        ("s", "voting", "strict", "", 0.5, 4),
        ("s", "greedy", "strict", "", 0.25, None),
        ("c", "greedy", "accuracy", "all", 0.7, None),
        ("c", "greedy", "accuracy", "biggest", 0.9, 30),
    ]


def test_ways_of_answering_and_their_gains_are_told_apart() -> None:
    """Would catch an untuned score that passes for the tuned one, and a gain read as a score of its own."""
    flat = {"s/strict": 0.5, "s/untuned/strict": 0.25, "s/untuned/greedy/strict": 0.1, "s/greedy/strict": 0.2}
    gains = {"s/tuning/gain": 0.25, "s/tuning/gain/low": 0.1, "s/untuned/voting/gain": 0.15}
    rows = score_rows("study", "arm", flat | gains)
    assert [(r["method"], r["rule"], r["question"], r["value"], r.get("low")) for r in rows] == [
        ("voting", "strict", "", 0.5, None),
        ("voting, untuned", "strict", "", 0.25, None),
        ("greedy, untuned", "strict", "", 0.1, None),
        ("greedy", "strict", "", 0.2, None),
        ("", "gain", "tuning", 0.25, 0.1),
        ("", "gain", "untuned/voting", 0.15, None),
    ]


def test_an_evaluation_alone_answers_with_its_scores_and_gains(study: Path, tmp_path: Path) -> None:
    """Would catch a page about test-time training that says "no validation yet" and does not say what tuning gains."""
    folder = Path(shutil.copytree(study / "evaluate" / "count", tmp_path / "evaluation"))
    (folder / "config.yaml").write_text("name: evaluation\n")
    (folder / "run.json").write_text(json.dumps({"command": "evaluate"}))
    result = json.loads((folder / "result.json").read_text())
    gain = {"unseen/tuning/gain": 0.125, "unseen/tuning/gain/low": -6.2, "unseen/tuning/gain/high": 6.5}  # of two tasks
    untuned = {f"unseen/untuned/{key.removeprefix('unseen/')}": value for key, value in result.items() if "/" in key}
    rewrite(folder / "result.json", **gain, **untuned)
    written = {name: Path(path).read_text() for name, path in write_report([str(folder)]).items()}
    for name in ("report.html", "report.md"):
        assert "outputs solved in two attempts" in written[name]
        assert "No validation" not in written[name]
        assert "test-time training − none" in written[name]
        assert "+12.5" in written[name]
        assert "voting, untuned" in written[name]
    assert "trains nothing" in written["report.html"]
    answer = written["report.md"].split("|")[0]
    assert "two attempts: +12.5 points (95 % interval −620.0 to +650.0): no effect shown at this size." in answer
    rewrite(folder / "result.json", **{"unseen/tuning/gain/low": 0.05, "unseen/tuning/gain/high": 0.2})
    answer = Path(write_report([str(folder)])["report.md"]).read_text().split("|")[0]
    assert "two attempts: +12.5 points (95 % interval +5.0 to +20.0)." in answer


def test_counting_scores_are_read_as_evaluation_writes_them() -> None:
    """Would catch a table of counting that stays empty because its writer uses other names than its reader."""
    scores = accuracy_by_kind([Answered("objects", 5, 3, 2, True), Answered("areas", 5, 3, 2, False)])
    rows = {r["question"]: r for r in score_rows("study", "arm", {f"c/{key}": value for key, value in scores.items()})}
    assert {r["rule"] for r in rows.values()} == {"accuracy"}
    assert (rows["all"]["value"], rows["all"]["right"], rows["all"]["of"]) == (0.5, 1, 2)
    assert (rows["objects"]["value"], rows["objects"]["of"]) == (1.0, 1)
    assert rows["all/objects_02"]["of"] == 2


def test_page_stands_alone_and_is_whole(page: str) -> None:
    """Would catch a style sheet or font from elsewhere, an id used twice, a section lost, a page grown huge."""
    parsed = Page(page)
    assert parsed.scripts == 1
    assert len(parsed.ids) == len(set(parsed.ids))
    assert set(re.findall(r"https?://[^\s\"'<)]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\ssrc=|@import|url\(|rel=\"stylesheet\"", page)
    beside_script = page.partition("<script>")[0].replace("the loss is nan", "")
    assert not re.search(r"\bnan\b", beside_script, re.IGNORECASE), "a number that is none"
    assert "default-src 'none'" in page
    for anchor in re.findall(r'href="#([a-z]+-1)"', page):
        assert anchor in parsed.ids
    for kind in KINDS:
        assert kind.replace("_", " ") in page
    assert len(page) < 1_000_000


def test_answer_is_in_the_words_of_the_analysis(study: Path, page: str) -> None:
    """Would catch a page that claims an effect where the interval holds zero."""
    found = [e for e in json.loads((study / "analysis.json").read_text())["effects"] if e["metric"] == "eval/solved"]
    assert "no effect shown at this size" in found[0]["sentence"]
    markdown = (study / "report.md").read_text()
    for text in (page, markdown):
        assert found[0]["sentence"] in text
        assert QUESTION in text
    assert "holds zero" in page
    assert "+4.0" in markdown
    assert "−1.7 to +9.7" in markdown


def test_one_seed_is_one_seed(tmp_path: Path) -> None:
    """Would catch "1 seeds" beside a sentence that says "1 seed"."""
    written = write_report([str(make_study(tmp_path, seeds=(0,)))])
    for name in ("report.html", "report.md"):
        assert "1 seed × 32 tasks" in Path(written[name]).read_text()


def test_an_arms_findings_are_named_and_written_as_their_metric(study: Path, page: str) -> None:
    """Would catch a heading that says eval/solved, and a share at equal tokens that is written as 0.33."""
    for text in (page, (study / "report.md").read_text()):
        assert "solved, greedy at 61,440 learned tokens" in text
        assert "eval/solved at" not in text
        assert "33.0 %" in text


def test_csv_has_a_row_for_every_trial_and_whole_counts(study: Path, page: str) -> None:
    """Would catch 480.0 rows, and a trial lost because it failed."""
    written = pd.read_csv(study / "trials.csv", dtype=str)
    assert len(written) == 24
    assert set(written["plan/rows"].dropna()) == {"480"}
    assert written["error"].dropna().str.startswith("NonFiniteLossError").tolist() == [True]


@pytest.mark.parametrize("num_done", [0, 1, 7, 23])
def test_unfinished_study_says_how_far_it_is(tmp_path: Path, num_done: int) -> None:
    """Would catch a crash while a study runs, an answer before there is one, a total of started trials only."""
    folder = make_study(tmp_path, num_done=num_done)
    Page(Path(write_report([str(folder)])["report.html"]).read_text())
    report = load(str(folder))
    assert progress(report).startswith(f"{num_done} of {max(14, num_done + 1)} trials finished")
    assert "There is no answer yet" in sentences(report)[0]
    assert (tables.best_trial(report) or "trial-005") != "trial-005" or num_done <= 5, "a failed trial is not the best"


def test_a_trial_that_was_stopped_early_is_not_the_best(study: Path) -> None:
    """Would catch a report that recommends what its search has not seen to its end."""
    report = load(str(study))
    trials = report.trials.copy()
    stopped = trials["status"] == "stopped"
    assert stopped.any()
    trials.loc[stopped, "eval/solved"] = 0.99
    best = tables.best_trial(replace(report, trials=trials))
    assert trials.set_index("trial").loc[best, "status"] == "done"
    trials["status"] = "stopped"
    assert trials.set_index("trial").loc[tables.best_trial(replace(report, trials=trials)), "eval/solved"] == 0.99


def test_a_metric_of_one_source_is_written_as_its_metric(study: Path) -> None:
    """Would catch a share that stands as 0.4525 in the table of trials because it is of one source only."""
    report, metric = load(str(study)), "eval/solved/held_out"
    trials = report.trials.assign(**{metric: report.trials["eval/solved"]})
    view = view_of(replace(report, trials=trials, analysis={**(report.analysis or {}), "metric": metric}))
    assert {column.key: column.label for column in view["columns"]}[metric] == "solved, greedy: held_out"
    assert trial_value(metric, view["rows"][0][metric]) == percent(trials["eval/solved"].max())


def test_study_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    """Would catch code that needs a trial, a metric or a manifest to exist."""
    folder = make_study(tmp_path, num_done=0)
    for name in ("metrics.jsonl", "validation"):
        path = folder / "trials" / "trial-000" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    Page(Path(write_report([str(folder)])["report.html"]).read_text())
    assert sentences(load(str(folder)))[-1] == "No validation has been made yet."
    shutil.rmtree(folder / "trials")
    html = Path(write_report([str(folder)])["report.html"]).read_text()
    assert load(str(folder)).kind == "study"
    assert "No trial has written anything yet" in html


def test_folder_copied_without_its_neighbours(tmp_path: Path) -> None:
    """Would catch a path of the cluster being followed, or data and runs beside the folder being needed."""
    folder = make_study(tmp_path / "there")
    copy = shutil.copytree(folder, tmp_path / "here" / "renamed")
    report = load(str(copy))
    assert report.name == "renamed"
    assert (len(report.trials), len(report.runs), len(report.data)) == (24, 0, 0)
    assert "was not copied along" in Path(write_report([str(copy)])["report.html"]).read_text()


def test_runs_and_searches_are_reports_too(tmp_path: Path) -> None:
    """Would catch a run taken for a study, runs overwriting each other, a search that claims to answer the question."""
    folder = make_study(tmp_path, arms=("base",), num_done=9)
    rewrite(folder / "run.json", command="tune")
    assert (load(str(folder)).kind, load(str(folder)).varied) == ("tune", ["train.lr", "train.epochs"])
    both = load_many([str(tmp_path / "tiny"), str(folder), str(tmp_path / "count")])
    assert [(report.kind, report.name) for report in both] == [("runs", "tiny, count"), ("tune", "quickstart")]
    assert both[0].arms == ["tiny", "count"]
    paths = write_report([str(tmp_path / "tiny"), str(folder), str(tmp_path / "count")])
    assert paths["report.html"] == f"{tmp_path}/tiny/report.html"
    parsed = Page(Path(paths["report.html"]).read_text())
    assert len(parsed.ids) == len(set(parsed.ids))
    assert len(pd.read_csv(paths["trials.csv"])) == 12
    assert load(str(tmp_path / "tiny")).kind == "run"
    assert load(str(folder / "trials" / "trial-000")).kind == "run"
    assert sentences(load(str(tmp_path / "tiny")))[0].endswith("on the validation outputs after 60 steps.")


def test_studies_stand_side_by_side(study: Path, tmp_path: Path) -> None:
    """Would catch studies that one can only compare by scrolling, or on an axis that is drawn for one of them."""
    other = shutil.copytree(study, tmp_path / "other")
    effects = json.loads((other / "analysis.json").read_text())["effects"]
    effects[0] |= {"value": -0.3, "low": -0.4, "high": -0.2, "shown": True}
    rewrite(other / "analysis.json", effects=effects, question="Does it help to forget?")
    paths = write_report([str(study), str(other)])
    text, markdown = Path(paths["report.html"]).read_text(), Path(paths["report.md"]).read_text()
    head = text[text.index('id="studies"') : text.index('id="answer-1"')]
    assert [head.count(row) for row in (QUESTION, "Does it help to forget?", "−40.0 to −20.0")] == [1, 1, 1]
    places = [float(place) for place in re.findall(r'class="dot" style="left:([\d.]+)%', head)]
    assert len(places) == 2
    assert 0 < places[1] < places[0] < 100
    assert markdown.index("| Does it help to forget? | count − base |") < markdown.index(f"# {QUESTION}")
    alone = write_report([str(study), str(study.parent / "tiny")])
    assert 'id="studies"' not in Path(alone["report.html"]).read_text()


def test_runs_that_are_reported_together_tell_their_leaks(study: Path, tmp_path: Path) -> None:
    """Would catch several runs on one page that keep silent about what each says by itself."""
    names = [str(shutil.copytree(study.parent / name, tmp_path / name)) for name in ("tiny", "count")]
    shutil.copy(study / "quality.json", tmp_path / "count" / "quality.json")
    (tmp_path / "tiny" / "overlap.json").write_text('["base learned task 007bbfb7"]')
    markdown = Path(write_report(names)["report.md"]).read_text()
    for leak in ("base learned task 007bbfb7", "training task 40853293 equals evaluation task 070dd51e"):
        assert markdown.count(leak) == 1


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    """Would catch an empty page where the user mistyped, and a traceback where a file is half copied."""
    folder = make_study(tmp_path, num_done=2)
    with pytest.raises(UserError, match="there is no such folder"):
        load(str(tmp_path / "quickstar"))
    with pytest.raises(UserError, match=r"looked for trials/.*config\.yaml.*did you mean .*/count\?"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="name the folder"):
        load_many([])
    (folder / "analysis.json").write_text('{"question": ')
    with pytest.raises(UserError, match=r"analysis\.json is damaged.*no JSON"):
        load(str(folder))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (
            "trials/trial-003/trial.json",
            {"overrides": {"seed": "$(id)"}},
            "overrides.seed: Input should be a valid integer; got '\\$\\(id\\)'",
        ),
        ("evaluate/count/result.json", {"held_out/strict": 10**400}, "held_out/strict is larger than any metric"),
        ("evaluate/count/answers.json", {"right_by": {"vote": [[1]]}}, "right_by.vote: Input should be a valid bool"),
    ],
)
def test_a_value_that_no_run_writes_is_named(file: str, changes: dict[str, object], said: str, tmp_path: Path) -> None:
    """Would catch a traceback from inside numpy or a template, far from the file that holds the value."""
    path = make_study(tmp_path) / file
    content = json.loads(path.read_text())
    (content[0] if isinstance(content, list) else content).update(changes)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{file} is damaged.*{said}"):
        write_report([str(tmp_path / "quickstart")])


def test_a_report_goes_without_what_its_data_were_not_asked(tmp_path: Path) -> None:
    """Would catch a page that ends with a traceback, or that denies an overlap which nobody looked for."""
    folder = make_study(tmp_path)
    (folder / "quality.json").write_text(json.dumps({"sources": {}}))
    assert "No task of the training mix" not in Path(write_report([str(folder)])["report.html"]).read_text()


def test_what_comes_from_files_is_escaped(tmp_path: Path) -> None:
    """Would catch a script in a task id, an error or a question that runs when the page is opened."""
    folder = make_study(tmp_path)
    rewrite(folder / "analysis.json", question=EVIL)
    rewrite(folder / "trials" / "trial-005" / "trial.json", error=EVIL, trial=EVIL)
    answers = folder / "evaluate" / "base" / "answers.json"
    answers.write_text(json.dumps([{**a, "set": EVIL, "task": EVIL} for a in json.loads(answers.read_text())]))
    rewrite(folder / "evaluate" / "base" / "result.json", **{f"{EVIL.replace('/', '')}/strict": 0.5})
    rewrite(folder / "run.json", git_commit=EVIL, arguments=[EVIL])
    html = Path(write_report([str(folder)])["report.html"]).read_text()
    assert Page(html).scripts == 1
    assert "alert(1)</script>" not in html
    assert "{{ 7 * 7 }}" in html
    markdown = (folder / "report.md").read_text()
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)\|[^\n]*script[^\n]*'\|", markdown), "a bar that would split a cell"


@given(grids, grids)
def test_drawing_shows_every_cell_and_marks_the_wrong_ones(grid: np.ndarray, truth: np.ndarray) -> None:
    """Would catch a transposed drawing, a run of cells cut short, a cross on a right cell."""
    drawing = gallery.draw(grid, truth)
    seen = np.full(grid.shape, 255)
    for color, path in drawing.paths:
        for x, y, cells in re.findall(r"M(\d+) (\d+)\.5h(\d+)", path):
            seen[int(y), int(x) : int(x) + int(cells)] = color
    assert (seen == grid).all()
    marked = {(int(y), int(x)) for x, y in re.findall(r"M(\d+)\.25 (\d+)\.25", drawing.crosses)}
    wrong = set(map(tuple, np.argwhere(grid != truth).tolist())) if grid.shape == truth.shape else set()
    assert marked == wrong


def test_gallery_groups_by_what_the_arms_made_of_an_output(study: Path) -> None:
    """Would catch a task called solved because one arm solved it, and a right second attempt that is not shown."""
    answers = load(str(study)).answers
    cards = gallery.make_cards(answers)
    for card in cards:
        rows = answers[(answers["set"] == card.set) & (answers["task"] == card.task)]
        right = rows["is_right"].tolist()
        assert {"solved": all(right), "differ": any(right) and not all(right)}.get(card.group, not any(right))
        for arm, is_right in zip(rows["arm"], right, strict=True):
            assert is_right == any(p.is_right for p in card.predictions if p.arm == arm)
        if card.group == "nearly":
            assert rows["cell_accuracy"].max() >= gallery.NEARLY
    assert {card.group for card in cards} == {"solved", "differ", "nearly", "failed"}


def test_charts_show_every_trial_and_equal_tokens(study: Path) -> None:
    """Would catch a trial that no chart shows, and longer schedules winning because they have seen more."""
    report = load(str(study))
    lr, epochs, start = effect_charts(report)
    num_measured = len(report.trials) - 1
    assert {len(chart.marks) for chart in (lr, epochs, start)} == {num_measured}
    assert list(lr.x_ticks.values()) == [f"{value:g}" for value in LRS]
    assert list(epochs.x_ticks.values()) == [str(value) for value in EPOCHS]
    chart = equal_tokens_chart(report)
    assert chart is not None
    assert chart[1] == 900 * 60
    assert len(chart[0].marks) == (report.trials["status"] == "done").sum()
    at_tokens = report.metrics[report.metrics["step"] == 60].set_index("trial")["eval/solved"]
    assert all(mark.title.endswith(percent(at_tokens[mark.trial])) for mark in chart[0].marks)


@pytest.mark.parametrize("values", [(1e-4, 3e-4, 1e-3, 2e-3, 1e-2, 3e-2), (1e-3, 1.1e-3, 1.2e-3, 1e-2)])
def test_labels_of_an_axis_do_not_touch(study: Path, values: tuple[float, ...]) -> None:
    """Would catch 0.0001 0.0002 0.0005 written over each other, and neighbouring learning rates too."""
    report = load(str(study))
    rates = [values[i % len(values)] for i in range(len(report.trials))]
    searched = replace(report, trials=report.trials.assign(**{"train.lr": rates}))
    parallel = parallel_chart(searched)
    assert parallel is not None
    across, (upwards,) = effect_charts(searched)[0].x_ticks, (ticks for _, name, ticks in parallel.axes if name == "lr")
    assert min(len(across), len(upwards)) >= 2
    assert all(b - a > 6.5 * (len(across[a]) + len(across[b])) / 2 for a, b in pairwise(across))
    assert all(a - b >= 12 for a, b in pairwise(upwards))


@given(st.floats(1e-6, 1e6), st.floats(1.05, 1e5), st.booleans())
def test_ticks_are_round_and_inside(low: float, factor: float, is_log: bool) -> None:
    """Would catch an axis without ticks, or with ticks outside of the picture."""
    scale = Scale(low, low * factor, 10.0, 110.0, is_log and factor > 10)
    ticks = scale.ticks()
    assert len(ticks) >= 2
    assert all(9.99 <= scale(tick) <= 110.01 for tick in ticks)
    if not scale.is_log:
        assert all(f"{step:.0e}"[0] in "125" for step in np.diff(ticks))


def test_numbers_are_written_with_care() -> None:
    """Would catch a NaN on the page, a lost sign, minutes without their zero."""
    assert [percent(0.125), percent(float("nan")), in_points(-0.0175), in_points(0.02)] == [
        "12.5 %",
        "–",
        "−1.8",
        "+2.0",
    ]
    assert [number(0.00214), number(12345), number(4_520_000), number(None)] == ["0.00214", "12,345", "4.52 M", "–"]
    assert [duration(48), duration(200), duration(7500)] == ["48 s", "3 min 20 s", "2 h 05 min"]


def test_report_needs_neither_ray_nor_torch() -> None:
    """Would catch an import that makes `arc-ray report` slow, or impossible on a laptop without them."""
    code = (
        "import sys, arc_ray.report; print({'ray', 'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_answer_is_short_and_its_warnings_stand_below(study: Path, tmp_path: Path) -> None:
    """Would catch a first sentence that nobody reads to its end, and a warning that is lost from the page."""
    folder = shutil.copytree(study, tmp_path / "study")
    analysis = json.loads((folder / "analysis.json").read_text())
    said = {
        "result": "count minus base: +4.0 points",
        "needed": "it takes 6 seeds",
        "warnings": ["the interval is rough"],
    }
    main = next(effect for effect in analysis["effects"] if effect["metric"] == analysis["metric"])
    main.update(said, sentence="; ".join([said["result"], said["needed"], *said["warnings"]]) + ".")
    rewrite(folder / "analysis.json", **analysis)
    assert sentences(load(str(folder))) == ["count minus base: +4.0 points; it takes 6 seeds."]
    words = " ".join(Page(Path(write_report([str(folder)])["report.html"]).read_text()).words)
    assert words.count("the interval is rough") == 1


def test_every_output_is_somewhere_in_the_table_of_losses(study: Path) -> None:
    """Would catch an output counted twice or not at all, and groups that are not the outputs of their arm."""
    report = load(str(study))
    table = tables.loss_table(report)
    assert set(table) == set(SETS)
    for name, rows in table.items():
        for row in rows:
            assert sum(share.value for share in row["shares"].values()) == pytest.approx(1)
        for arm in report.arms:
            found = report.answers[(report.answers["set"] == name) & (report.answers["arm"] == arm)]
            whole, *parts = [row for row in rows if row["arm"] == arm]
            assert (whole["group"], whole["of"]) == ("all", len(found))
            assert whole["shares"]["right"].value == pytest.approx(found["is_right"].mean())
            assert sum(row["of"] for row in parts if "sides" in row["group"]) == len(found)


def test_a_folder_that_tune_wrote_is_a_search(tmp_path: Path) -> None:
    """Would catch a report that needs our own folders, and a failed trial that Tune's folder hides."""
    folder, trials = tmp_path / "experiment", []
    for i, (lr, status) in enumerate([(0.1, "TERMINATED"), (0.2, "ERROR"), (0.3, "RUNNING")]):
        parameters = {"point": {"train.lr": lr, "start": "count"}} if i else {"point/train.lr": lr}
        about = {"trial_id": f"t{i}", "status": status, "relative_logdir": f"trial{i}"}
        trials.append([json.dumps({**about, "evaluated_params": parameters}), "{}"])
        (folder / f"trial{i}").mkdir(parents=True)
        lines = [
            {"training_iteration": k, "step": 10 * k, "eval/solved": 0.1 * k, "date": "x", "config": {}, "seconds": 2.0}
            for k in range(4 - i)
        ]
        (folder / f"trial{i}" / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "trial1" / "error.txt").write_text("Traceback\n  here\nValueError: too large\n")
    (folder / "experiment_state-1.json").write_text(json.dumps({"trial_data": trials}))
    report = load(str(folder))
    assert (report.kind, report.is_finished, report.varied) == ("tune", False, ["train.lr"])
    assert report.trials["status"].tolist() == ["done", "failed", "running"]
    assert report.trials["error"].tolist()[1] == "ValueError: too large"
    assert report.trials["eval/solved"].tolist() == pytest.approx([0.3, 0.2, 0.1])
    assert report.trials["steps"].tolist() == [30, 20, 10]
    assert "The best trial so far is t0" in (write_report([str(folder)]) and (folder / "report.md").read_text())
    (folder / "experiment_state-2.json").write_text("{}")
    with pytest.raises(UserError, match=r"experiment_state-2.json is damaged"):
        load(str(folder))


def test_the_page_says_which_arms_are_paired(tmp_path: Path) -> None:
    """Would catch arms that are called paired though their rows differ: the digests of their plans decide."""
    folder = make_study(tmp_path, arms=("base", "count", "mixed"))
    report = load(str(folder))
    chosen = tables.chosen_trials(report, tables.chosen_settings(report))
    assert pairing(report, chosen) is None, "plans were not copied along"
    for trial in report.trials.to_dict("records"):
        rows = f"{trial['arm'] == 'mixed'} {trial['seed']} {trial['train.epochs']}"
        (folder / "trials" / trial["trial"] / "plan.parquet").write_bytes(rows.encode())
    assert (
        "With each seed, base and count were trained on the same rows in the same order; mixed on rows of its own."
        in (write_report([str(folder)]) and (folder / "report.html").read_text())
    )
    one = next(iter(folder.glob("trials/*")))
    (one / "plan.parquet").write_bytes(b"other")
    report = load(str(folder))
    assert report.trials.set_index("trial")["plan_digest"].nunique() == 13
