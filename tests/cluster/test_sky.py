"""`cluster/sky.yaml` read by SkyPilot itself, which needs an environment of its own (it pins what Ray needs newer).

Made once: python -m venv FOLDER && FOLDER/bin/pip install 'skypilot[aws,gcp,kubernetes,lambda]'
Used by:   ARC_RAY_SKY=FOLDER/bin/python pytest -m 'slow or cluster' tests/cluster/test_sky.py

What the file runs on its nodes needs of SkyPilot only the scripts that it puts there.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from builders import smollm_like_tokenizer
from lab import laboratory, missing
from places import PIP, Laptop, address
from transformers import AutoModelForCausalLM, LlamaConfig

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

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="ARC_RAY_SKY names no Python with SkyPilot (see this file's first lines)"
)


def read(file: Path, home: Path) -> subprocess.CompletedProcess[str]:
    command = [str(PYTHON), "-c", READ, str(file)]
    environment = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "PYTHONPATH": ""}
    return subprocess.run(command, capture_output=True, text=True, cwd=FILE.parents[1], env=environment, timeout=170)


@pytest.mark.slow
def test_skypilot_reads_the_file_and_its_clouds_can_do_what_it_asks(tmp_path: Path) -> None:
    """Catches unknown keys and clouds, and what SkyPilot finds out only at the launch: spot on Lambda, two nodes on Vast."""
    done = read(FILE, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"clouds": ["AWS", "GCP", "Kubernetes", "Lambda"], "nodes": 2, "refused": []}


@pytest.mark.slow
def test_skypilot_would_refuse_a_misspelt_key(tmp_path: Path) -> None:
    """Guards the test above."""
    broken = tmp_path / "sky.yaml"
    broken.write_text(FILE.read_text().replace("num_nodes:", "num_node:").replace("workdir: .", ""))
    assert read(broken, tmp_path).returncode != 0


@pytest.mark.cluster
@pytest.mark.skipif(bool(missing()), reason=missing() or "possible here")
def test_what_it_runs_on_its_nodes() -> None:
    """Catches a study that finds no cluster, or a cluster of one node, where SkyPilot's script has made one of two."""
    find = "import sky_templates; print(sky_templates.__path__[0])"
    scripts = subprocess.run([str(PYTHON), "-c", find], capture_output=True, text=True, check=True).stdout.strip()
    task = yaml.safe_load(FILE.read_text())
    with laboratory() as lab:
        laptop = Laptop(lab, str(lab.shared / "runs"))
        tiny_smollm2(lab.shared / "runs" / "models" / "smollm2")
        lab.run("ray", "get-auth-token", "--generate")
        for number in (11, 12):
            lab.boot(number)
            home = lab.folder / f"host{number}" / "root"
            shutil.copytree(scripts, home / "sky_templates")
            shutil.copytree(lab.home / ".ray", home / ".ray")
            (home / "arc_ray_venv").symlink_to(sys.prefix)
            (home / ".local" / "bin").mkdir(parents=True)
            (home / ".local" / "bin" / "uv").symlink_to("/bin/true")  # there is no registry; Ray is installed
        addresses = f"{address(11)}\n{address(12)}"
        known = {**PIP, "SKYPILOT_NODE_IPS": addresses, "SKYPILOT_NUM_NODES": 2, "SKYPILOT_NUM_GPUS_PER_NODE": 0}
        exports = "".join(f"export {key}='{value}'\n" for key, value in known.items())
        commands = f"{task['setup']}\nexport PATH=$HOME/.local/bin:$PATH\n{laptop.filled(task['run'])}"
        script = f"set -e; cd {lab.checkout}\n{exports}{commands}"

        def on_node(rank: int) -> str:
            return lab.inside(11 + rank, f"export SKYPILOT_NODE_RANK={rank}\n{script}", 1500).stdout

        with ThreadPoolExecutor(2) as pool:
            told, _ = pool.map(on_node, (0, 1))
        assert f"Report: {laptop.storage}/smollm2/report.html" in told
        assert lab.ray_processes(12) != []


def tiny_smollm2(folder: Path) -> None:
    """Put a tiny model in the place of SmolLM2: what its study makes of it is seen on other places."""
    tokenizer = smollm_like_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    about = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, num_key_value_heads=2, **sizes, **ends)
    AutoModelForCausalLM.from_config(about).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
