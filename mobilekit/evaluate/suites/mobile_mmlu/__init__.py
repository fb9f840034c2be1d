"""Four-option questions in the Mobile-MMLU layout, read from the letters' log-probabilities."""
