"""Seeds: everything random in a study descends from its one seed."""

import numpy as np


def derive(*path: int) -> int:
    """Derives a 32-bit seed for a place in a study; near paths give unrelated seeds.

    Source: numpy's `SeedSequence`, after O'Neill, "Developing a seed_seq Alternative" (2015).

    A path is such as (study seed, trial number, fold), of numbers from 0 on.
    """
    # The length goes first: SeedSequence takes (3,) and (3, 0) for the same.
    return int(np.random.SeedSequence((len(path), *path)).generate_state(1)[0])
