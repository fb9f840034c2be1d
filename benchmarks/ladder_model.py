"""A small Qwen3-MoE that learns invented facts, and how to answer four-option questions on them.

First it reads questions with their answer ("What is the colour of Zorbak? red"), then mostly the
suite's prompt followed by the right letter. The prompts' other options are drawn anew each time, so
a question of the set is as good as never seen in training, but its fact is. Only values and letters
count in the loss.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ladder_facts import VALUES, Fact, ask, prompt_of
from torch import Tensor
from torch.nn import functional as F

from mobilekit.core import console
from mobilekit.core.files import atomic_directory, sha256_json
from mobilekit.train.embedded_default import build_tokenizer
from mobilekit.train.forward import forward_with_routing
from mobilekit.train.loop import LoopResult, LoopSettings, run_loop
from mobilekit.train.objectives import balance_loss

VOCABULARY = 2048
EXPERTS, TOP_K = 16, 2
_IGNORED = -100

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_intermediate_size": 64,
    "intermediate_size": 128,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Recipe:
    """Settings of the training run."""

    fact_steps: int = 250  # answered questions only
    steps: int = 820
    learning_rate: float = 3e-3
    rows: int = 32  # a batch
    packs: int = 4  # of the later batches' rows: packs of answered questions
    facts_a_pack: int = 4
    balance_weight: float = 0.01


class Lesson:
    """Batches of both kinds of text.

    Args:
        facts: What is to be learnt.
        tokenizer: A fast tokenizer of transformers.
        recipe: How many texts of each kind.
    """

    def __init__(self, facts: Sequence[Fact], tokenizer: Any, recipe: Recipe) -> None:
        self.facts, self.recipe = facts, recipe
        self._encode = lambda text: list(tokenizer.backend_tokenizer.encode(text).ids)
        self._pad = tokenizer.pad_token_id
        self._questions = [self._encode(fact.question) for fact in facts]
        self._values = {v: self._encode(f" {v}") for pool in VALUES.values() for v in pool}
        self._newline = self._encode("\n")

    def batch(self, rng: random.Random, prompts: int) -> tuple[Tensor, Tensor]:
        """Return ids and targets, (B, S) each; ``prompts`` prompts come first."""
        asked = [ask(fact, rng) for fact in rng.sample(self.facts, prompts)]
        rows = [self._prompt(prompt_of(question), letter) for question, letter in asked]
        rows += [self._pack(rng) for _ in range(self.recipe.rows - prompts)]
        longest = max(len(ids) for ids, _ in rows)
        ids = [row + [self._pad] * (longest - len(row)) for row, _ in rows]
        targets = [row + [_IGNORED] * (longest - len(row)) for _, row in rows]
        return torch.tensor(ids), torch.tensor(targets)

    def _prompt(self, text: str, letter: str) -> tuple[list[int], list[int]]:
        context, whole = self._encode(text), self._encode(f"{text} {letter}")
        return whole, [_IGNORED] * len(context) + whole[len(context) :]

    def _pack(self, rng: random.Random) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        targets: list[int] = []
        for index in rng.sample(range(len(self.facts)), self.recipe.facts_a_pack):
            question, value = self._questions[index], self._values[self.facts[index].value]
            ids += [*question, *value, *self._newline]
            targets += [_IGNORED] * len(question) + value + [_IGNORED] * len(self._newline)
        return ids, targets


def _loss(model: Any, lesson: Lesson, step: int, generator: torch.Generator) -> Tensor:
    """Mean nats of the letters, plus mean nats of the values, plus what keeps experts in use."""
    rng = random.Random(int(torch.randint(1 << 62, (1,), generator=generator)))
    recipe = lesson.recipe
    prompts = recipe.rows - recipe.packs if step >= recipe.fact_steps else 0
    ids, targets = lesson.batch(rng, prompts)
    logits, routing = forward_with_routing(model, ids)
    loss = recipe.balance_weight * balance_loss(routing, TOP_K)
    for rows in (slice(0, prompts), slice(prompts, recipe.rows)):
        if rows.start < rows.stop:
            loss = loss + F.cross_entropy(
                logits[rows, :-1].flatten(0, 1), targets[rows, 1:].flatten()
            )
    return loss


def make_tokenizer(facts: Sequence[Fact], seed: int) -> Any:
    """Return a byte-level BPE tokenizer trained on the prompts themselves."""
    rng = random.Random(f"{seed}:tokenizer")
    texts = []
    for fact in facts:
        question, letter = ask(fact, rng)
        texts.append(f"{prompt_of(question)} {letter}\n{fact.question} {fact.value}\n")
    return build_tokenizer(texts, VOCABULARY)


def train(out: Path, work: Path, facts: Sequence[Fact], seed: int, recipe: Recipe) -> None:
    """Train from nothing and write the checkpoint to ``out``; resumes from ``work``."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer = make_tokenizer(facts, seed)
    end = tokenizer.eos_token_id
    config_class: Any = Qwen3MoeConfig  # its declared signature lacks some of its fields
    config = config_class(vocab_size=len(tokenizer), **SHAPE, eos_token_id=end, pad_token_id=end)
    torch.manual_seed(seed)
    model: Any = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("eager")
    lesson = Lesson(facts, tokenizer, recipe)
    settings = LoopSettings(
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        seed=seed,
        warmup_steps=min(20, recipe.steps // 10),
        final_learning_rate=0.1,
        checkpoint_every=100,
        identity=sha256_json([SHAPE, seed, asdict(recipe), [asdict(fact) for fact in facts]]),
    )

    def tell(done: int, result: LoopResult) -> None:
        console.status(f"  step {done}: letters right {_share_right(model, lesson, done):.3f}")

    run_loop(
        model,
        lambda step, generator: _loss(model, lesson, step, generator),
        settings,
        description=f"seed {seed}",
        state_path=work / "state.safetensors",
        on_checkpoint=tell,
    )
    with atomic_directory(out) as folder:
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@torch.no_grad()
def _share_right(model: Any, lesson: Lesson, step: int) -> float:
    """Return the share of right letters on fresh training questions; nothing is decided by it."""
    rows = lesson.recipe.rows
    ids, targets = lesson.batch(random.Random(f"progress:{step}"), rows)
    best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
    wanted = targets[:, 1:]
    counted = wanted != _IGNORED
    return float((best[counted] == wanted[counted]).float().mean())
