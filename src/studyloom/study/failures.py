"""Why a trial came to nothing: a class and a reason, for people and for the sampler."""

import traceback
from dataclasses import dataclass

from studyloom.errors import Diverged, Infeasible, TimedOut, UndefinedMetric

TRACEBACK_LINES = 12
DIVERGED = "diverged"
OUT_OF_MEMORY = "out_of_memory"
TIMEOUT = "timeout"
CRASHED = "crashed"
ERROR = "error"
INFEASIBLE = "infeasible"  # its network costs more than it may
UNDEFINED = "undefined"  # the metric is no number
# A region where training diverges or does not fit is to be left alone. Samplers look at complete and pruned trials
# only, so these end as pruned ones whose constraint is broken: of failed ones the sampler would learn nothing.
TEACHES = (DIVERGED, OUT_OF_MEMORY, INFEASIBLE)
MISTAKES = (ERROR, UNDEFINED)  # of the user's code: where all trials end so, the study stops


@dataclass(frozen=True)
class Failure:
    kind: str
    reason: str
    details: str = ""


def explain(error: BaseException) -> Failure:
    """What to store of an exception that ended a trial."""
    import torch  # whoever only asks for names, such as `studyloom status`, needs no torch

    reason = f"{type(error).__name__}: {error}"
    match error:
        case Diverged():
            return Failure(DIVERGED, str(error))
        case Infeasible():
            return Failure(INFEASIBLE, str(error))
        case UndefinedMetric():
            return Failure(UNDEFINED, str(error))
        case MemoryError() | torch.OutOfMemoryError():
            return Failure(OUT_OF_MEMORY, reason)
        case RuntimeError() if "can't allocate memory" in str(error):  # torch on a CPU
            return Failure(OUT_OF_MEMORY, reason)
        case TimedOut():
            return Failure(TIMEOUT, str(error))
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return Failure(ERROR, reason, "\n".join(lines[-TRACEBACK_LINES:]))
