"""The studies in configs/studies/: each asks its question, and can be planned as it is and with a real model's keys."""

from pathlib import Path

import pytest
import yaml

from arc_ray.cli.check import describe_command
from arc_ray.cli.console import Terminal
from arc_ray.config import Config, load_config, parse_assignments, value_name
from arc_ray.study.comparing import trainings
from arc_ray.study.evaluating import arm_config
from arc_ray.study.needs import Needs

FOLDER = Path(__file__).parents[2] / "configs" / "studies"
STUDIES = sorted(FOLDER.glob("*.yaml"))
REAL = (
    "name=real",
    "model.base=some/model",
    "tune.space={train.lr: {grid: [1.0e-3, 4.0e-4]}}",
    "train.row_tokens=4096",
)


def test_there_is_a_study_for_every_question() -> None:
    assert [path.stem for path in STUDIES] == [
        *(
            "colors",
            "constrain",
            "count",
            "encoder",
            "lookahead",
            "n_minus_1",
            "optimizer",
            "overfit",
            "positions",
            "samples",
            "selection",
            "shape",
        ),
        *("split", "tasks_or_examples", "threshold", "traversal", "ttt", "ttt_steps", "views"),
    ]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_ready_study_asks_in_its_first_line_and_can_be_planned(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a study that a changed key has broken, one without its question, and one with arms that do not differ."""
    assert "?" in path.read_text().splitlines()[0]
    config = load_config(path, {"storage": str(tmp_path)})
    describe_command("study", config, None, Terminal())
    assert config.question.endswith("?")
    assert config.question.split()[0] in capsys.readouterr().out
    assert len(config.study.all_seeds) >= 3
    names = {"name", "start", "seed"}
    assert len(Needs(config, "study").variants) % len({*trainings(config).values()}) == 0
    arms = {
        value_name(arm): {
            k: v for k, v in yaml.safe_load(yaml.safe_dump(c.model_dump(mode="json"))).items() if k not in names
        }
        for arm in config.study.arms
        for c in [arm_config(config, arm)]
    }
    assert len({repr(tree) for tree in arms.values()}) == len(config.study.arms)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_ready_study_takes_a_real_model_by_keys_alone(path: Path, tmp_path: Path) -> None:
    """Catches a start that ignores the model given on the command line."""
    words = [*REAL, f"storage={tmp_path}"]
    if path.stem in ("shape", "encoder", "traversal", "positions"):
        words.append("starts=" + next(w for w in path.read_text().splitlines() if "starts='" in w).split("'")[1])
    for variant in Needs(load_config(path, parse_assignments(words)), "study").variants:
        assert variant.model.base == "some/model"
        assert (variant.scaling.use_gpu, variant.model.dtype) == ("auto", "auto")


def test_studies_share_the_tiny_model(tmp_path: Path) -> None:
    """Catches a study whose own keys leak into the tiny model: in a shared folder it would be refused or made again."""
    made: dict[str, tuple[str, Config]] = {}
    for path in STUDIES:
        config = load_config(path, {"storage": str(tmp_path)})
        for run in Needs(config, "study").runs:
            other, known = made.setdefault(run.name, (path.stem, run))
            assert known == run, f"{run.name} of {path.stem} is not that of {other}"
    assert len(made["study-tiny"]) == 2
