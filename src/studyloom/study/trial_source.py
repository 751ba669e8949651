"""What a worker needs of whoever hands it trials: the search, or a later stage of the study."""

from typing import Any, Protocol

import torch

from studyloom.data.training_data import TrainingData
from studyloom.definition.objective import Attempt, Objective
from studyloom.definition.rule import Cost
from studyloom.seeds import derive
from studyloom.space.tree import Point, Space
from studyloom.study.provenance import Provenance, current_environment


class TrialSource(Protocol):
    """A source of trials: a Definition, or the trainings of a later stage."""

    @property
    def space(self) -> Space: ...
    @property
    def baseline(self) -> Point | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def in_turn(self) -> bool: ...
    def provenance_sections(self, point: Point) -> dict[str, Any] | None: ...
    def trains_on(self, data: TrainingData) -> torch.device: ...
    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]: ...
    def make_objective(
        self, point: Point, number: int, data: TrainingData, attempt: Attempt
    ) -> Objective: ...


def make_provenance(
    source: TrialSource, point: Point, number: int, data: TrainingData, claims: int
) -> Provenance | None:
    """Returns the record that trains trial `number` again at a point; None if there is none."""
    sections = source.provenance_sections(point)
    if sections is None:
        return None
    device = source.trains_on(data)
    return Provenance(
        config=sections,
        seed=derive(source.seed, number),
        study_seed=source.seed,
        data=data.digest,
        in_turn=source.in_turn,
        device=device.type,
        claims=claims,
        environment=current_environment(device),
    )
