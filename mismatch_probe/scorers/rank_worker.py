"""One rank of a scorer that runs on several processes; started by torchrun, told what to do by `RankGroup`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import Client, Connection
from typing import Any

from mismatch_probe.errors import MismatchProbeError
from mismatch_probe.process_lifetime import die_with_parent
from mismatch_probe.scorers.protocol import ScoreRequest, ScorerSpec
from mismatch_probe.scorers.ranks import ADDRESS_VARIABLE, Message
from mismatch_probe.scorers.sharded_models import SHARDED, ShardedModel

# Ranks wait for each other while another one loads; a dead one is noticed by torchrun, not by a timeout.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class RankSetup:
    """What a rank loads.

    Attributes:
        kind: Registry name of the scorer.
        spec: What to load.
    """

    kind: str
    spec: ScorerSpec


@dataclass(frozen=True, slots=True)
class RankTask:
    """One call of `Scorer.score`, the same for every rank.

    Attributes:
        requests: What to score.
        temperature: See `Scorer.score`.
        batching: See `Scorer.score`.
        capture_routing: See `Scorer.score`.
    """

    requests: Sequence[ScoreRequest]
    temperature: float
    batching: str
    capture_routing: bool


def main() -> int:
    """Serves until the line is closed.

    Returns:
        0, or 1 after an error that the other side was told of.
    """
    die_with_parent()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    line = Client(os.environ[ADDRESS_VARIABLE], "AF_UNIX")
    line.send(rank)
    try:
        setup: RankSetup = line.recv()
        model = _load(setup)
        line.send(Message("ready", asdict(model.facts())))
        while True:
            task: RankTask = line.recv()
            _score(task, model, line, rank, world_size)
            line.send(Message("done"))
    except EOFError:
        # The launcher has closed the line: the work is done.
        return 0
    except MismatchProbeError as error:
        traceback.print_exc()
        line.send(Message("error", (type(error).__name__, error.message, error.hint)))
    except Exception as error:
        # The launcher shows one line; the whole story is in the log.
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        text = f"rank {rank} of {world_size} failed: {type(error).__name__}: {first}"
        line.send(Message("error", ("EngineCrashError", text, "see the log")))
    return 1


def _load(setup: RankSetup) -> ShardedModel:
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available() and setup.spec.options.get("device", "auto") != "cpu"
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    return SHARDED[setup.kind](setup.spec)


def _score(
    task: RankTask, model: ShardedModel, line: Connection[Any, Any], rank: int, world_size: int
) -> None:
    batches = model.scoring.batches(task.requests, model.batch_size(task.batching))
    if not model.splits_batches:
        for index, batch in enumerate(batches):
            results = model.scoring.score_batch(batch, task.temperature, task.capture_routing)
            if rank == 0:
                line.send(Message("batch", (index, results)))
        return
    for first in range(0, len(batches), world_size):
        # Weights are gathered by all ranks together, so a rank without a batch of its own runs the first once more.
        index = first + rank if first + rank < len(batches) else first
        results = model.scoring.score_batch(batches[index], task.temperature, task.capture_routing)
        if index == first + rank:
            line.send(Message("batch", (index, results)))


if __name__ == "__main__":
    sys.exit(main())
