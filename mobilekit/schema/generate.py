"""Write the JSON Schemas of the contracts, which the apps read: ``python -m …schema.generate``."""

from __future__ import annotations

import json
from pathlib import Path

from mobilekit.core.files import atomic_write
from mobilekit.core.strict import StrictModel

from .manifest import Manifest
from .plan import Plan
from .result import Result
from .run import RunRecord

CONTRACTS: dict[str, type[StrictModel]] = {
    "bundle": Manifest,
    "plan": Plan,
    "result": Result,
    "run": RunRecord,
}
FOLDER = Path(__file__).parent / "json"


def schema_text(name: str) -> str:
    """Return the JSON Schema of a contract, as the shipped file holds it."""
    return json.dumps(CONTRACTS[name].model_json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for contract in CONTRACTS:
        atomic_write(FOLDER / f"{contract}.json", schema_text(contract))
