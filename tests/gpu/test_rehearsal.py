"""The commands for GPU machines, in small, on the CPU: what cannot be tried there again for an hour must not fail by a typo."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_a_kit_unpacks_to_what_its_wheels_hold(tmp_path: Path) -> None:
    """A kit that lost a file, or kept a wheel's scripts, would fail on a machine where nothing can be fetched."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    version = next(
        line.split("==")[1]
        for line in (HERE.parents[1] / "constraints.txt").read_text().splitlines()
        if "colorlog==" in line
    )
    with zipfile.ZipFile(wheels / f"colorlog-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr("colorlog/__init__.py", "WHAT = 'a package'\n")
        archive.writestr(f"colorlog-{version}.data/purelib/colorlog_more.py", "MORE = 1\n")
        archive.writestr(f"colorlog-{version}.data/scripts/tool", "#!python\n")
        archive.writestr(
            f"colorlog-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: colorlog\nVersion: {version}\n"
        )
    packages = tmp_path / "packages.txt"
    packages.write_text("# one\ncolorlog\n")
    kit, site = tmp_path / "kit", tmp_path / "site"
    kit_py = [sys.executable, str(HERE / "kit.py")]
    make = [*kit_py, "make", "--out", kit, "--packages", packages, "--wheels", wheels, "--python"]
    subprocess.run([*make, "3.9"], check=True)
    refused = subprocess.run([*kit_py, "unpack", "--kit", kit, "--site", site], capture_output=True, text=True)
    assert "is for Python 3.9, and this is 3." in refused.stderr
    subprocess.run([*make, f"{sys.version_info.major}.{sys.version_info.minor}"], check=True)
    said = subprocess.run([*kit_py, "unpack", "--kit", kit, "--site", site], check=True, capture_output=True, text=True)
    assert Path(said.stdout.strip()) == site
    found = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    own = f"arc_ray-{importlib.metadata.version('arc_ray')}.dist-info/METADATA"
    packed = {"colorlog/__init__.py", "colorlog_more.py", f"colorlog-{version}.dist-info/METADATA"}
    assert found == {*packed, own, ".complete"}
    part = kit / "part-0.tar.xz"
    part.write_bytes(part.read_bytes()[:-1])
    damaged = subprocess.run(
        [*kit_py, "unpack", "--kit", kit, "--site", tmp_path / "other"], capture_output=True, text=True
    )
    assert damaged.returncode != 0
    assert "part-0.tar.xz is damaged" in damaged.stderr


def test_packages_of_the_kit_are_pinned() -> None:
    """A package without a version in constraints.txt would end `make gpu-kit` with a KeyError."""
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (HERE.parents[1] / "constraints.txt").read_text().splitlines()
    }
    named = [
        line.lower().replace("_", "-")
        for line in (HERE / "packages.txt").read_text().split("\n")
        if line and line[0] != "#"
    ]
    assert set(named) <= pinned


@pytest.mark.slow
def test_all_stages_run_in_small_without_a_gpu(tmp_path: Path) -> None:
    """A stage that fails by a changed name would be seen only on a GPU machine, in minutes that are lent."""
    command = [sys.executable, str(HERE / "run.py"), "--cpu", "--out", str(tmp_path), "--seconds", "1500"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    records = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    ended = {record["name"]: record["status"] for record in records if record["kind"] == "stage"}
    assert len(ended) >= 14
    assert set(ended.values()) == {"ok"}, done.stdout + done.stderr
    killed = next(record for record in records if record["kind"] == "killed worker")
    assert (killed["killed"], killed["rc"], killed["every_step"]) == (1, 0, True)
    arms = [record for record in records if record["kind"] == "train"]
    assert all("failed" not in arm for arm in arms), arms
    alike = re.compile(r"default|train\.micro_rows=\d( train\.zero_stage=\d)?")
    arms = [arm for arm in arms if arm["shape"] == "135m" and alike.fullmatch(arm["arm"])]
    assert len(arms) == 5
    # The same rows in other numbers at once have the same losses but for bfloat16's rounding.
    assert all(abs(a - b) < 0.02 for arm in arms[1:] for a, b in zip(arm["losses"], arms[0]["losses"], strict=True))
    means = [record["loss"] for record in records if record["kind"] == "loss"][-4:]
    assert len(means) == 4
    assert all(abs(a - b) < 0.02 for a, b in zip(means[:2], means[2:], strict=True))
