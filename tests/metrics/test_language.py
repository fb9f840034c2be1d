import math

import numpy as np
import pytest

from mobilekit.metrics import language


def test_perplexity_of_a_fair_die_is_its_number_of_sides():
    assert language.perplexity(10 * math.log(6), 10) == pytest.approx(6)
    assert language.perplexity(1e6, 1) == math.inf
    with pytest.raises(ValueError, match="got 0"):
        language.perplexity(1.0, 0)


def test_bits_per_byte_of_uniform_bytes_is_eight():
    assert language.bits_per_byte(100 * math.log(256), 100) == pytest.approx(8)
    with pytest.raises(ValueError, match="got 0"):
        language.bits_per_byte(1.0, 0)


def test_lzma_is_good_at_repetition_and_bad_at_noise():
    noise = "".join(chr(c) for c in np.random.default_rng(0).integers(32, 127, 4000))
    assert language.lzma_bits_per_byte("a" * 4000) < 0.3
    assert 6.5 < language.lzma_bits_per_byte(noise) < 8.5


def test_log_softmax_survives_large_logits():
    values = language.log_softmax([[1e4, 1e4, -1e4]])
    assert values[0, :2] == pytest.approx(math.log(0.5))
    assert values[0, 2] == pytest.approx(-2e4, rel=1e-4)


def test_negative_log_likelihood_against_a_loop():
    logits = np.random.default_rng(1).normal(size=(2, 3, 5))
    targets = np.array([[0, 4, 2], [1, 1, 3]])
    expected = 0.0
    for b in range(2):
        for s in range(3):
            weights = [math.exp(v) for v in logits[b, s]]
            expected -= math.log(weights[targets[b, s]] / sum(weights))
    assert language.negative_log_likelihood(logits, targets) == pytest.approx(expected)
    with pytest.raises(ValueError, match="targets of shape"):
        language.negative_log_likelihood(logits, targets[0])


def test_kl_divergence_by_hand():
    reference = np.log([[0.5, 0.5], [0.9, 0.1]])
    other = np.log([[0.25, 0.75], [0.9, 0.1]])
    first = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert language.kl_divergence(reference, other) == pytest.approx(first / 2)
    assert language.kl_divergence(reference, reference + 7.0) == pytest.approx(0, abs=1e-12)


def test_kl_divergence_ignores_what_the_reference_excludes():
    reference = np.array([[0.0, -np.inf]])
    assert language.kl_divergence(reference, np.log([[0.5, 0.5]])) == pytest.approx(math.log(2))


def test_kl_divergence_is_not_negative():
    rng = np.random.default_rng(2)
    for _ in range(20):
        a, b = rng.normal(size=(2, 4, 9)).astype(np.float32)
        assert language.kl_divergence(a, b) >= 0


def test_kl_divergence_refuses_what_does_not_belong_together():
    with pytest.raises(ValueError, match="differ in shape"):
        language.kl_divergence(np.zeros((4, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="no position"):
        language.kl_divergence(np.zeros((0, 4)), np.zeros((0, 4)))
