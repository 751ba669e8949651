"""A split: what it refuses, and how it is divided into folds, drawn or in time order."""

import pytest
import torch

from studyloom.data.split import make_folds

# Folds

# Classes of unequal size, and numbers.
LABELED = torch.randint(0, 7, (1009,), generator=torch.Generator().manual_seed(1)) ** 2 // 6
NUMBERS = torch.randn(103, 1, generator=torch.Generator().manual_seed(2))


def test_folds_partition_the_examples_with_classes_in_proportion():
    for targets in (LABELED, NUMBERS):
        total = len(targets)
        for count, validation in ((1, 1), (1, total - 1), (10, 0), (total, 0)):
            folds = make_folds(targets, count, validation, seed=3)
            assert len(folds) == count
            for train, valid in folds:
                assert train.dtype == valid.dtype == torch.int64
                assert torch.cat([train, valid]).sort().values.tolist() == [*range(total)]
                if targets is LABELED:
                    share = validation / total if count == 1 else 1 / count
                    expected = targets.bincount() * share
                    counts = targets[valid].bincount(minlength=len(expected))
                    assert (counts - expected).abs().max() <= 1
            sizes = [len(fold.validation) for fold in folds]
            validated = torch.cat([fold.validation for fold in folds]).sort().values.tolist()
            if count == 1:
                assert sizes == [validation]
            else:
                assert validated == [*range(total)], "each once"
                assert max(sizes) - min(sizes) <= 1


def test_only_the_seed_determines_the_folds():
    for targets in (LABELED, NUMBERS):
        for count in (1, 3):
            once, again, other = (make_folds(targets, count, 20, seed) for seed in (3, 3, 4))
            for fold, same in zip(once, again, strict=True):
                assert torch.equal(fold.training, same.training)
                assert torch.equal(fold.validation, same.validation)
            assert not torch.equal(once[0].validation, other[0].validation)


def test_in_time_order_training_precedes_validation():
    for count, validation in ((1, 20), (1, 102), (2, 0), (5, 0), (102, 0)):
        folds = make_folds(NUMBERS, count, validation, seed=3, ordered=True)
        assert len(folds) == count
        for train, valid in folds:
            assert len(train)
            assert len(valid)
            before = len(train) + len(valid)
            assert torch.cat([train, valid]).tolist() == [*range(before)], "all that came before"
        assert len({len(fold.validation) for fold in folds}) == 1
        validated = torch.cat([fold.validation for fold in folds]).tolist()
        assert validated == [*range(103 - len(validated), 103)], "each once, up to the last"
        assert count > 1 or len(validated) == validation


def test_impossible_folds_are_refused():
    for count, validation, ordered, message in (
        (0, 5, False, "objective.folds must be at least 1; got 0"),
        (1, 0, False, "data.validation must be from 1 to 102, for 103 training examples; got 0"),
        (1, 103, False, "data.validation must be from 1 to 102, for 103 .*; got 103"),
        (104, 5, False, "objective.folds must be at most 103, for 103 .*; got 104"),
        (103, 0, True, "objective.folds must be at most 102, for 103 .* in time order; got 103"),
    ):
        with pytest.raises(ValueError, match=message):
            make_folds(NUMBERS, count, validation, 0, ordered=ordered)
