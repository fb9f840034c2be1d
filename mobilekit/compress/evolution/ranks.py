"""Candidates dealt over the processes that torchrun started; every one ends with all fitness.

torch.distributed is used where it is initialised: gloo on the CPU, NCCL on GPUs. In one process
everything is plain calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mobilekit.core.errors import CheckFailedError, UsageError

from .space import State

if TYPE_CHECKING:
    import torch

# (candidate, generation, stage) -> fitness, lower is better; a pure function of its arguments
Evaluate = Callable[[State, int, int], float]
# the same for all candidates of a stage at once: one fitness each, in their order, and under
# torchrun the same ones on every rank
EvaluateMany = Callable[[Sequence[State], int, int], list[float]]

_T = TypeVar("_T")


def place() -> tuple[int, int]:
    """Return the rank of this process and how many there are: (0, 1) without torchrun.

    Raises:
        UsageError: If torchrun started several processes that have not joined one another: each
            would do all the work, and write the same files.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    if _launched() and os.environ["WORLD_SIZE"] != "1":
        raise UsageError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but they are not joined",
            hint="Run the search inside `with mobilekit.train.ranks.launched(device):`.",
        )
    return 0, 1


def _ignore(count: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class FannedOut:
    """Evaluates many candidates, dealt over the ranks in turn; see ``fanned_out``.

    Attributes:
        evaluate: Gives the fitness of one candidate.
        on_progress: Called after each candidate of this rank with how many all ranks have done
            in the same time.
    """

    evaluate: Evaluate
    on_progress: Callable[[int], None] = _ignore

    def __call__(self, candidates: Sequence[State], generation: int, stage: int) -> list[float]:
        """Return the fitness of each candidate, on every rank."""
        rank, size = place()
        if size == 1:
            return [self._one(candidate, generation, stage, 1) for candidate in candidates]
        fitness, failure, count = [0.0] * len(candidates), None, len(candidates)
        try:
            for index in range(rank, count, size):
                alike = min(size, count - index)
                fitness[index] = self._one(candidates[index], generation, stage, alike)
        except Exception as error:  # raised below, once the others know
            failure = error
        fitness, failed = _added_up(fitness, failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise CheckFailedError(
                f"rank {failed[0]} failed in stage {stage} of generation {generation}",
                hint="See the message of that rank.",
            )
        return fitness

    def _one(self, candidate: State, generation: int, stage: int, alike: int) -> float:
        fitness = float(self.evaluate(candidate, generation, stage))
        self.on_progress(alike)
        return fitness


def fanned_out(evaluate: Evaluate) -> FannedOut:
    """Return a function that evaluates many candidates, dealt over the ranks in turn.

    Every rank ends with the fitness of all, so that all go on alike, and by numbers of one rank
    each: also where two GPUs differ in the last bit. Where one rank fails it raises its own
    error, and every other one a ``CheckFailedError``: nobody waits for a rank that is gone.
    """
    return FannedOut(evaluate)


def from_first(produce: Callable[[], _T]) -> _T:
    """Return what ``produce`` gives on rank 0, on every rank; only rank 0 calls it.

    Raises:
        CheckFailedError: On the other ranks, if it raised on rank 0.
    """
    rank, size = place()
    if size == 1:
        return produce()
    from torch import distributed

    box: list[tuple[_T, ...]] = [()]
    try:
        if rank == 0:
            box = [(produce(),)]
    finally:  # also where it raised: the others wait
        distributed.broadcast_object_list(box, src=0, device=_device())
    if not box[0]:
        raise CheckFailedError(
            "rank 0 failed while the others waited", hint="See the message of that rank."
        )
    return box[0][0]


def _added_up(fitness: list[float], failed: bool) -> tuple[list[float], list[int]]:
    """Return the sum over ranks of each fitness, and the ranks that failed.

    A candidate has a fitness on one rank and 0 on all others, so that the sum is exact.
    """
    import torch
    from torch import distributed

    rank, size = place()
    failures = [float(failed and index == rank) for index in range(size)]
    total = torch.tensor([*fitness, *failures], dtype=torch.float64, device=_device())
    distributed.all_reduce(total)
    values: list[float] = total.tolist()
    count = len(fitness)
    return values[:count], [index for index in range(size) if values[count + index]]


def _device() -> torch.device:
    import torch
    from torch import distributed

    is_nccl = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if is_nccl else torch.device("cpu")


def _launched() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_torchelastic_launched()
