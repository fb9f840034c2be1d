"""AIMER: remove whole experts by their weights alone (arXiv 2603.18492)."""
