"""Recovery training after compression, and the training of the embedded default model."""
