"""Texts for code and plain data that are the same in each process, and digests of data.

Two processes give a value the same text if its code and data are equal, so that a text, or its
digest, tells whether a study definition has changed. *Data* are arrays, tensors, and the Datasets
that hold such.
"""

import dis
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from types import CodeType
from typing import Any

from studyloom.user_code.source_code import DIGITS, digest_source, find_members, read_source

DATA = "data "  # the beginning of the digest of an array, a tensor or a Dataset
MOST_NUMBERS = 1_000_000  # a larger array is sampled evenly, so that its digest stays fast
IN_PROGRESS = "..."  # the text of a value within itself
TRAINED_ATTRIBUTES = ("_parameters", "_buffers", "training")  # of a network of PyTorch


@dataclass(frozen=True)
class StableText:
    """A text for some code or plain data that is the same in each process.

    Attributes:
        text: "" for a value that has no such text.
        names_read: the globals that the code of the value reads.
    """

    text: str
    names_read: tuple[str, ...] = ()


def make_stable_text(value: object, holder_ids: frozenset[int] = frozenset()) -> StableText:
    """Makes a text for a value that is the same in each process.

    It is the `repr` of a plain value; the digest of data (an array, a tensor or a Dataset) or of
    code; or the list of the texts of the items that the value holds, in their order. The order of a
    dict counts, since the user's code may depend on it.

    Args:
        value: a value of any type.
        holder_ids: the ids of the values that hold this one, which may hold itself.
    """
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return StableText(repr(value))
    data_digest = digest_data(value)
    if data_digest is not None:
        return StableText(data_digest)
    if id(value) in holder_ids:
        return StableText(repr(IN_PROGRESS))
    items: Iterable[object]
    if is_dataclass(value) and not isinstance(value, type):
        items = [type(value), read_attributes(value)]
    elif isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple | set | frozenset):
        items = value
    else:
        return make_text_of_code(value)
    texts = [make_stable_text(item, holder_ids | {id(value)}) for item in items]
    if isinstance(value, set | frozenset):  # its order differs between processes
        texts.sort(key=lambda text: text.text)
    return join_texts(texts)


def make_text_of_code(value: object) -> StableText:
    """Makes a text for a function, a class or an object: the digests of the sources that it runs.

    Only sources in `__main__` count, since each module has its own digest. Without such a source,
    or if it cannot be read, the text of a function or class is its name, and that of an object is
    "".
    """
    text = ""
    names_read: list[str] = []
    for member in find_members(value):
        if member.__module__ == "__main__":  # a module has its own digest
            with suppress(OSError, TypeError, SyntaxError):  # its source cannot be read
                source = read_source(member)
                names_read += find_names_read(compile(source, "", "exec"))
                text += digest_source(source.encode())
    if not text and hasattr(value, "__qualname__"):  # a function or class, and not an object
        text = str(value.__qualname__)
    return StableText(text, tuple(names_read))


def join_texts(texts: Iterable[StableText]) -> StableText:
    """Joins the texts of a value's parts to one."""
    parts = []
    names_read: list[str] = []
    for text in texts:
        parts.append(text.text)
        names_read += text.names_read
    return StableText(f"[{', '.join(parts)}]", tuple(dict.fromkeys(names_read)))


def find_names_read(code: CodeType) -> Iterator[str]:
    """Yields the names, except for local variables, that a code object and those within it read.

    A global that the code assigns itself, such as a counter of its calls, is left out.
    """
    assigned_names = find_names_assigned(code)
    for part in _list_code(code):
        for instruction in dis.get_instructions(part):
            is_read = instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL")
            if is_read and instruction.argval not in assigned_names:
                yield instruction.argval


def find_names_assigned(code: CodeType) -> set[str]:
    """Returns the variables that a code object and those within it declare and assign.

    They declare them as `global` or `nonlocal`. Such a variable defines nothing: its value is left
    by earlier calls.
    """
    names = set()
    for part in _list_code(code):
        for instruction in dis.get_instructions(part):
            name = instruction.argval
            is_nonlocal = instruction.opname == "STORE_DEREF" and name in part.co_freevars
            if is_nonlocal or instruction.opname == "STORE_GLOBAL":
                names.add(name)
    return names


def _list_code(code: CodeType) -> list[CodeType]:
    """Lists a code object and those within it: inner functions, class bodies, comprehensions."""
    parts = [code]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            parts += _list_code(constant)
    return parts


def read_attributes(value: object) -> dict[str, object]:
    """Returns the attributes of an object, also those in `__slots__`.

    Those of a network that training changes are left out.
    """
    attributes: dict[str, object] = {}
    if hasattr(value, "__dict__"):
        attributes |= vars(value)
    for class_ in type(value).__mro__:
        for name, member in vars(class_).items():
            if inspect.ismemberdescriptor(member):  # of `__slots__`
                with suppress(AttributeError):  # it has no value yet
                    attributes[name] = member.__get__(value)
    if is_network(value):
        for name in TRAINED_ATTRIBUTES:
            attributes.pop(name, None)
    return attributes


def is_network(value: object) -> bool:
    """Returns whether a value is a network of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def digest_data(value: Any) -> str | None:
    """Returns a digest of an array, a tensor, or a Dataset of PyTorch that holds such.

    It is None for anything else, and for the parameters of a network. It imports neither NumPy nor
    PyTorch: before the user's code has imported them, there are no such values.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return _digest_array(value)
    if isinstance(value, torch.utils.data.DataLoader):
        return digest_data(value.dataset)
    if isinstance(value, torch.utils.data.TensorDataset):
        return _join_digests([digest_data(tensor) for tensor in value.tensors])
    if isinstance(value, torch.utils.data.Subset):
        numpy = sys.modules["numpy"]  # Datasets with indices are not used without it
        digest_of_indices = digest_data(numpy.asarray(value.indices))
        # If the Dataset has no digest, at least the choice of its examples counts.
        digest_of_dataset = digest_data(value.dataset) or ""
        return _join_digests([digest_of_indices, digest_of_dataset])
    if isinstance(value, torch.Tensor):
        return _digest_tensor(value)
    return _digest_array(value)


def _digest_tensor(tensor: Any) -> str | None:
    """Returns the digest of a tensor; None for a parameter and a sparse or quantized tensor.

    A parameter requires a gradient: it is trained, so that its values define nothing.
    """
    torch = sys.modules["torch"]
    if tensor.requires_grad or tensor.layout != torch.strided or tensor.is_quantized:
        return None
    numbers = tensor.detach().cpu()
    if numbers.dtype == torch.bfloat16:  # NumPy has no such type
        numbers = numbers.float()
    return _digest_array(numbers.numpy())


def _digest_array(value: Any) -> str | None:
    """Returns the digest of an array of numbers; None for any other value.

    In an array of more than MOST_NUMBERS numbers, only every n-th is digested, so that it is fast.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray) or value.dtype.hasobject:
        return None
    stride = max(1, value.size // MOST_NUMBERS)  # 1 digests all numbers
    sample = value.reshape(-1)[::stride]
    digest = hashlib.sha256(f"{value.dtype} {value.shape}".encode())
    digest.update(numpy.ascontiguousarray(sample).view(numpy.uint8).data)
    return DATA + digest.hexdigest()[:DIGITS]


def _join_digests(digests: Sequence[str | None]) -> str | None:
    """Returns one digest for the several digests of a Dataset; None if one of them is None.

    An empty digest is left out.
    """
    if None in digests:
        return None
    text = " ".join(filter(None, digests))
    return DATA + hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
