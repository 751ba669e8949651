import itertools

import pytest

from studyloom.seeds import derive


def test_a_place_has_the_same_seed_today_as_yesterday():
    assert derive(0) == derive(0)
    assert derive(0, 7, 1) == 4211184356


def test_a_place_is_not_the_one_above_it():
    assert len({derive(3), derive(3, 0), derive(3, 0, 0)}) == 3


def test_a_seed_has_32_bits():
    assert all(0 <= derive(number) < 2**32 for number in range(1000))


def test_near_places_have_seeds_of_their_own():
    paths = [
        path for length in (1, 2, 3) for path in itertools.product(range(1, 12), repeat=length)
    ]
    assert len({derive(*path) for path in paths}) == len(paths)


def test_near_places_have_unrelated_seeds():
    differing = [bin(derive(0, number) ^ derive(0, number + 1)).count("1") for number in range(500)]
    assert 15 < sum(differing) / len(differing) < 17


def test_a_seed_below_0_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        derive(-1)
