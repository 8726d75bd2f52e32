"""All randomness comes from here: keyed, stateless, the same on every worker and in every order.

Two kinds. `rng_for` and `python_random_for` give a generator for one key (data generation, model initialisation).
`view_keys` and `counter_bits` draw for a million views at once: a counter-based generator whose state *is* the key,
because making a million generator objects would cost more than making the plan.
"""

import hashlib
import random
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def digest64(*key: object) -> int:
    """Digest a key of numbers and strings to 64 bits; unlike `hash`, the same in every process and version."""
    return int.from_bytes(_digest(key, 8), "little")


def rng_for(*key: object) -> np.random.Generator:
    """Make the numpy generator that belongs to a key, such as (seed, "counting", index)."""
    return np.random.default_rng(np.frombuffer(_digest(key, 32), dtype=np.uint64))


def python_random_for(*key: object) -> random.Random:
    """Make the `random.Random` that belongs to a key; RE-ARC's generators draw from this kind."""
    return random.Random(int.from_bytes(_digest(key, 32), "little"))  # noqa: S311 - no secret is drawn


def view_keys(seed: int, purpose: str, columns: Iterable[npt.NDArray[np.generic] | int]) -> npt.NDArray[np.uint64]:
    """Mix integer columns (source, task, copy, epoch) into one 64-bit key a view.

    Columns broadcast against each other; the result is uint64 of their common shape.
    """
    key: npt.NDArray[np.uint64] = np.asarray(digest64(seed, purpose), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in columns:
            key = _finalize((key ^ np.asarray(column).astype(np.uint64)) + _GOLDEN)
    return key


def counter_bits(keys: npt.NDArray[np.uint64], stream: int, num_draws: int) -> npt.NDArray[np.uint64]:
    """Draw 64 random bits `num_draws` times for every key: uint64 (len(keys), num_draws).

    `stream` separates independent uses of one key. The generator is splitmix64 (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", OOPSLA 2014), addressed by counter instead of by state.
    """
    counters = np.arange(1, num_draws + 1, dtype=np.uint64) + np.uint64(stream * 1024)
    with np.errstate(over="ignore"):
        return _finalize(keys[:, None] + counters[None, :] * _GOLDEN)


def unit_floats(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Map 64 random bits to floats in [0, 1) with 53 bits of precision; shape is kept."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(bits: npt.NDArray[np.uint64], bounds: npt.NDArray[np.integer] | int) -> npt.NDArray[np.int64]:
    """Map 64 random bits to integers in [0, bounds); bounds broadcast. The bias is below bounds / 2**53."""
    return (unit_floats(bits) * np.asarray(bounds)).astype(np.int64)


def _digest(key: tuple[object, ...], size: int) -> bytes:
    # numpy writes its values as np.int64(3) and np.str_('a'): the same value must be the same key, whoever counted.
    plain = tuple(part.item() if isinstance(part, np.generic) else part for part in key)
    return hashlib.blake2b(repr(plain).encode(), digest_size=size).digest()


def _finalize(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))
