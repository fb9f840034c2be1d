"""Scoring of weights that are in memory, against reading the same memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mobilekit.compress.aimer.kernel import choose_kernel
from mobilekit.compress.aimer.score import aimer_scores, weight_sums

SHAPE = (64, 2048, 2048)  # experts, rows, columns: half a gigabyte in bf16
# layers, experts, hidden size, intermediate size of Qwen3-30B-A3B
QWEN3_30B = (48, 128, 2048, 768)
_REST = 0.05  # seconds until the threads of what ran before have stopped waiting for more, spinning
PUBLISHED_SECONDS = 1.27  # AIMER's project page, Qwen3-30B, on its own GPU


@dataclass(frozen=True)
class Speed:
    """How fast one way of scoring goes; medians over rounds.

    Attributes:
        dtype: Of the weights.
        way: Which way.
        gb_per_s: Bytes of weights a second, in 10^9.
        of_reading: That, as a fraction of what reading the tensor took in the same round.
        s_per_1e9: Seconds for a billion weights.
    """

    dtype: str
    way: str
    gb_per_s: float
    of_reading: float
    s_per_1e9: float


def speeds(dtypes: list[torch.dtype], rounds: int, *, fused: bool) -> list[Speed]:
    """Return the speed of every way, for every dtype; ways take turns, so that load hits all."""
    found = []
    for dtype in dtypes:
        weights = torch.empty(SHAPE, dtype=dtype)
        for expert in weights:
            expert.copy_(torch.randn(SHAPE[1:]) * 0.02)
        found += _of(weights, rounds, fused=fused)
    return found


def _of(weights: Tensor, rounds: int, *, fused: bool) -> list[Speed]:
    choose_kernel(weights.device, weights.dtype, weights.nbytes)  # builds it
    ways: dict[str, Callable[[], Any]] = {
        "native": lambda: aimer_scores(weight_sums([weights], "native")),
        "eager": lambda: aimer_scores(weight_sums([weights], "eager")),
        "vector_norm": lambda: _vector_norm(weights),
        "one by one": lambda: _one_by_one(weights),
    }
    if fused:
        ways["fused"] = lambda: aimer_scores(weight_sums([weights], "fused"))
        ways["fused"]()  # compiles
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    shares: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, run in ways.items():
            if way in ("native", "fused") or number < 3:  # the others take a thousand times as long
                reading = min(_seconds(read) for read in _readings(weights))
                seconds[way].append(_seconds(run))
                shares[way].append(reading / seconds[way][-1])
    name = str(weights.dtype).removeprefix("torch.")
    return [
        Speed(
            name,
            way,
            gb_per_s=weights.nbytes / 1e9 / statistics.median(seconds[way]),
            of_reading=statistics.median(shares[way]),
            s_per_1e9=statistics.median(seconds[way]) / weights.numel() * 1e9,
        )
        for way in ways
    ]


def _readings(weights: Tensor) -> list[Callable[[], Any]]:
    """Return ways to read the tensor and do next to nothing; the faster one is the bandwidth."""
    words = weights.view(torch.int64)
    return [words.sum, words.max]


def _seconds(run: Callable[[], Any]) -> float:
    time.sleep(_REST)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _vector_norm(weights: Tensor) -> Tensor:
    """Score with two library norms."""
    count = weights[0].numel()
    p, q = (torch.linalg.vector_norm(weights, n, (1, 2), dtype=torch.float32) for n in (1, 2))
    return p / count**0.5 / q


def _one_by_one(weights: Tensor) -> list[float]:
    """Score one expert after the other, a few operations each, as the published code does."""
    scores = []
    for expert in weights:
        wide = expert.float()
        ratio = wide.abs().mean() / wide.square().mean().sqrt()
        scores.append(ratio.item())
    return scores


def gpu() -> dict[str, Any]:
    """Return the seconds for Qwen3-30B-A3B's experts on a GPU, ``null`` where there is none."""
    layers, experts, hidden, inner = QWEN3_30B
    size = layers * experts * 3 * hidden * inner * 2
    facts: dict[str, Any] = {"seconds": None, "published_seconds": PUBLISHED_SECONDS}
    if not torch.cuda.is_available():
        return {**facts, "reason": "no GPU on this machine"}
    free, _ = torch.cuda.mem_get_info()
    if free < 1.1 * size:
        return {
            **facts,
            "reason": f"the weights take {size / 1e9:.0f} GB, {free / 1e9:.0f} are free",
        }
    model = [
        [
            torch.randn(experts, *shape, device="cuda", dtype=torch.bfloat16)
            for shape in ((2 * inner, hidden), (hidden, inner))
        ]
        for _ in range(layers)
    ]

    def score(kernel: Any) -> None:
        for tensors in model:
            weight_sums(tensors, kernel)
        torch.cuda.synchronize()

    found = {}
    for kernel in ("fused", "eager"):
        score(kernel)
        found[kernel] = statistics.median(_seconds(lambda k=kernel: score(k)) for _ in range(5))
    device = torch.cuda.get_device_name()
    return {**facts, "seconds": found, "reason": None, "device": device, "gb": size / 1e9}


def as_rows(found: list[Speed]) -> list[dict[str, Any]]:
    """Return the speeds as JSON values."""
    return [asdict(speed) for speed in found]
