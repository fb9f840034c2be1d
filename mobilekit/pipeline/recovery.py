"""Recovery training as a step: load student and teacher, train, save, keep the loss curve."""

from __future__ import annotations

import shutil
from pathlib import Path

from mobilekit.core.files import atomic_write_json, sha256_file
from mobilekit.models import load, save
from mobilekit.models.architecture import architecture
from mobilekit.models.inspect import class_name, read_config
from mobilekit.train.ranks import launched
from mobilekit.train.recover import RecoverConfig, RecoverResult, check_ranks, recover

from .context import Context, hash_of


def recover_step(context: Context, config: RecoverConfig) -> None:
    """Train the compressed checkpoint of a run, its source as the teacher, unless that is done."""
    inputs = {
        "student": hash_of(context.compressed),
        "teacher": hash_of(context.source),
        "config": config.model_dump(mode="json"),
        "device": context.recipe.model.device,
    }
    if config.files():  # a file that has changed is read anew
        inputs["data"] = {path: sha256_file(Path(path)) for path in sorted(set(config.files()))}

    def work() -> str:
        out, state = context.root / "checkpoint", context.root / ".state" / "recover.safetensors"
        shutil.rmtree(out, ignore_errors=True)
        result = recover_checkpoint(
            context.compressed,
            context.source,
            config,
            out,
            device=context.recipe.model.device,
            state_path=state,
        )
        write_record(result, context.root / "results" / "recovery.json")
        before, after = result.heldout_loss_before, result.heldout_loss_after
        said = f"{result.tokens} tokens, held-out loss {before:.3f} → {after:.3f} nats a token"
        return said if result.kept == "trained" else f"{said}: the weights stay as they were"

    context.do("recover", "recover", inputs, ["checkpoint", "results/recovery.json"], work)


def check_data(config: RecoverConfig, checkpoint: Path) -> None:
    """Check the user's files before any other work is done.

    Raises:
        InvalidInputError: If a file cannot be trained on.
        UsageError: If a token file is given together with others.
    """
    from mobilekit.train.corpus import check_sources

    check_sources(config, vocab_size=vocabulary_size(checkpoint))


def vocabulary_size(checkpoint: Path) -> int:
    """Return a checkpoint's number of token ids; no weight is read."""
    raw = read_config(checkpoint)
    _, config = architecture(checkpoint, class_name(checkpoint, raw), raw)
    return int(config.vocab_size)


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

    Under ``torchrun`` every process calls it, and the first one writes.

    Args:
        student: Checkpoint to train; its weights on disk stay as they are.
        teacher: Checkpoint to distil from, used where the objective asks for it.
        config: Settings.
        out: Directory to create.
        device: Where to train.
        state_path: Where an interrupted run keeps its state; removed at the end.

    Raises:
        UsageError: If the processes cannot share a batch, or the teacher does not fit.
        InvalidInputError: If the data cannot be trained on, or the loss is not finite.
    """
    from transformers import AutoTokenizer

    from mobilekit.train.corpus import open_corpus

    with launched(device) as ranks:
        check_ranks(config, ranks)
        tokenizer = AutoTokenizer.from_pretrained(student)
        corpus = open_corpus(config, tokenizer, vocab_size=vocabulary_size(student))
        home = device if ranks.size == 1 else "cpu"  # whence each rank takes its part
        model = load(student, device=home)
        wants_teacher = "distill" in config.objective
        result = recover(
            model,
            config,
            tokenizer=tokenizer,
            teacher=load(teacher, device=home) if wants_teacher else None,
            corpus=corpus,
            state_path=state_path,
            ranks=ranks,
        )
        if ranks.is_first:
            save(model, out, tokenizer_from=student)
            if state_path is not None:
                state_path.unlink(missing_ok=True)
        ranks.wait()
    return result


def write_record(result: RecoverResult, path: Path) -> None:
    """Write what the report shows of a recovery: tokens, time, losses before and after, curve.

    The loss after is that of the weights that were kept.
    """
    stride = max(1, len(result.losses) // 200)
    curve = [[i, float(loss)] for i, loss in enumerate(result.losses) if i % stride == 0]
    is_trained = result.kept == "trained"
    record = {
        "tokens": result.tokens,
        "seconds": round(result.seconds, 3),
        "loss_before": result.heldout_loss_before,
        "loss_after": result.heldout_loss_after if is_trained else result.heldout_loss_before,
        "curve": curve,
    }
    atomic_write_json(path, record)
