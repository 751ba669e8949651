"""The state of the call that a thread makes on a database, which hooks of SQLAlchemy read and set.

A call is tried until it succeeds; see `retry.Retry`. Hooks get no arguments of ours, so that what
they need to know of the call is a variable of the thread.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CallState(threading.local):
    """The state of this thread's call.

    Attributes:
        writes: Whether its transactions write; on SQLite they then begin with the write lock.
        reached_commit: Whether the present try has come to a COMMIT.
        may_be_committed: Whether an earlier try failed at a COMMIT: the database may have done it,
            and only its reply was lost.
        try_ends: When the present try must end, as time.monotonic; None without a limit.
        untrusted_until: When the reading of an untrusted file must end, as time.monotonic; None
            while the thread opens trusted files.
    """

    writes = False
    reached_commit = False
    may_be_committed = False
    try_ends: float | None = None
    untrusted_until: float | None = None

    @contextmanager
    def begin_call(self, try_ends: float | None) -> Iterator[None]:
        """Sets the state for a call in the body; restores the state of an outer call after it.

        Args:
            try_ends: When its first try must end, as time.monotonic; None without a limit.
        """
        outer_reached_commit = self.reached_commit
        outer_may_be_committed = self.may_be_committed
        outer_try_ends = self.try_ends
        self.reached_commit = False
        self.may_be_committed = False
        self.try_ends = try_ends
        try:
            yield
        finally:
            self.reached_commit = outer_reached_commit
            self.may_be_committed = outer_may_be_committed
            self.try_ends = outer_try_ends


call_state = CallState()
