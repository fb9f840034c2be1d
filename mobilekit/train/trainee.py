"""The model while it trains: in float32, whole or sharded; afterwards the better of two."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .corpus import Corpus
from .heldout import heldout_loss
from .ranks import Ranks, shard_

__all__ = ["Trainee", "frozen", "in_float32", "trainee"]


class Trainee:
    """A model in training.

    Attributes:
        module: What is trained: the model itself, or on several ranks a sharded copy of it.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, *, can_restore: bool) -> None:
        self._model, self._ranks = model, ranks
        self._dtypes = {name: p.dtype for name, p in model.named_parameters()}
        self._original: dict[str, Tensor] = {}
        if ranks.size > 1:
            self.module = copy.deepcopy(model)
            _widen_(self.module)
            shard_(self.module, ranks)
            return
        self.module = model
        if can_restore:
            held = {name: p.detach() for name, p in model.named_parameters()}
            # on a GPU the copy would take from what training needs
            self._original = {
                name: p.clone() if p.device.type == "cpu" else p.cpu() for name, p in held.items()
            }

    def heldout_loss(self, corpus: Corpus, description: str) -> float:
        """Return the loss over the held-out windows, in nats a token; every rank calls it."""
        loss = heldout_loss(
            self.module, corpus.windows, padding_id=corpus.padding_id, description=description
        )
        if self._ranks.size > 1:  # what a forward without a backward gathered stays gathered
            self.module.reshard()  # type: ignore[operator]
        return loss

    @torch.no_grad()
    def round_(self) -> None:
        """Round the weights as saving them will, and go on in float32."""
        for name, parameter in self.module.named_parameters():
            held = self._ranks.held(parameter)
            held.copy_(held.to(self._dtypes[name]).to(held.dtype))

    @torch.no_grad()
    def accept(self) -> None:
        """Make what was trained the model's weights; every rank calls it."""
        if self._ranks.size == 1:
            return
        own = dict(self._model.named_parameters())
        for name, parameter in self.module.named_parameters():
            own[name].copy_(self._ranks.whole(parameter))

    @torch.no_grad()
    def restore(self) -> None:
        """Make the model's weights what they were; needs ``can_restore``."""
        if self._ranks.size == 1:
            for name, parameter in self._model.named_parameters():
                parameter.copy_(self._original[name])


@contextlib.contextmanager
def trainee(model: nn.Module, ranks: Ranks, *, can_restore: bool) -> Iterator[Trainee]:
    """Hold half-precision weights in float32 inside, where small updates are not lost.

    Args:
        model: Its weights change where ``ranks`` is one process, or on ``accept``.
        ranks: The processes that train together.
        can_restore: Whether the weights may be wanted back.
    """
    made = Trainee(model, ranks, can_restore=can_restore)
    with in_float32(model) if ranks.size == 1 else contextlib.nullcontext():
        yield made


@contextlib.contextmanager
def in_float32(model: nn.Module | None) -> Iterator[None]:
    """Hold half-precision weights in float32 inside, where small updates are not lost."""
    halves = [] if model is None else _widen_(model)
    try:
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)
            tensor.grad = None


def _widen_(model: nn.Module) -> list[tuple[Tensor, torch.dtype]]:
    """Put half-precision weights into float32; return them with what they were."""
    tensors = [*model.parameters(), *model.buffers()]
    halves = [(t, t.dtype) for t in tensors if t.dtype in (torch.float16, torch.bfloat16)]
    for tensor, _ in halves:
        tensor.data = tensor.data.float()
    return halves


@contextlib.contextmanager
def frozen(teacher: nn.Module | None, ranks: Ranks) -> Iterator[None]:
    """Hold the teacher in evaluation mode and in float32 inside; on several ranks shard it."""
    was_training = teacher is not None and teacher.training
    if teacher is None:
        yield
        return
    teacher.eval()
    if ranks.size > 1:  # for good: a sharded model cannot be put together again
        _widen_(teacher)
        shard_(teacher, ranks)
        yield
        return
    try:
        with in_float32(teacher):
            yield
    finally:
        teacher.train(was_training)
