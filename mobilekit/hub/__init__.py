"""Bundles on the Hugging Face hub: every file checked before it leaves and after it arrives."""

from __future__ import annotations

from mobilekit.core.hub import Repo, parse_repo

from .download import pull
from .upload import Pushed, push

__all__ = ["Pushed", "Repo", "parse_repo", "pull", "push"]
