from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobilekit.core.errors import InvalidInputError
from mobilekit.models import checkpoint_hash
from mobilekit.runtime.sources import checkpoint_facts


def test_facts_are_those_of_the_saved_model(tiny_qwen3: Any, tmp_path: Path) -> None:
    tiny_qwen3.save_pretrained(tmp_path)
    facts = checkpoint_facts(tmp_path)
    assert facts.path == tmp_path
    assert facts.hash == checkpoint_hash(tmp_path)
    assert facts.bytes == sum(p.numel() * p.element_size() for p in tiny_qwen3.parameters())
    assert facts.class_name == "Qwen3ForCausalLM"
    assert facts.context_length == tiny_qwen3.config.max_position_embeddings


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no config\.json"):
        checkpoint_facts(tmp_path)
