"""``mobilekit compress``: plan and apply, or apply a plan that was edited."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Answer, LoadingDevice, command, megabytes, parse_settings

if TYPE_CHECKING:
    from torch import nn

    from mobilekit.schema.plan import Plan

EPILOG = (
    "Examples: mobilekit compress embedded --method aimer --set sparsity=0.25 --out small   ·   "
    "mobilekit compress MODEL --method darwinlm --set sparsity=0.5 --set generations=20 "
    "--out narrow   ·   mobilekit compress embedded --plan plan/plan.json --out small"
)


@command
def main(
    model: Annotated[
        str, typer.Argument(help="Checkpoint directory, cached hub id, or 'embedded'.")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint directory to create.")],
    method: Annotated[str | None, typer.Option(help="Method to plan with.")] = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan.json to carry out instead of planning.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A method setting.")
    ] = None,
    device: LoadingDevice = "auto",
) -> Answer:
    """Write a smaller checkpoint.

    Plain transformers loads it too, where its shape is still uniform. Methods that only cut, by
    the weights alone or by a plan, work file to file, whatever the size of the model; interrupted,
    they go on where they were. Others load the model; a search that was interrupted, even killed,
    goes on with the same command, and under torchrun it deals its candidates over the processes.
    """
    from mobilekit.core import console
    from mobilekit.core.files import check_target
    from mobilekit.models import has_tokenizer, resolve
    from mobilekit.schema.plan import read_plans

    settings = parse_settings(setting or [])
    _check(method, plan, settings)
    check_target(out)
    plans = read_plans(plan) if plan is not None else []  # before the weights, which take longer
    source = resolve(model)
    on_disk = _is_on_disk(source, method, settings, plans)
    if not has_tokenizer(source):
        console.warn(f"{model} has no tokenizer; the result cannot be exported without one")
    _write(source, out, device, method, settings, plans, on_disk=on_disk)
    return _answer(source, out)


def _check(method: str | None, plan: Path | None, settings: dict[str, Any]) -> None:
    """Refuse options that do not go together."""
    from mobilekit.core.errors import UsageError

    if (method is None) == (plan is None):
        raise UsageError(
            "give either --method or --plan", hint="For example: --method aimer --set sparsity=0.25"
        )
    if method is None and settings:
        raise UsageError("--set has no effect with --plan", hint="Edit the plan file instead.")


def _is_on_disk(
    source: Path, method: str | None, settings: dict[str, Any], plans: list[Plan]
) -> bool:
    """Tell whether the files suffice; check settings and what planning will read besides."""
    from mobilekit import compress
    from mobilekit.compress.stored import applies_on_disk, plans_from_disk

    if method is None:
        return bool(plans) and applies_on_disk(plans)
    chosen = compress.METHODS.get(method)
    config = chosen.Config.parse(settings, f"method {method}")
    compress.check_inputs(config, source)
    return plans_from_disk(chosen, getattr(config, "variant", None))


def _write(
    source: Path,
    out: Path,
    device: str,
    method: str | None,
    settings: dict[str, Any],
    plans: list[Plan],
    *,
    on_disk: bool,
) -> None:
    """Write the result; of several processes the first one does."""
    from mobilekit.compress.stored import compress_stored
    from mobilekit.models import save
    from mobilekit.train.ranks import launched

    with launched(device) as ranks:
        if not on_disk:
            result = _in_memory(source, device, method, settings, plans)
            if ranks.is_first:
                save(result, out, tokenizer_from=source)
        elif ranks.is_first:
            compress_stored(source, out, method=method, plans=plans, device=device, **settings)
        ranks.wait()


def _answer(source: Path, out: Path) -> Answer:
    from mobilekit.models import describe

    before, after = describe(source), describe(out)
    keys = ("parameters", "active_parameters", "weight_bytes")
    rows = [[key.replace("_", " "), *_row(key, before[key], after[key])] for key in keys]
    return Answer(
        {"before": before, "after": after, "checkpoint": str(out)},
        headers=("", "before", "after", "change"),
        rows=rows,
        closing=["", f"Checkpoint {out}"],
    )


def _in_memory(
    source: Path, device: str, method: str | None, settings: dict[str, Any], plans: list[Plan]
) -> nn.Module:
    """Load the model, plan where there is a method, and carry the plans out."""
    from mobilekit import compress
    from mobilekit.core import console
    from mobilekit.models import load

    model = load(source, device=device)
    for step in [compress.plan(model, method, **settings)] if method is not None else plans:
        for warning in step.warnings:
            console.warn(warning)
        model = compress.apply(model, step)
    return model


def _row(key: str, before: int, after: int) -> tuple[str, str, str]:
    show = megabytes if key == "weight_bytes" else lambda n: f"{n / 1e6:.3f} M"
    return show(before), show(after), f"{after / before - 1:+.1%}"
