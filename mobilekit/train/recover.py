"""Recovery training: give a compressed model back part of what compression took.

The student learns from text (``next_token``), from the dense model (``distill``), or from both::

    result = recover(student, RecoverConfig(tokens=500_000), teacher=dense, tokenizer=tokenizer)
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.strict import StrictModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .loop import LoopResult

__all__ = ["RecoverConfig", "RecoverResult", "recover"]

_HELDOUT_WINDOWS = 64  # enough to rank two models, and quick on a CPU
_USER_HELDOUT_SHARE = 0.1


class RecoverConfig(StrictModel):
    """Settings of recovery training."""

    objective: tuple[Literal["next_token", "distill"], ...] = Field(
        ("next_token", "distill"),
        min_length=1,
        description="What the student learns from: the text, the dense model, or both.",
    )
    tokens: int = Field(2_000_000, ge=1, description="Training tokens, rounded up to a batch.")
    optimizer: Literal["adamw"] = Field("adamw", description="The optimizer.")
    learning_rate: float = Field(5e-4, gt=0.0, description="Peak learning rate.")
    batch_size: int = Field(8, ge=1, description="Sequences in a batch.")
    sequence_length: int = Field(256, ge=2, description="Tokens in a sequence.")
    temperature: float = Field(1.0, gt=0.0, description="Softens both models in distillation.")
    distill_weight: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of distillation where both objectives are used."
    )
    balance_weight: float = Field(
        0.01, ge=0.0, description="Weight of the loss that keeps a router's experts in use."
    )
    seed: int = Field(0, ge=0, description="Seed of the batches.")

    @model_validator(mode="after")
    def _objectives_differ(self) -> Self:
        if len(set(self.objective)) != len(self.objective):
            raise ValueError("each objective once")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps that ``tokens`` come to."""
        return math.ceil(self.tokens / (self.batch_size * self.sequence_length))


@dataclass(frozen=True)
class RecoverResult:
    """What recovery training did."""

    losses: tuple[float, ...]  # one a step: the weighted sum of the objectives, nats a token
    tokens: int
    seconds: float
    heldout_loss_before: float  # nats a token
    heldout_loss_after: float

    def summary(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {
            "steps": len(self.losses),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "heldout_loss_before": self.heldout_loss_before,
            "heldout_loss_after": self.heldout_loss_after,
            "losses": list(self.losses),
        }


def recover(
    model: nn.Module,
    config: RecoverConfig,
    *,
    tokenizer: Any,
    teacher: nn.Module | None = None,
    data: str | None = None,
    heldout: str | None = None,
    progress: str = "recovery training",
    state_path: Path | None = None,
) -> RecoverResult:
    """Train ``model`` in place; the same seed, model and data give the same weights.

    Args:
        model: The compressed causal language model; half-precision weights are trained in
            float32 and rounded back at the end.
        config: The settings.
        tokenizer: The model's tokenizer.
        teacher: The dense model, needed for ``distill``; it is not changed.
        data: Training text; without it, English text that ships with CPython.
        heldout: Text for the loss before and after; without it, the frozen held-out text, or
            the last tenth of ``data`` where that is given.
        progress: What the progress bar is called.
        state_path: Where the state is kept for resuming an interrupted run; the state of a run
            with another model, teacher, text or setting is not used.

    Returns:
        Loss curve, tokens, time, and the held-out loss before and after.

    Raises:
        UsageError: If ``distill`` lacks a teacher, or one with another vocabulary is given.
        InvalidInputError: If a text is shorter than one sequence.
    """
    from .heldout import heldout_loss

    student_teacher = _check_teacher(model, config, teacher)
    stream, windows = _texts(config, tokenizer, data, heldout)
    with _in_float32(model), _in_float32(student_teacher), _frozen(student_teacher):
        before = heldout_loss(model, windows, description="held-out loss before")
        outcome = _train(model, config, student_teacher, stream, progress, state_path)
    # of the weights as they will be saved, rounded back; the arithmetic is the same as before
    with _in_float32(model):
        after = heldout_loss(model, windows, description="held-out loss after")
    return RecoverResult(
        losses=tuple(outcome.losses),
        tokens=len(outcome.losses) * config.batch_size * config.sequence_length,
        seconds=outcome.seconds,
        heldout_loss_before=before,
        heldout_loss_after=after,
    )


def _train(
    model: nn.Module,
    config: RecoverConfig,
    teacher: nn.Module | None,
    stream: Tensor,
    progress: str,
    state_path: Path | None,
) -> LoopResult:
    import torch

    from .loop import LoopSettings, run_loop

    device = next(model.parameters()).device
    offsets = torch.arange(config.sequence_length)

    def step_loss(step: int, generator: torch.Generator) -> Tensor:
        last = len(stream) - config.sequence_length + 1
        starts = torch.randint(last, (config.batch_size,), generator=generator)
        batch = stream[starts[:, None] + offsets].to(device)  # (B, S)
        return _objective(model, teacher, batch, config)

    settings = LoopSettings(
        steps=config.steps,
        learning_rate=config.learning_rate,
        seed=config.seed,
        warmup_steps=min(50, config.steps // 10),
        final_learning_rate=0.05,
        checkpoint_every=100 if state_path is not None else 0,
        identity=_identity(model, config, teacher, stream) if state_path is not None else "",
    )
    return run_loop(model, step_loss, settings, description=progress, state_path=state_path)


def _identity(
    model: nn.Module, config: RecoverConfig, teacher: nn.Module | None, stream: Tensor
) -> str:
    """Hash of all that training starts from, so that no other run's state is continued."""
    import torch

    digest = hashlib.sha256(config.model_dump_json().encode())
    taught = () if teacher is None else tuple(teacher.parameters())
    for tensor in (*model.parameters(), *taught, stream):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _objective(
    model: nn.Module, teacher: nn.Module | None, batch: Tensor, config: RecoverConfig
) -> Tensor:
    """The weighted sum of the objectives, plus the router's balance where there is one."""
    import torch

    from .forward import forward_with_routing
    from .objectives import balance_loss, distillation_loss, next_token_loss

    logits, router_logits = forward_with_routing(model, batch)
    loss = logits.new_zeros((), dtype=torch.float32)
    both = len(config.objective) == 2
    if "next_token" in config.objective:
        weight = 1.0 - config.distill_weight if both else 1.0
        loss = loss + weight * next_token_loss(logits, batch)
    if teacher is not None:
        with torch.no_grad():
            target, _ = forward_with_routing(teacher, batch)
        weight = config.distill_weight if both else 1.0
        loss = loss + weight * distillation_loss(logits, target, config.temperature)
    if router_logits and config.balance_weight > 0.0:
        top_k = int(model.config.num_experts_per_tok)  # type: ignore[union-attr, arg-type]
        loss = loss + config.balance_weight * balance_loss(router_logits, top_k)
    return loss


def _check_teacher(
    model: Any, config: RecoverConfig, teacher: nn.Module | None
) -> nn.Module | None:
    """The teacher if this run uses one, checked against the student."""
    if "distill" not in config.objective:
        return None
    if teacher is None:
        raise UsageError(
            "objective 'distill' needs the dense model as a teacher, and none was given",
            hint="Give the teacher, or train with objective next_token only.",
        )
    mine, theirs = model.config.vocab_size, teacher.config.vocab_size  # type: ignore[union-attr]
    if mine != theirs:
        raise UsageError(
            f"the teacher's vocabulary has {theirs} tokens, the model's has {mine}",
            hint="Use the model that was compressed, or another one with the same tokenizer.",
        )
    return teacher


def _texts(
    config: RecoverConfig, tokenizer: Any, data: str | None, heldout: str | None
) -> tuple[Tensor, Tensor]:
    """The training token stream, and held-out windows of shape (N, S)."""
    import torch

    from mobilekit.data.corpora import heldout_text, training_text
    from mobilekit.data.text import encode

    if data is None:
        data = training_text()
        heldout = heldout_text() if heldout is None else heldout
    ids = torch.tensor(encode(tokenizer, data), dtype=torch.long)
    if heldout is None:
        cut = len(ids) - max(config.sequence_length, int(len(ids) * _USER_HELDOUT_SHARE))
        ids, rest = ids[: max(cut, 0)], ids[max(cut, 0) :]
    else:
        rest = torch.tensor(encode(tokenizer, heldout), dtype=torch.long)
    length = config.sequence_length
    for name, tokens in (("training", ids), ("held-out", rest)):
        if len(tokens) < length:
            raise InvalidInputError(
                f"the {name} text holds {len(tokens)} tokens, a sequence needs {length}",
                hint="Give a longer text or a smaller sequence_length.",
            )
    windows = rest[: len(rest) // length * length].view(-1, length)
    # Evenly spread over the text, so that no single document decides.
    count = min(_HELDOUT_WINDOWS, len(windows))
    picked = torch.arange(count) * len(windows) // count
    return ids, windows[picked]


@contextlib.contextmanager
def _in_float32(model: nn.Module | None) -> Iterator[None]:
    """Hold half-precision weights in float32 inside, where small updates are not lost."""
    import torch

    tensors = [] if model is None else [*model.parameters(), *model.buffers()]
    halves = [(t, t.dtype) for t in tensors if t.dtype in (torch.float16, torch.bfloat16)]
    for tensor, _ in halves:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)
            tensor.grad = None


@contextlib.contextmanager
def _frozen(teacher: nn.Module | None) -> Iterator[None]:
    """Put the teacher into evaluation mode inside."""
    was_training = teacher is not None and teacher.training
    if teacher is not None:
        teacher.eval()
    try:
        yield
    finally:
        if teacher is not None:
            teacher.train(was_training)
