"""Parts of ``benchmarks/aimer_scoring.py``."""
