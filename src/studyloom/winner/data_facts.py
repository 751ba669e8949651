"""The facts about a winner's data that one needs to use its network."""

from typing import Any

from studyloom.config.values import value_at
from studyloom.data.examples import Part
from studyloom.data.split import Split
from studyloom.data.transform import InputRange, Reader, describe_transform
from studyloom.training.batches import find_input_dtype
from studyloom.winner.candidates import CandidateTrainings, Origin
from studyloom.winner.result import DataFacts, RangeFacts


def describe_data(trainings: CandidateTrainings, winner: Origin, test: Part | None) -> DataFacts:
    """Describes the data, as far as the use of the winner's network needs it."""
    data, job = trainings.data, trainings.job(winner, 0)
    assert data.split is not None
    split, shown = data.split, data.split if test is None else test
    transform = None if data.source is None else data.source.transform
    section = value_at(trainings.definition.config, "data.transform")
    seen = InputRange.measure(split)
    dtype: Any = "float32"  # in which the network takes inputs
    if isinstance(split, Split) and not split.inputs.is_floating_point():
        network = job.model(shape=split.shape, outputs=split.outputs)
        dtype = str(find_input_dtype(job, network, split)).removeprefix("torch.")
    return DataFacts(
        digest=split.digest,
        test_digest="" if test is None else test.digest,
        shape=None if shown.shape is None else tuple(shown.shape),
        outputs=shown.outputs,
        mean=split.mean,
        std=split.std,
        dtype=dtype,
        classifies=shown.classifies,
        names=tuple(shown.names),
        columns=tuple(shown.columns),
        inputs=None if seen is None else RangeFacts(**vars(seen)),
        loaded=not split.in_memory,
        kind=split.kind,
        reads=isinstance(transform, Reader),
        transform=describe_transform(transform, section, split),
    )
