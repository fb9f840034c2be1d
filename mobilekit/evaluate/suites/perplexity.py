"""Held-out perplexity and bits per byte of anything that gives token logits.

The text is cut into windows that do not overlap and together hold every token once. Before each
window stands the start token: what the tokenizer itself puts before a text, else end-of-text. With
one, every token of the text is scored; without one, the first token of each window is not, nor are
its bytes counted. The same tokens are scored whichever way the logits come: in one call a window
where the runtime has ``full_logits``, else one decode step a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.files import sha256_bytes
from mobilekit.data.tokenizer import TextTokenizer, wrap_tokenizer
from mobilekit.evaluate.config import DEFAULT_WINDOW, PerplexityConfig
from mobilekit.evaluate.outcome import Control, Outcome, Progress, Suite
from mobilekit.metrics import language
from mobilekit.runtime.base import FullLogits, TokenLogits, Tokens
from mobilekit.schema.result import Workload

__all__ = ["SUITE", "perplexity", "shared_window"]

_BLOCK = 32  # positions whose float64 probabilities are held at once: V may be 150,000


@dataclass(frozen=True)
class _Window:
    """Ids fed to the model (S,), ids that its last ``len(targets)`` answers predict, bytes."""

    inputs: Tokens
    targets: Tokens
    num_bytes: int


def perplexity(
    runtime: TokenLogits,
    tokenizer: Any,
    text: str,
    *,
    max_tokens: int = 2048,
    window: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Negative log-likelihood, perplexity and bits per byte of ``text``; lower is better.

    Args:
        runtime: A checkpoint or an artifact, opened by ``mobilekit.runtime``.
        tokenizer: What ``mobilekit.data.tokenizer`` loads or wraps.
        text: Text that the model has not been trained on.
        max_tokens: Only so many tokens from the start, less where that would split a character.
        window: Tokens a window; the smaller of 256 and what the context holds where None.
            Figures are comparable only at the same window.
        progress: Called with the tokens of every window.

    Returns:
        ``perplexity`` (a token), ``bits_per_byte`` (of UTF-8), ``nats``, ``tokens`` and ``bytes``
        that were scored, ``window``, ``start_ids``, ``logits`` ("full" or "step"), and
        ``windows``, one [tokens, nats] pair each. Figures are None, with a ``reason``, where the
        model's logits are not finite.

    Raises:
        UsageError: If the window does not fit the context.
        InvalidInputError: If the text has no token to score, or the tokenizer has ids that the
            model does not have.
    """
    encoder = wrap_tokenizer(tokenizer)
    start = _start_ids(encoder)
    length = _fitting(window, runtime.context_length, len(start))
    windows = _windows(encoder, text, start, max_tokens, length)
    _check(windows, runtime)
    spent = []
    for one in windows:
        spent.append(_nats(runtime, one))
        if progress is not None:
            progress(len(one.targets))
    return {
        **_figures(windows, spent),
        "window": length,
        "start_ids": list(start),
        "logits": "full" if isinstance(runtime, FullLogits) else "step",
    }


def _figures(windows: list[_Window], spent: list[float]) -> dict[str, Any]:
    tokens = sum(len(one.targets) for one in windows)
    num_bytes = sum(one.num_bytes for one in windows)
    nats = math.fsum(spent)
    value = language.perplexity(nats, tokens) if math.isfinite(nats) else math.nan
    sizes = {"tokens": tokens, "bytes": num_bytes}
    if not math.isfinite(value):
        broken = sum(not math.isfinite(one) for one in spent)
        reason = f"logits are not finite in {broken} of {len(spent)} windows"
        reason = reason if broken else "perplexity exceeds the range of a float"
        nothing = dict.fromkeys(("perplexity", "bits_per_byte", "nats", "windows"))
        return {**nothing, **sizes, "reason": reason}
    return {
        "perplexity": value,
        "bits_per_byte": language.bits_per_byte(nats, num_bytes),
        "nats": nats,
        **sizes,
        "reason": None,
        "windows": [[len(one.targets), nats] for one, nats in zip(windows, spent, strict=True)],
    }


def shared_window(config: PerplexityConfig, tokenizer: Any, context_length: int) -> int:
    """Return the window at which models of this context and larger ones can be compared.

    Raises:
        UsageError: If the settings ask for a window that the context cannot hold.
    """
    start = len(_start_ids(wrap_tokenizer(tokenizer)))
    return _fitting(config.window, context_length, start)


def _start_ids(encoder: TextTokenizer) -> tuple[int, ...]:
    if encoder.prefix_ids:
        return encoder.prefix_ids
    return () if encoder.eos_id is None else (encoder.eos_id,)


def _fitting(window: int | None, context_length: int, start: int) -> int:
    most = context_length + 1 - start  # the last token of a window is predicted but never fed
    length = min(DEFAULT_WINDOW, most) if window is None else window
    if not 2 <= length <= most:
        raise UsageError(
            f"a window of {length} tokens was asked for, the context holds windows of 2 to {most}",
            hint="Choose a smaller window, or export with a larger context length.",
        )
    return length


def _windows(
    encoder: TextTokenizer, text: str, start: tuple[int, ...], max_tokens: int, length: int
) -> list[_Window]:
    ids, ends = _encode(encoder, text, max_tokens)
    skipped = 0 if start else 1  # nothing stands before the first token to predict it from
    windows = []
    for first in range(0, len(ids), length):
        last = min(first + length, len(ids))
        if last - first <= skipped:
            continue
        inputs = np.asarray([*start, *ids[first : last - 1]], dtype=np.int64)
        targets = np.asarray(ids[first + skipped : last], dtype=np.int64)
        before = ends[first + skipped - 1] if first + skipped else 0
        windows.append(_Window(inputs, targets, ends[last - 1] - before))
    if not windows:
        raise InvalidInputError(
            f"the text holds {len(ids)} tokens, too few to score one",
            hint="Give a longer text or a larger max_tokens.",
        )
    return windows


def _encode(encoder: TextTokenizer, text: str, max_tokens: int) -> tuple[list[int], list[int]]:
    """Return the ids, and for each how many UTF-8 bytes of the text end with it."""
    ids, ends = encoder.encode_with_ends(text)
    kept = min(max_tokens, len(ids))
    while 0 < kept < len(ids) and ends[kept] == ends[kept - 1]:
        kept -= 1  # the next token belongs to the same character
    widths = _byte_widths(text)
    return ids[:kept], [int(widths[end]) for end in ends[:kept]]


def _byte_widths(text: str) -> npt.NDArray[np.int64]:
    """Return the UTF-8 bytes of the first n characters, for every n; shape (len(text) + 1,)."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    width = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF).astype(np.int64)
    return np.concatenate([[0], np.cumsum(width)])


def _check(windows: list[_Window], runtime: TokenLogits) -> None:
    largest = max(int(ids.max()) for one in windows for ids in (one.inputs, one.targets))
    if largest >= runtime.vocab_size:
        raise InvalidInputError(
            f"the tokenizer gives id {largest}, but the model has {runtime.vocab_size} tokens",
            hint="Use the tokenizer.json that belongs to this model.",
        )


def _nats(runtime: TokenLogits, window: _Window) -> float:
    nats = []
    for logits, targets in _answers(runtime, window):
        if not np.isfinite(logits).all():
            return math.nan
        nats.append(language.negative_log_likelihood(logits, targets))
    return math.fsum(nats)


def _answers(
    runtime: TokenLogits, window: _Window
) -> Iterator[tuple[npt.NDArray[np.float32], Tokens]]:
    """Give logits (S, V) and the ids (S,) that came true, a block of positions at a time."""
    inputs, targets = window.inputs, window.targets
    lead = len(inputs) - len(targets)  # of a start of several tokens only the last predicts text
    if isinstance(runtime, FullLogits):
        logits = runtime.full_logits(inputs)[lead:]
        for first in range(0, len(targets), _BLOCK):
            yield logits[first : first + _BLOCK], targets[first : first + _BLOCK]
        return
    runtime.reset()
    pending, position = inputs[: lead + 1], 0
    for index in range(len(targets)):
        yield runtime.forward(pending, position)[None], targets[index : index + 1]
        position += len(pending)
        pending = inputs[position : position + 1]


def _run(
    runtime: TokenLogits, tokenizer: TextTokenizer, config: PerplexityConfig, control: Control
) -> Outcome:
    text, dataset = _text(config)
    record = perplexity(
        runtime,
        tokenizer,
        text,
        max_tokens=config.max_tokens,
        window=config.window,
        progress=control.progress,
    )
    settings = {"max_tokens": config.max_tokens, "window": record["window"]}
    return Outcome(
        workload=Workload(id="perplexity", prompt_tokens=record["tokens"], settings=settings),
        metrics={"suite": "perplexity", "dataset": dataset, **record},
    )


def _text(config: PerplexityConfig) -> tuple[str, dict[str, Any]]:
    if config.data == "heldout":
        from mobilekit.data.corpora import heldout_text

        text, name, licence = heldout_text(), "cpython-heldout", "PSF-2.0"
    else:
        from mobilekit.data.text import read_text

        text, name, licence = read_text(config.data), "local text", None
    return text, {"name": name, "licence": licence, "sha256": sha256_bytes(text.encode("utf-8"))}


SUITE: Suite[PerplexityConfig] = Suite(
    run=_run,
    size=lambda config: config.max_tokens,
    digest=lambda config: str(_text(config)[1]["sha256"]),
)
