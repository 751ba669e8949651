"""Several processes that train one trial in lockstep: rank 0 decides, and the others follow.

Each rank computes its share of a batch, and all add up their gradients, so that their weights
stay equal. Gradients and weights go through PyTorch's process group. Decisions, outputs and
exceptions go through pairs of sockets that no other process can open, and so may be pickles.

An exception in one rank must not leave the others waiting for it. Where ranks agree (`agree`,
`sum_gradients`) it is raised in all of them. Anywhere else the lockstep is lost: a rank other than
rank 0 sends its exception and ends; rank 0 ends the others, and gives way to another worker once it
has recorded how the trial went.
"""

import contextlib
import pickle
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from studyloom.environment import DEVICE
from studyloom.errors import ConfigError, Interrupted, Stopped
from studyloom.text import name_error

T = TypeVar("T")
R = TypeVar("R")
Recipe = Callable[..., Any]  # makes an objective of a definition and `data=`, in any process

CALL, GO, END = "call", "go", "end"  # what rank 0 says
REPLY, RAISED = "reply", "raised"  # what all say where they agree
FAILED = "failed"  # what another rank says before it ends
NOTED = 8  # lines of the traceback of another rank
PATIENCE = 2.0  # seconds that rank 0 waits to learn how another rank has failed


class Ended(BaseException):
    """Rank 0 has ended the training. Not an Exception: `except Exception` lets it pass."""


class LostRank(RuntimeError):
    """Another rank has ended."""


@dataclass(eq=False)
class Ranks:
    """The processes that train a trial, as one of them sees them; by default it is the only one.

    Attributes:
        lines: from rank 0 to each of the others, in their order; from another one to rank 0.
        within: whether the others expect this process at the next step of the lockstep.
        broken: whether the others are gone, so that this process can train nothing more.
    """

    rank: int = 0
    world_size: int = 1
    lines: Sequence[Connection] = ()
    end_others: Callable[[], None] = lambda: None
    within: bool = field(default=False, init=False)
    broken: bool = field(default=False, init=False)
    _ended_by: BaseException | None = field(default=None, init=False)  # in `deciding`

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    @property
    def device(self) -> torch.device:
        """The GPU of this rank, or the first GPU for a single rank; without GPUs the CPU."""
        if DEVICE.get():
            return torch.device("mps")
        return torch.device("cuda", self.rank) if torch.cuda.is_available() else torch.device("cpu")

    def share(self, indices: Tensor) -> Tensor:
        """Returns this rank's share of some examples, (n,); the shares differ by one at most."""
        return indices if self.alone else indices.tensor_split(self.world_size)[self.rank]

    @contextlib.contextmanager
    def leading(self, call: object, broken: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Runs the body in rank 0 with the other ranks in lockstep; `call` names what they join.

        `broken` is called if the lockstep is lost. If another rank's exception caused the body's,
        it is raised instead.
        """
        if self.alone:
            yield
            return
        self.within, self._ended_by = True, None
        try:
            self._tell(CALL, call)
            self.together(lambda: None)
            yield
        except BaseException as error:
            if not self.within:
                self._tell(END)
                raise
            cause = self._cause_of(error)
            self.broken = True
            self.end_others()
            broken()
            if cause is error:
                raise
            raise cause from None
        self.within = False
        self._tell(END)

    def follow(self, take_part: Callable[[Any], None]) -> None:
        """Joins what rank 0 leads until rank 0 has ended; `take_part` gets the `call`.

        An exception of this rank is raised here, and sent to rank 0.
        """
        failed: BaseException | None = None
        while True:
            try:
                kind, call = self._hear(self.lines[0])
            except LostRank:
                return
            if kind == GO:  # rank 0 has not raised what this rank did
                assert failed is not None
                self._send(self.lines[0], FAILED, failed)
                raise failed
            if kind == END:
                continue
            self.within, self._ended_by = True, None
            try:
                take_part(call)
                self.within, failed = False, None
            except Ended:
                self.within, failed = False, None
            except LostRank:
                return
            except BaseException as error:
                if self.within:
                    self._send(self.lines[0], FAILED, error)
                    raise
                failed = error

    def go_on(self) -> bool:
        """Returns whether to train another epoch, which rank 0 decides by calling this."""
        if self.alone:
            return True
        self.within = True
        if self.rank == 0:
            self._tell(GO)
            return True
        going = self._hear(self.lines[0])[0] == GO
        self.within = going
        return going

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """Waits until all ranks have come here, runs the body, then lets all ranks continue.

        The body is for what rank 0 decides. If it raises an exception there, the others get Ended;
        a rank that catches it meets it here again.
        """
        if self.alone:
            yield
            return
        if self._ended_by is not None:
            raise self._ended_by
        self.together(lambda: None)
        self.rest()
        try:
            yield
            if not self.go_on():
                raise Ended
        except BaseException as error:
            self._ended_by = error
            raise

    def rest(self) -> None:
        """Notes that no other rank waits for this one: all have ended the epoch."""
        self.within = False

    def together(self, work: Callable[[], object]) -> None:
        """Calls a function in each rank; an exception in one is raised in all."""
        self.agree(lambda: bool(work()), lambda _: None)

    def agree(self, work: Callable[[], T], merge: Callable[[list[T]], R]) -> R:
        """Calls `work` in each rank; rank 0 merges the results with `merge`; each rank gets that.

        What `merge` raises, or `work` in the first rank where it fails, all ranks raise. `merge`
        gets what the ranks returned, in their order.
        """
        if self.alone:
            return merge([work()])
        reply: tuple[str, Any]
        try:
            reply = REPLY, work()
        except BaseException as error:  # SystemExit too, which the user's code may raise
            reply = RAISED, _unless_ours(error)
        if self.rank:
            self._send(self.lines[0], *reply)
            kind, verdict = self._hear(self.lines[0])
        else:
            replies: list[tuple[str, Any]] = [reply, *map(self._hear, self.lines)]
            kind, verdict = next((each for each in replies if each[0] == RAISED), (REPLY, None))
            if kind == REPLY:
                try:
                    verdict = merge([result for _, result in replies])
                except Exception as error:
                    kind, verdict = RAISED, error
            self._tell(kind, verdict)
        if kind == RAISED:
            self.within = False
            raised = reply[1] if reply[0] == RAISED else verdict
            assert isinstance(raised, BaseException)
            raise raised
        result: R = verdict
        return result

    def sum_gradients(self, weights: Sequence[nn.Parameter], work: Callable[[], Tensor]) -> Tensor:
        """Calls a function that computes gradients and a number, and sums both over all ranks.

        A weight without a gradient in any rank gets none. An exception in one is raised in all.
        """
        error, total = None, None
        try:
            total = work()
        except BaseException as caught:
            error = _unless_ours(caught)
        # On the CPU, since reading numbers from a GPU waits for it.
        present = [float(weight.grad is not None) for weight in weights]
        flags = torch.tensor([float(error is not None), *present])
        dist.all_reduce(flags)
        failed, *counts = flags.tolist()
        if failed:
            self.together(lambda: _raise(error))
        assert total is not None
        graded = [weight for weight, count in zip(weights, counts, strict=True) if count]
        parts = [
            torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in graded
        ]
        flat = torch.cat([*(part.reshape(-1) for part in parts), total.reshape(1)])
        dist.all_reduce(flat)
        *sums, total = torch.split(flat, [*(weight.numel() for weight in graded), 1])
        for weight, part, gradient in zip(graded, parts, sums, strict=True):
            weight.grad = part.copy_(gradient.view_as(part))
        return total.reshape(())

    @torch.no_grad()
    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Copies the values of tensors from rank 0 to the other ranks."""
        if not self.alone:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def _cause_of(self, error: BaseException) -> BaseException:
        """Returns the exception of another rank that made this one fail."""
        if isinstance(error, Exception):
            for line in self.lines:
                try:
                    while line.poll(PATIENCE):
                        self._hear(line)
                except (LostRank, OSError):
                    time.sleep(PATIENCE)  # the parent that watches the ranks ends this process now
                except BaseException as cause:
                    return cause
        return error

    def _tell(self, kind: str, content: object = None) -> None:
        for line in self.lines:
            self._send(line, kind, content)

    @staticmethod
    def _send(line: Connection, kind: str, content: object) -> None:
        if kind in (RAISED, FAILED):
            assert isinstance(content, BaseException)
            content = _portable(content)
        # Not `send`, which would share a tensor's memory instead of sending the tensor.
        with contextlib.suppress(ConnectionError):  # a read notices the end of the other rank
            line.send_bytes(pickle.dumps((kind, content)))

    @staticmethod
    def _hear(line: Connection) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = pickle.loads(line.recv_bytes())
        except (EOFError, ConnectionError):
            raise LostRank("another rank of this trial has ended") from None
        if message[0] == FAILED:
            raise message[1]
        return message


ALONE = Ranks()


def check_device(ranks: int) -> None:
    """Raises ConfigError if the device that the environment names cannot be used."""
    name, value = DEVICE.name, DEVICE.get()
    if not value:
        return
    way_out = "unset it to train on a GPU of CUDA, or else on the CPU"
    if value != "mps":
        raise ConfigError([f"{name} must be mps, or unset; got {value!r}; {way_out}"])
    if not torch.backends.mps.is_available():
        raise ConfigError([f"{name}=mps: PyTorch finds no GPU of a Mac here; {way_out}"])
    if ranks > 1:
        raise ConfigError([f"{name}=mps: a Mac has one GPU; set launcher.ranks=1; got {ranks}"])


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _unless_ours(error: BaseException) -> BaseException:
    """Returns an exception; raises it if it came from a signal, which ends only this process."""
    if isinstance(error, Stopped | Interrupted):
        raise error
    return error


def _portable(error: BaseException) -> BaseException:
    """Returns an exception that another process can unpickle; with the traceback as its note."""
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:  # of a custom class
        copy = RuntimeError(name_error(error))
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    # Its end: of a long traceback a trial stores only the last lines.
    copy.add_note("\n".join(["in another rank:", *lines[-NOTED:]]))
    return copy
