"""``mobilekit recover``: train a compressed checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Answer, command, parse_settings

if TYPE_CHECKING:
    from mobilekit.train.recover import RecoverResult

EPILOG = (
    "Examples: mobilekit recover small --teacher embedded --set tokens=200000 --out better   ·   "
    "mobilekit recover small --set objective=[next_token] --set data=tokens.npy --out better   ·   "
    "torchrun --nproc-per-node 8 -m mobilekit recover small --teacher dense --out better"
)


@command
def main(
    model: Annotated[str, typer.Argument(help="Compressed checkpoint directory.")],
    out: Annotated[Path, typer.Option(help="Checkpoint directory to create.")],
    teacher: Annotated[
        str | None, typer.Option(help="Dense checkpoint to distil from; needed for 'distill'.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A training setting, named as in a recipe."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> Answer:
    """Train back part of what compression took.

    Reads text or token files: data=a.txt, data=[a.txt, b.txt], data=tokens.npy, which `mobilekit
    tokens` writes. Stopped by Ctrl-C or killed, it goes on with the same command where its last
    state was saved, byte for byte as if it had not been stopped. Under torchrun the processes
    share model and batch.
    """
    from mobilekit.core.errors import UsageError
    from mobilekit.core.files import check_target
    from mobilekit.data.tokenizer import load_tokenizer
    from mobilekit.models import require_tokenizer, resolve
    from mobilekit.pipeline.recovery import recover_checkpoint
    from mobilekit.train.recover import RecoverConfig

    config = RecoverConfig.parse(parse_settings(setting or []), "recover")
    if "distill" in config.objective and teacher is None:
        raise UsageError(
            "objective 'distill' needs a --teacher",
            hint="Give the dense checkpoint, or --set objective=[next_token].",
        )
    check_target(out)
    source = resolve(model)
    load_tokenizer(require_tokenizer(source))
    state = out.parent / f".{out.name}.training.safetensors"
    result = recover_checkpoint(
        source, resolve(teacher or model), config, out, device=device, state_path=state
    )
    return _answer(result, out)


def _answer(result: RecoverResult, out: Path) -> Answer:
    losses = [f"{loss:.4f}" for loss in (result.heldout_loss_before, result.heldout_loss_after)]
    speed = result.tokens / result.seconds if result.seconds > 0 else 0.0
    kept = [] if result.kept == "trained" else ["Kept the weights as they were before training."]
    return Answer(
        {**result.summary(), "checkpoint": str(out)},
        headers=("", "before", "after"),
        rows=[["held-out loss, nats a token", *losses]],
        closing=["", f"{result.tokens} tokens, {speed:,.0f} a second", *kept, f"Checkpoint {out}"],
    )
