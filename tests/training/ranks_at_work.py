"""Ranks as real processes, with gloo and real sockets, for tests of how they train together."""

import os
import pickle
from functools import partial

from commands import FORKS


def together(count, work, *arguments):
    """Calls `work(ranks, *arguments)` in each of several processes that form ranks.

    Returns:
        What it returned in each rank.
    """
    pairs = [FORKS.Pipe() for _ in range(1, count)]
    lines = [[ours for ours, _ in pairs], *([theirs] for _, theirs in pairs)]
    folder = os.environ["XDG_STATE_HOME"]
    place = os.path.join(folder, f"ranks-{os.urandom(8).hex()}")
    answers, processes = [], []
    for rank in range(count):
        answer, theirs = FORKS.Pipe(duplex=False)
        target = partial(_become, rank, count, lines[rank], place, theirs, work, arguments)
        process = FORKS.Process(target=target)
        process.start()
        theirs.close()
        answers.append(answer)
        processes.append(process)
    for pair in pairs:
        for line in pair:
            line.close()
    try:
        return [pickle.loads(answer.recv_bytes()) for answer in answers]
    finally:
        for process in processes:
            process.join(10)
            process.kill()
            process.join()


def _become(rank, count, lines, place, answer, work, arguments):
    import torch
    import torch.distributed as dist

    from studyloom.training.ranks import Ranks

    torch.set_num_threads(1)
    os.environ["RANK"] = str(rank)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if os.uname().sysname == "Darwin" else "lo"
    dist.init_process_group("gloo", f"file://{place}", rank=rank, world_size=count)
    ranks = Ranks(rank, count, lines)
    result = work(ranks, *arguments)
    for line in lines:
        line.close()  # the others come to their end
    answer.send_bytes(pickle.dumps(result))  # not `send`, which shares the memory of tensors
    answer.close()
