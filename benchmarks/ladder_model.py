"""A small Qwen3-MoE that learns invented facts, and how to answer four-option questions on them.

First it reads questions with their answer ("What is the colour of Zorbak? red"), until it recalls
the facts; then mostly the suite's prompt followed by the right letter, until it answers; then the
learning rate falls to nothing. The prompts' other options are drawn anew each time, so a question
of the set is as good as never seen in training, but its fact is. Only values and letters count in
the loss.

How long a stage lasts is decided by what was learnt, by one rule for every seed: a fixed number of
steps stops one seed before it has found out what letters have to do with facts, and another long
after. Facts are looked at as such, letters on fresh questions; the set itself decides nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ladder_facts import VALUES, Fact, ask, prompt_of
from torch import Tensor
from torch.nn import functional as F

from mobilekit.core import console
from mobilekit.core.files import atomic_directory, atomic_write_json, read_json, sha256_json
from mobilekit.train.embedded_default import build_tokenizer
from mobilekit.train.loop import LoopSettings, run_loop
from mobilekit.train.objectives import balance_loss

VOCABULARY = 2048
EXPERTS, TOP_K = 16, 2
STAGES_FILE = "stages.json"
_IGNORED = -100
Batches = Iterator[tuple[Tensor, Tensor]]  # ids and targets, (B, S) each

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
    """Settings of the training run, the same for every seed."""

    learning_rate: float = 3e-3
    warmup_steps: int = 50
    recalled: float = 0.95  # of the facts: then questions begin
    answered: float = 0.90  # of fresh questions: then the learning rate falls
    look_every: int = 100  # steps
    fresh: int = 1024  # questions that one look asks
    most_steps: int = 3000  # of a stage; then the next begins, whatever was learnt
    final_steps: int = 200  # while the learning rate falls
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
        return self._padded(rows)

    def recall(self) -> Batches:
        """Yield every fact by itself, its value the target."""
        count = len(self.facts)
        yield from self._batches([self._answered(index) for index in range(count)])

    def questions(self, steps: int) -> Batches:
        """Yield fresh questions, others after other ``steps``, the letter the target."""
        rng = random.Random(f"look:{steps}")
        asked = [ask(fact, rng) for fact in rng.choices(self.facts, k=self.recipe.fresh)]
        yield from self._batches([self._prompt(prompt_of(q), letter) for q, letter in asked])

    def _batches(self, rows: list[tuple[list[int], list[int]]]) -> Batches:
        for start in range(0, len(rows), 128):
            yield self._padded(rows[start : start + 128])

    def _padded(self, rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
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
            answered, wanted = self._answered(index)
            ids += [*answered, *self._newline]
            targets += [*wanted, *[_IGNORED] * len(self._newline)]
        return ids, targets

    def _answered(self, index: int) -> tuple[list[int], list[int]]:
        question, value = self._questions[index], self._values[self.facts[index].value]
        return [*question, *value], [_IGNORED] * len(question) + value


def _loss(model: Any, lesson: Lesson, prompts: int, generator: torch.Generator) -> Tensor:
    """Mean nats of the letters, plus mean nats of the values, plus what keeps experts in use."""
    rng = random.Random(int(torch.randint(1 << 62, (1,), generator=generator)))
    recipe = lesson.recipe
    ids, targets = lesson.batch(rng, prompts)
    output = model.base_model(input_ids=ids, use_cache=False, output_router_logits=True)
    loss = recipe.balance_weight * balance_loss(output.router_logits, TOP_K)
    for rows in (slice(0, prompts), slice(prompts, recipe.rows)):
        if rows.start < rows.stop:
            wanted = targets[rows, 1:]
            counted = wanted != _IGNORED  # logits of all other tokens would be half of the work
            logits = model.lm_head(output.last_hidden_state[rows, :-1][counted])
            loss = loss + F.cross_entropy(logits, wanted[counted])
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
    Course(model, Lesson(facts, tokenizer, recipe), seed, work).run()
    with atomic_directory(out) as folder:
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)


class Course:
    """Training in stages: facts, questions on them, and a falling learning rate.

    Args:
        model: Trained in place.
        lesson: What it is taught.
        seed: Of the batches.
        work: Where states are kept, so that an interrupted course goes on.
    """

    def __init__(self, model: Any, lesson: Lesson, seed: int, work: Path) -> None:
        self.model, self.lesson, self.seed, self.work = model, lesson, seed, work
        facts = [asdict(fact) for fact in lesson.facts]
        self.identity = sha256_json([SHAPE, seed, asdict(lesson.recipe), facts])
        self.stages = Stages(work / STAGES_FILE, self.identity)

    def run(self) -> None:
        """Train to the end."""
        recipe, lesson = self.lesson.recipe, self.lesson
        done = self._train_to(0)  # no further than an earlier run came
        done = self._stage("facts", recipe.recalled, done, lambda steps: lesson.recall())
        self._stage("questions", recipe.answered, done, lesson.questions)
        learnt = self.stages.ends["questions"]
        # what counts as warm-up is over, so the rate falls from here on
        self._train_to(learnt + recipe.final_steps, warmup_steps=learnt, final_learning_rate=0.0)

    def _stage(self, name: str, goal: float, done: int, look: Callable[[int], Batches]) -> int:
        """Train until a look says that the goal is met; return how many steps are done."""
        recipe = self.lesson.recipe
        begun = max(self.stages.ends.values(), default=0)
        while name not in self.stages.ends:
            share = share_right(self.model, look(done))
            console.status(f"  step {done}: {name} right {share:.3f}")
            if share >= goal or done - begun >= recipe.most_steps:
                self.stages.end(name, done, share)
            else:
                done = self._train_to(done + recipe.look_every)
        return done

    def _train_to(
        self, steps: int, *, warmup_steps: int | None = None, final_learning_rate: float = 1.0
    ) -> int:
        recipe, asks_from = self.lesson.recipe, self.stages.ends.get("facts")
        settings = LoopSettings(
            steps=steps,
            learning_rate=recipe.learning_rate,
            seed=self.seed,
            warmup_steps=recipe.warmup_steps if warmup_steps is None else warmup_steps,
            final_learning_rate=final_learning_rate,
            checkpoint_every=recipe.look_every,
            identity=self.identity,
        )

        def loss(step: int, generator: torch.Generator) -> Tensor:
            is_asking = asks_from is not None and step >= asks_from
            prompts = recipe.rows - recipe.packs if is_asking else 0
            return _loss(self.model, self.lesson, prompts, generator)

        state, name = self.work / "state.safetensors", f"seed {self.seed}"
        result = run_loop(self.model, loss, settings, description=name, state_path=state)
        return len(result.losses)


class Stages:
    """After how many steps each stage ended, kept in a file so that a run can go on.

    Args:
        path: JSON file.
        identity: Of the training run; what another one has left is not taken.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        found = read_json(path) if path.is_file() else {}
        is_ours = found.get("identity") == identity
        self._kept = found if is_ours else {"identity": identity, "stages": {}}

    @property
    def ends(self) -> dict[str, int]:
        """Steps by stage, of those that ended."""
        return {name: entry["steps"] for name, entry in self._kept["stages"].items()}

    def end(self, name: str, steps: int, share: float) -> None:
        """Note that a stage ended, and what share was right then."""
        self._kept["stages"][name] = {"steps": steps, "right": share}
        atomic_write_json(self._path, self._kept)


@torch.no_grad()
def share_right(model: Any, batches: Batches) -> float:
    """Return the share of rows whose every wanted token is the most likely one."""
    right = total = 0
    for ids, targets in batches:
        wanted = targets[:, 1:]
        best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        right += int(((best == wanted) | (wanted == _IGNORED)).all(1).sum())
        total += len(ids)
    return right / total
