"""A training or test set in memory, as tensors, and how training examples are divided."""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from studyloom.errors import DataError, UnfitData
from studyloom.text import shorten_end

PART = 2**20  # numbers of a tensor that are converted at once: 4 MB as float32
LONGEST = 40  # letters of a word that the report shows

# Training and validation indices, int64 (n,).
Fold = tuple[Tensor, Tensor]
Folds = Sequence[Fold]


@dataclass(frozen=True, eq=False)
class Tokens:
    """The vocabulary of texts that are rows of token numbers, so that a report can show the words.

    A row is an integer tensor (length,), padded at its end. A Dataset has this object as its
    attribute `tokens`, a `Split` as its field `tokens`.

    Args:
        names: the word of each number, from 0.
        first: the place in the row, from 0, at which the text begins, after numbers of another
            kind.
        path: the positions and keys that lead to the row in an item of a Dataset: (0,) in
            `(row, target)`, (0, "text") in `({"text": row, …}, target)`. In a `Split` each input
            is such a row.
        nothing: the number that pads a row.

    Examples:
        >>> import torch
        >>> tokens = Tokens(["", "a", "good", "film"])
        >>> [tokens.word(number) for number in tokens.numbers_of(torch.tensor([2, 3, 0, 0]))]
        ['good', 'film']
    """

    names: Sequence[str]
    first: int = 0
    path: Sequence[int | str] = (0,)
    nothing: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not all(isinstance(name, str) for name in self.names):
            raise DataError(
                "Tokens.names must be a list of words, one for each number from 0 on; "
                f"got {str(self.names)[:60]!r}"
            )

    def row_of(self, item: Any) -> Tensor | None:
        """Returns the row of an item, an integer tensor (length,); None if `path` leads to no row.

        Args:
            item: an item of the Dataset.
        """
        try:
            for step in self.path:
                item = item[step]
        except (LookupError, TypeError):
            return None
        row = torch.from_numpy(item) if isinstance(item, np.ndarray) else item
        return row if isinstance(row, Tensor) and self.fits(row) else None

    def fits(self, row: Tensor) -> bool:
        """Whether a tensor is a row of integers that is long enough for a text.

        Args:
            row: a tensor of any shape and type.
        """
        whole = not row.is_floating_point() and not row.is_complex()
        return whole and row.ndim == 1 and len(row) > self.first

    def numbers_of(self, row: Tensor) -> list[int]:
        """Returns the numbers of the text in a row, without padding.

        Args:
            row: an integer tensor (length,).
        """
        return [number for number in row[self.first :].tolist() if number != self.nothing]

    def without(self, row: Tensor, number: int) -> Tensor:
        """Returns the row without a number in its text; later numbers move up, padding follows.

        Args:
            row: an integer tensor (length,).
            number: the number to remove, everywhere in the text.
        """
        text = row[self.first :]
        kept = text[text != number]
        end = text.new_full((len(text) - len(kept),), self.nothing)
        return torch.cat([row[: self.first], kept, end])

    def word(self, number: int) -> str:
        """Returns the word of a number, at most 40 letters; "#7" for a 7 without a word.

        Args:
            number: an integer from 0.
        """
        known = 0 <= number < len(self.names)
        return shorten_end(self.names[number], LONGEST) if known else f"#{number}"


@dataclass(frozen=True, eq=False)
class Split:
    """The training set, which includes the validation set, or the test set, as tensors in memory.

    Your own data source returns it from `train()` and `test()`.

    Args:
        inputs: (n, …). Integers keep their type; a batch has them as the network takes them.
        targets: classes, int64 (n,), from 0 to outputs - 1; or numbers to predict, float32
            (n, outputs).
        outputs: the number of outputs of the network: one for each class or predicted number.
        digest: a string that identifies the data, such as the sha256 of its bytes and shapes.
        mean: what was subtracted from pixels on the scale 0 to 1.
        std: what the pixels were divided by after that.
        ordered: True: the examples are in time order, and the last ones are held out.
        names: the names of the classes, or of the numbers to predict; empty if they have none.
        columns: the names of the inputs, for a table; empty otherwise.
        references: predictions (n, outputs) of rules that need no network, by the rule's name.
        tokens: the vocabulary, if the inputs are texts; None otherwise.
        mapped: True: the inputs lie in a file that each process maps into memory.

    Raises:
        UnfitData: shapes or types do not fit each other.
    """

    in_memory: ClassVar[bool] = True
    group_names: ClassVar[tuple[str, ...]] = ()

    inputs: Tensor
    targets: Tensor
    outputs: int
    digest: str
    mean: float = 0.0
    std: float = 1.0
    ordered: bool = False
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    references: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Tokens | None = None
    mapped: bool = False

    def __post_init__(self) -> None:
        inputs, targets = self.inputs, self.targets
        sizes = check_sizes(inputs, targets, "data must have")
        if self.classifies and (targets.ndim > 1 or targets.dtype != torch.int64):
            raise UnfitData(
                "data must have targets int64 (n,), which are classes, or float32 (n, outputs); "
                f"got {sizes} of {targets.dtype}"
            )
        if not self.classifies and tuple(targets.shape[1:]) != (self.outputs,):
            raise UnfitData(
                f"data must have targets (n, {self.outputs}), a number for each output of the "
                f"network; got {sizes}"
            )
        if self.tokens is not None and not self.tokens.fits(inputs[0]):
            raise UnfitData(
                "data with tokens must have rows of integers as inputs, each long enough for "
                f"a text from place {self.tokens.first} on; got {sizes} of {inputs.dtype}"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def classifies(self) -> bool:
        """Whether the targets are classes; otherwise they are numbers."""
        return not self.targets.is_floating_point()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.inputs.shape[1:])

    @property
    def kind(self) -> str:
        """The type of the inputs, such as float32."""
        return str(self.inputs.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.inputs.device

    def to(self, device: torch.device | str) -> "Split":
        """Returns a copy on a device.

        Args:
            device: such as "cuda".
        """
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def part(self, indices: Tensor | None = None, *, to_train: bool = False) -> TensorDataset:
        """Returns some examples as a Dataset of pairs `(input, target)`.

        Args:
            indices: int64 (m,); None: all examples.
            to_train: whether to draw random crops and the like; tensors in memory have none.
        """
        if indices is None:
            return TensorDataset(self.inputs, self.targets)
        indices = indices.to(self.device)
        return TensorDataset(self.inputs[indices], self.targets[indices])

    def folds(self, count: int, validation: int | None, seed: int) -> Folds:
        """Divides the examples into training and validation sets, once for each fold.

        Args:
            count: the number of folds; 1: a single validation set.
            validation: the number of examples of a single validation set; None: the source has
                none.
            seed: seeds the draw.

        Returns:
            Training and validation indices, int64, for each fold.
        """
        if validation is None:
            validation = 0
        return make_folds(self.targets, count, validation, seed, ordered=self.ordered)

    def whole(self) -> Fold:
        """Returns the indices of all examples to train on, and of a fifth of them to evaluate."""
        everything = torch.arange(len(self))
        return everything, everything[: max(1, len(self) // 5)]

    def input_at(self, index: int) -> Tensor:
        """Returns one input.

        Args:
            index: its position, from 0.
        """
        return self.inputs[index]

    def show(self, modules: Sequence[Any], train: Tensor, part: str) -> None:
        """Calls `adapt(inputs, targets)` of modules with training examples, inputs as floats.

        Args:
            modules: modules with a method `adapt`.
            train: the indices of the training examples, int64.
            part: the name of the set, for errors; unused here.
        """
        inputs = self.inputs[train]
        inputs = inputs if inputs.is_floating_point() else inputs.float()
        for module in modules:
            module.adapt(inputs, self.targets[train])

    def check(self) -> None:
        """Raises DataError if an input or a target is not finite, or a class has no output."""
        for name, tensor in (("inputs", self.inputs), ("targets", self.targets)):
            # A value that is not finite makes a sum that is not: 0.02 s for 60,000 images, and
            # 0.2 s to look at each number.
            suspect = tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum()))
            if suspect and not bool(torch.isfinite(tensor).all()):
                example = int((~torch.isfinite(tensor)).nonzero()[0, 0])
                raise DataError(
                    f"data must have finite {name}; those of example {example} hold NaN or infinity"
                )
        if self.classifies:
            low, high = int(self.targets.min()), int(self.targets.max())
            if low < 0 or high >= self.outputs:
                raise DataError(
                    f"data must have classes from 0 to {self.outputs - 1}, one for each output; "
                    f"got {low} to {high}"
                )

    def for_preflight(self) -> "Split":
        """Returns the data for a check before the first trial: these tensors."""
        return self

    def to_rehearse(self, train: Tensor) -> Tensor:
        """Puts the examples with the greatest and the least integer before others.

        Args:
            train: the indices of the training examples, int64.

        Returns:
            The indices, int64; those of floats are unchanged.
        """
        if self.inputs.is_floating_point():
            return train
        return torch.cat([self.extremes.to(train.device), train])

    @functools.cached_property
    def extremes(self) -> Tensor:
        """The indices of the examples with the greatest and the least number, int64 (2,)."""
        rows = self.inputs.flatten(1) if self.inputs.ndim > 1 else self.inputs[:, None]
        if not rows.numel():
            return torch.zeros(2, dtype=torch.int64, device=self.device)
        return torch.stack([rows.amax(1).argmax(), rows.amin(1).argmin()])


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

    Only the seed determines the folds, on every device. They are stratified: the numbers of a
    class in two validation sets differ by at most one.

    In time order nothing is drawn. A single validation set is the last block. Several move forward
    (rolling origin; Tashman 2000): the rows are divided into count + 1 blocks, the first a little
    longer if they do not divide evenly. Each later block is the validation set of all before it.

    A group lies in one set as a whole, whatever its classes. Sizes may differ by a group: a single
    validation set has at most `validation` examples, or one group.

    Args:
        targets: (n, …); integers are classes.
        count: the number of folds. 1 holds out exactly `validation` examples. From 2 on, the sizes
            of the validation sets differ by at most one, and each example is validated once.
        validation: the number of examples of a single validation set.
        seed: seeds the draw.
        ordered: whether the examples are in time order.
        groups: the group of each example, (n,); None: no groups.
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
        size = validation if count == 1 else total // (count + 1)
        everything = torch.arange(total, device=targets.device)
        starts = [total - size * (count - k) for k in range(count)]
        return [(everything[:start], everything[start : start + size]) for start in starts]
    if groups is None:
        fold_of = _draw(targets, count, validation, seed)
    else:
        fold_of = _draw_groups(groups, count, validation, seed)
    fold_of = fold_of.to(targets.device)
    return [
        ((fold_of != k).nonzero().flatten(), (fold_of == k).nonzero().flatten())
        for k in range(count)
    ]


def _draw(targets: Tensor, count: int, validation: int, seed: int) -> Tensor:
    """Draws the fold of each example, int64 (n,) on the CPU; of a single fold, 1 is to train."""
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
    """Draws the fold of each example as `_draw` does, the same for all examples of a group."""
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


def digest_of(inputs: Tensor, targets: Tensor) -> str:
    """Returns the sha256 of two tensors on the CPU; inputs are read as float32, of any type."""
    digest = hashlib.sha256(
        f"{tuple(inputs.shape)} {tuple(targets.shape)} {targets.dtype}".encode()
    )
    for part in parts_of(inputs):
        part = part if part.is_floating_point() else part.float()
        digest.update(part.contiguous().numpy().data)
    for part in parts_of(targets):
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def parts_of(tensor: Tensor) -> Sequence[Tensor]:
    """Returns a tensor in parts along its first dimension, of a size to compute with at once."""
    rows = PART // max(1, math.prod(tensor.shape[1:]))
    return torch.split(tensor, max(1, rows)) if tensor.ndim else (tensor,)


def check_sizes(inputs: Tensor, targets: Tensor, must: str) -> str:
    """Raises UnfitData unless there are as many inputs as targets; else returns their sizes."""
    sizes = f"inputs {format_sizes(inputs.shape)} and targets {format_sizes(targets.shape)}"
    if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or not len(inputs):
        raise UnfitData(f"{must} as many targets as inputs, and at least one; got {sizes}")
    return sizes


def format_sizes(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"
