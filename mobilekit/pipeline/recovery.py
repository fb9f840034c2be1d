"""Recovery training as a step: load student and teacher, train, save, keep the loss curve."""

from __future__ import annotations

from pathlib import Path

from mobilekit.core.files import atomic_write_json
from mobilekit.models import load, save
from mobilekit.train.recover import RecoverConfig, RecoverResult, recover


def recover_checkpoint(
    student: Path,
    teacher: Path,
    config: RecoverConfig,
    out: Path,
    *,
    device: str = "auto",
    state_path: Path | None = None,
) -> RecoverResult:
    """Train the checkpoint ``student`` and save it to ``out``.

    Args:
        student: Checkpoint to train; its weights on disk stay as they are.
        teacher: Checkpoint to distil from, used where the objective asks for it.
        config: Settings.
        out: Directory to create.
        device: Where to train.
        state_path: Where an interrupted run keeps its state; removed at the end.
    """
    from transformers import AutoTokenizer

    model = load(student, device=device)
    wants_teacher = "distill" in config.objective
    result = recover(
        model,
        config,
        tokenizer=AutoTokenizer.from_pretrained(student),
        teacher=load(teacher, device=device) if wants_teacher else None,
        state_path=state_path,
    )
    save(model, out, tokenizer_from=student)
    if state_path is not None:
        state_path.unlink(missing_ok=True)
    return result


def write_record(result: RecoverResult, path: Path) -> None:
    """Write what the report shows of a recovery: tokens, time, losses before and after, curve."""
    stride = max(1, len(result.losses) // 200)
    curve = [[i, float(loss)] for i, loss in enumerate(result.losses) if i % stride == 0]
    record = {
        "tokens": result.tokens,
        "seconds": round(result.seconds, 3),
        "loss_before": result.heldout_loss_before,
        "loss_after": result.heldout_loss_after,
        "curve": curve,
    }
    atomic_write_json(path, record)
