"""A tiny real model and byte-level tokenizers that spell " A" with one token, or with two."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen3Config, Qwen3ForCausalLM

from mobilekit.cli.main import main
from mobilekit.core import console
from mobilekit.data.tokenizer import TextTokenizer
from mobilekit.evaluate.outcome import Outcome
from mobilekit.runtime.base import Logits, Tokens
from mobilekit.runtime.torch import TorchRuntime


def byte_tokenizer(merges: list[tuple[str, str]], *, eos: bool = True) -> TextTokenizer:
    """Bytes, plus one token for each merge, plus an end-of-text token."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if eos:
        inner.add_special_tokens([AddedToken("<|end|>", special=True)])
    return TextTokenizer(inner, eos_id=inner.token_to_id("<|end|>") if eos else None)


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """One token for each of " A" to " D"."""
    return byte_tokenizer([("Ġ", letter) for letter in "ABCD"])


@pytest.fixture(scope="session")
def plain_tokenizer() -> TextTokenizer:
    """Bytes alone: " A" is two tokens."""
    return byte_tokenizer([])


@pytest.fixture(scope="session")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture
def runtime(model: Qwen3ForCausalLM) -> TorchRuntime:
    return TorchRuntime(model)


@pytest.fixture(scope="session")
def checkpoint(
    model: Qwen3ForCausalLM, tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    tokenizer._inner.save(str(folder / "tokenizer.json"))
    settings = json.dumps({"eos_token": "<|end|>"})
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    return folder


def same_metrics(one: Outcome, other: Outcome, *, but: Sequence[str] = ()) -> bool:
    """Tell whether two runs gave the same figures, log-probabilities up to rounding.

    What else is in a batch changes the last bits of an answer.
    """
    rest = [
        {k: v for k, v in o.metrics.items() if k not in {"logprobs", *but}} for o in (one, other)
    ]
    ours, theirs = one.metrics["logprobs"], other.metrics["logprobs"]
    alike = all(theirs[name] == pytest.approx(values, abs=1e-5) for name, values in ours.items())
    return rest[0] == rest[1] and ours.keys() == theirs.keys() and alike


class LastOnly:
    """A runtime as artifacts are: the last position's logits, a cache, nothing else."""

    name, version = "last-only", "1"

    def __init__(self, inner: TorchRuntime, context_length: int | None = None) -> None:
        self.inner = inner
        self.vocab_size = inner.vocab_size
        self.context_length = context_length or inner.context_length

    def reset(self) -> None:
        self.inner.reset()

    def forward(self, tokens: Tokens, position: int) -> Logits:
        assert position + len(tokens) <= self.context_length
        return self.inner.forward(tokens, position)


class Planted:
    """Logits that a test chooses from the whole text seen so far."""

    name, version = "planted", "1"

    def __init__(
        self,
        tokenizer: TextTokenizer,
        choose: Callable[[str], dict[str, float]],
        context_length: int = 4096,
    ) -> None:
        self.tokenizer, self.choose = tokenizer, choose
        self.vocab_size, self.context_length = tokenizer.vocab_size, context_length
        self.calls: list[tuple[int, int]] = []
        self.reset()

    def reset(self) -> None:
        self.ids: list[int] = []

    def forward(self, tokens: Tokens, position: int) -> Logits:
        assert position <= len(self.ids)
        assert position + len(tokens) <= self.context_length
        self.calls.append((len(tokens), position))
        self.ids = [*self.ids[:position], *tokens.tolist()]
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        for text, value in self.choose(self.tokenizer.decode(self.ids)).items():
            (token,) = self.tokenizer.encode(text)
            logits[token] = value
        return logits


@pytest.fixture(scope="session")
def last_only() -> type[LastOnly]:
    return LastOnly


@pytest.fixture(scope="session")
def planted() -> type[Planted]:
    return Planted


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., TextTokenizer]:
    return byte_tokenizer


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a command of ours in an empty directory; give its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["mobilekit", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    yield run
    console.configure()
