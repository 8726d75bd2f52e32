"""Augmentations: frozen values that transform grids, can be undone, and have readable names."""

from arc_ray.augment.augmentation import Augmentation, parse_augmentation
from arc_ray.augment.one_sided import OneSided, Side
from arc_ray.augment.symmetric import NUM_SYMMETRIES, SAME_COLORS, cell_order, swaps_sides, turn, turn_back

__all__ = [
    "NUM_SYMMETRIES",
    "SAME_COLORS",
    "Augmentation",
    "OneSided",
    "Side",
    "cell_order",
    "parse_augmentation",
    "swaps_sides",
    "turn",
    "turn_back",
]
