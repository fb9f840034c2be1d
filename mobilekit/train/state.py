"""The state of a training run in one safetensors file: nothing is pickled.

It holds whole tensors under the model's own names, however many ranks hold them while training:
a run may go on with another number of ranks, or with none.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import unserialized, writing

from .ranks import ALONE, Ranks

__all__ = ["LoopResult", "load_state", "save_state", "state_identity"]


@dataclass
class LoopResult:
    """What happened, step by step."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0  # training time, summed over resumed runs
    resumed_from: int = 0
    # (first step, planned steps): more than one entry where a resumed run changed its length
    schedules: list[tuple[int, int]] = field(default_factory=list)


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    result: LoopResult,
    *,
    identity: str = "",
    ranks: Ranks = ALONE,
) -> None:
    """Write all that resuming needs to one safetensors file, atomically; every rank calls it.

    Raises:
        OutputError: If it cannot be written.
    """
    tensors = {"generator": generator.get_state()}
    for name, parameter in model.named_parameters():
        held = {f"model/{name}": parameter.detach()}
        for key, value in optimizer.state.get(parameter, {}).items():
            held[f"optimizer/{key}/{name}"] = value.detach()
        for key, value in held.items():
            whole = ranks.whole(value)
            if ranks.is_first:
                tensors[key] = whole.contiguous() if ranks.size == 1 else whole.cpu()
    if ranks.is_first:
        # JSON writes floats so that they come back exactly
        history = {key: value for key, value in vars(result).items() if key != "resumed_from"}
        _write(path, tensors, {"result": json.dumps(history), "identity": identity})
    ranks.wait()


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, temporary, metadata=metadata)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        except SafetensorError as error:
            raise unserialized(path, error) from None
        finally:
            temporary.unlink(missing_ok=True)


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    *,
    ranks: Ranks = ALONE,
) -> LoopResult:
    """Read what ``save_state`` wrote into the three objects; a rank takes its own part.

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
                parameter.copy_(ranks.part(stored.get_tensor(key), parameter))
            slots = [n for n in names if n.startswith("optimizer/") and n.endswith(f"/{name}")]
            state = {n.split("/", 2)[1]: stored.get_tensor(n) for n in slots}
            if state:
                # AdamW keeps its step counter on the CPU, the moments beside the parameter
                optimizer.state[parameter] = {
                    k: v if k == "step" else ranks.part(v, parameter) for k, v in state.items()
                }
        generator.set_state(stored.get_tensor("generator"))
    schedules = [(int(first), int(steps)) for first, steps in history["schedules"]]
    losses = [float(loss) for loss in history["losses"]]
    return LoopResult(losses, float(history["seconds"]), len(losses), schedules)


def state_identity(path: Path) -> str:
    """Return the identity that a state was saved with.

    Raises:
        InvalidInputError: If the state is damaged.
    """
    return _metadata(path).get("identity", "")


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as stored:
            return dict(stored.metadata() or {})
    except SafetensorError as error:
        raise InvalidInputError(
            f"'{path}' is damaged: {error}", hint="Delete the file to start again."
        ) from None
