"""A training or test set in memory, as tensors, and how training examples are divided.

A fold divides the examples of the training set into those to train on and those to validate on. Two
or more folds are a cross-validation: each example is validated in one of them.
"""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from studyloom.errors import DataError, UnfitData
from studyloom.text import shorten_end

MOST_CONVERTED = 2**20  # the most numbers of a tensor that are converted at once: 4 MB as float32
MOST_LETTERS = 40  # of a word in the report


class Fold(NamedTuple):
    """The indices of the training examples and of the validation examples, int64 (n,) each."""

    training: Tensor
    validation: Tensor


Folds = Sequence[Fold]


@dataclass(frozen=True, eq=False)
class Tokens:
    """The vocabulary of texts that are rows of token numbers, so that a report can show the words.

    A row is an integer tensor (length,), padded at its end. A Dataset has this object as its
    attribute `tokens`, a `Split` as its field `tokens`.

    Args:
        names: the word of each number, from 0.
        first: the position in the row, from 0, at which the text begins, after numbers of another
            kind.
        path: the positions and keys that lead to the row in an item of a Dataset: (0,) in
            `(row, target)`, (0, "text") in `({"text": row, …}, target)`. In a `Split` each input
            is a row.
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
        """Returns the row of token numbers in an item, an integer tensor (length,).

        It is None if the positions and keys of `path`, such as (0, "text"), lead to no such row.

        Args:
            item: an item of the Dataset.
        """
        row: Any = item
        try:
            for position_or_key in self.path:
                row = row[position_or_key]
        except (LookupError, TypeError):
            return None
        if isinstance(row, np.ndarray):
            row = torch.from_numpy(row)
        if isinstance(row, Tensor) and self.fits(row):
            return row
        return None

    def fits(self, row: Tensor) -> bool:
        """Returns whether a tensor is a row of integers that is long enough for a text.

        A text begins at the position `first` of its row.

        Args:
            row: a tensor of any shape and type.
        """
        has_integers = not row.is_floating_point() and not row.is_complex()
        return has_integers and row.ndim == 1 and len(row) > self.first

    def numbers_of(self, row: Tensor) -> list[int]:
        """Returns the numbers of the text in a row, without padding.

        Args:
            row: an integer tensor (length,).
        """
        text = row[self.first :]
        return [number for number in text.tolist() if number != self.nothing]

    def without(self, row: Tensor, number: int) -> Tensor:
        """Returns a row without a number in its text; padding keeps the row's length.

        Args:
            row: an integer tensor (length,).
            number: the number to remove, everywhere in the text.
        """
        text = row[self.first :]
        shortened = text[text != number]
        padding = text.new_full((len(text) - len(shortened),), self.nothing)
        return torch.cat([row[: self.first], shortened, padding])

    def word(self, number: int) -> str:
        """Returns the word of a number, at most 40 letters; "#7" for a 7 without a word.

        Args:
            number: an integer from 0.
        """
        if 0 <= number < len(self.names):
            return shorten_end(self.names[number], MOST_LETTERS)
        return f"#{number}"


@dataclass(frozen=True, eq=False)
class Split:
    """The training set, which includes the validation set, or the test set, as tensors in memory.

    Your own data source returns it from `train()` and `test()`.

    Args:
        inputs: (n, …). Integers keep their type; a batch converts them to the network's type.
        targets: classes, int64 (n,), from 0 to outputs - 1; or numbers to predict, float32
            (n, outputs).
        outputs: the number of outputs of the network: one for each class or predicted number.
        digest: a string that identifies the data, such as the sha256 of its bytes and shapes.
        mean: the number that was subtracted from pixels on the scale 0 to 1.
        std: the number by which they were divided after that.
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
        inputs = self.inputs
        targets = self.targets
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
        """True if the targets are classes, False if they are numbers."""
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

    def as_dataset(self, indices: Tensor | None = None, *, to_train: bool = False) -> TensorDataset:
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
            The folds, each with training and validation indices.
        """
        if validation is None:
            validation = 0
        return make_folds(self.targets, count, validation, seed, ordered=self.ordered)

    def whole_fold(self) -> Fold:
        """Returns a fold that trains on all examples, and evaluates a fifth of them.

        The evaluation shows that the training works; it does not validate it.
        """
        indices = torch.arange(len(self))
        return Fold(indices, indices[: max(1, len(self) // 5)])

    def input_at(self, index: int) -> Tensor:
        """Returns one input.

        Args:
            index: its position, from 0.
        """
        return self.inputs[index]

    def adapt_modules(self, modules: Sequence[Any], train: Tensor, part: str) -> None:
        """Calls `adapt(inputs, targets)` of modules with training examples, inputs as floats.

        Args:
            modules: modules with a method `adapt`.
            train: the indices of the training examples, int64.
            part: "network" or "loss", of which the modules are part, for errors; unused here.
        """
        inputs = self.inputs[train]
        if not inputs.is_floating_point():
            inputs = inputs.float()
        for module in modules:
            module.adapt(inputs, self.targets[train])

    def check(self) -> None:
        """Raises DataError if an input or a target is not finite, or a class has no output."""
        for name, tensor in (("inputs", self.inputs), ("targets", self.targets)):
            example = _find_not_finite(tensor)
            if example is not None:
                raise DataError(
                    f"data must have finite {name}; those of example {example} hold NaN or infinity"
                )
        if self.classifies:
            low = int(self.targets.min())
            high = int(self.targets.max())
            if low < 0 or high >= self.outputs:
                raise DataError(
                    f"data must have classes from 0 to {self.outputs - 1}, one for each output; "
                    f"got {low} to {high}"
                )

    def for_preflight(self) -> "Split":
        """Returns the data for a check before the first trial: these tensors."""
        return self

    def order_for_preflight(self, train: Tensor) -> Tensor:
        """Puts the examples with the greatest and the least integer before others.

        The check before the first trial takes the first examples. An embedding that is too small
        fails with the greatest integer, and would pass with others.

        Args:
            train: the indices of the training examples, int64.

        Returns:
            The indices, int64; they are unchanged if the inputs are floats.
        """
        if self.inputs.is_floating_point():
            return train
        return torch.cat([self.extremes.to(train.device), train])

    @functools.cached_property
    def extremes(self) -> Tensor:
        """The indices of the examples with the greatest and the least number, int64 (2,)."""
        rows = self.inputs[:, None].flatten(1)  # (n, numbers of an input)
        if not rows.numel():  # inputs without numbers have no greatest one
            return torch.zeros(2, dtype=torch.int64, device=self.device)
        example_with_greatest = rows.amax(1).argmax()
        example_with_least = rows.amin(1).argmin()
        return torch.stack([example_with_greatest, example_with_least])


def _find_not_finite(tensor: Tensor) -> int | None:
    """Returns the first example (n, …) with NaN or infinity; None if all numbers are finite."""
    if not tensor.is_floating_point():
        return None
    # A sum with a number that is not finite is not finite. So a finite sum ends the search: it
    # takes 0.02 s for 60,000 images, and a look at each number 0.2 s.
    if bool(torch.isfinite(tensor.sum())):
        return None
    positions = (~torch.isfinite(tensor)).nonzero()  # (count, dimensions), in order
    if not len(positions):  # the numbers are finite, but too large to be added up
        return None
    return int(positions[0, 0])


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

    Only the seed determines the folds, on every device. The folds are stratified: the numbers of a
    class in two validation sets differ by at most one.

    In time order nothing is drawn: the last examples are validated, see `_make_ordered_folds`.

    With groups, all examples of a group are in one set, and folds are not stratified. So the sizes
    of validation sets may differ by a group: a single one has at most `validation` examples, or one
    group.

    Args:
        targets: (n, …); integers are classes.
        count: the number of folds. 1 holds out exactly `validation` examples. From 2 on, the sizes
            of the validation sets differ by at most one, and each example is validated once.
        validation: the number of examples of a single validation set.
        seed: seeds the draw.
        ordered: whether the examples are in time order.
        groups: the group of each example, (n,); None: no groups.
    """
    _check_sizes_of_folds(len(targets), count, validation, ordered=ordered)
    if ordered:
        return _make_ordered_folds(targets, count, validation)
    if groups is None:
        fold_numbers = _draw_fold_numbers(targets, count, validation, seed)
    else:
        fold_numbers = _draw_fold_numbers_by_group(groups, count, validation, seed)
    fold_numbers = fold_numbers.to(targets.device)
    folds = []
    for number in range(count):
        is_validated = fold_numbers == number
        training_indices = (~is_validated).nonzero().flatten()
        validation_indices = is_validated.nonzero().flatten()
        folds.append(Fold(training_indices, validation_indices))
    return folds


def _check_sizes_of_folds(total: int, count: int, validation: int, *, ordered: bool) -> None:
    """Raises ValueError if so many examples cannot be divided into so many folds.

    Args:
        total: the number of examples.
        count: the number of folds.
        validation: the number of examples of a single validation set.
        ordered: whether the examples are in time order.
    """
    if count < 1:
        raise ValueError(f"objective.folds must be at least 1; got {count}")
    if count == 1 and not 0 < validation < total:
        raise ValueError(
            f"data.validation must be from 1 to {total - 1}, for {total} training examples; "
            f"got {validation}"
        )
    most_folds = total
    order = ""
    if ordered:
        most_folds = total - 1  # at least one example comes before the first validation set
        order = " in time order"
    if count > most_folds:
        raise ValueError(
            f"objective.folds must be at most {most_folds}, for {total} training examples"
            f"{order}; got {count}"
        )


def _make_ordered_folds(targets: Tensor, count: int, validation: int) -> list[Fold]:
    """Divides examples in time order into blocks, and validates on the last of them.

    A single validation set is the last `validation` examples. Several move forward (rolling origin;
    Tashman 2000): the examples are divided into count + 1 blocks, the first a little longer if they
    do not divide evenly. Each later block is the validation set of a fold, whose training set is
    all examples before the block.
    """
    total = len(targets)
    block_size = validation
    if count > 1:
        block_size = total // (count + 1)
    first_validation_start = total - block_size * count
    indices = torch.arange(total, device=targets.device)
    folds = []
    for start in range(first_validation_start, total, block_size):
        end = start + block_size
        folds.append(Fold(training=indices[:start], validation=indices[start:end]))
    return folds


def _draw_fold_numbers(targets: Tensor, count: int, validation: int, seed: int) -> Tensor:
    """Draws for each example the number of the fold that validates on it, int64 (n,) on the CPU.

    The examples are shuffled, and then sorted by class without changing the order within a class.
    Examples at equal distances in this order are a random sample that has each class in proportion.

    A single fold has the number 0: examples with the number 1 are in no validation set.
    """
    total = len(targets)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    if not targets.is_floating_point():
        classes_in_order = targets.cpu()[order]
        order = order[classes_in_order.argsort(stable=True)]
    positions = torch.arange(total)
    fold_numbers = torch.empty(total, dtype=torch.int64)
    if count > 1:
        fold_numbers[order] = positions % count
        return fold_numbers
    # A single validation set takes `validation` examples at distances as equal as possible. If it
    # takes 2 of 5, it has 0, 0, 1, 1 and 2 of the first 1 to 5 examples in this order: those at the
    # positions 2 and 4.
    count_before = positions * validation // total
    count_with_example = (positions + 1) * validation // total
    is_validated = count_with_example > count_before
    fold_numbers[order] = torch.where(is_validated, 0, 1)
    return fold_numbers


def _draw_fold_numbers_by_group(groups: Tensor, count: int, validation: int, seed: int) -> Tensor:
    """Draws for each example the number of the fold that validates on it, int64 (n,) on the CPU.

    All examples of a group get the same number. A single fold has the number 0: examples with the
    number 1 are in no validation set.

    Args:
        groups: the group of each example, (n,).
        count: the number of folds.
        validation: the most examples of a single validation set, unless one group is larger.
        seed: seeds the draw.
    """
    # The groups are numbered from 0: the number of each example's group, and the size of each.
    _, group_numbers, sizes = torch.unique(groups.cpu(), return_inverse=True, return_counts=True)
    fewest_groups = max(2, count)  # even a single fold needs one to validate and one to train on
    if len(sizes) < fewest_groups:
        raise ValueError(
            f"data.groups must be at least {fewest_groups} for objective.folds={count}; "
            f"got {len(sizes)}"
        )
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled_sizes = {group: int(sizes[group]) for group in order}
    folds_of_groups = torch.ones(len(sizes), dtype=torch.int64)
    if count == 1:
        for group in _choose_validation_groups(shuffled_sizes, validation):
            folds_of_groups[group] = 0
    else:
        fold_sizes = [0] * count
        for group, size in shuffled_sizes.items():
            smallest_fold = fold_sizes.index(min(fold_sizes))
            folds_of_groups[group] = smallest_fold
            fold_sizes[smallest_fold] += size
    return folds_of_groups[group_numbers]


def _choose_validation_groups(sizes: Mapping[int, int], validation: int) -> list[int]:
    """Chooses groups with at most `validation` examples together, or the smallest of all groups.

    Args:
        sizes: the number of examples of each group, in the order in which groups are tried.
        validation: the most examples. If each group has more, the smallest one is chosen.
    """
    groups = []
    remaining = validation
    for group, size in sizes.items():
        if size <= remaining:
            groups.append(group)
            remaining -= size
    if not groups:
        groups.append(min(sizes, key=sizes.__getitem__))
    return groups


def digest_of(inputs: Tensor, targets: Tensor) -> str:
    """Returns the SHA-256 of the inputs and the targets, both on the CPU.

    Inputs that are not floating-point numbers are converted to float32.
    """
    shapes = f"{tuple(inputs.shape)} {tuple(targets.shape)} {targets.dtype}"
    digest = hashlib.sha256(shapes.encode())
    for part in _split_rows(inputs):
        if not part.is_floating_point():
            part = part.float()
        digest.update(part.contiguous().numpy().data)
    for part in _split_rows(targets):
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def _split_rows(tensor: Tensor) -> Sequence[Tensor]:
    """Splits a tensor along its first dimension into parts of some megabytes, or of one row.

    Converting all of a large tensor at once would take as much memory again.
    """
    if not tensor.ndim:
        return (tensor,)
    numbers_in_row = math.prod(tensor.shape[1:])
    rows_in_part = MOST_CONVERTED // max(1, numbers_in_row)
    return torch.split(tensor, max(1, rows_in_part))


def check_sizes(inputs: Tensor, targets: Tensor, must: str) -> str:
    """Checks that there are as many inputs as targets, and returns their sizes for messages.

    Args:
        must: the beginning of the error's message, such as "data must have".

    Raises:
        UnfitData: the numbers of inputs and targets differ, or are 0.
    """
    sizes = f"inputs {format_sizes(inputs.shape)} and targets {format_sizes(targets.shape)}"
    if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or not len(inputs):
        raise UnfitData(f"{must} as many targets as inputs, and at least one; got {sizes}")
    return sizes


def format_sizes(shape: Sequence[int]) -> str:
    """Formats a shape in parentheses: (28, 28), (10)."""
    return f"({', '.join(map(str, shape))})"
