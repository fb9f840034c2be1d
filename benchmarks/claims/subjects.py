"""Three kinds of text that ship with Python packages, and byte-level models trained on them."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import mobilekit as mk
from mobilekit.train.loop import LoopSettings, run_loop

DOMAINS = ("python", "headers", "prose")
ONE_DOMAIN = "prose"
SEQUENCE, BATCH = 64, 18  # tokens; sequences, as many of each domain
HELDOUT_WINDOWS = 120  # of each domain
CALIBRATION_WINDOWS = 576  # in all, whichever domains they come from
_MOST_BYTES = 3_000_000  # of each domain
_MODEL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "router_aux_loss_coef": 0.01,
    "max_position_embeddings": 2 * SEQUENCE,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Text:
    """One domain, as bytes: no paragraph of the training part is in the held-out part."""

    training: Tensor  # (N,), uint8
    heldout: Tensor

    def windows(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random windows of the training part, shape (count, SEQUENCE), int64."""
        last = len(self.training) - SEQUENCE + 1
        starts = torch.randint(last, (count,), generator=generator)
        return self.training[starts[:, None] + torch.arange(SEQUENCE)].long()

    def heldout_windows(self) -> Tensor:
        """Return windows spread evenly over the held-out part, shape (HELDOUT_WINDOWS, S)."""
        whole = self.heldout[: len(self.heldout) // SEQUENCE * SEQUENCE].view(-1, SEQUENCE)
        picked = torch.arange(HELDOUT_WINDOWS) * len(whole) // HELDOUT_WINDOWS
        return whole[picked].long()


@cache
def texts() -> dict[str, Text]:
    """Return every domain; which file is held out is decided by a hash of its name."""
    stdlib, site = (Path(sysconfig.get_paths()[key]) for key in ("stdlib", "purelib"))
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    include = Path(spec.origin).parent / "include"
    skipped = {"site-packages", "test", "tests", "idle_test"}
    python = (p for p in stdlib.rglob("*.py") if skipped.isdisjoint(p.parts))
    prose = [*site.glob("*.dist-info/METADATA"), *site.glob("*.dist-info/**/LICENSE*")]
    return {
        "python": _text(stdlib, python),
        "headers": _text(include, include.rglob("*.h")),
        "prose": _text(site, (path for path in prose if path.is_file())),
    }


def _text(root: Path, files: Iterable[Path]) -> Text:
    named = {path.relative_to(root).as_posix(): path for path in files}
    digests = {name: hashlib.sha256(name.encode()).digest() for name in named}
    parts: dict[bool, list[str]] = {True: [], False: []}
    seen: set[str] = set()  # a licence stands in many packages: each paragraph counts once
    size = 0
    for name in sorted(named, key=lambda name: digests[name]):
        if size > _MOST_BYTES:
            break
        text = named[name].read_text(encoding="utf-8", errors="ignore")
        fresh = [p for p in re.split(r"\n\s*\n", text) if p.strip() and p.strip() not in seen]
        seen.update(paragraph.strip() for paragraph in fresh)
        parts[digests[name][-1] < 26].extend(fresh)  # one file in ten is held out
        size += sum(map(len, fresh))
    return Text(training=_bytes(parts[False]), heldout=_bytes(parts[True]))


def _bytes(paragraphs: list[str]) -> Tensor:
    return torch.frombuffer(bytearray("\n\n".join(paragraphs).encode()), dtype=torch.uint8)


def texts_sha256() -> str:
    """Return one hash over all domains."""
    digest = hashlib.sha256()
    for text in texts().values():
        digest.update(text.training.numpy().tobytes() + b"\0" + text.heldout.numpy().tobytes())
    return digest.hexdigest()


def mixed_windows(count: int, domains: Iterable[str], generator: torch.Generator) -> Tensor:
    """Return training windows, as many of each of the domains, shape (count, SEQUENCE)."""
    chosen = list(domains)
    return torch.cat([texts()[name].windows(count // len(chosen), generator) for name in chosen])


def trained(folder: Path, seed: int, steps: int) -> nn.Module:
    """Return the model of a seed, trained to the end; what is there is gone on with."""
    if not (folder / "model").is_dir():
        torch.manual_seed(seed)
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**_MODEL))
        model.set_experts_implementation("eager")

        def loss(step: int, generator: torch.Generator) -> Tensor:
            ids = mixed_windows(BATCH, DOMAINS, generator)
            found: Tensor = model(input_ids=ids, labels=ids, output_router_logits=True).loss
            return found

        settings = LoopSettings(
            steps=steps,
            learning_rate=2e-3,
            seed=seed,
            warmup_steps=50,
            final_learning_rate=0.05,
            checkpoint_every=100,
        )
        state = folder / "training.safetensors"
        run_loop(model, loss, settings, description=f"training, seed {seed}", state_path=state)
        mk.save(model.eval(), folder / "model")
    return mk.load(folder / "model", device="cpu")
