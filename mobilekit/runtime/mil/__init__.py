"""An independent evaluator of Core ML programs: numpy instead of Apple's runtime.

It checks the graph and the weights of a saved package where Core ML itself does not run. It says
nothing of Apple's kernels, of placement on the Neural Engine, of speed or of energy.
"""

from __future__ import annotations

from .package import load_functions, load_program, load_spec
from .program import MilFunction, UnsupportedMilOp

__all__ = ["MilFunction", "UnsupportedMilOp", "load_functions", "load_program", "load_spec"]
