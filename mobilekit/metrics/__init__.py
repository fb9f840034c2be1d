"""Pure functions that turn model outputs and samples into figures."""
