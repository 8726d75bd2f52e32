"""The base of every part of the config: frozen, no unknown keys, a sentence under each field is its help."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the config tree."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, coerce_numbers_to_str=False
    )
