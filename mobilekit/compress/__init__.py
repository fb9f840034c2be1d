"""Compression methods: one folder a method; ``plan`` decides, ``apply`` carries out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import UsageError
from mobilekit.core.registry import Registry

from .base import Method, check_order, check_units, with_summary

if TYPE_CHECKING:
    from torch import nn

    from mobilekit.schema.plan import Plan

    from .config import MethodConfig

METHODS: Registry[Method[Any]] = Registry("method")
METHODS.register("aimer", "mobilekit.compress.aimer.method:AIMER")
METHODS.register("darwinlm", "mobilekit.compress.darwinlm.method:DARWINLM")


def plan(
    model: nn.Module,
    method: str,
    *,
    data: Any = None,
    workdir: str | Path | None = None,
    **settings: Any,
) -> Plan:
    """Decide what ``method`` would do to ``model``; no weight is touched.

    Args:
        model: The model, as ``load`` gives it.
        method: Name of a registered method.
        data: Token ids to calibrate on, each batch of shape (B, S), for methods and variants that
            look at data; without them they use the text that their settings name.
        workdir: Where a long search keeps its state, for methods that search.
        settings: Fields of the method's ``Config``.

    Raises:
        UsageError: If the method is unknown, or may not follow the plans applied already.
        InvalidInputError: If a setting is unknown or out of range.
        UnsupportedModelError: If the model lacks the units that the method acts on.
    """
    chosen = METHODS.get(method)
    config = chosen.Config.parse(settings, f"settings of {method}")
    check_units(chosen, model)
    _check_history(chosen, model)
    return chosen.plan(model, config, data, Path(workdir) if workdir is not None else None)


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the compressed model; ``model`` itself stays as it is and shares no memory with it.

    The sizes in the plan's summary are found anew, since a user may have edited the plan.

    Raises:
        UsageError: If the plan does not fit the model: made for another checkpoint, by a newer
            version of the method, out of order, or with an edit that is not legal here.
    """
    from mobilekit.models import surgery
    from mobilekit.models.lineage import provenance, record
    from mobilekit.schema.plan import TENSORS_FILE, with_tensors

    method = METHODS.get(plan.method)
    history = provenance(model)
    _check_version(method, plan)
    _check_parent(plan, history.parent_hash)
    check_units(method, model)
    _check_history(method, model)
    surgery.check(model, plan.edits)
    carried_out = with_summary(method, model, plan)
    result = method.apply(surgery.copy_for(model, plan.edits), carried_out)
    if carried_out.tensors is not None:  # the weights hold them from here on
        carried_out = with_tensors(carried_out, TENSORS_FILE)
    record(result, history.applied(carried_out))
    return result


def check_inputs(config: MethodConfig, source: Path) -> None:
    """Check, before any weight is read, what planning for a checkpoint will read besides.

    Raises:
        InvalidInputError: If a text file cannot be read, or there is no tokenizer to encode it.
    """
    from mobilekit.data.text import read_text
    from mobilekit.models import require_tokenizer

    for path in config.files():
        read_text(path)
    if config.needs_data:
        require_tokenizer(source)


def _check_history(method: Method[Any], model: nn.Module) -> None:
    from mobilekit.models.lineage import provenance

    applied = provenance(model).plans
    names = {entry.method for entry in applied} & set(METHODS.names())
    check_order(method, applied, {name: METHODS.get(name) for name in names})


def _check_version(method: Method[Any], plan: Plan) -> None:
    if plan.method_version > method.version:
        raise UsageError(
            f"the plan is by version {plan.method_version} of {method.name}, "
            f"this is version {method.version}",
            hint="Update MobileKit, or plan anew with this version.",
        )


def _check_parent(plan: Plan, found: str | None) -> None:
    if plan.parent is not None and found is not None and plan.parent != found:
        raise UsageError(
            f"the plan was made for checkpoint {plan.parent[:19]}…, this one is {found[:19]}…",
            hint='Plan anew, or set "parent" to null in the plan to use it here all the same.',
        )


__all__ = ["METHODS", "Method", "apply", "check_inputs", "plan"]
