"""Which of our classes optimum-onnx and optimum-executorch export, and how well, beside ours.

Each peer lives in an environment of its own under --work, because it needs an older transformers.
Every class is a tiny instance with what its family does beyond a plain decoder (windows, soft
caps, scaled rotary bases, experts), from one checkpoint: where a peer's transformers reads only
version 4's config.json, it gets the same weights with the older spelling. Each export runs in a
process of its own; what failed says why, in the peer's own words.

  error   max |logit - eager's|, fp32 eager of transformers 5: the prompt's last token (fed at
          once) and each later token of the text (fed one by one through the cache)
          fp32 beyond a thousandth of the largest logit is called wrong; beside it the error of
          eager transformers in the peer's environment: an older one may read another model
  size    bytes of the model files
  decode  our tokens/s divided by the peer's, each through its own runtime class (ours:
          mobilekit.runtime; ORTModelForCausalLM; ExecuTorchModelForCausalLM), new tokens one by
          one after a prompt; median of the rounds, in which the two processes take turns. Tiny
          models measure what a call costs; the last class, 67 M parameters, what a token does.

Precisions: fp32 beside fp32; our .onnx int8 beside optimum-onnx's dynamic int8 (arm64, per
channel); our .pte int4 beside optimum-executorch's 8da4w with a 4-bit embedding. The latter also
with its custom attention and cache.

    python benchmarks/peers_export.py                          # all cells, then the table
    python benchmarks/peers_export.py --only llama qwen3       # some classes
    python benchmarks/peers_export.py --peers optimum-onnx --json peers.json
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from peers.cells import LARGE, PEERS, Workshop, lengths, models

from mobilekit.core import console
from mobilekit.core.files import atomic_write_json
from mobilekit.models.tiny import TINY_MODELS

# beyond this share of the largest logit, a float32 file is not the model any more
WRONG = 1e-3
LONGEST = 200  # characters of a reason in the notes; --json has all of it


def tried(shop: Workshop, wanted: list[tuple[str, str, str]], jobs: int) -> list[dict[str, Any]]:
    """Return the cells: both sides' records, and the speed where both have a file that runs."""
    cells: list[dict[str, Any]] = [
        {"model": model, "peer": peer, "precision": precision} for model, peer, precision in wanted
    ]
    with (
        console.progress(3 * len(cells), "peers") as bar,
        ThreadPoolExecutor(jobs) as pool,  # the threads only wait for processes
    ):
        for cell in cells:  # before any process is: they are shared by several
            shop.prepare(cell["model"])
        # the peers' first: what they cannot do is the news
        sides = [(cell, side) for side in ("theirs", "ours") for cell in cells]
        for (cell, side), record in zip(sides, pool.map(partial(_made, shop), sides), strict=True):
            cell[side] = record
            if side == "theirs" and is_wrong(record, cell["precision"]):
                record["reading"] = shop.reading(cell["model"], PEERS[cell["peer"]])
            bar.advance(1, note=f"{cell['model']} {cell['peer']} {cell['precision']} {side}")
        for cell in cells:  # one at a time: nothing else may run beside them
            if not any("reason" in cell[side] for side in ("theirs", "ours")):
                cell["speed"] = shop.speed(cell["model"], PEERS[cell["peer"]], cell["precision"])
            bar.advance(1, note=f"{cell['model']} {cell['peer']} {cell['precision']} speed")
    return cells


def _made(shop: Workshop, wanted: tuple[dict[str, Any], str]) -> dict[str, Any]:
    cell, side = wanted
    peer = PEERS[cell["peer"]]
    return shop.made(cell["model"], peer, cell["precision"], ours=side == "ours")


def is_wrong(record: dict[str, Any], precision: str) -> bool:
    """Tell a float32 file that is not the checkpoint's model."""
    if "reason" in record or precision != "fp32":
        return False
    return bool(record["max_abs"] > WRONG * record["reference_max_abs"])


def shown(record: dict[str, Any], precision: str, notes: list[str]) -> str:
    """Return a side's part of the table; a reason becomes a numbered note."""
    if "reason" in record:
        reason = record["reason"]
        note = reason if len(reason) <= LONGEST else reason[:LONGEST] + " …"
        if note not in notes:
            notes.append(note)
        return f"fails ({notes.index(note) + 1})"
    error = f"{record['max_abs']:.0e}"
    if is_wrong(record, precision):
        error = f"**wrong** {record['max_abs']:.2f}"
        if "reading" in record:
            error += f" (its eager: {record['reading']:.0e})"
    size = record["bytes"]
    return f"{error} · {f'{size / 1e6:.0f} MB' if size > 5e6 else f'{size / 1e3:.0f} kB'}"


def table(cells: list[dict[str, Any]]) -> list[str]:
    """Return the table in Markdown, a row a class and peer, and the notes below it."""
    notes: list[str] = []
    lines = [
        "| class | peer | fp32: peer | ours | decode | few bits: peer | ours | decode |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        row = rows.setdefault((cell["model"], cell["peer"]), [])
        row += [shown(cell[side], cell["precision"], notes) for side in ("theirs", "ours")]
        row.append(ratio(cell.get("speed"), notes))
    for (model, peer), row in rows.items():
        lines.append(f"| {title(model)} | {peer} | {' | '.join(row)} |")
    return [*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]


def ratio(speed: dict[str, Any] | None, notes: list[str]) -> str:
    """Return how much faster ours decodes, "–" where there is nothing to compare."""
    if speed is None:
        return "–"
    if "reason" in speed:
        return shown(speed, "", notes)
    return f"{speed['decode_ratio']:.2f}×"


def title(model: str) -> str:
    """Return a class's name and, in brackets, the variant."""
    if model == LARGE:
        return "`Qwen3ForCausalLM` (67 M)"
    variant = model.partition("-")[2]
    return f"`{TINY_MODELS[model][0]}ForCausalLM`" + (f" ({variant})" if variant else "")


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=models(), choices=models(), metavar="CLASS")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--precisions", nargs="*", default=["fp32", "int8", "int4"])
    parser.add_argument("--threads", type=int, default=2, help="of both sides (2)")
    parser.add_argument("--jobs", type=int, default=1, help="exports at a time (1)")
    parser.add_argument("--rounds", type=int, default=7, help="of the speed (7)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of one export (900)")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="kept files")
    parser.add_argument("--json", type=Path, help="write every record here")
    return parser.parse_args()


def main() -> None:
    """Try what is missing, then print the table."""
    args = parse()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    shop = Workshop(work, threads=args.threads, rounds=args.rounds, timeout=args.timeout)
    wanted = [
        (model, peer, precision)
        for model in args.only
        for peer in args.peers
        for precision in PEERS[peer].precisions
        if precision in args.precisions
    ]
    for peer in args.peers:
        shop.install(PEERS[peer])
    cells = tried(shop, wanted, args.jobs)
    tiny = lengths("")
    console.emit(f"{args.threads} threads, tiny: prompt {tiny.prompt}, {tiny.new} new tokens")
    for line in table(cells):
        console.emit(line)
    if args.json:
        atomic_write_json(args.json, {"threads": args.threads, "cells": cells})


if __name__ == "__main__":
    main()
