"""The processes of one training run, started by ``torchrun``: each holds a part of every tensor."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobilekit.core.device import choose_device
from mobilekit.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ALONE", "Ranks", "launched", "shard_"]

_PATIENCE = datetime.timedelta(hours=1)  # the others wait while the first rank writes


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Attributes:
        rank: Which one it is; the first one prints and writes.
        size: How many there are.
        mesh: Their one-dimensional device mesh; ``None`` where there is one process.
    """

    rank: int = 0
    size: int = 1
    mesh: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over the ranks, in float64; every rank gets the same."""
        if self.size == 1:
            return list(values)
        import torch

        found: list[float] = self.sum_(torch.tensor(values, dtype=torch.float64)).tolist()
        return found

    def sum_(self, tensor: Tensor) -> Tensor:
        """Return a tensor summed over the ranks; what was given is overwritten."""
        if self.size == 1:
            return tensor
        import torch.distributed as dist

        there = tensor.to(self.mesh.device_type)
        dist.all_reduce(there)
        return there

    def of_first(self, value: str) -> str:
        """Return what the first rank gives."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Go on when every rank has come here."""
        self.sums([0.0])

    def whole(self, tensor: Tensor) -> Tensor:
        """Return all of a tensor of which each rank may hold a part; every rank calls it."""
        gather = getattr(tensor, "full_tensor", None)
        return tensor if gather is None else gather()

    def held(self, tensor: Tensor) -> Tensor:
        """Return what this rank holds of a tensor: it can be changed in place."""
        local = getattr(tensor, "to_local", None)
        return tensor if local is None else local()

    def part(self, whole: Tensor, like: Tensor) -> Tensor:
        """Return this rank's part of a tensor, cut as, and where, ``like`` is."""
        whole = whole.to(like.device)
        if self.size == 1:
            return whole
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor):
            return whole
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


ALONE = Ranks()


@contextlib.contextmanager
def launched(device: str) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started; without it, be alone.

    Args:
        device: As a user gives it; ranks meet over NCCL on GPUs, each its own, and over gloo on
            CPUs.

    Raises:
        UsageError: If the environment speaks of several processes, but not of all that it takes,
            or there are more of them than GPUs.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield ALONE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set",
            hint="Start several processes with torchrun, or unset WORLD_SIZE.",
        )
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    kind = choose_device(device).type
    if kind == "cuda":
        gpus, local_rank = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= gpus:
            raise UsageError(
                f"torchrun started more processes on this machine than its {gpus} GPUs",
                hint=f"Use --nproc-per-node {gpus}, or --device cpu.",
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_PATIENCE)
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    yield Ranks(dist.get_rank(), dist.get_world_size(), mesh)
    # not in a finally: a rank that failed must not wait here for the others
    dist.destroy_process_group()


def shard_(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Leave each rank a part of every parameter, along dimension 0, on its device (FSDP2).

    A decoder layer is gathered when it runs; layers may differ in width.

    Args:
        model: A causal language model of transformers, the same on every rank; changed in place.
        ranks: More than one.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    body: Any = model
    for layer in body.base_model.layers:
        fully_shard(layer, mesh=ranks.mesh)
    sharded = fully_shard(model, mesh=ranks.mesh)
    assert isinstance(sharded, FSDPModule)
    # a rank whose tokens miss a module altogether must still meet the others in its reduction
    sharded.set_reduce_scatter_unused_params(True)
    return model
