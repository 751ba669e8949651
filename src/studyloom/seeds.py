"""Seeds: everything random in a study descends from its one seed."""

import numpy as np


def derive(*path: int) -> int:
    """A 32-bit seed for a place in a study, such as (study seed, trial number, fold); near paths give unrelated seeds.

    Source: numpy's `SeedSequence`, after O'Neill, "Developing a seed_seq Alternative" (2015).
    """
    return int(np.random.SeedSequence(path).generate_state(1)[0])
