"""Train the embedded default model: a small Qwen3-MoE on English text that ships with CPython.

``python -m mobilekit.train.embedded_default --out DIR`` does everything from nothing: tokenizer,
weights, held-out figures. Interrupted, it goes on where the state in ``--work`` ends.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilekit.core import console
from mobilekit.core.files import atomic_directory, sha256_json
from mobilekit.data.corpora import heldout_text, training_documents
from mobilekit.data.text import encode
from mobilekit.metrics.language import bits_per_byte, lzma_bits_per_byte, perplexity

from .forward import forward_with_routing
from .heldout import HeldoutResult, measure_heldout
from .loop import LoopResult, LoopSettings, run_loop
from .objectives import balance_loss, next_token_loss

__all__ = ["Recipe", "build_model", "build_tokenizer", "main", "save_result", "train_default"]

END_OF_TEXT = "<|endoftext|>"
_TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Documents kept from training to watch over-fitting; the held-out file is never looked at.
_VALIDATION_EVERY = 60

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "intermediate_size": 192,
    "norm_topk_prob": True,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "router_aux_loss_coef": 0.01,
}

NOTE = """---
license: apache-2.0
---
# The embedded default model of MobileKit

A Qwen3-MoE of 2.8 M parameters (`Qwen3MoeForCausalLM`, 4 layers of 16 experts, 2 a token), trained
from nothing by `python -m mobilekit.train.embedded_default` on English text that ships with
CPython: documentation topics, docstrings, comments, licences. It writes text that looks like
Python documentation and knows nothing; it is there so that every step of MobileKit can be tried,
tested and measured without a download.

Figures on text that it never saw are in `figures.json`.

Licence: the weights are published under the licence of MobileKit. The training text is
Copyright (c) 2001-2023 Python Software Foundation, used under the PSF License Agreement.
"""


@dataclass(frozen=True)
class Recipe:
    """Settings of the training run.

    The defaults made the model in the package, with one difference: the learning rates of its
    first 800 steps belong to a plan of 3000 (``schedules`` in its figures.json).
    """

    steps: int = 1800
    batch_size: int = 8
    sequence_length: int = 512
    learning_rate: float = 4e-3
    balance_weight: float = 0.01
    dropout: float = 0.1
    vocab_size: int = 2048
    seed: int = 0
    checkpoint_every: int = 200


def build_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer trained on ``texts``, as a fast tokenizer of transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_model(vocab_size: int, end_of_text: int, seed: int) -> Any:
    """The untrained model in float32; the same seed gives the same weights."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    token: dict[str, Any] = dict.fromkeys(_TOKEN_FIELDS, end_of_text)
    config = Qwen3MoeConfig(vocab_size=vocab_size, **SHAPE, **token)
    with torch.random.fork_rng():  # transformers initialises from the global generator
        torch.manual_seed(seed)
        return Qwen3MoeForCausalLM(config)


@contextlib.contextmanager
def _dropout(model: Any, probability: float, generator: torch.Generator) -> Iterator[None]:
    """Dropout on what attention and experts add to the stream, drawn from ``generator``."""

    def drop(module: nn.Module, args: object, output: Any) -> Any:
        if not module.training or probability == 0.0:
            return output
        first = output[0] if isinstance(output, tuple) else output
        mask = torch.empty_like(first).bernoulli_(1.0 - probability, generator=generator)
        kept = first * mask / (1.0 - probability)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    handles = [model.model.embed_tokens.register_forward_hook(drop)]
    for layer in model.model.layers:
        handles.append(layer.self_attn.register_forward_hook(drop))
        handles.append(layer.mlp.register_forward_hook(drop))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _step_loss(
    model: Any,
    stream: Tensor,
    end_of_text: int,
    recipe: Recipe,
    step: int,
    generator: torch.Generator,
) -> Tensor:
    """Loss of one batch of random windows of the token stream."""
    length = recipe.sequence_length
    starts = torch.randint(len(stream) - length, (recipe.batch_size,), generator=generator)
    batch = stream[starts[:, None] + torch.arange(length)]
    # Half of the windows begin as a prompt does, half in the middle of a text.
    batch[::2, 0] = end_of_text
    with _dropout(model, recipe.dropout, generator):
        logits, router_logits = forward_with_routing(model, batch)
    balance = balance_loss(router_logits, model.config.num_experts_per_tok)
    return next_token_loss(logits, batch) + recipe.balance_weight * balance


def train_default(out: Path, work: Path, recipe: Recipe) -> None:
    """Train, keeping the state in ``work``; write each checkpoint's usable model to ``out``."""
    documents = training_documents()
    validation = "\n\n".join(document.text for document in documents[::_VALIDATION_EVERY])
    texts = [d.text for i, d in enumerate(documents) if i % _VALIDATION_EVERY]
    tokenizer = build_tokenizer(texts, recipe.vocab_size)
    end_of_text = tokenizer.eos_token_id
    ids = [token for text in texts for token in (end_of_text, *encode(tokenizer, text))]
    model = build_model(len(tokenizer), end_of_text, recipe.seed)
    settings = LoopSettings(
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        warmup_steps=min(150, recipe.steps // 10),
        checkpoint_every=recipe.checkpoint_every,
        identity=sha256_json([SHAPE, recipe.seed, texts]),
    )
    console.status(f"training text: {sum(map(len, texts))} characters, {len(ids)} tokens")

    def checkpoint(done: int, result: LoopResult) -> None:
        seen = measure_heldout(model, tokenizer, validation, length=recipe.sequence_length)
        bpb = bits_per_byte(seen.nats, seen.num_bytes)
        console.status(f"  step {done}: validation loss {seen.loss:.4f}, {bpb:.4f} bits per byte")
        facts = _training_facts(recipe, result, ids=len(ids), texts=texts)
        save_result(out, model, tokenizer, {**facts, "validation_bits_per_byte": bpb})

    step_loss = partial(_step_loss, model, torch.tensor(ids), end_of_text, recipe)
    run_loop(
        model,
        step_loss,
        settings,
        description="embedded default model",
        state_path=work / "state.safetensors",
        on_checkpoint=checkpoint,
    )


def _training_facts(
    recipe: Recipe, result: LoopResult, *, ids: int, texts: list[str]
) -> dict[str, Any]:
    import tokenizers
    import transformers

    steps = len(result.losses)
    return {
        "seed": recipe.seed,
        "training": {
            "command": "python -m mobilekit.train.embedded_default "
            + shlex.join(_settings_of(sys.argv[1:])),
            "steps": steps,
            "schedules": result.schedules,
            "tokens": steps * recipe.batch_size * recipe.sequence_length,
            "seconds": round(result.seconds, 1),
            "corpus_bytes": sum(len(text.encode("utf-8")) for text in texts),
            "corpus_tokens": ids,
            "recipe": dict(vars(recipe)),
            "final_loss": sum(result.losses[-50:]) / len(result.losses[-50:]),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }


def save_result(out: Path, model: Any, tokenizer: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the model in bfloat16 with its tokenizer and the figures of what was written."""
    from transformers import AutoModelForCausalLM

    with atomic_directory(out, replace=True) as folder:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(NOTE, encoding="utf-8")
        # Measured on the bfloat16 weights as they were read back, computed in float32.
        reread = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        length = int(facts["training"]["recipe"]["sequence_length"])
        measured = measure_heldout(reread, tokenizer, heldout_text(), length=length)
        parameters = sum(parameter.numel() for parameter in reread.parameters())
        figures = {
            "parameters": parameters,
            "heldout": _heldout_figures(measured, length),
            **facts,
            "written": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors writes for the owner only
    return figures


def _heldout_figures(measured: HeldoutResult, length: int) -> dict[str, Any]:
    return {
        "bytes": measured.num_bytes,
        "tokens": measured.tokens,
        "window": length,
        "loss": measured.loss,
        "perplexity": perplexity(measured.nats, measured.tokens),
        "bits_per_byte": bits_per_byte(measured.nats, measured.num_bytes),
        "lzma_bits_per_byte": lzma_bits_per_byte(heldout_text()),
        "expert_load_min": [min(layer) for layer in measured.expert_load],
        "expert_load_max": [max(layer) for layer in measured.expert_load],
    }


def _settings_of(arguments: list[str]) -> list[str]:
    """The arguments that decide the result: not where the state lies, nor how many threads."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument not in ("--work", "--threads"):
            kept.append(argument)
        skip = argument in ("--work", "--threads")
    return kept


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument(
        "--work", type=Path, help="folder of the resumable state (default: OUT.work)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    for name, value in vars(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args(arguments))
    out, work = options.pop("out"), options.pop("work")
    torch.set_num_threads(options.pop("threads"))
    train_default(out, work or out.with_name(out.name + ".work"), Recipe(**options))


if __name__ == "__main__":
    main()
