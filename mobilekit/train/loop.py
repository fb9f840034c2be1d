"""One training loop: AdamW, warm-up and cosine decay, resumable, without pickle."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mobilekit.core import console
from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import unserialized, writing

__all__ = [
    "LoopResult",
    "LoopSettings",
    "build_optimizer",
    "learning_rate_at",
    "load_state",
    "run_loop",
    "save_state",
]

StepLoss = Callable[[int, torch.Generator], Tensor]


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
    identity: str = ""  # hash of what training starts from; a state of another one is not continued


@dataclass
class LoopResult:
    """What happened, step by step."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0  # training time, summed over resumed runs
    resumed_from: int = 0
    # (first step, planned steps): more than one entry where a resumed run changed its length
    schedules: list[tuple[int, int]] = field(default_factory=list)


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
) -> LoopResult:
    """Train ``model`` in place.

    Args:
        model: Its trainable parameters are updated; its training mode is restored afterwards.
        step_loss: Gives the scalar loss of a step; every random choice must come from the
            generator that it is handed.
        settings: Length, learning rate and so on.
        description: Shown beside the progress bar.
        state_path: Where the state is kept for resuming; an existing one is continued, unless it
            is of another ``settings.identity``.
        on_checkpoint: Called after each saved state with the steps done.

    Returns:
        Loss per step and the time spent.
    """
    optimizer = build_optimizer(model, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    result = _begin(state_path, model, optimizer, generator, settings)
    first, earlier = len(result.losses), result.seconds
    was_training = model.training
    model.train()
    started = time.monotonic()
    try:
        with console.progress(settings.steps, description, announce=True) as bar:
            bar.advance(first)
            for step in range(first, settings.steps):
                loss = _one_step(model, optimizer, step_loss, generator, step, settings)
                result.losses.append(loss)
                result.seconds = earlier + time.monotonic() - started
                bar.advance(1, note=f"step {step + 1}  loss {_recent(result.losses):.3f}")
                every = settings.checkpoint_every
                due = every and ((step + 1) % every == 0 or step + 1 == settings.steps)
                if state_path is not None and due:
                    save_state(state_path, model, optimizer, generator, result, settings.identity)
                    if on_checkpoint is not None:
                        on_checkpoint(step + 1, result)
    finally:
        optimizer.zero_grad(set_to_none=True)  # gradients are as large as the model
        model.train(was_training)
    return result


def _begin(
    state_path: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    settings: LoopSettings,
) -> LoopResult:
    """Return the history to go on from: the stored one where it is of this very run."""
    result = LoopResult()
    if state_path is not None and state_path.exists():
        if settings.identity and _metadata(state_path).get("identity") != settings.identity:
            console.warn(f"{state_path} is of another training run: starting anew")
        else:
            result = load_state(state_path, model, optimizer, generator)
    if not result.schedules or result.schedules[-1][1] != settings.steps:
        result.schedules.append((len(result.losses), settings.steps))
    return result


def _one_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step_loss: StepLoss,
    generator: torch.Generator,
    step: int,
    settings: LoopSettings,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, settings)
    with _seeded_dropout(model, settings.seed, step):
        loss = step_loss(step, generator)
        value = float(loss.detach())
    if not math.isfinite(value):
        raise InvalidInputError(
            f"the training loss is {value} at step {step + 1}",
            hint="Use a smaller learning rate, or look for bad values in the weights.",
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
    optimizer.step()
    return value


@contextlib.contextmanager
def _seeded_dropout(model: nn.Module, seed: int, step: int) -> Iterator[None]:
    """Make what draws from torch's global generators (dropout) depend on seed and step alone."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) % (1 << 63))
        yield


def _recent(losses: list[float], count: int = 20) -> float:
    tail = losses[-count:]
    return sum(tail) / len(tail)


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    result: LoopResult,
    identity: str = "",
) -> None:
    """Write all that resuming needs to one safetensors file, atomically.

    Raises:
        OutputError: If it cannot be written.
    """
    tensors = {"generator": generator.get_state()}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value.detach().contiguous()
    # JSON writes floats so that they come back exactly
    history = {key: value for key, value in vars(result).items() if key != "resumed_from"}
    metadata = {"result": json.dumps(history), "identity": identity}
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, temporary, metadata=metadata)
            temporary.replace(path)
        except SafetensorError as error:
            raise unserialized(path, error) from None
        finally:
            temporary.unlink(missing_ok=True)


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> LoopResult:
    """Read what ``save_state`` wrote into the three objects.

    Raises:
        InvalidInputError: If the state is damaged, or belongs to another model.
    """
    history = json.loads(_metadata(path)["result"])
    with safe_open(path, framework="pt") as stored:
        names = set(stored.keys())
        for name, parameter in model.named_parameters():
            key = f"model/{name}"
            if key not in names or stored.get_tensor(key).shape != parameter.shape:
                raise InvalidInputError(
                    f"'{path}' holds the state of another model ({name} does not fit)",
                    hint="Delete the file to start again.",
                )
            with torch.no_grad():
                parameter.copy_(stored.get_tensor(key))
            slots = [n for n in names if n.startswith("optimizer/") and n.endswith(f"/{name}")]
            state = {n.split("/", 2)[1]: stored.get_tensor(n) for n in slots}
            if state:
                optimizer.state[parameter] = _on_device(state, parameter)
        generator.set_state(stored.get_tensor("generator"))
    schedules = [(int(first), int(steps)) for first, steps in history["schedules"]]
    losses = [float(loss) for loss in history["losses"]]
    return LoopResult(losses, float(history["seconds"]), len(losses), schedules)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as stored:
            return dict(stored.metadata() or {})
    except SafetensorError as error:
        raise InvalidInputError(
            f"'{path}' is damaged: {error}", hint="Delete the file to start again."
        ) from None


def _on_device(state: dict[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    # AdamW keeps its step counter on the CPU, the moments beside the parameter.
    return {
        key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
    }
