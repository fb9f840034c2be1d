"""``mobilekit tokens``: encode text files into one token file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Answer, command

EPILOG = (
    "Examples: mobilekit tokens corpus.txt --tokenizer small --out tokens.npy   ·   "
    "mobilekit tokens part1.txt part2.txt --tokenizer small --out tokens.npy"
)


@command
def main(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="UTF-8 text files.")],
    tokenizer: Annotated[
        str, typer.Option(help="Checkpoint whose tokenizer is used: the model to train.")
    ],
    out: Annotated[Path, typer.Option(help="Token file to write, .npy.")],
    separator: Annotated[
        bool, typer.Option(help="Put the end-of-text token, if there is one, between two files.")
    ] = True,
) -> Answer:
    """Encode text into a token file for recovery training.

    Text of any length is encoded, a block at a time, into one flat numpy array of ids, which
    training reads where it lies.
    """
    from mobilekit.core.errors import UsageError
    from mobilekit.core.files import check_writable
    from mobilekit.data.tokenizer import load_tokenizer
    from mobilekit.data.tokens import is_token_file, write_tokens
    from mobilekit.models import require_tokenizer, resolve

    if not is_token_file(out):
        raise UsageError(f"--out is {out}, a token file ends in .npy", hint=f"Use {out}.npy.")
    if out.exists():
        raise UsageError(f"{out} exists", hint="Choose another --out or remove it.")
    check_writable(out, out.parent)
    encoder = load_tokenizer(require_tokenizer(resolve(tokenizer)))
    count = write_tokens(
        texts,
        encoder,
        out,
        vocab_size=encoder.vocab_size,
        separator=encoder.eos_id if separator else None,
    )
    size = out.stat().st_size
    return Answer(
        {"tokens": count, "bytes": size, "vocab_size": encoder.vocab_size, "file": str(out)},
        lines=[f"{count} tokens", f"Token file {out}"],
    )
