"""Seeds that descend from the one of a study."""

import itertools

from studyloom.seeds import derive


def test_the_seed_of_a_place_never_changes():
    assert derive(0, 7, 1) == 4211184356


def test_near_places_have_unrelated_seeds():
    paths = [path for n in (1, 2, 3) for path in itertools.product(range(12), repeat=n)]
    assert len({derive(*path) for path in paths}) == len(paths)
    assert all(0 <= derive(*path) < 2**32 for path in paths)
    differing = [bin(derive(0, number) ^ derive(0, number + 1)).count("1") for number in range(500)]
    assert 15 < sum(differing) / len(differing) < 17
