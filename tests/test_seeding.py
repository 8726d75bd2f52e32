"""Keyed randomness: the same for ever, the same everywhere, and uniform."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from arc_ray.seeding import below, counter_bits, digest64, python_random_for, rng_for, unit_floats, view_keys


def test_draws_are_those_of_all_earlier_versions():
    """Would catch a change that silently gives every run that was ever made other data."""
    assert digest64(0, "view") == 1747697266847656858
    assert rng_for(0, "counting", 3).integers(0, 1000, 3).tolist() == [197, 46, 505]
    assert python_random_for(0, "rearc", 3).randrange(1000) == 591
    assert view_keys(0, "view", (np.arange(2), 1)).tolist() == [6283930308561162827, 11329109641495973795]


def test_bits_are_those_of_splitmix64():
    """The first outputs for the seed 1234567, as they are published; would catch a wrong constant or shift."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert counter_bits(np.array([1234567], np.uint64), 0, 5)[0].tolist() == published


def test_another_process_draws_the_same():
    """Would catch `hash`, which Python salts anew in each process."""
    code = "from arc_ray.seeding import digest64, rng_for; print(digest64('a', 1), rng_for('a', 1).integers(1 << 40))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(digest64("a", 1)), str(rng_for("a", 1).integers(1 << 40))]


@pytest.mark.parametrize(("a", "b"), [((1, "a"), (np.int64(1), np.str_("a"))), ((True,), (np.bool_(True),))])
def test_numpy_values_are_the_same_key_as_pythons(a: tuple[object, ...], b: tuple[object, ...]):
    """Would catch views that change because an index was counted by numpy."""
    assert digest64(*a) == digest64(*b)


@pytest.mark.parametrize(
    ("a", "b"), [((1, 2), (12,)), (("a", "b"), ("ab",)), ((1,), ("1",)), (((1, 2), 3), (1, (2, 3)))]
)
def test_different_keys_that_look_alike_are_different(a: tuple[object, ...], b: tuple[object, ...]):
    """Would catch a digest of joined parts."""
    assert digest64(*a) != digest64(*b)


def test_asking_twice_gives_a_fresh_generator():
    """Would catch a cached generator, whose second user continues the first one's stream."""
    assert rng_for(1, "x").integers(1 << 60) == rng_for(1, "x").integers(1 << 60)
    assert python_random_for(1, "x").random() == python_random_for(1, "x").random()


@settings(deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_a_key_depends_on_its_own_row_only(seed: int, column: list[int]):
    """Would catch randomness that depends on which views are drawn together."""
    numbers = np.array(column)
    together = view_keys(seed, "view", (numbers, 5))
    assert together.tolist() == [int(view_keys(seed, "view", (np.array([n]), 5))[0]) for n in column]


def test_columns_broadcast_and_their_order_matters():
    a, b = np.arange(3), np.arange(4)[:, None]
    assert view_keys(0, "p", (a, b)).shape == (4, 3)
    assert not np.array_equal(view_keys(0, "p", (a, b)), view_keys(0, "p", (b, a)))
    assert len(np.unique(view_keys(0, "p", (np.arange(300), np.arange(300)[:, None])))) == 300 * 300


def test_streams_and_draws_of_a_key_share_no_bits():
    """Would catch two uses of one key that draw the same numbers, such as colours that follow the symmetry."""
    keys = view_keys(0, "view", (np.arange(200),))
    bits = np.concatenate([counter_bits(keys, stream, 50) for stream in range(4)], axis=1)
    assert len(np.unique(bits)) == bits.size


def test_more_draws_leave_the_first_ones_as_they_are():
    keys = view_keys(0, "view", (np.arange(5),))
    assert np.array_equal(counter_bits(keys, 2, 9)[:, :4], counter_bits(keys, 2, 4))


def test_floats_are_uniform_and_below_one():
    floats = unit_floats(counter_bits(view_keys(3, "view", (np.arange(5000),)), 0, 4).ravel())
    assert floats.min() >= 0
    assert floats.max() < 1
    assert stats.kstest(floats, "uniform").pvalue > 0.001
    assert unit_floats(np.array([2**64 - 1, 0], np.uint64)).tolist() == [1 - 2.0**-53, 0.0]


@pytest.mark.parametrize("bound", [1, 2, 3, 7, 10, 1000, 2**31])
def test_integers_stay_below_their_bound_even_for_the_highest_bits(bound: int):
    """Would catch a product that is rounded up to the bound itself."""
    bits = np.array([2**64 - 1, 2**64 - 2048, 0], np.uint64)
    assert below(bits, bound).tolist() == [bound - 1, min(int((1 - 2.0**-53) * bound), bound - 1), 0]


def test_integers_are_uniform_for_every_bound():
    bits = counter_bits(view_keys(4, "view", (np.arange(20000),)), 0, 1)[:, 0]
    bounds = np.tile([3, 10], 10000)
    drawn = below(bits, bounds)
    for bound in (3, 10):
        assert stats.chisquare(np.bincount(drawn[bounds == bound], minlength=bound)).pvalue > 0.001
