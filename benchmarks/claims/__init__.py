"""Parts of ``benchmarks/aimer_claims.py``: the texts and models it tries, and its tables."""
