"""The cells of ``peers_export.py``: what each side makes of each class, kept as it is done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode import Candidate
from decode_models import build
from mobilekit.export.lowering import code_hash
from support_table import checkpoint as tiny_checkpoint

import mobilekit as mk
from mobilekit.core.files import atomic_write_json, sha256_json
from mobilekit.models.tiny import TINY_MODELS, tiny_family, write_byte_tokenizer

from . import NotInstalled, environment, surroundings
from .older_config import candidate_spelling, older_spelling

FOLDER = Path(__file__).parent
# tiny models measure what a call costs; this one, 67 M parameters, what a token does
LARGE = "qwen3-67m"
_LARGE_SHAPE: dict[str, Any] = {
    "vocab_size": 16384,
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "widths": [3072] * 4,
}


@dataclass(frozen=True)
class Peer:
    """A tool that makes the files of one of our targets.

    Attributes:
        packages: What its environment is made of; torch is pinned to ours, else pip takes another.
        precisions: Of ours, those for which it has a counterpart.
        spelling: Of a configuration, as its transformers reads it.
    """

    name: str
    target: str
    script: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...]
    spelling: Callable[[dict[str, Any]], dict[str, Any]]


def _torch() -> str:
    return f"torch=={torch.__version__.partition('+')[0]}"


PEERS = {
    "optimum-onnx": Peer(
        "optimum-onnx",
        "onnx",
        "run_optimum_onnx.py",
        (_torch(), "optimum-onnx[onnxruntime]"),
        ("fp32", "int8"),
        spelling=older_spelling,
    ),
    "optimum-executorch": Peer(
        "optimum-executorch",
        "executorch",
        "run_optimum_executorch.py",
        (_torch(), "optimum-executorch"),
        ("fp32", "int4"),
        spelling=candidate_spelling,
    ),
}


@dataclass(frozen=True)
class Lengths:
    """Tokens of a measurement: context exported, prompt, and new ones after it."""

    context: int
    prompt: int
    new: int


def lengths(model: str) -> Lengths:
    """Return how much text a model is run on."""
    return Lengths(256, 64, 64) if model == LARGE else Lengths(64, 12, 48)


def models() -> list[str]:
    """Return the names of all models that we export, the large one last."""
    return [*(name for name in TINY_MODELS if tiny_family(name).obstacle is None), LARGE]


class Workshop:
    """Makes what is missing under a folder; a change of the scripts or of our code starts anew."""

    def __init__(self, work: Path, *, threads: int, rounds: int, timeout: float) -> None:
        self.work, self.threads, self.rounds, self.timeout = work, threads, rounds, timeout
        self._pythons: dict[str, Path | NotInstalled] = {}

    def install(self, peer: Peer) -> None:
        """Make a peer's environment; that it cannot be made is the reason of all its cells."""
        try:
            self._pythons[peer.name] = environment(self.work, peer.name, list(peer.packages))
        except NotInstalled as error:
            self._pythons[peer.name] = error

    def prepare(self, model: str) -> None:
        """Write what both sides of a model start from."""
        for peer in PEERS.values():
            self.respelled(model, peer)
        self.reference(model)

    def checkpoint(self, model: str) -> Path:
        """Return a model's checkpoint, saved once."""
        if model != LARGE:
            return tiny_checkpoint(model, self.work)
        folder = self.work / f"checkpoint-{model}"
        if not folder.is_dir():
            mk.save(build(_LARGE_SHAPE), folder)
            write_byte_tokenizer(folder)
        return folder

    def respelled(self, model: str, peer: Peer) -> Path:
        """Return a checkpoint of the same weights whose files a peer's transformers reads."""
        source, folder = self.checkpoint(model), self.work / f"checkpoint-{model}-{peer.name}"
        if not folder.is_dir():
            shutil.copytree(source, folder, copy_function=os.link)
            for name, change in (("config", peer.spelling), ("tokenizer_config", _older_class)):
                file = folder / f"{name}.json"
                changed = change(json.loads(file.read_text()))
                file.unlink()  # it is a link to the original
                atomic_write_json(file, changed)
        return folder

    def reference(self, model: str) -> Path:
        """Return a text's tokens and the logits of eager transformers (ours), (S,) and (S, V)."""
        path, asked = self.work / f"reference-{model}.npz", lengths(model)
        if not path.is_file():
            eager = mk.load(self.checkpoint(model), device="cpu")
            tokens = torch.tensor([(7 * i + 3) % 251 + 1 for i in range(2 * asked.prompt)])
            with torch.inference_mode():
                logits = eager(tokens[None]).logits[0]
            np.savez(path, tokens=tokens.numpy(), logits=logits.numpy())
        return path

    def made(self, model: str, peer: Peer, precision: str, *, ours: bool) -> dict[str, Any]:
        """Return the record of one side's artifact, made in a process of its own."""
        job = self._job(model, peer, precision, ours=ours)
        path = Path(job["record"])
        if not path.is_file():
            try:
                command = self._command(peer, "make", path, ours=ours)
            except NotInstalled as error:  # not kept: another call may have more luck
                return {"reason": f"install: {error}"}
            atomic_write_json(path, self._make(job, command))
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _make(self, job: dict[str, Any], command: list[str]) -> dict[str, Any]:
        record = Path(job["record"])
        shutil.rmtree(job["out"], ignore_errors=True)
        answer = record.with_suffix(".answer")
        answer.unlink(missing_ok=True)
        atomic_write_json(record.with_suffix(".job"), {**job, "record": str(answer)})
        with record.with_suffix(".log").open("w") as log:
            try:
                done = subprocess.run(
                    command,
                    stdout=log,
                    stderr=log,
                    timeout=self.timeout,
                    env=surroundings(is_ours=command[0] == sys.executable),
                )
            except subprocess.TimeoutExpired:
                return {"reason": f"export: stopped after {self.timeout:.0f} s"}
        if done.returncode or not answer.is_file():
            return {"reason": _death(job, done.returncode, record.with_suffix(".log"))}
        found: dict[str, Any] = json.loads(answer.read_text())
        return found

    def reading(self, model: str, peer: Peer) -> float:
        """Return the error of eager transformers in the peer's environment: it may misread."""
        python = self._pythons[peer.name]
        command = [str(python), str(FOLDER / "run_eager.py"), str(self.respelled(model, peer))]
        done = subprocess.run(
            [*command, str(self.reference(model))],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=surroundings(is_ours=False),
        )
        return float(done.stdout)

    def _job(self, model: str, peer: Peer, precision: str, *, ours: bool) -> dict[str, Any]:
        asked, side = lengths(model), "ours" if ours else peer.name
        stem = f"{model}-{peer.target}-{precision}-{side}-{_digest(peer, ours=ours)}"
        return {
            "checkpoint": str(self.checkpoint(model) if ours else self.respelled(model, peer)),
            "out": str(self.work / stem),
            "record": str(self.work / f"{stem}.json"),
            "reference": str(self.reference(model)),
            "target": peer.target,
            "precision": precision,
            "context_length": asked.context,
            "prompt": asked.prompt,
            "threads": self.threads,
        }

    def _command(self, peer: Peer, verb: str, record: Path, *, ours: bool) -> list[str]:
        if ours:
            python, script = Path(sys.executable), "run_ours.py"
        else:
            found, script = self._pythons[peer.name], peer.script
            if isinstance(found, NotInstalled):
                raise found
            python = found
        return [str(python), str(FOLDER / script), verb, str(record.with_suffix(".job"))]

    def speed(self, model: str, peer: Peer, precision: str) -> dict[str, Any]:
        """Return decode and prefill, ours ÷ peer: the median over rounds, the sides in turns."""
        jobs = {o: self._job(model, peer, precision, ours=o) for o in (True, False)}
        digests = "-".join(_digest(peer, ours=o) for o in (True, False))
        path = self.work / f"{model}-{peer.target}-{precision}-speed-{digests}.json"
        if not path.is_file():
            sides = []
            for ours, job in jobs.items():
                command = self._command(peer, "serve", Path(job["record"]), ours=ours)
                sides.append(Candidate(path.stem, command, is_ours=ours))
            atomic_write_json(path, self._raced(sides, model))
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _raced(self, sides: list[Candidate], model: str) -> dict[str, Any]:
        asked = lengths(model)
        try:
            for number, side in enumerate(sides):
                side.start(self.work / f"{side.name}-{number}.log")
            for number in range(self.rounds + 1):
                for side in sides:
                    answer = side.ask(asked.prompt, asked.new)
                    if number:  # the first one warms up
                        side.rounds.append(answer)
        except (SystemExit, OSError, ValueError) as error:
            return {"reason": f"speed: {error}"}
        finally:
            for side in sides:
                side.stop()
        ours, theirs = (side.rounds for side in sides)
        found: dict[str, Any] = {"ours": ours, "peer": theirs}
        for what in ("prefill", "decode"):
            key = f"{what}_ns"
            ratios = [b[key] / a[key] for a, b in zip(ours, theirs, strict=True)]
            found[f"{what}_ratio"] = statistics.median(ratios)
        return found


def _death(job: dict[str, Any], code: int, log: Path) -> str:
    """Say at which step a process died that could not say so itself, and its last words."""
    out = Path(job["out"])
    step = "run" if [*out.glob("*.onnx"), *out.glob("*.pte")] else "export"
    how = signal.Signals(-code).name if code < 0 else f"code {code}"
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return f"{step}: {how}: {' '.join(last)}"


def _older_class(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "tokenizer_class": "PreTrainedTokenizerFast"}


@cache
def _digest(peer: Peer, *, ours: bool) -> str:
    scripts = ["side.py", "run_ours.py" if ours else peer.script]
    parts: list[Any] = [(FOLDER / name).read_text() for name in scripts]
    parts.append(code_hash() if ours else peer.packages)
    return sha256_json(parts)[:10]
