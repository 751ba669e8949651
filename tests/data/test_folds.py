"""Folds: what is held out, drawn or in time order."""

import pytest
import torch

from studyloom.data.folds import make_folds

# Classes of unequal size.
LABELLED = torch.randint(0, 7, (1009,), generator=torch.Generator().manual_seed(1)) ** 2 // 6


@pytest.mark.parametrize(
    ("count", "validation"), [(1, 1), (1, 200), (1, 1008), (2, 0), (3, 0), (10, 200), (1009, 0)]
)
def test_folds_partition(count, validation):
    parts = make_folds(LABELLED, count, validation, seed=3)
    assert len(parts) == count
    for train, valid in parts:
        assert train.dtype == valid.dtype == torch.int64
        assert torch.cat([train, valid]).sort().values.tolist() == list(range(1009)), (
            "disjoint, and nothing left out"
        )
    if count == 1:
        assert len(parts[0][1]) == validation
    else:
        assert torch.cat([valid for _, valid in parts]).sort().values.tolist() == list(
            range(1009)
        ), "each validated once"
        sizes = [len(valid) for _, valid in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("count", "validation"), [(1, 200), (1, 7), (2, 0), (5, 0)])
def test_folds_are_stratified(count, validation):
    share = validation / 1009 if count == 1 else 1 / count
    for _, valid in make_folds(LABELLED, count, validation, seed=3):
        expected = LABELLED.bincount() * share
        assert (LABELLED[valid].bincount(minlength=len(expected)) - expected).abs().max() <= 1


@pytest.mark.parametrize("count", [1, 3])
def test_the_seed_alone_decides_the_folds(count):
    once, again, other = (make_folds(LABELLED, count, 200, seed) for seed in (3, 3, 4))
    assert all(
        torch.equal(a, b)
        for x, y in zip(once, again, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert not torch.equal(once[0][1], other[0][1])


@pytest.mark.parametrize(
    ("count", "validation", "message"),
    [
        (0, 5, "objective.folds must be at least 1; got 0"),
        (1, 0, "data.validation must be from 1 to 9, for 10 training examples; got 0"),
        (1, 10, "data.validation must be from 1 to 9, for 10 training examples; got 10"),
        (11, 5, "objective.folds must be at most 10, for 10 training examples; got 11"),
    ],
)
def test_impossible_folds_are_refused(count, validation, message):
    with pytest.raises(ValueError, match=message):
        make_folds(torch.arange(10), count, validation, seed=0)


NUMBERS = torch.randn(103, 1, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("count", [1, 4])
def test_numbers_are_drawn_without_regard_to_their_size(count):
    parts = make_folds(NUMBERS, count, 20, seed=3)
    for train, valid in parts:
        assert torch.cat([train, valid]).sort().values.tolist() == list(range(103))
    assert not torch.equal(parts[0][1], make_folds(NUMBERS, count, 20, seed=4)[0][1])
    assert not torch.equal(parts[0][1], torch.arange(103 - len(parts[0][1]), 103))


@pytest.mark.parametrize(("count", "validation"), [(1, 20), (1, 102), (2, 0), (5, 0), (102, 0)])
def test_in_the_order_of_time_no_training_index_comes_after_a_validation_index(count, validation):
    parts = make_folds(NUMBERS, count, validation, seed=3, ordered=True)
    assert len(parts) == count
    for train, valid in parts:
        assert len(train)
        assert len(valid)
        assert train.max() < valid.min()
        assert torch.cat([train, valid]).tolist() == list(range(len(train) + len(valid))), (
            "all that came before"
        )
    assert parts[-1][1][-1] == 102, "up to the last"
    assert len({len(valid) for _, valid in parts}) == 1
    if count == 1:
        assert len(parts[0][1]) == validation
    else:
        validated = torch.cat([valid for _, valid in parts]).tolist()
        assert validated == list(range(103 - len(validated), 103)), "one after the other, each once"


def test_in_the_order_of_time_nothing_is_drawn():
    one, other = (make_folds(NUMBERS, 3, 0, seed, ordered=True) for seed in (3, 4))
    assert all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_as_many_folds_as_examples_are_too_many_in_the_order_of_time():
    with pytest.raises(
        ValueError,
        match=r"objective\.folds must be at most 102, for 103 .* in time order; got 103",
    ):
        make_folds(NUMBERS, 103, 0, 0, ordered=True)
