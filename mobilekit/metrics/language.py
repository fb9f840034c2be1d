"""How well a language model predicts: perplexity, bits per byte, agreement of two models.

Everything is computed in float64, whatever the model's dtype.
"""

from __future__ import annotations

import lzma
import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "bits_per_byte",
    "kl_divergence",
    "kl_divergences",
    "log_softmax",
    "lzma_bits_per_byte",
    "negative_log_likelihood",
    "perplexity",
]

Floats = npt.NDArray[np.float64]


def perplexity(nats: float, tokens: int) -> float:
    """Perplexity per token; lower is better.

    Args:
        nats: Negative log-likelihood summed over the tokens, natural logarithm.
        tokens: How many tokens were predicted, at least 1.

    Raises:
        ValueError: If no token was predicted.
    """
    if tokens < 1:
        raise ValueError(f"perplexity needs at least one predicted token, got {tokens}")
    try:
        return math.exp(nats / tokens)
    except OverflowError:
        return math.inf


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Bits a model spends on a byte of text; independent of its tokenizer, lower is better.

    Args:
        nats: Negative log-likelihood summed over the whole text, natural logarithm.
        num_bytes: Length of that text in UTF-8 bytes, at least 1.

    Raises:
        ValueError: If the text is empty.
    """
    if num_bytes < 1:
        raise ValueError(f"bits per byte needs at least one byte of text, got {num_bytes}")
    return nats / (math.log(2.0) * num_bytes)


def lzma_bits_per_byte(text: str) -> float:
    """Bits a byte that lzma (preset 9, extreme) needs for ``text``, container included."""
    raw = text.encode("utf-8")
    compressed = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
    return bits_per_byte(8 * len(compressed) * math.log(2.0), len(raw))


def log_softmax(logits: npt.ArrayLike) -> Floats:
    """Log-probabilities over the last axis, shape (…, V)."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def negative_log_likelihood(logits: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Nats summed over all positions.

    Args:
        logits: Shape (…, V).
        targets: The true token ids, shape (…).

    Raises:
        ValueError: If the shapes do not belong together.
    """
    log_probabilities = log_softmax(logits)
    indices = np.asarray(targets, dtype=np.int64)
    if log_probabilities.shape[:-1] != indices.shape:
        raise ValueError(
            f"logits of shape {log_probabilities.shape} need targets of shape "
            f"{log_probabilities.shape[:-1]}, got {indices.shape}"
        )
    picked = np.take_along_axis(log_probabilities, indices[..., None], axis=-1)
    return float(-picked.sum())


def kl_divergence(reference_logits: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Mean KL(reference ‖ other) over positions, in nats; 0 means the same distribution.

    Args and Raises: As :func:`kl_divergences`.
    """
    return float(kl_divergences(reference_logits, logits).mean())


def kl_divergences(reference_logits: npt.ArrayLike, logits: npt.ArrayLike) -> Floats:
    """KL(reference ‖ other) at each position, in nats, shape (…).

    Args:
        reference_logits: Shape (…, V).
        logits: The same shape.

    Raises:
        ValueError: If the shapes differ or there is no position.
    """
    reference, other = _pair(reference_logits, logits)
    log_p, log_q = log_softmax(reference), log_softmax(other)
    probabilities = np.exp(log_p)
    # A probability of exactly 0 contributes 0, also where log p is -inf.
    support = probabilities > 0
    difference = np.subtract(log_p, log_q, out=np.zeros_like(log_p), where=support)
    found: Floats = (probabilities * difference).sum(axis=-1)
    return found


def _pair(reference_logits: Any, logits: Any) -> tuple[Floats, Floats]:
    reference = np.asarray(reference_logits, dtype=np.float64)
    other = np.asarray(logits, dtype=np.float64)
    if reference.shape != other.shape:
        raise ValueError(f"logits differ in shape: {reference.shape} against {other.shape}")
    if reference.size == 0 or reference.ndim == 0:
        raise ValueError(f"logits of shape {reference.shape} hold no position to compare")
    return reference, other
