"""What an artifact and its host must know of a checkpoint's config, class defaults included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.core.files import read_json
from mobilekit.models.architecture import architecture
from mobilekit.models.inspect import GENERATION_FILE, class_name, read_config

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class ModelFacts:
    """Sizes and special tokens of a language model.

    Attributes:
        eos_token_ids: Every id that ends a text: those of the generation settings, which name
            more than the config for chat models, or the config's own.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    bos_token_id: int | None
    pad_token_id: int | None
    eos_token_ids: tuple[int, ...]


def model_facts(checkpoint: Path) -> ModelFacts:
    """Read the facts of a checkpoint; no weight is opened.

    Raises:
        InvalidInputError: If a config cannot be read.
    """
    raw = read_config(checkpoint)
    _, config = architecture(checkpoint, class_name(checkpoint, raw), raw)
    generation = _generation(checkpoint)

    def token(name: str) -> Any:
        value = generation.get(name)
        return getattr(config, name, None) if value is None else value

    return ModelFacts(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        bos_token_id=token("bos_token_id"),
        pad_token_id=token("pad_token_id"),
        eos_token_ids=tuple(_listed(token("eos_token_id"))),
    )


def _generation(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / GENERATION_FILE
    data = read_json(path) if path.is_file() else {}
    return data if isinstance(data, dict) else {}


def _listed(value: Any) -> Iterable[int]:
    return [] if value is None else value if isinstance(value, list) else [value]
