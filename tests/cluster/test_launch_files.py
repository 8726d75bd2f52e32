"""The launch files, without starting anything: schemas, versions, traps that cost others a day, no secret and no price."""

import copy
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from commands import commands_in, program_of
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"
RAY_FILES = ("aws", "gcp", "lambda", "vast", "onprem")
ALL_FILES = (*RAY_FILES, "kuberay", "sky")
PROVIDERS_WITH_BROKEN_V2 = ("gcp", "local")


def launch(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def text(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text()


def header(name: str) -> str:
    return "\n".join(line for line in text(name).split("\n\n")[0].splitlines() if line.startswith("#"))


def starts(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Every `ray start` of a launch file, as (head or worker, command)."""
    return [
        (kind, command)
        for kind in ("head", "worker")
        for command in config[f"{kind}_start_ray_commands"]
        if "ray start" in command
    ]


@pytest.mark.parametrize("name", RAY_FILES)
def test_ray_accepts_the_file(name: str) -> None:
    """Catches unknown keys, wrong types, a head type that is not there and workers beyond the total."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(launch(name)))


@pytest.mark.parametrize("name", RAY_FILES)
def test_ray_would_refuse_a_misspelt_key(name: str) -> None:
    """Guards the test above: a schema that lets everything through would pass it."""
    from jsonschema.exceptions import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(launch(name))
    config["max_worker"] = 3
    with pytest.raises(ValidationError):
        validate_config(config)


@pytest.mark.parametrize("name", ALL_FILES)
def test_versions_are_the_project_s(name: str) -> None:
    """Catches a cluster that runs another Ray than the laptop: it fails on connection, or worse, later."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = next(d for d in project["dependencies"] if d.startswith("ray["))
    version = wanted.split("==")[1]
    content = text(name) + (FOLDER / "Dockerfile").read_text()
    found = set(re.findall(r"\b2\.\d+\.\d+\b", content))
    assert found == {version}
    if name != "kuberay":
        assert f"'{wanted}'" in text(name)
    assert set(re.findall(r"py3\d+", content)) <= {"py311"}


def test_pinned_versions_suit_all_that_is_installed() -> None:
    """Catches a pin that an extra's packages do not allow: pip then searches for hours, on machines that cost.

    What was installed without the pins, and differs from them, is not asked.
    """
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    refused = [
        f"{distribution.name} needs {needed}, pinned is {pins[canonicalize_name(needed.name)]}"
        for distribution in importlib.metadata.distributions()
        if pins.get(canonicalize_name(distribution.name), distribution.version) == distribution.version
        for needed in map(Requirement, distribution.requires or [])
        if canonicalize_name(needed.name) in pins
        and (needed.marker is None or needed.marker.evaluate({"extra": ""}))
        and not needed.specifier.contains(pins[canonicalize_name(needed.name)], prereleases=True)
    ]
    assert refused == []


@pytest.mark.parametrize("name", ALL_FILES)
def test_header_says_what_it_starts_needs_and_leaves(name: str) -> None:
    """Catches a file that a newcomer cannot use without reading another one."""
    said = header(name)
    for word in ("Needs:", "Start:", "Stop:", "Leaves:"):
        assert f"# {word}" in said, word
    assert "arc-ray study" in text(name)


@pytest.mark.parametrize("name", RAY_FILES)
def test_every_start_says_its_authentication_and_keeps_the_dashboard_at_home(name: str) -> None:
    """Catches a cluster that anybody in its network commands, nodes without the token, a dashboard open to all, and a head
    that tells Ray's makers of its use."""
    config = launch(name)
    assert starts(config)
    for kind, command in starts(config):
        assert len(re.findall(r"RAY_AUTH_MODE=token ray start", command)) == 1, command
        if kind == "head":
            assert "--dashboard-host=127.0.0.1" in command
            assert "--disable-usage-stats" in command
            assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in command
    assert "RAY_AUTH_MODE=disabled" not in text(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["setup_commands"][0].startswith("chmod 600 ~/.ray/auth_token; ")


def test_other_launchers_secure_their_ray_too() -> None:
    """Catches a Ray of SkyPilot's or KubeRay's that takes work from anybody in its network."""
    sky, job = launch("sky"), next(d for d in yaml.safe_load_all(text("kuberay")) if d["kind"] == "RayJob")
    assert "RAY_AUTH_MODE=token" in sky["run"]
    assert sky["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    [head] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert "RAY_USAGE_STATS_ENABLED=0" in sky["run"]
    assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in head["env"]


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
@pytest.mark.parametrize("name", RAY_FILES)
def test_code_is_sent_and_runs_are_fetched(name: str, tmp_path: Path) -> None:
    """Catches an exclusion of `runs`: it keeps the package's own folder of this name from nodes, and fetches nothing."""
    from ray.autoscaler._private.command_runner import SSHCommandRunner

    options = {key: launch(name)[key] for key in ("rsync_exclude", "rsync_filter")}
    filters = SSHCommandRunner._create_rsync_filter_args(cast(Any, None), options)

    for file in ("laptop/arc_ray/runs/code.py", "laptop/runs/old.html", "laptop/.venv/python", "node/runs/new.html"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    shutil.copy(ROOT / ".gitignore", tmp_path / "laptop")

    def arrived(source: str, target: str) -> set[str]:
        subprocess.run(["rsync", "-a", *filters, source, target], cwd=tmp_path, check=True)
        return {path.relative_to(tmp_path / target).as_posix() for path in (tmp_path / target).rglob("*.*")}

    assert arrived("laptop/", "sent") == {"arc_ray/runs/code.py", ".gitignore"}
    assert arrived("node/runs", "fetched") == {"runs/new.html"}


@pytest.mark.parametrize("name", RAY_FILES)
def test_autoscaler_that_works_is_chosen(name: str) -> None:
    """Catches autoscaler v2 where it loses nodes in Ray 2.60: on-premise and on Google Cloud."""
    config = launch(name)
    head = next(command for kind, command in starts(config) if kind == "head")
    is_v1 = "RAY_enable_autoscaler_v2=0 " in head
    assert is_v1 == (config["provider"]["type"] in PROVIDERS_WITH_BROKEN_V2)


@pytest.mark.parametrize("name", ["aws", "gcp", "lambda"])
def test_nothing_is_left_to_cost(name: str) -> None:
    """Catches stopped instances that keep their disks, idle workers that stay, and GPUs that are started at once."""
    config = launch(name)
    assert 0 < config["idle_timeout_minutes"] <= 15
    if name != "lambda":  # which can only end instances
        assert config["provider"]["cache_stopped_nodes"] is False
    workers = {k: v for k, v in config["available_node_types"].items() if k != config["head_node_type"]}
    assert all(kind["min_workers"] == 0 and 0 < kind["max_workers"] <= 8 for kind in workers.values())
    assert config["max_workers"] <= 16


def test_gpu_nodes_are_spot_and_data_nodes_and_heads_are_not() -> None:
    """Catches GPUs at the full price, and a study that loses its drivers with a spot machine."""
    for name, kind in launch("aws")["available_node_types"].items():
        market = kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        assert market == ("spot" if kind["labels"]["arc-ray-role"] == "train" else None), name
    for name, kind in launch("gcp")["available_node_types"].items():
        model = kind["node_config"].get("scheduling", {}).get("provisioningModel")
        assert model == ("SPOT" if kind["labels"]["arc-ray-role"] == "train" else None), name


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_every_node_has_a_role_and_the_watcher_stands_on_workers(name: str) -> None:
    """Catches data work on GPU nodes, work on the head, and spot notices that nobody reads."""
    config = launch(name)
    roles = {k: v["labels"]["arc-ray-role"] for k, v in config["available_node_types"].items()}
    assert set(roles.values()) == {"head", "data", "train"}
    assert roles[config["head_node_type"]] == "head"
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
    watcher = config["worker_start_ray_commands"][-1]
    assert f"python -m arc_ray.cluster.spot {name} --address $RAY_HEAD_IP:6379" in watcher
    assert "setsid -f flock -n" in watcher, "ssh would wait for it, or a second one would start at every set-up"


def test_aws_names_its_image_and_its_role() -> None:
    """Catches Ray's own default image (Ubuntu 18.04) and workers that cannot read the bucket."""
    for kind in launch("aws")["available_node_types"].values():
        assert kind["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/")
        assert kind["node_config"]["IamInstanceProfile"] == {"Name": "arc-ray"}


def test_gcp_says_what_each_machine_has() -> None:
    """Catches GPU types that the autoscaler never starts, because Ray finds out nothing about them itself."""
    gpus = {"a2-highgpu-1g": 1, "a2-highgpu-2g": 2, "a2-ultragpu-1g": 1, "a3-highgpu-8g": 8}
    found = {}
    for kind in launch("gcp")["available_node_types"].values():
        if kind["labels"]["arc-ray-role"] != "train":
            continue
        found[kind["node_config"]["machineType"]] = kind["resources"]["GPU"]
        assert any(key.startswith("accelerator_type:") for key in kind["resources"])
        assert kind["node_config"]["scheduling"]["onHostMaintenance"] == "TERMINATE"
    assert found == gpus


def test_kuberay_keeps_the_operator_s_rules() -> None:
    """Catches what the operator refuses though the schema allows it (KubeRay 1.7.0, validation.go)."""
    job = next(d for d in yaml.safe_load_all(text("kuberay")) if d["kind"] == "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["submissionMode"] in {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
    assert spec["shutdownAfterJobFinishes"], "ttlSecondsAfterFinished needs it, and pods would stay"
    assert not {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never", "autoscaler v2"
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert "resources" not in group["rayStartParams"] or "resources" not in group
    assert groups[0]["rayStartParams"]["num-cpus"] == "0"
    assert len(job["metadata"]["name"]) <= 47
    volumes = [{v["name"] for v in g["template"]["spec"]["volumes"]} for g in groups]
    assert all("runs" in names for names in volumes), "every pod must see the storage"


def test_ray_s_autoscaler_reads_roles_and_gpus_from_the_rayjob() -> None:
    """Catches roles that the autoscaler does not see (it ignores labels in rayStartParams): data tasks would wait for ever."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    job = next(d for d in yaml.safe_load_all(text("kuberay")) if d["kind"] == "RayJob")
    resource = {"metadata": {"name": "arc", "namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}
    types = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    head, data, train = types.values()
    assert [kind["labels"].get("arc-ray-role") for kind in (head, data, train)] == ["head", "data", "train"]
    assert [kind["resources"].get("CPU") for kind in (head, data, train)] == [0, 16, 96]
    assert [kind["resources"].get("GPU", 0) for kind in (head, data, train)] == [0, 0, 8]


@pytest.mark.parametrize("path", [*sorted(FOLDER.iterdir())], ids=lambda path: path.name)
def test_no_secret_no_price_no_account(path: Path) -> None:
    """Catches a key, an account or a price that was left in while trying things out."""
    content = path.read_text()
    patterns = {
        "AWS key": r"\bA(?:KIA|SIA)[0-9A-Z]{16}\b",
        "private key": "-----BEGIN",
        "token": r"\b[0-9a-f]{32,}\b",
        "password": r"(?i)(?:password|secret|api_key)\s*[:=]\s*(?!\.\.\.)\S",
        "account": r"\b\d{12}\b",
        "price": r"(?i)[$€]\s?\d|\bUSD\b|\bper hour\b|\d\s?/\s?h\b",
    }
    assert [name for name, pattern in patterns.items() if re.search(pattern, content)] == []


@pytest.mark.parametrize(
    "name", ["AWS", "Google Cloud", "Lambda Cloud", "Vast.ai", "Your own machines", "Kubernetes", "SkyPilot"]
)
def test_each_place_takes_at_most_six_commands(name: str) -> None:
    """Catches instructions that grow."""
    section = (FOLDER / "README.md").read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    commands = [line for line in section.splitlines() if line.startswith("    ")]
    assert 1 < len(commands) <= 6


def documented_commands() -> list[str]:
    """Every `ray ...` and `arc-ray ...` command in the files' headers and in the README without a word to fill in."""
    documents = [FOLDER / "README.md", *(FOLDER / f"{name}.yaml" for name in ALL_FILES)]
    found = {command.text for document in documents for command in commands_in(document)}
    return sorted(c for c in found if program_of(c) in ("ray", "arc-ray") and not re.search(r"FILE|CONFIG|\.\.\.", c))


@pytest.mark.parametrize("command", documented_commands())
def test_documented_commands_exist(command: str) -> None:
    """Catches an option that does not exist, a config that was renamed, and a file that is not there."""
    import typer
    from ray.scripts.scripts import cli

    from arc_ray.cli.looking import app

    def parse(group: Any, words: list[str]) -> None:
        while hasattr(
            group, "resolve_command"
        ):  # Typer has a copy of click of its own, so there is no class to ask for
            name, group, words = group.resolve_command(group.context_class(group), words)
            assert group is not None, name
        assert not [w for w in words if w.startswith("-") and w.split("=")[0] not in options_of(group)], command
        for word in words:
            if word.endswith(".yaml"):
                assert (ROOT / word).exists(), word

    program, *words = shlex.split(command.split(" (")[0])
    if "--" in words:
        inner = words[words.index("--") + 1 :]
        words = words[: words.index("--")]
        assert inner[0] == "arc-ray"
        parse(typer.main.get_command(app), inner[1:])
    parse(cli if program == "ray" else typer.main.get_command(app), words)


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def test_documented_commands_are_found() -> None:
    """Guards the test above: no command found would be no test."""
    commands = documented_commands()
    assert len(commands) >= 12
    assert {c.split()[1] for c in commands} >= {"up", "down", "dashboard", "job", "rsync-down", "get-auth-token"}


# Where the providers' own descriptions are installed (pip install '.[cluster-tests]'), node_config is held against them.


def test_aws_node_config_is_what_ec2_understands() -> None:
    """Catches what Ray does not look into: unknown keys, wrong types, instance types and markets that do not exist."""
    session = pytest.importorskip("botocore.session", reason="botocore is not installed: pip install '.[aws]'")
    shape = session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, kind in launch("aws")["available_node_types"].items():
        assert boto_faults(shape, kind["node_config"]) == [], name
    broken = {"InstanceType": "p5.47xlarge", "InstanceMarketOptions": {"MarketType": "spott"}, "BlockDeviceMapping": []}
    assert len(boto_faults(shape, broken)) == 3


def boto_faults(shape: Any, value: Any, path: str = "") -> list[str]:
    """Compare a value with a shape of botocore's, enums too (botocore itself checks none)."""
    if shape.type_name == "structure":
        unknown = [f"{path}/{key}: unknown" for key in value if key not in shape.members]
        return unknown + [
            f for k, v in value.items() if k in shape.members for f in boto_faults(shape.members[k], v, f"{path}/{k}")
        ]
    if shape.type_name == "list":
        return [f for i, v in enumerate(value) for f in boto_faults(shape.member, v, f"{path}/{i}")]
    kinds = {"string": str, "integer": int, "boolean": bool, "long": int, "timestamp": object}
    if not isinstance(value, kinds[shape.type_name]):
        return [f"{path}: {value!r} is no {shape.type_name}"]
    return [f"{path}: {value!r}"] if getattr(shape, "enum", None) and value not in shape.enum else []


def test_gcp_node_config_is_what_compute_engine_understands() -> None:
    """Catches unknown fields, a list where an object belongs, and words that Google does not know."""
    pytest.importorskip("googleapiclient", reason="Google's discovery document is not installed: pip install '.[gcp]'")
    from google_schema import faults

    for name, kind in launch("gcp")["available_node_types"].items():
        assert faults(kind["node_config"]) == [], name
    broken = copy.deepcopy(launch("gcp")["available_node_types"]["a3"]["node_config"])
    broken["scheduling"] = {"provisioningModel": "SPOTT"}
    broken["disk"] = []
    assert len(faults(broken)) == 2


def crd_folder() -> Path | None:
    """KubeRay's resource definitions: third-party data that stands beside the repository, where it does."""
    places = [parent / "shared" / "data" / "kuberay-v1.7.0" for parent in ROOT.parents]
    return next((place for place in places if place.exists()), None)


def test_kuberay_fits_the_resource_definition() -> None:
    """Catches misspelt keys (which Kubernetes drops silently), numbers where words belong, and the reverse."""
    folder = crd_folder()
    if folder is None:
        pytest.skip("KubeRay's resource definitions (shared/data) are not here")
    import jsonschema

    definition = yaml.load((folder / "ray.io_rayjobs.yaml").read_text(), Loader=yaml.CSafeLoader)  # a megabyte
    version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    validator = jsonschema.Draft7Validator(schema)
    job = next(d for d in yaml.safe_load_all(text("kuberay")) if d["kind"] == "RayJob")
    assert [error.message for error in validator.iter_errors(job)] == []
    for spoil in (
        lambda b: b["spec"].update(shutdownAfterJobFinish=True),
        lambda b: b["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas="0"),
        lambda b: b["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"].update(toleration=[]),
    ):
        broken = copy.deepcopy(job)
        spoil(broken)
        assert list(validator.iter_errors(broken))


def strict(schema: Any) -> Any:
    """Make a Kubernetes schema refuse keys it does not know, and drop what JSON schema does not know."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {k: strict(v) for k, v in schema.items() if not k.startswith("x-kubernetes") and k != "description"}
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    is_open = schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and "properties" in schema and not is_open:
        out.setdefault("additionalProperties", False)
    return out


def test_kubernetes_accepts_the_pods_and_the_volume() -> None:
    """Catches pod keys that Kubernetes itself does not know."""
    validate = pytest.importorskip("kubernetes_validate", reason="pip install '.[cluster-tests]'").validate
    for document in yaml.safe_load_all(text("kuberay")):
        if document["kind"] != "RayJob":
            validate(document, "1.32", strict=True)
            continue
        cluster = document["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
            validate(pod, "1.32", strict=True)
