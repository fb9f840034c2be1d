"""Recipes that ship with the package."""

from __future__ import annotations

from pathlib import Path

DEMO = Path(__file__).parent / "demo.yaml"
