"""Seeds: everything random in a study descends from its one seed."""

import numpy as np


def derive(*path: int) -> int:
    """Derives a 32-bit seed for a place in a study; near paths give unrelated seeds.

    Source: numpy's `SeedSequence`, after O'Neill, "Developing a seed_seq Alternative" (2015).

    Args:
        path: leads to the place, such as (study seed, trial number, fold); 0 or more each.

    Returns:
        The seed, from 0 to 2³² - 1.

    Raises:
        ValueError: a number of the path is negative.
    """
    # The length goes first: SeedSequence takes (3,) and (3, 0) for the same.
    return int(np.random.SeedSequence((len(path), *path)).generate_state(1)[0])
