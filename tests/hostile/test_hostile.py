"""Bad inputs by chance: exit code 0 or 2, one message that names the place, no trace, no hang, nothing finished changed.

`python tests/hostile/inputs.py --number 1000` is the whole campaign; here are the first seeds of it.
"""

from collections.abc import Iterator

import pytest
from inputs import ARGUMENTS, Campaign
from kinds import KINDS

CHEAP = (
    "folder",
    "kaggle",
    "dump",
    "lines",
    "rows",
    "submission",
    "results",
    "dataset",
    "owner",
    "trials",
    "predictions",
)
"""Kinds of which an input takes some hundredths of a second."""


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else names of models would be asked for
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))  # a word may be a path
        yield Campaign(tmp_path_factory.mktemp("hostile"))


def shown(campaign: Campaign, kind: str, seeds: range) -> list[str]:
    found = campaign.run(kind, seeds)
    return [f"{f.kind} {f.seed}: {f.mutation}: {f.place}: {f.outcome.err[:300]}" for f in found]


@pytest.mark.parametrize("kind", [*KINDS, *ARGUMENTS])
def test_hostile_inputs_end_in_one_message(campaign: Campaign, kind: str) -> None:
    """Catches what reads a broken file, or is given a strange argument, and ends in a traceback or says no place."""
    assert shown(campaign, kind, range(8 if kind in CHEAP else 2)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, *ARGUMENTS])
def test_a_hundred_of_each_kind(campaign: Campaign, kind: str) -> None:
    """Catches the same, in the inputs that follow."""
    assert shown(campaign, kind, range(8 if kind in CHEAP else 2, 100)) == []
