"""Configurations that people, programs and agents propose while a search runs.

A proposer needs neither the study's config nor its code nor its data: the database holds what a
proposal is checked against. Nothing here reads a value of the test set.
"""

from studyloom.extras.proposals.asking import DEADLINE, ask, print_asked, print_proposed
from studyloom.extras.proposals.queue import propose
from studyloom.extras.proposals.stored_space import json_schema, read_space

__all__ = [
    "DEADLINE",
    "ask",
    "json_schema",
    "print_asked",
    "print_proposed",
    "propose",
    "read_space",
]
