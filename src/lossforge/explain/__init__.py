"""How a gradient came about, for people: formulas, the chain rule step by step, kinks and domain."""

from lossforge.explain.report import Explanation, explain

__all__ = ["Explanation", "explain"]
