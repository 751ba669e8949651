"""Describes a winner's data, as far as one needs it to use the network."""

from typing import cast

from studyloom.config.values import value_at
from studyloom.data.examples import Part
from studyloom.data.split import Split
from studyloom.data.transform import InputRange, Reader, describe_transform
from studyloom.training.batches import find_input_dtype
from studyloom.winner.candidates import CandidateId, CandidateTrainings
from studyloom.winner.result import DataFacts, DtypeName, RangeFacts


def describe_data(
    trainings: CandidateTrainings, winner: CandidateId, test: Part | None
) -> DataFacts:
    """Describes the data that a winner was trained and tested on.

    Args:
        test: the test set; None if the winner was not tested, or tests itself.
    """
    data = trainings.data
    split = data.split  # the training set
    assert split is not None
    examples: Part
    if test is not None:
        examples = test
        test_digest = test.digest
    else:
        examples = split
        test_digest = ""
    shape = None
    if examples.shape is not None:
        shape = tuple(examples.shape)
    transform = None
    if data.source is not None:
        transform = data.source.transform
    transform_section = value_at(trainings.definition.config, "data.transform")
    input_range = InputRange.measure(split)
    range_facts = None
    if input_range is not None:
        range_facts = RangeFacts(**vars(input_range))
    return DataFacts(
        digest=split.digest,
        test_digest=test_digest,
        shape=shape,
        outputs=examples.outputs,
        mean=split.mean,
        std=split.std,
        dtype=find_input_type(trainings, winner, split),
        classifies=examples.classifies,
        class_names=tuple(examples.names),
        columns=tuple(examples.columns),
        input_range=range_facts,
        from_dataset=not split.in_memory,
        input_dtype=split.kind,
        has_reader=isinstance(transform, Reader),
        transform=describe_transform(transform, transform_section, split),
    )


def find_input_type(trainings: CandidateTrainings, winner: CandidateId, split: Part) -> DtypeName:
    """Returns the type in which the winner's network takes its inputs, such as "int64".

    Integers may be numbers or positions in an embedding, so the network is tried on two examples.
    """
    if not isinstance(split, Split) or split.inputs.is_floating_point():
        return "float32"
    job = trainings.job(winner, seed=0)
    network = job.model(shape=split.shape, outputs=split.outputs)
    dtype = find_input_dtype(job, network, split)
    return cast(DtypeName, str(dtype).removeprefix("torch."))  # torch.int64 → int64
