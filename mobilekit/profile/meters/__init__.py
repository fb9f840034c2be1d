"""What can be read while a model runs: memory, energy, heat; null with a reason where it cannot."""
