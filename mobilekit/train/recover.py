"""Recovery training: give a compressed model back part of what compression took.

The student learns from text (``next_token``), from the dense model (``distill``), or from both::

    result = recover(student, RecoverConfig(tokens=500_000), teacher=dense, tokenizer=tokenizer)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobilekit.core import console
from mobilekit.core.errors import UsageError

from .config import RecoverConfig
from .ranks import ALONE, Ranks

if TYPE_CHECKING:
    from torch import nn

    from .corpus import Corpus
    from .loop import LoopResult
    from .trainee import Trainee

__all__ = ["RecoverConfig", "RecoverResult", "check_ranks", "recover"]

_CHECKPOINT_SECONDS = 180.0
_FINAL_LEARNING_RATE = 0.05  # as a share of the peak
# what does not decide what is learnt: another value goes on from the same state
_FREE_SETTINGS = {"data", "heldout", "checkpoint_every", "keep_better"}


@dataclass(frozen=True)
class RecoverResult:
    """What recovery training did."""

    losses: tuple[float, ...]  # one a step: the weighted sum of the objectives, nats a token
    tokens: int
    seconds: float
    heldout_loss_before: float  # nats a token
    heldout_loss_after: float  # of the trained weights, also where they were not kept
    kept: Literal["trained", "original"] = "trained"

    def summary(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {
            "steps": len(self.losses),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "heldout_loss_before": self.heldout_loss_before,
            "heldout_loss_after": self.heldout_loss_after,
            "kept": self.kept,
            "losses": list(self.losses),
        }


def recover(
    model: nn.Module,
    config: RecoverConfig,
    *,
    tokenizer: Any,
    teacher: nn.Module | None = None,
    corpus: Corpus | None = None,
    data: str | None = None,
    heldout: str | None = None,
    progress: str = "recovery training",
    state_path: Path | None = None,
    ranks: Ranks = ALONE,
) -> RecoverResult:
    """Train ``model`` in place; the same seed, model and data give the same weights.

    Args:
        model: The compressed causal language model; half-precision weights are trained in
            float32 and rounded back at the end.
        config: The settings.
        tokenizer: The model's tokenizer.
        teacher: The dense model, needed for ``distill``; it is not changed, but on several ranks
            each is left a part of it.
        corpus: What is read, opened before the models were loaded; opened here where ``None``.
        data: Training text in place of what ``config.data`` names.
        heldout: Text for the loss before and after, in place of what ``config.heldout`` names.
        progress: What the progress bar is called.
        state_path: Where the state is kept for resuming an interrupted run; the state of a run
            with another model, teacher, text or setting is not used.
        ranks: The processes that train together; each has the whole model before and after.

    Returns:
        Loss curve, tokens, time, the held-out loss before and after, and which weights were kept.

    Raises:
        UsageError: If ``distill`` lacks a teacher, or one with another vocabulary is given, or
            the ranks cannot share a batch.
        InvalidInputError: If a text is shorter than one sequence, an id is beyond the vocabulary,
            or the loss is not finite.
    """
    from .trainee import frozen, trainee

    teacher = _check_teacher(model, config, teacher)
    check_ranks(config, ranks)
    if corpus is None:
        corpus = _open(model, config, tokenizer, data, heldout)
    identity = "" if state_path is None else _identity(model, config, teacher, corpus, ranks)
    keeps_better = config.keep_better
    with (
        frozen(teacher, ranks),
        trainee(model, ranks, can_restore=keeps_better) as student,
    ):
        before = student.heldout_loss(corpus, "held-out loss before")
        outcome = _train(student, config, teacher, corpus, progress, state_path, identity, ranks)
        student.round_()
        after = student.heldout_loss(corpus, "held-out loss after")
        is_kept = after < before or not keeps_better
        if is_kept:
            student.accept()
        else:
            student.restore()
            console.warn(_not_better(before, after))
    return RecoverResult(
        losses=tuple(outcome.losses),
        tokens=len(outcome.losses) * config.batch_size * config.sequence_length,
        seconds=outcome.seconds,
        heldout_loss_before=before,
        heldout_loss_after=after,
        kept="trained" if is_kept else "original",
    )


def check_ranks(config: RecoverConfig, ranks: Ranks) -> None:
    """Check that the ranks can share a batch evenly.

    Raises:
        UsageError: If they cannot.
    """
    parts = config.gradient_accumulation
    if config.batch_size % (ranks.size * parts):
        cut = f", each in {parts} parts" if parts > 1 else ""
        raise UsageError(
            f"batch_size {config.batch_size} cannot be shared by {ranks.size} ranks{cut}",
            hint=f"Use a batch_size that {ranks.size * parts} divides, or other ranks.",
        )


def _open(
    model: Any, config: RecoverConfig, tokenizer: Any, data: str | None, heldout: str | None
) -> Corpus:
    from .corpus import open_corpus

    vocab_size = int(model.config.vocab_size)
    return open_corpus(config, tokenizer, vocab_size=vocab_size, data=data, heldout=heldout)


def _train(
    student: Trainee,
    config: RecoverConfig,
    teacher: nn.Module | None,
    corpus: Corpus,
    progress: str,
    state_path: Path | None,
    identity: str,
    ranks: Ranks,
) -> LoopResult:
    from .batch_loss import BatchLoss
    from .loop import LoopSettings, run_loop

    settings = LoopSettings(
        steps=config.steps,
        learning_rate=config.learning_rate,
        seed=config.seed,
        warmup_steps=config.warmup_steps,
        final_learning_rate=_FINAL_LEARNING_RATE,
        weight_decay=config.weight_decay,
        max_gradient_norm=config.max_gradient_norm,
        checkpoint_every=config.checkpoint_every if state_path is not None else 0,
        checkpoint_seconds=_CHECKPOINT_SECONDS,
        identity=identity,
        tokens_a_step=config.batch_size * config.sequence_length,
    )
    batch_loss = BatchLoss(student.module, teacher, corpus, config, ranks)
    return run_loop(
        student.module,
        batch_loss,
        settings,
        description=progress,
        state_path=state_path,
        ranks=ranks,
    )


def _identity(
    model: nn.Module,
    config: RecoverConfig,
    teacher: nn.Module | None,
    corpus: Corpus,
    ranks: Ranks,
) -> str:
    """Hash of all that training starts from, so that no other run's state is continued."""
    import torch

    if not ranks.is_first:
        return ranks.of_first("")
    settings = config.model_dump_json(exclude=_FREE_SETTINGS)
    digest = hashlib.sha256(f"{settings}{corpus.sha256}{corpus.padding_id}".encode())
    taught = () if teacher is None else tuple(teacher.parameters())
    for tensor in (*model.parameters(), *taught):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return ranks.of_first(digest.hexdigest())


def _not_better(before: float, after: float) -> str:
    return (
        f"training did not lower the held-out loss ({before:.4f} before, {after:.4f} after), so "
        "the weights stay as they were; a smaller learning_rate may help (keep_better)"
    )


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
