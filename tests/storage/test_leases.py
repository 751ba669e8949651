"""What this process sees again and again, by which it knows which leases have ended."""

from studyloom.storage.leases import Sightings


def test_what_is_seen_again_is_remembered_with_the_time_that_it_was_seen():
    now = [10.0]
    sightings = Sightings(lambda: now[0])
    assert sightings.look({"a": 1}) == {"a": (1, 0.0)}
    now[0] = 15.0
    assert sightings.look({"a": 2, "b": 3}) == {"a": (1, 5.0), "b": (3, 0.0)}
    now[0] = 25.0
    assert sightings.look({"a": 1, "b": 3}, most=4.0) == {"a": (1, 9.0), "b": (3, 4.0)}
    assert sightings.look({"b": 3}) == {"b": (3, 4.0)}
    assert sightings.look({"a": 1}) == {"a": (1, 0.0)}
