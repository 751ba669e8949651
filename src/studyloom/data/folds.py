"""How training examples are divided: held out, in folds, or in the order of time."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Training and validation indices, int64 (n,).
Fold = tuple[Tensor, Tensor]
Folds = Sequence[Fold]


def make_folds(
    targets: Tensor, count: int, validation: int, seed: int, *, ordered: bool = False
) -> list[Fold]:
    """Partitions of `targets` (n, …) into training and validation indices, int64, ascending, on its device.

    count 1: one hold-out of exactly `validation` indices. count ≥ 2: as many folds, whose sizes differ by at most one;
    each index is validated once, and `validation` is not looked at. Of classes (n,) the counts of each differ by at
    most one too. The seed alone decides, on every device.

    ordered: in the order of time, where nothing is drawn. count 1 holds out the last. count ≥ 2 moves forward: the rows
    make count + 1 blocks, the first a little longer where they do not divide, and each but the first is validated by
    what all before it have taught (rolling origin; Tashman 2000). Raises ValueError where there are too few examples.
    """
    total = len(targets)
    if count < 1:
        raise ValueError(f"objective.folds must be at least 1; got {count}")
    if count == 1 and not 0 < validation < total:
        raise ValueError(
            f"data.validation is {validation}: expected 1 to {total - 1}, of {total} training examples"
        )
    if count > total - ordered:
        raise ValueError(
            f"objective.folds is {count}: expected at most {total - ordered}, of {total} training examples"
            + (" in the order of time" if ordered else "")
        )
    if ordered:
        size = validation if count == 1 else total // (count + 1)
        everything = torch.arange(total, device=targets.device)
        starts = [total - size * (count - k) for k in range(count)]
        return [(everything[:start], everything[start : start + size]) for start in starts]

    # Shuffled, then sorted stably by class: every k-th of this row is a random sample with each class in proportion.
    row = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    if not targets.is_floating_point():
        row = row[targets.cpu()[row].argsort(stable=True)]
    place = torch.arange(total)
    fold = torch.empty(total, dtype=torch.int64)
    if count == 1:
        # One in total/validation: where the running total of validation/total passes an integer.
        fold[row] = 1 - ((place + 1) * validation // total - place * validation // total)
    else:
        fold[row] = place % count
    fold = fold.to(targets.device)
    return [
        ((fold != k).nonzero().flatten(), (fold == k).nonzero().flatten()) for k in range(count)
    ]
