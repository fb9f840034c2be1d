"""Look at a checkpoint directory: where it lies, what it says it is, whether it has a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import read_json, sha256_tree
from mobilekit.core.wording import kind_of
from mobilekit.schema.plan import PLAN_FILE

from .weights import INDEX_FILE, tensor_table, weight_files

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "GENERATION_FILE",
    "TOKENIZER_FILES",
    "checkpoint_hash",
    "class_name",
    "embedded_path",
    "has_tokenizer",
    "licences",
    "read_config",
    "require_tokenizer",
    "resolve",
    "tensor_table",
]

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
CARD_FILE = "README.md"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
# any of these alone is enough to make a tokenizer
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_SPECIAL_FLOATS = ("Infinity", "-Infinity", "NaN")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def embedded_path() -> Path:
    """Return the directory of the model that ships with the package."""
    return Path(__file__).parent / "embedded" / "qwen3_moe_cpython"


def resolve(source: str | Path) -> Path:
    """Return the checkpoint directory that ``source`` names; nothing is downloaded.

    Args:
        source: A directory, "embedded", or a hub id that is already in the local cache.

    Raises:
        InvalidInputError: If there is no such directory, or no ``config.json`` in it.
    """
    path = embedded_path() if source == "embedded" else Path(source)
    if not path.exists() and isinstance(source, str) and _HUB_ID.fullmatch(source):
        path = _cached(source) or path
    if not path.is_dir():
        what = "is a file, expected a directory" if path.is_file() else "does not exist"
        raise InvalidInputError(
            f"checkpoint {source} {what}",
            hint="Give a checkpoint directory, a cached hub id, or 'embedded'.",
        )
    if not (path / CONFIG_FILE).is_file():
        raise InvalidInputError(
            f"{path} is no checkpoint: it has no {CONFIG_FILE}",
            hint="Give a directory with config.json and model.safetensors in it.",
        )
    return path


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def read_config(path: Path) -> dict[str, Any]:
    """Return ``config.json`` as a mapping.

    Raises:
        InvalidInputError: If it is missing, or is not a JSON object.
    """
    data = read_json(path / CONFIG_FILE)
    if not isinstance(data, dict):
        raise InvalidInputError(
            f"{path / CONFIG_FILE} holds {kind_of(data)}, expected a mapping",
            hint="Restore the file from the original checkpoint.",
        )
    settings: dict[str, Any] = _with_floats(data)
    return settings


def _with_floats(value: Any) -> Any:
    """Read what transformers writes for a float that JSON lacks: ``{"__float__": "Infinity"}``."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in _SPECIAL_FLOATS:
            return float(value["__float__"])
        return {key: _with_floats(item) for key, item in value.items()}
    return [_with_floats(item) for item in value] if isinstance(value, list) else value


def class_name(path: Path, config: dict[str, Any]) -> str:
    """Return the class that the config names, if a family covers it.

    Raises:
        InvalidInputError: If the config names none.
        UnsupportedModelError: If no family covers it.
    """
    from .families import family_for_class

    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise InvalidInputError(
            f"{path / CONFIG_FILE} names no class under 'architectures'",
            hint='Add the class\'s name, for example "architectures": ["Qwen3ForCausalLM"].',
        )
    family_for_class(names[0])
    return names[0]


def has_tokenizer(path: Path) -> bool:
    """Tell whether the directory holds a tokenizer."""
    return any((path / name).is_file() for name in _VOCABULARIES)


def require_tokenizer(path: Path) -> Path:
    """Return ``path`` if it holds a tokenizer.

    Raises:
        InvalidInputError: If it does not.
    """
    if not has_tokenizer(path):
        raise InvalidInputError(
            f"{path} has no tokenizer (none of {', '.join(_VOCABULARIES)})",
            hint="Copy the tokenizer files of the original model into this directory.",
        )
    return path


def licences(path: Path) -> tuple[str, ...]:
    """Return the licences that a checkpoint's model card names in its header, if it has one."""
    import yaml

    card = path / CARD_FILE
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    parts = text.split("---", 2)
    if parts[0].strip() or len(parts) < 3:
        return ()
    try:
        header = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return ()
    named = header.get("license") if isinstance(header, dict) else None
    return tuple(str(name) for name in (named if isinstance(named, list) else [named]) if name)


def checkpoint_hash(source: str | Path, known: Mapping[Path, str] | None = None) -> str:
    """Return ``sha256:…`` over all that defines the model: weights, configs, plans, tokenizer.

    Args:
        source: The checkpoint.
        known: SHA-256 of those of its files that were read already.

    Raises:
        InvalidInputError: If ``source`` is no checkpoint or its weights are not whole.
    """
    path = resolve(source)
    names = [CONFIG_FILE, GENERATION_FILE, PLAN_FILE, INDEX_FILE, *TOKENIZER_FILES]
    files = [path / name for name in names if (path / name).is_file()]
    return "sha256:" + sha256_tree(path, [*files, *weight_files(path)], known)
