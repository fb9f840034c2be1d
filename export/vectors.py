"""Parity vectors: what the torch checkpoint answers, kept in the bundle to ask an artifact again.

Eager continues a few prompts greedily; an artifact is then fed eager's own tokens, so its logits
can be compared step by step, and its greedy continuation equals eager's exactly when every argmax
does. Full logits are kept for as many steps as fit a fixed budget, spread evenly. The last prompt
is long: with its continuation it fills the context, and it is fed in uneven parts, so that every
cache slot is written and several tokens at once also stand behind others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import atomic_write
from mobilekit.runtime.base import Logits, TokenLogits
from mobilekit.runtime.generate import greedy

NUM_PROMPTS = 8
NEW_TOKENS = 64
LONGEST_PROMPT = 2048  # tokens, in contexts that are larger still
_PART = 48  # tokens; longer prompts are fed in two parts
_LOGITS_BUDGET = 2 << 20  # bytes a reference


@dataclass(frozen=True)
class Answer:
    """What a runtime said along the vectors' tokens.

    Attributes:
        argmax: Most likely token at each step, (P, N), int64.
        logits: Full logits at the recorded steps, (R, V), float32.
    """

    argmax: NDArray[np.int64]
    logits: Logits


@dataclass(frozen=True)
class Vectors:
    """Prompts and eager's answers.

    Attributes:
        prompts: Token ids of each prompt.
        tokens: Eager's greedy continuations, (P, N), int64.
        gaps: Difference of eager's two largest logits before each token, (P, N), float32.
        steps: (prompt, step) pairs whose full logits are kept, (R, 2), int64.
        eager: Eager's fp32 answer.
        same: Same-precision references by artifact id.
    """

    prompts: tuple[tuple[int, ...], ...]
    tokens: NDArray[np.int64]
    gaps: NDArray[np.float32]
    steps: NDArray[np.int64]
    eager: Answer
    same: dict[str, Answer]


def record(eager: TokenLogits, prompts: list[list[int]], new_tokens: int) -> Vectors:
    """Continue the prompts with ``eager`` and keep what it said."""
    rows: list[list[Logits]] = []
    tokens = []
    for prompt in prompts:
        seen: list[Logits] = []
        tokens.append(greedy(eager, prompt, new_tokens, on_logits=seen.append))
        rows.append(seen)
    every = [(p, n) for p in range(len(prompts)) for n in range(new_tokens)]
    room = max(len(prompts), _LOGITS_BUDGET // (4 * eager.vocab_size))
    spread = np.linspace(0, len(every) - 1, min(room, len(every))).astype(np.int64)
    first = np.arange(len(prompts)) * new_tokens  # the one that follows the prompt itself
    chosen = np.unique(np.concatenate([spread, first]))
    steps = np.asarray(every, dtype=np.int64)[chosen]
    top_two = np.asarray([[np.partition(x, -2)[-2:] for x in row] for row in rows])
    return Vectors(
        prompts=tuple(tuple(prompt) for prompt in prompts),
        tokens=np.asarray(tokens, dtype=np.int64),
        gaps=(top_two[..., 1] - top_two[..., 0]).astype(np.float32),
        steps=steps,
        eager=Answer(np.asarray(tokens, dtype=np.int64), np.stack([rows[p][n] for p, n in steps])),
        same={},
    )


def replay(runtime: TokenLogits, vectors: Vectors) -> Answer:
    """Feed a runtime the vectors' own tokens and return what it says."""
    wanted = {(int(p), int(n)) for p, n in vectors.steps}
    argmax = np.zeros_like(vectors.tokens)
    kept = []
    for p, prompt in enumerate(vectors.prompts):
        runtime.reset()
        pending, position = np.asarray(prompt, dtype=np.int64), 0
        if (cut := _cut(prompt)) > 0:
            runtime.forward(pending[:cut], 0)
            pending, position = pending[cut:], cut
        for n in range(vectors.tokens.shape[1]):
            logits = runtime.forward(pending, position)
            position += len(pending)
            argmax[p, n] = int(np.argmax(logits))
            if (p, n) in wanted:
                kept.append(logits.copy())
            pending = vectors.tokens[p, n : n + 1]
    return Answer(argmax, np.stack(kept))


def _cut(prompt: Sequence[int]) -> int:
    """Return where a prompt is cut in two, 0 where it is fed whole."""
    return len(prompt) * 5 // 8 if len(prompt) > _PART else 0


def excerpt(vectors: Vectors, new_tokens: int) -> Vectors:
    """Return the first and the last prompt alone, with so many tokens of their continuations."""
    rows = [0, len(vectors.prompts) - 1]
    kept = [i for i, (p, n) in enumerate(vectors.steps.tolist()) if p in rows and n < new_tokens]
    steps = [(rows.index(p), n) for p, n in vectors.steps[kept].tolist()]
    tokens = vectors.tokens[rows, :new_tokens]
    return Vectors(
        prompts=tuple(vectors.prompts[row] for row in rows),
        tokens=tokens,
        gaps=vectors.gaps[rows, :new_tokens],
        steps=np.asarray(steps, dtype=np.int64),
        eager=Answer(tokens, vectors.eager.logits[kept]),
        same={},
    )


def pack_answer(answer: Answer) -> bytes:
    """Return an answer as the bytes of a safetensors file."""
    return _pack({"argmax": answer.argmax, "logits": answer.logits})


def read_answer(path: Path) -> Answer:
    """Read an answer written with :func:`pack_answer`."""
    arrays = _unpack(path)
    return Answer(arrays["argmax"], arrays["logits"])


def write(vectors: Vectors, path: Path) -> None:
    """Write the vectors as one safetensors file."""
    longest = max(len(prompt) for prompt in vectors.prompts)
    padded = np.full((len(vectors.prompts), longest), -1, dtype=np.int64)
    for row, prompt in zip(padded, vectors.prompts, strict=True):
        row[: len(prompt)] = prompt
    arrays = {
        "prompts": padded,
        "tokens": vectors.tokens,
        "gaps": vectors.gaps,
        "steps": vectors.steps,
        "eager.logits": vectors.eager.logits,
    }
    for name, answer in vectors.same.items():
        arrays[f"same.{name}.argmax"] = answer.argmax
        arrays[f"same.{name}.logits"] = answer.logits
    atomic_write(path, _pack(arrays))


def read(path: Path) -> Vectors:
    """Read vectors written by :func:`write`.

    Raises:
        InvalidInputError: If the file is damaged or incomplete.
    """
    arrays = _unpack(path)
    names = [n.split(".")[1] for n in arrays if n.startswith("same.") and n.endswith(".logits")]
    try:
        tokens = arrays["tokens"]
        return Vectors(
            prompts=tuple(tuple(int(t) for t in row[row >= 0]) for row in arrays["prompts"]),
            tokens=tokens,
            gaps=arrays["gaps"],
            steps=arrays["steps"],
            eager=Answer(tokens, arrays["eager.logits"]),
            same={n: Answer(arrays[f"same.{n}.argmax"], arrays[f"same.{n}.logits"]) for n in names},
        )
    except KeyError as error:
        raise _damaged(path, f"tensor {error} is missing") from None


def _pack(arrays: dict[str, Any]) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _unpack(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path} does not hold parity vectors: {why}", hint="Export the bundle anew."
    )
