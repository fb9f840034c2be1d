"""The stored default model is what its figures say."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import mobilekit.models
from mobilekit.data.corpora import heldout_text
from mobilekit.metrics.language import bits_per_byte, lzma_bits_per_byte, perplexity
from mobilekit.train.heldout import HeldoutResult, measure_heldout

FOLDER = Path(mobilekit.models.__path__[0]) / "embedded" / "qwen3_moe_cpython"
FIGURES = json.loads((FOLDER / "figures.json").read_text("utf-8"))


@cache
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@cache
def measured() -> HeldoutResult:
    window = FIGURES["heldout"]["window"]
    return measure_heldout(model(), tokenizer(), heldout_text(), length=window)


def test_it_is_small_and_holds_nothing_executable():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    config = json.loads((FOLDER / "config.json").read_text("utf-8"))
    assert "auto_map" not in config


def test_it_is_a_stock_qwen3_moe_in_16_bit():
    assert type(model()).__name__ == "Qwen3MoeForCausalLM"
    parameters = sum(parameter.numel() for parameter in model().parameters())
    assert 2_000_000 <= parameters == FIGURES["parameters"] <= 6_000_000
    assert model().config.num_experts == 16
    with safe_open(FOLDER / "model.safetensors", framework="pt") as stored:
        names = stored.keys()
        assert {stored.get_slice(name).get_dtype() for name in names} == {"BF16"}


def test_heldout_figures_are_those_of_the_stored_weights():
    figures, result = FIGURES["heldout"], measured()
    assert result.num_bytes == figures["bytes"]
    assert result.tokens == figures["tokens"]
    assert perplexity(result.nats, result.tokens) == pytest.approx(figures["perplexity"], rel=1e-3)
    bits = bits_per_byte(result.nats, result.num_bytes)
    assert bits == pytest.approx(figures["bits_per_byte"], rel=1e-3)


def test_it_predicts_better_than_lzma():
    lzma = lzma_bits_per_byte(heldout_text())
    # another build of liblzma may pack a little differently
    assert lzma == pytest.approx(FIGURES["heldout"]["lzma_bits_per_byte"], rel=0.01)
    assert bits_per_byte(measured().nats, measured().num_bytes) < lzma


def test_every_expert_is_used():
    load = measured().expert_load
    assert [len(layer) for layer in load] == [16] * 4
    assert min(min(layer) for layer in load) >= 0.01
    smallest = [min(layer) for layer in load]
    assert smallest == pytest.approx(FIGURES["heldout"]["expert_load_min"], abs=1e-3)


def test_its_tokenizer_gives_every_text_back():
    for text in (" two  spaces\n\ttab", "Grüße, 世界 🙂", heldout_text()[:5000]):
        ids = tokenizer()(text)["input_ids"]
        assert tokenizer().decode(ids) == text
        assert max(ids) < model().config.vocab_size
    assert tokenizer().eos_token_id == tokenizer().pad_token_id == model().config.eos_token_id
    assert tokenizer().eos_token == "<|endoftext|>"


def test_greedy_text_is_made_of_words():
    prompt = tokenizer()("Return a new ", return_tensors="pt")
    output = model().generate(**prompt, max_new_tokens=40, do_sample=False)
    words = re.findall(r"[a-z]+", tokenizer().decode(output[0]).lower())
    known = set(re.findall(r"[a-z]+", heldout_text().lower()))
    assert len(words) >= 10
    assert sum(word in known for word in words) >= 0.6 * len(words)
