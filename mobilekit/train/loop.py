"""One training loop: AdamW, warm-up and cosine decay, resumable, on one process or on many."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilekit.core import console, stopping
from mobilekit.core.errors import InvalidInputError

from .ranks import ALONE, Ranks
from .state import LoopResult, load_state, save_state, state_identity

__all__ = ["LoopResult", "LoopSettings", "build_optimizer", "learning_rate_at", "run_loop"]

# the loss of a step, or of each part of its batch in turn: their sum over the ranks is the loss
StepLoss = Callable[[int, torch.Generator], Tensor | Iterable[Tensor]]


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know; batches and losses come from the caller."""

    steps: int
    learning_rate: float
    seed: int = 0
    warmup_steps: int = 0
    final_learning_rate: float = 0.0  # where the cosine ends, as a share of learning_rate
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    max_gradient_norm: float = 1.0
    checkpoint_every: int = 0  # steps, and at the end; 0 means never
    checkpoint_seconds: float = math.inf  # and whenever so much time has passed
    identity: str = ""  # hash of what training starts from; a state of another one is not continued
    tokens_a_step: int = 0  # for the speed that is shown


def learning_rate_at(step: int, settings: LoopSettings) -> float:
    """Learning rate of a step (counted from 0): linear warm-up, then half a cosine."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    decay_steps = max(1, settings.steps - settings.warmup_steps)
    position = min(1.0, (step - settings.warmup_steps) / decay_steps)
    share = 0.5 * (1.0 + math.cos(math.pi * position))
    floor = settings.final_learning_rate
    return settings.learning_rate * (floor + (1.0 - floor) * share)


def build_optimizer(model: nn.Module, settings: LoopSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; norms and biases (one dimension) do not decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
    )


def run_loop(
    model: nn.Module,
    step_loss: StepLoss,
    settings: LoopSettings,
    *,
    description: str = "training",
    state_path: Path | None = None,
    on_checkpoint: Callable[[int, LoopResult], None] | None = None,
    ranks: Ranks = ALONE,
) -> LoopResult:
    """Train ``model`` in place.

    Where a state is kept, Ctrl-C and SIGTERM end training after the step that is under way, with
    its state saved.

    Args:
        model: Its trainable parameters are updated; its training mode is restored afterwards.
        step_loss: Gives the scalar loss of a step, or of each part of its batch, which then sum
            up to it over all ranks; every random choice must come from the generator that it is
            handed, which is the same on every rank.
        settings: Length, learning rate and so on.
        description: Shown beside the progress bar.
        state_path: Where the state is kept for resuming; an existing one is continued, unless it
            is of another ``settings.identity``.
        on_checkpoint: Called after each saved state that was due, with the steps done.
        ranks: The processes that train together; the model is then sharded over them.

    Returns:
        Loss per step and the time spent.

    Raises:
        InvalidInputError: If a loss is not finite; the state is then removed, since going on from
            it would end there again.
    """
    optimizer = build_optimizer(model, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    result = _begin(state_path, model, optimizer, generator, settings, ranks)
    loop = _Loop(model, optimizer, step_loss, generator, settings, result, ranks, state_path)
    was_training = model.training
    model.train()
    try:
        with console.progress(settings.steps, description, announce=True) as bar:
            loop.run(bar, on_checkpoint)
    finally:
        optimizer.zero_grad(set_to_none=True)  # gradients are as large as the model
        model.train(was_training)
    return result


@dataclass
class _Loop:
    """A run under way."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step_loss: StepLoss
    generator: torch.Generator
    settings: LoopSettings
    result: LoopResult
    ranks: Ranks
    state_path: Path | None
    held: stopping.Postponed = field(default_factory=stopping.Postponed)
    saved_at: float = 0.0  # by the monotonic clock

    def run(
        self, bar: console.Bar, on_checkpoint: Callable[[int, LoopResult], None] | None
    ) -> None:
        settings, result = self.settings, self.result
        first, earlier = len(result.losses), result.seconds
        bar.advance(first)
        started = self.saved_at = time.monotonic()
        with self._stopping() as self.held:
            for step in range(first, settings.steps):
                loss, asked, late = self._step(step)
                result.losses.append(loss)
                result.seconds = earlier + time.monotonic() - started
                bar.advance(1, note=self._note(first, time.monotonic() - started))
                every, done = settings.checkpoint_every, step + 1
                due = late or bool(every and (done % every == 0 or done == settings.steps))
                if self.state_path is not None and (due or asked):
                    self._save(self.state_path)
                    if on_checkpoint is not None and due:
                        on_checkpoint(done, result)
                if asked:
                    break
            else:
                return
        raise KeyboardInterrupt  # where another rank was told

    def _stopping(self) -> contextlib.AbstractContextManager[stopping.Postponed]:
        """Hold signals back where something can be saved, or others must hear of it first."""
        if self.state_path is None and self.ranks.size == 1:
            return contextlib.nullcontext(stopping.Postponed())
        return stopping.postponed(patient=self.ranks.size > 1)

    def _step(self, step: int) -> tuple[float, bool, bool]:
        """Take one step.

        Returns:
            Its loss; whether any rank was asked to stop; whether the first one's state is old.
        """
        settings, ranks = self.settings, self.ranks
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        with _seeded_dropout(self.model, settings.seed, step, ranks.rank):
            losses = self.step_loss(step, self.generator)
            for loss in (losses,) if isinstance(losses, Tensor) else losses:
                value += float(loss.detach())
                # FSDP takes the mean of the ranks' gradients, where their losses add up
                scaled = loss if ranks.size == 1 else loss * ranks.size
                scaled.backward()
        is_late = time.monotonic() - self.saved_at > settings.checkpoint_seconds
        flags = [self.held.number is not None, is_late and ranks.is_first]
        value, asked, late = ranks.sums([value, *flags])
        if not math.isfinite(value):
            if self.state_path is not None and ranks.is_first:
                self.state_path.unlink(missing_ok=True)
            raise InvalidInputError(
                f"the training loss is {value} at step {step + 1}",
                hint="Use a smaller learning rate, or look for bad values in the weights.",
            )
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        nn.utils.clip_grads_with_norm_(parameters, settings.max_gradient_norm, ranks.whole(norm))
        self.optimizer.step()
        return value, asked > 0, late > 0

    def _save(self, path: Path) -> None:
        identity, ranks = self.settings.identity, self.ranks
        save_state(
            path,
            self.model,
            self.optimizer,
            self.generator,
            self.result,
            identity=identity,
            ranks=ranks,
        )
        self.saved_at = time.monotonic()

    def _note(self, first: int, elapsed: float) -> str:
        """Return what is shown beside the bar: step, loss, speed, and what is left to wait for."""
        losses, settings = self.result.losses, self.settings
        done = len(losses)
        tail = losses[-20:]
        pace = elapsed / (done - first)  # seconds a step
        parts = [f"step {done}", f"loss {sum(tail) / len(tail):.3f}"]
        if settings.tokens_a_step and pace > 0:
            parts.append(f"{settings.tokens_a_step / pace:,.0f} tokens/s")
        left = round(pace * (settings.steps - done))
        parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
        return "  ".join(parts)


def _begin(
    state_path: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    settings: LoopSettings,
    ranks: Ranks,
) -> LoopResult:
    """Return the history to go on from: the stored one where it is of this very run."""
    result = LoopResult()
    if state_path is not None and _is_there(state_path, ranks):
        if settings.identity and state_identity(state_path) != settings.identity:
            console.warn(f"{state_path} is of another training run: starting anew")
        else:
            result = load_state(state_path, model, optimizer, generator, ranks=ranks)
    if not result.schedules or result.schedules[-1][1] != settings.steps:
        result.schedules.append((len(result.losses), settings.steps))
    return result


def _is_there(state_path: Path, ranks: Ranks) -> bool:
    """Tell whether there is a state; every rank must see the same."""
    (seen,) = ranks.sums([state_path.exists()])
    if 0 < seen < ranks.size:
        raise InvalidInputError(
            f"{state_path} is seen by {seen:.0f} of {ranks.size} ranks",
            hint="Choose an --out on a disk that all machines share.",
        )
    return seen > 0


@contextlib.contextmanager
def _seeded_dropout(model: nn.Module, seed: int, step: int, rank: int) -> Iterator[None]:
    """Make what draws from torch's global generators (dropout) depend on seed and step alone."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step + rank * 7_919_777_777) % (1 << 63))
        yield
