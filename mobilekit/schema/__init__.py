"""The three contracts as data: plans, bundles and results."""
