"""The model card of a bundle: with its run's figures where that run is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.schema.bundle import Bundle
from mobilekit.schema.manifest import Manifest
from mobilekit.schema.plan import Plan

from .card import card_of_bundle
from .changes import expert_rows, weights_table
from .evidence import read_evidence
from .numbers import count
from .outcome import outcome
from .page import build_card, render_environment
from .tables import plain
from .trust import parity_table


def bundle_card(
    bundle: Bundle, repo: str, *, run: Path | None = None, base_model: str | None = None
) -> str:
    """Return the card of a bundle as Markdown with YAML front matter.

    Args:
        bundle: The bundle, checked.
        repo: Where it can be pulled from.
        run: Run directory that it comes from, for measured figures.
        base_model: Hub id of the model that it was made from.

    Raises:
        InvalidInputError: If ``run`` is no run directory.
        UsageError: If the run made another bundle.
    """
    manifest = bundle.manifest
    if run is None:
        return _without_run(manifest, repo, base_model)
    found = read_evidence(run)
    if found.manifest != manifest:
        raise UsageError(
            f"the run {run} made another bundle than {bundle.root}",
            hint="Give the run directory whose bundle/ this is, or leave --run out.",
        )
    return build_card(
        found.run,
        plans=found.plans,
        manifest=manifest,
        results=found.results,
        base_model=base_model,
    )


def _without_run(manifest: Manifest, repo: str, base_model: str | None) -> str:
    model = manifest.model
    facts = [
        ("class", plain(model.get("class"))),
        ("parameters", count(model.get("parameters"))),
        ("active for a token", count(model.get("active_parameters"))),
        ("context length", plain(model.get("context_length"))),
        ("vocabulary", plain(model.get("vocab_size"))),
        ("task", f"{manifest.task} ({manifest.interface})"),
    ]
    use = f"mobilekit pull {repo} --out bundle\nmobilekit verify bundle"
    template = render_environment().get_template("bundle_card.md.j2")
    return template.render(
        card=card_of_bundle(manifest, use, base_model),
        model=plain(model.get("class")),
        facts=facts,
        methods=[(str(plan.get("method")), _outcome(plan)) for plan in manifest.plans],
        weights=weights_table(manifest),
        parity=parity_table(manifest),
        provenance=[(k, plain(v)) for k, v in manifest.provenance.items()],
    )


def _outcome(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a plan of a bundle took away; nothing where it is of another version."""
    try:
        plan = Plan.parse(data, "plan")
    except InvalidInputError:  # a manifest holds plans as they are, of whatever version made them
        return []
    return outcome(plan, expert_rows(plan))
