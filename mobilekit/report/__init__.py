"""One self-contained HTML page and a model card, out of a run's record, plans and results."""

from .bundle_card import bundle_card
from .page import build, build_card, comparison, write

__all__ = ["build", "build_card", "bundle_card", "comparison", "write"]
