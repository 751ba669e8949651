"""How training examples are divided: one hold-out, cross-validation, or blocks in time order."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Training and validation indices, int64 (n,).
Fold = tuple[Tensor, Tensor]
Folds = Sequence[Fold]


def make_folds(
    targets: Tensor,
    count: int,
    validation: int,
    seed: int,
    *,
    ordered: bool = False,
    groups: Tensor | None = None,
) -> list[Fold]:
    """Divides examples into training and validation indices, once for each fold.

    Folds are drawn by the seed alone, alike on every device. Of each class, the counts in two
    validation parts differ by at most one.

    In time order nothing is drawn. A single hold-out is the last block. Several move forward
    (rolling origin; Tashman 2000): the rows make count + 1 blocks, the first a little longer if
    they do not divide evenly, and each later block validates what was trained on all before it.

    Each group lies in one part as a whole, whatever its classes. Sizes may differ by a group: a
    single hold-out has at most `validation` examples, or one group.

    Args:
        targets: (n, …); whole numbers are classes.
        count: the number of folds. 1 holds out exactly `validation` examples. From 2 on, the sizes
            of the validation parts differ by at most one, and each example is validated once.
        validation: the size of the hold-out; ignored from 2 folds on.
        seed: decides what is drawn; ignored in time order.
        ordered: whether the rows are in time order.
        groups: the group of each example, (n,); None for no groups.

    Returns:
        a pair of training and validation indices for each fold, int64, ascending, on the device of
        the targets.

    Raises:
        ValueError: there are too few examples.
    """
    total = len(targets)
    if count < 1:
        raise ValueError(f"objective.folds must be at least 1; got {count}")
    if count == 1 and not 0 < validation < total:
        raise ValueError(
            f"data.validation must be from 1 to {total - 1}, for {total} training examples; "
            f"got {validation}"
        )
    if count > total - ordered:
        raise ValueError(
            f"objective.folds must be at most {total - ordered}, for {total} training examples"
            f"{' in time order' if ordered else ''}; got {count}"
        )
    if ordered:
        return _blocks_in_time(targets, count, validation)
    if groups is None:
        fold_of = _draw(targets, count, validation, seed).to(targets.device)
    else:
        fold_of = _draw_groups(groups, count, validation, seed).to(targets.device)
    return [
        ((fold_of != k).nonzero().flatten(), (fold_of == k).nonzero().flatten())
        for k in range(count)
    ]


def _blocks_in_time(targets: Tensor, count: int, validation: int) -> list[Fold]:
    """Cuts the rows into blocks, of which the last `count` validate what comes before them."""
    total = len(targets)
    size = validation if count == 1 else total // (count + 1)
    everything = torch.arange(total, device=targets.device)
    starts = [total - size * (count - k) for k in range(count)]
    return [(everything[:start], everything[start : start + size]) for start in starts]


def _draw(targets: Tensor, count: int, validation: int, seed: int) -> Tensor:
    """Draws the fold of each example, int64 (n,) on the CPU; 1 stands for none, if count is 1."""
    total = len(targets)
    # Shuffled, then sorted stably by class: every k-th is a random sample with each class in
    # proportion.
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    if not targets.is_floating_point():
        order = order[targets.cpu()[order].argsort(stable=True)]
    position = torch.arange(total)
    fold_of = torch.empty(total, dtype=torch.int64)
    if count == 1:
        # One in total/validation: where the running total of validation/total passes an integer.
        passed = (position + 1) * validation // total - position * validation // total
        fold_of[order] = 1 - passed
    else:
        fold_of[order] = position % count
    return fold_of


def _draw_groups(groups: Tensor, count: int, validation: int, seed: int) -> Tensor:
    """Draws the fold of each example as `_draw` does, alike for all examples of a group."""
    _, group_of, sizes = torch.unique(groups.cpu(), return_inverse=True, return_counts=True)
    if len(sizes) < max(2, count):
        raise ValueError(
            f"data.groups must be at least {max(2, count)} for objective.folds={count}; "
            f"got {len(sizes)}"
        )
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
    fold_of_group = torch.ones(len(sizes), dtype=torch.int64)
    if count == 1:
        left = validation
        for group in order:
            if sizes[group] <= left:
                fold_of_group[group] = 0
                left -= int(sizes[group])
        if left == validation:  # all are larger
            fold_of_group[min(order, key=lambda group: int(sizes[group]))] = 0
    else:
        filled = [0] * count
        for group in order:  # each into the smallest fold so far
            fold = min(range(count), key=filled.__getitem__)
            fold_of_group[group] = fold
            filled[fold] += int(sizes[group])
    return fold_of_group[group_of]
