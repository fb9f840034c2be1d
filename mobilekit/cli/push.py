"""``mobilekit push``: a bundle to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .common import Answer, command

EPILOG = (
    "Examples: mobilekit push bundle owner/name --private   ·   "
    "mobilekit push runs/demo/bundle owner/name --run runs/demo --json"
)


@command
def main(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory or zip.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name, or owner/name@branch.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private, if it is new.")
    ] = False,
    run: Annotated[
        Path | None,
        typer.Option(help="Run directory of the bundle: its measured figures go into the card."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the model it was made from, for the card.")
    ] = None,
) -> Answer:
    """Push a bundle and its model card to the Hugging Face hub.

    Every file is checked against the manifest first: a bundle that fails is not pushed. Files of
    an earlier push are removed. Needs a token that may write (`hf auth login`, or HF_TOKEN).
    """
    from mobilekit import hub

    done = hub.push(bundle, repo_id, private=private, run=run, base_model=base_model)
    size = f"{done.bytes / 1e6:.1f} MB"
    return Answer(asdict(done), lines=[f"Pushed {done.files} files, {size}", done.url])
