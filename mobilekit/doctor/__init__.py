"""The doctor: does what is installed here fit together, and what can be done with it?"""

from __future__ import annotations

from .examine import Diagnosis, examine

__all__ = ["Diagnosis", "examine"]
