"""Is a gradient that was written by hand the derivative of its loss?

It is compared with the derived one on points of the legal domain (see `points`), of which there are two
kinds.

*Where the loss is smooth* both are evaluated with 50 digits, and must agree to 12 of them. Two formulas for
one function differ at such precision only by what their literals were rounded to (1/3 or pi as a float64:
1e-16). Cancellation must amplify that ten thousand times before it is taken for a mistake, while a mistake
shows in the first digits somewhere. What differs is looked at again with 400 digits, so that a formula that
cancels is not refused.

*At a kink* (pred == true, a tie, the edge of a condition) every subgradient is right: the value must lie
between the derived gradients next to the kink (Clarke, *Optimization and Nonsmooth Analysis*, 1983, theorem
2.5.1), and must not be NaN.

A gradient that is right, but in float64 far less accurate than the derived one, draws a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lossforge import points
from lossforge.comparison import ABSOLUTE, SLACK, AtKink, Case, Trial, relative
from lossforge.compiler import Definition
from lossforge.diagnosis import diagnose, share
from lossforge.errors import DefinitionError, DomainWarning, GradientMismatchError, StabilityWarning
from lossforge.explain.formula import formula
from lossforge.gradient import HandWritten
from lossforge.ir import Kind, Node, constant, elementwise
from lossforge.points import Sampled, Style

INACCURATE = 1e-9
"""A relative error in float64 that draws a warning, if the derived gradient has a hundredth of it."""

_ENOUGH = 8
"""Points on either side of a condition from which on it is no accident that all the wrong ones are on one side."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison; as text, a report."""

    loss: str
    wrt: str
    agreed: bool
    compared: int
    """The number of gradient entries that were compared in high precision."""
    diagnosis: str = ""
    """What is wrong, in words."""
    point: Mapping[str, Any] = field(default_factory=dict)
    """Where it is seen best: a number for each input (whole arrays, for a loss that couples entries)."""
    entry: tuple[int, ...] = ()
    """The position in the gradient, where `point` holds arrays."""
    by_hand: float = np.nan
    derived: float = np.nan
    derivative: str = ""
    """The right gradient as a formula, if this one is wrong."""
    condition: str = ""
    """The only inputs for which it agrees, if these are not all."""
    unstable: str = ""
    """Where float64 loses digits that the derived gradient keeps, if anywhere."""

    @property
    def ratio(self) -> float:
        """The value by hand over the derived one."""
        return self.by_hand / self.derived if self.derived else np.nan

    def __str__(self) -> str:
        head = f"{self.loss}: the gradient written by hand with respect to {self.wrt!r}"
        if self.agreed:
            return f"{head} agrees with the derived one ({self.compared} values compared)"
        return (
            f"{head} is wrong: {self.diagnosis}\n"
            f"  at {_show(self.point, self.entry)}\n"
            f"  by hand  {self.by_hand:.12g}\n"
            f"  derived  {self.derived:.12g}\n"
            f"  ratio    {self.ratio:.12g}\n"
            f"  right is {self.derivative}"
        )


def verify_gradient(
    definition: Definition,
    hand: HandWritten,
    defaults: Mapping[str, Any],
    legal: Mapping[str, tuple[str, Style]] | None = None,
) -> None:
    """Refuse a gradient written by hand that is not the derivative of the sum of its loss.

    Warns (`StabilityWarning`) about one that is right but inaccurate in float64, and (`DomainWarning`)
    about one that holds for distributions only, as softmax − target does for cross-entropy.

    Args:
        definition: the traced loss.
        hand: the gradient.
        defaults: the parameters' defaults.
        legal: what is known of some inputs, in words and as a style; None if nothing is known of any.

    Raises:
        GradientMismatchError: it is wrong; with the point, both values and their ratio.
        DefinitionError: no points of the loss's domain were found, so that nothing can be said.
    """
    confined = None if legal is None else {name: style for name, (_, style) in legal.items()}
    verdict = compare(definition, hand, defaults, only=confined)
    if legal and verdict.agreed and not compare(definition, hand, defaults, only={}).agreed:
        verdict = replace(verdict, condition=", ".join(f"{name!r} {what}" for name, (what, _) in legal.items()))
    if not verdict.agreed:
        raise GradientMismatchError(str(verdict))
    about = f"{verdict.loss}: the gradient written by hand with respect to {verdict.wrt!r} is right"
    if verdict.condition:
        warnings.warn(f"{about} only where {verdict.condition}", DomainWarning, stacklevel=5)
    if verdict.unstable:
        warnings.warn(f"{about}, but unstable in float64: {verdict.unstable}", StabilityWarning, stacklevel=5)


def compare(
    definition: Definition,
    hand: HandWritten,
    defaults: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    only: Mapping[str, Style] | None = None,
) -> Verdict:
    """Compare a gradient written by hand with the derived one; the same seed gives the same points.

    Args:
        definition: the traced loss.
        hand: the derivative of the sum of the loss with respect to one of its inputs.
        defaults: the parameters' defaults; values are drawn about them.
        seed: of the points.
        only: styles that some inputs are confined to (see `points.STYLES`); None if it is not known which.

    Raises:
        DefinitionError: no points of the loss's domain were found.
    """
    known = defaults or {}
    case = Case.of(definition, hand, known)
    rng = np.random.default_rng(seed)
    trials = [case.trial(lengths, known, rng, only) for lengths in points.sizes(definition)]
    verdict = Verdict(definition.name, case.argument.name, True, sum(t.by_hand.size for t in trials))
    if not verdict.compared and not any(len(t.kinky[case.argument.name]) for t in trials):
        raise DefinitionError(
            f"{definition.name}: the gradient written by hand cannot be verified, since no points were found "
            f"at which the loss and its derivative are finite"
        )
    if any(t.wrong.any() for t in trials):
        mistake, named = _mistake(case, trials, verdict)
        return mistake if named or only is not None else _excuse(definition, hand, case, known, seed, mistake)
    for trial in trials:
        if (found := case.wrong_at_kink(trial, rng)) is not None:
            point, entry = case.point(trial.kinky, found.sample, found.entry)
            return replace(
                verdict,
                agreed=False,
                diagnosis=_at_kink(found, trial),
                point=point,
                entry=entry,
                by_hand=found.value,
                derived=found.nearest,
                derivative=_written(case, case.derived),
            )
    return replace(verdict, unstable=next(filter(None, (_instability(case, t) for t in trials)), ""))


# ------------------------------------------------------------------------------------------- what is wrong


def _mistake(case: Case, trials: Sequence[Trial], verdict: Verdict) -> tuple[Verdict, bool]:
    """What is wrong where the loss is smooth, at the point that shows it best; and whether it has a name."""
    columns = [case.factors(t) for t in trials]
    factors = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
    by_hand, derived, wrong = (
        np.concatenate([np.ravel(getattr(t, part)) for t in trials]) for part in ("by_hand", "derived", "wrong")
    )
    floor = np.concatenate([np.full(t.by_hand.size, ABSOLUTE * t.typical) for t in trials])
    trial, sample, entry = _clearest(case, trials)
    point, position = case.point(trial.chosen, sample, entry)
    known = diagnose(by_hand, derived, wrong, floor, factors, case.count)
    found = replace(
        verdict,
        agreed=False,
        diagnosis=known or f"it differs by no common factor, at {share(wrong)}{_region(case, trials)}",
        point=point,
        entry=position,
        by_hand=float(trial.by_hand[sample][entry]),
        derived=float(trial.derived[sample][entry]),
        derivative=_written(case, case.derived),
    )
    return found, known is not None


def _region(case: Case, trials: Sequence[Trial]) -> str:
    """The side of a kink or condition outside of which all is right, in words."""
    for expression in case.kinks.expressions:
        if not expression.axes <= case.argument.node.axes:
            continue
        at = Sampled.of(case.definition, [expression])
        sides = [at(t.chosen, orders=[case.argument.order])[0] for t in trials]
        telling = [t.wrong | (np.abs(t.derived) > ABSOLUTE * t.typical) for t in trials]
        wrong = np.concatenate([t.wrong[of] for t, of in zip(trials, telling, strict=True)])
        side = np.concatenate([s[of] for s, of in zip(sides, telling, strict=True)]).astype(float)
        for op, there in (("gt", side > 0), ("lt", side < 0)):
            if not wrong[~there].any() and min(wrong.sum(), (~there).sum()) >= _ENOUGH:
                x, y = expression.args if expression.op == "sub" else (expression, constant(0.0))
                return f", all of them where {_written(case, elementwise(op, x, y))}"
    return ""


def _written(case: Case, node: Node) -> str:
    inputs = [p.name for p in (*case.definition.arguments, *case.definition.parameters)]
    found = formula(node, dict(case.definition.names), inputs, neat=True)
    return ", ".join([found.text, *(f"{name} = {text}" for name, text in found.where)])


def _clearest(case: Case, trials: Sequence[Trial]) -> tuple[Trial, int, tuple[int, ...]]:
    """Of the entries that are thoroughly wrong, the one with the plainest numbers."""
    best: tuple[float, Trial, tuple[int, ...]] | None = None
    for trial in trials:
        scale = np.maximum(np.abs(trial.by_hand), np.abs(trial.derived))
        gap = relative(trial.by_hand, trial.derived, scale)
        for position in np.argwhere(trial.wrong):
            at = tuple(map(int, position))
            inputs = case.point(trial.chosen, at[0], at[1:])[0].values()
            numbers = np.concatenate([np.ravel(x).astype(float) for x in inputs])
            plain = np.mean((numbers * 8 == np.round(numbers * 8)) & (np.abs(numbers) <= 10))
            telling = len(set(numbers) | {0.0}) > len(numbers)  # different numbers, none of them 0
            usual = 0.01 <= abs(trial.derived[at]) <= 100
            score = 2 * min(float(gap[at]), 0.5) + usual + plain + 0.5 * telling
            if best is None or score > best[0]:
                best = score, trial, at
    assert best is not None, "asked for the clearest mistake where there is none"
    return best[1], best[2][0], best[2][1:]


def _excuse(
    definition: Definition,
    hand: HandWritten,
    case: Case,
    defaults: Mapping[str, Any],
    seed: int,
    mistake: Verdict,
) -> Verdict:
    """A mistake, looked at for inputs of which something is known.

    That entries sum to 1 is a domain that a definition cannot state, and agreement there is no accident:
    such a gradient is accepted, with the condition. Agreement for labels alone may well be a mistake (t² in
    place of t): it is only said.
    """
    others = [p for p in definition.arguments if p.node is not hand.argument and p.node.kind is Kind.FLOAT]
    known: list[tuple[str, str, Style]] = []
    for port in others:
        named = [(i, axis) for i, axis in enumerate(port.order) if not axis.startswith("*")]
        known += [(port.name, f"sums to 1 along {a!r}", points.distribution(i + 1)) for i, a in named]
    accepted = len(known)
    known += [(p.name, f"is {x}", points.STYLES[x]) for p in others for x in ("0 or 1", "1 or -1", "between 0 and 1")]
    rng = np.random.default_rng(seed)
    for i, (name, what, style) in enumerate(known):
        if case.holds({name: style}, defaults, rng):
            verdict = compare(definition, hand, defaults, seed=seed, only={name: style})
            if verdict.agreed and i < accepted:
                return replace(verdict, condition=f"{name!r} {what}")
            if verdict.agreed:
                return replace(mistake, diagnosis=f"it is right only where {name!r} {what}")
    return mistake


def _at_kink(found: AtKink, trial: Trial) -> str:
    single = found.high - found.low <= SLACK * (abs(found.low) + trial.typical)
    right = f"{found.low:.6g}" if single else f"{found.low:.6g} … {found.high:.6g}"
    value = f"{found.value:.6g}" if np.isfinite(found.value) else "not finite"
    return f"it is right elsewhere, but at a kink of the loss it is {value}, where {right} is right"


def _instability(case: Case, trial: Trial) -> str:
    """Where float64 loses digits by hand that the derived gradient keeps."""
    by_hand, derived = case.values(trial.chosen)
    scale = np.maximum(np.abs(trial.derived), trial.typical)
    mine, theirs = (relative(g, trial.derived, scale) for g in (by_hand, derived))
    bad = (mine > INACCURATE) & (mine > 100 * theirs)
    if not bad.any():
        return ""
    at = tuple(map(int, np.unravel_index(np.argmax(np.where(bad, mine, 0.0)), bad.shape)))
    return (
        f"at {_show(*case.point(trial.chosen, at[0], at[1:]))} it gives {by_hand[at]:.12g} for "
        f"{trial.derived[at]:.12g}; the derived gradient gives {derived[at]:.12g}"
    )


def _show(point: Mapping[str, Any], entry: tuple[int, ...]) -> str:
    def text(value: Any) -> str:
        if np.ndim(value) == 0:
            return f"{float(value):.9g}"
        array = np.asarray(value)
        return np.array2string(array, precision=6, separator=", ", max_line_width=10_000).replace("\n", "")

    inputs = ", ".join(f"{name} = {text(value)}" for name, value in point.items())
    return inputs + (f", entry {list(entry)}" if entry else "")
