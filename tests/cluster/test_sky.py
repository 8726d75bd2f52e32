"""`cluster/sky.yaml` read by SkyPilot itself, which needs an environment of its own (it pins what Ray needs newer).

Made once: python -m venv FOLDER && FOLDER/bin/pip install 'skypilot[aws,gcp,kubernetes,lambda]'
Used by:   ARC_RAY_SKY=FOLDER/bin/python pytest -m slow tests/cluster/test_sky.py
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "cluster" / "sky.yaml"
PYTHON = os.environ.get("ARC_RAY_SKY")

READ = """
import json, sys, sky
task = sky.Task.from_yaml(sys.argv[1])
refused = []
for r in task.resources:
    wants = {sky.clouds.CloudImplementationFeatures.SPOT_INSTANCE} if r.use_spot else set()
    wants |= {sky.clouds.CloudImplementationFeatures.MULTI_NODE} if task.num_nodes > 1 else set()
    cannot = r.cloud._unsupported_features_for_resources(r) if r.cloud else {}
    refused += [f"{r.cloud}: {feature}" for feature in wants & set(cannot)]
print(json.dumps({"clouds": sorted({str(r.cloud) for r in task.resources}), "nodes": task.num_nodes, "refused": refused}))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="ARC_RAY_SKY names no Python with SkyPilot (see this file's first lines)"),
]


def read(file: Path, home: Path) -> subprocess.CompletedProcess[str]:
    command = [str(PYTHON), "-c", READ, str(file)]
    environment = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "PYTHONPATH": ""}
    return subprocess.run(command, capture_output=True, text=True, cwd=FILE.parents[1], env=environment, timeout=170)


def test_skypilot_reads_the_file_and_its_clouds_can_do_what_it_asks(tmp_path: Path) -> None:
    """Catches unknown keys and clouds, and what SkyPilot finds out only at the launch: spot on Lambda, two nodes on Vast."""
    done = read(FILE, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"clouds": ["AWS", "GCP", "Kubernetes", "Lambda"], "nodes": 2, "refused": []}


def test_skypilot_would_refuse_a_misspelt_key(tmp_path: Path) -> None:
    """Guards the test above."""
    broken = tmp_path / "sky.yaml"
    broken.write_text(FILE.read_text().replace("num_nodes:", "num_node:").replace("workdir: .", ""))
    assert read(broken, tmp_path).returncode != 0
