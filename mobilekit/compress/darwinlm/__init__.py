"""DarwinLM: evolutionary, training-aware structured pruning of dense language models."""
