"""Run as a script: measures a model whose memory is known, and prints the memory record."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import numpy as np

from mobilekit.profile.measure import Plan, measure
from mobilekit.profile.workloads import parse_all
from mobilekit.runtime.base import Logits, Tokens


@dataclass
class Ballast:
    """Holds ``loaded`` MiB from its opening on, and ``leak`` MiB more after each repetition."""

    loaded: int
    leak: int
    name: str = "ballast"
    version: str = "1"
    vocab_size: int = 8
    context_length: int = 64
    held: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.held.append(np.ones(self.loaded << 20, dtype=np.uint8))

    def reset(self) -> None:
        self.held.append(np.ones(self.leak << 20, dtype=np.uint8))

    def forward(self, tokens: Tokens, position: int) -> Logits:
        return np.zeros(self.vocab_size, dtype=np.float32)


if __name__ == "__main__":
    loaded, leak = int(sys.argv[1]), int(sys.argv[2])
    # an earlier peak, gone again: it must not count
    del (early := [np.ones(512 << 20, dtype=np.uint8)])[:]
    plan = Plan(workloads=parse_all(["pp8"]), repetitions=4, warmup=0)
    result = measure(lambda: Ballast(loaded, leak), plan)
    sys.stdout.write(result.measured[0].model_dump_json())
