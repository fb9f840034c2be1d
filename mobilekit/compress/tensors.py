"""A plan's large values: weights that a method computed, in a safetensors file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import sha256_file, sha256_json, unserialized, writing
from mobilekit.schema.plan import TENSORS_FILE, Plan, TensorFile, with_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


def write_tensors(plan: Plan, tensors: Mapping[str, Tensor], folder: Path) -> Plan:
    """Write a plan's values into a folder, and return the plan that names them.

    Args:
        plan: The plan, without values.
        tensors: By their names in the result's state dict; none makes no file.
        folder: A folder that is there.

    Raises:
        OutputError: If the file cannot be written.
    """
    if not tensors:
        return plan
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    edits = plan.model_dump(mode="json", include={"edits", "config"})
    file = folder / f"plan-{sha256_json(edits)[:16]}.safetensors"
    part = file.with_suffix(".part")
    try:
        with writing(file):
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
            part.replace(file)
    except SafetensorError as error:
        raise unserialized(file, error) from None
    held = TensorFile(path=str(file.resolve()), sha256=sha256_file(file))
    return plan.model_copy(update={"tensors": held})


def fill_tensors_(model: nn.Module, plan: Plan) -> None:
    """Put a plan's values into a model that was restructured by it.

    Raises:
        InvalidInputError: If the file is missing or damaged, or does not fit the model.
    """
    if plan.tensors is None:
        return
    from safetensors.torch import load_file

    path = _checked(plan.tensors)
    for name, value in load_file(path).items():
        fill_(model, name, value, str(path))


def fill_(model: nn.Module, name: str, value: Tensor, where: str) -> None:
    """Give one parameter new memory with a value, in its own dtype and on its own device.

    Raises:
        InvalidInputError: If the model has no such parameter, or of another shape.
    """
    from torch import nn

    path, _, own = name.rpartition(".")
    try:
        module: Any = model.get_submodule(path)
        old = getattr(module, own)
    except AttributeError:
        old = None
    if old is None or old.shape != value.shape:
        shape = "none" if old is None else f"one of {list(old.shape)}"
        raise InvalidInputError(
            f"{where} holds {name} of {list(value.shape)}, the model has {shape}",
            hint="Plan and tensors do not belong together: plan anew.",
        )
    fresh = value.to(device=old.device, dtype=old.dtype, copy=True)
    setattr(module, own, nn.Parameter(fresh, requires_grad=old.requires_grad))


def beside(plan: Plan, folder: Path) -> Plan:
    """Copy a plan's values into the folder that the plan will lie in; return it naming the copy.

    Raises:
        InvalidInputError: If the file is missing or damaged.
    """
    if plan.tensors is None:
        return plan
    shutil.copyfile(_checked(plan.tensors), folder / TENSORS_FILE)
    return with_tensors(plan, TENSORS_FILE)


def _checked(file: TensorFile) -> Path:
    """Return the path of a tensor file that is what was written.

    Raises:
        InvalidInputError: If it is not.
    """
    path = Path(file.path)
    if not path.is_file():
        raise InvalidInputError(
            f"the plan's tensors are not at {path}",
            hint="Copy the tensors along with plan.json, or plan anew.",
        )
    if sha256_file(path) != file.sha256:
        raise InvalidInputError(
            f"{path} is not what was written: its checksum differs from the plan's",
            hint="Copy the file again from where it came, or plan anew.",
        )
    return path
