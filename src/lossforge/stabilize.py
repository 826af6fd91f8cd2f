"""Floating-point identities: rewrites that hold in exact arithmetic and lose less of it in floating point.

They are applied to the definition before it is derived, so that value and gradient both profit, and `explain` lists
those that fitted. References: Higham, *Accuracy and Stability of Numerical Algorithms* (2002), chapter 1; Blanchard,
Higham & Higham, *Accurately computing the log-sum-exp and softmax functions* (2021); Mächler, *Accurately computing
log(1 − exp(−|a|))* (2012).
"""

from __future__ import annotations

from dataclasses import dataclass

from lossforge.ir import Node
from lossforge.rewrite import Rewriter, Rule, rules

TABLE = rules("""
    1 / (1 + exp(-x)) -> sigmoid(x)                     # exp(−x) overflows
    1 / (1 + exp(x)) -> sigmoid(-x)
    exp(x) / (1 + exp(x)) -> sigmoid(x)                 # ∞ / ∞
    1 - sigmoid(x) -> sigmoid(-x)                       # cancels for large x
    log(sigmoid(x)) -> log_sigmoid(x)                   # log 0
    log(1 - sigmoid(x)) -> log_sigmoid(-x)
    log(1 + exp(x)) -> softplus(x)                      # exp(x) overflows
    log1p(exp(x)) -> softplus(x)
    log(exp(x) + 1) -> softplus(x)
    log(exp(x) + exp(y)) -> logaddexp(x, y)
    logaddexp(x, 0) -> softplus(x)
    logaddexp(-m, x - m) + m -> softplus(x)             # shifted by hand
    y + m + logaddexp(-m, x - m) -> y + softplus(x)
    logaddexp(x - m, y - m) + m -> logaddexp(x, y)
    maximum(x, 0) + softplus(-abs(x)) -> softplus(x)    # smooth at 0, where the parts of it are not
    maximum(-x, 0) + softplus(-abs(x)) -> softplus(-x)
    y + maximum(-x, 0) + softplus(-abs(x)) -> y + softplus(-x)
    maximum(x, 0) - y + softplus(-abs(x)) -> softplus(x) - y
    minimum(x, 0) - softplus(-abs(x)) -> log_sigmoid(x)
    log(1 + x) -> log1p(x)                              # 1 + x rounds x away
    log(x + 1) -> log1p(x)
    log(1 - x) -> log1p(-x)
    exp(x) - 1 -> expm1(x)                              # cancels near 0
    log(sum(exp(x))) -> logsumexp(x)                    # exp(x) overflows
    exp(x) / sum(exp(x)) -> exp(x - logsumexp(x))
    x - max(x) - logsumexp(x - max(x)) -> x - logsumexp(x)      # shifted by hand, and logsumexp shifts anyway
    max(x) + logsumexp(x - max(x)) -> logsumexp(x)
    log(exp(x)) -> x
    sqrt(x * x) -> abs(x)                               # x² overflows
""")


@dataclass(frozen=True)
class Applied:
    """One rule that was used."""

    rule: Rule
    before: Node
    after: Node


def stabilize(value: Node) -> tuple[Node, tuple[Applied, ...]]:
    """`value` in a form that is stable, and the rules that made it so."""
    rewriter = Rewriter(TABLE)
    (result,) = rewriter([value])
    applied = tuple(Applied(r, before, after) for r, before, after in rewriter.applied if isinstance(r, Rule))
    return result, applied
