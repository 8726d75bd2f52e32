"""The config tree. Its dotted keys are the same in YAML, on the command line, in `starts`, `runs` and in Tune's space."""

from arc_ray.config.loading import (
    Overrides,
    config_from,
    differing_keys,
    load_config,
    parse_assignments,
    to_yaml,
    with_overrides,
)
from arc_ray.config.section import value_name
from arc_ray.config.tree import Config, types_of

__all__ = [
    "Config",
    "Overrides",
    "config_from",
    "differing_keys",
    "load_config",
    "parse_assignments",
    "to_yaml",
    "types_of",
    "value_name",
    "with_overrides",
]
