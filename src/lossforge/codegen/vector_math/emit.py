"""LLVM values with operators: a formula reads as mathematics and becomes instructions of the calling loop.

A function of `Value`s runs once, while Numba compiles a kernel that calls it. What it leaves behind is
straight-line code without branches, calls or table look-ups, which the loop vectoriser takes like any other
arithmetic. Nothing passes through Numba's own front end, so a call costs little before LLVM sees it.

Every instruction carries the flag `contract` and no other. It lets a multiplication and an addition become
one fused instruction where the processor has it. And since Numba gives a kernel's fast-math flags only to
instructions that have none, a kernel compiled with `reassoc` cannot re-associate the reductions and
compensations that are written here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

FLAGS = ("contract",)


@dataclass(frozen=True, eq=False)
class Form:
    """A floating-point format of IEEE 754, and how accurate the polynomials evaluated in it should be."""

    name: str
    """The column of `coefficients.POLYNOMIALS`."""
    real: ir.Type
    integer: ir.IntType
    fraction: int
    """Bits of the significand after the leading one."""
    bias: int
    """What is added to an exponent to encode it."""


#: float32 and float64 throughout.
SINGLE = Form("single", ir.FloatType(), ir.IntType(32), 23, 127)
DOUBLE = Form("double", ir.DoubleType(), ir.IntType(64), 52, 1023)
#: Double arithmetic for a result that is rounded to single: with polynomials accurate to 2**-32 or so ...
WIDE = Form("wide", DOUBLE.real, DOUBLE.integer, DOUBLE.fraction, DOUBLE.bias)
#: ... and with those of double, for sums that may cancel.
FULL = Form("double", DOUBLE.real, DOUBLE.integer, DOUBLE.fraction, DOUBLE.bias)


class Value:
    """A number, an integer as wide as it, or a truth value, in the function that is being compiled."""

    __slots__ = ("builder", "form", "llvm")

    def __init__(self, builder: ir.IRBuilder, llvm: ir.Value, form: Form) -> None:
        self.builder = builder
        self.llvm = llvm
        self.form = form

    def like(self, llvm: ir.Value) -> Value:
        """Another value of the same format."""
        return Value(self.builder, llvm, self.form)

    def real(self, number: float) -> Value:
        """A constant of the format."""
        return self.like(ir.Constant(self.form.real, float(number)))

    def _operand(self, other: Operand) -> ir.Value:
        return other.llvm if isinstance(other, Value) else ir.Constant(self.llvm.type, other)

    # ------------------------------------------------------------------ arithmetic

    def _arithmetic(self, name: str, left: ir.Value, right: ir.Value) -> Value:
        if self.llvm.type == self.form.real:
            return self.like(getattr(self.builder, "f" + name)(left, right, flags=FLAGS))
        return self.like(getattr(self.builder, name)(left, right))

    def __add__(self, other: Operand) -> Value:
        return self._arithmetic("add", self.llvm, self._operand(other))

    def __radd__(self, other: Operand) -> Value:
        return self._arithmetic("add", self._operand(other), self.llvm)

    def __sub__(self, other: Operand) -> Value:
        return self._arithmetic("sub", self.llvm, self._operand(other))

    def __rsub__(self, other: Operand) -> Value:
        return self._arithmetic("sub", self._operand(other), self.llvm)

    def __mul__(self, other: Operand) -> Value:
        return self._arithmetic("mul", self.llvm, self._operand(other))

    def __rmul__(self, other: Operand) -> Value:
        return self._arithmetic("mul", self._operand(other), self.llvm)

    def __truediv__(self, other: Operand) -> Value:
        return self._arithmetic("div", self.llvm, self._operand(other))

    def __rtruediv__(self, other: Operand) -> Value:
        return self._arithmetic("div", self._operand(other), self.llvm)

    def __neg__(self) -> Value:
        return self.like(self.builder.fneg(self.llvm))

    # ------------------------------------------------------------------ comparisons: false where one is NaN

    def _compare(self, relation: str, other: Operand) -> Value:
        return self.like(self.builder.fcmp_ordered(relation, self.llvm, self._operand(other)))

    def __lt__(self, other: Operand) -> Value:
        return self._compare("<", other)

    def __le__(self, other: Operand) -> Value:
        return self._compare("<=", other)

    def __gt__(self, other: Operand) -> Value:
        return self._compare(">", other)

    def __ge__(self, other: Operand) -> Value:
        return self._compare(">=", other)

    def equals(self, other: Operand) -> Value:
        """Whether two numbers are equal."""
        return self._compare("==", other)

    # ------------------------------------------------------------------ integers and truth values

    def __and__(self, other: Value | int) -> Value:
        return self.like(self.builder.and_(self.llvm, self._operand(other)))

    def __or__(self, other: Value | int) -> Value:
        return self.like(self.builder.or_(self.llvm, self._operand(other)))

    def __xor__(self, other: Value | int) -> Value:
        return self.like(self.builder.xor(self.llvm, self._operand(other)))

    def __invert__(self) -> Value:
        return self.like(self.builder.not_(self.llvm))

    def __lshift__(self, places: int) -> Value:
        return self.like(self.builder.shl(self.llvm, self._operand(places)))

    def __rshift__(self, places: int) -> Value:
        """Shifts zeros in from the left."""
        return self.like(self.builder.lshr(self.llvm, self._operand(places)))

    def bit(self, place: int) -> Value:
        """The truth value of one bit of an integer."""
        return self.like(self.builder.trunc((self >> place).llvm, ir.IntType(1)))

    # ------------------------------------------------------------------ conversions

    def bits(self) -> Value:
        """The encoding of a number, an integer."""
        return self.like(self.builder.bitcast(self.llvm, self.form.integer))

    def number(self) -> Value:
        """The number that has this encoding."""
        return self.like(self.builder.bitcast(self.llvm, self.form.real))

    def convert(self, form: Form) -> Value:
        """The same number in another format, rounded."""
        llvm = self.llvm
        if form.fraction > self.form.fraction:
            llvm = self.builder.fpext(llvm, form.real)
        elif form.fraction < self.form.fraction:
            llvm = self.builder.fptrunc(llvm, form.real)
        return Value(self.builder, llvm, form)


Operand: TypeAlias = Value | float
Formula: TypeAlias = Callable[..., Value]


# ---------------------------------------------------------------------- functions of values


def _instruction(name: str, x: Value) -> Value:
    function = x.builder.module.declare_intrinsic(name, [x.form.real])
    return x.like(x.builder.call(function, [x.llvm]))


def absolute(x: Value) -> Value:
    """|x|."""
    return _instruction("llvm.fabs", x)


def sqrt(x: Value) -> Value:
    """The square root, correctly rounded."""
    return _instruction("llvm.sqrt", x)


def nearest(x: Value) -> Value:
    """The nearest integer, ties to even, as a number."""
    return _instruction("llvm.rint", x)


def select(condition: Value, yes: Operand, no: Operand) -> Value:
    """`yes` where the condition holds, else `no`; both are evaluated."""
    sides = [v.llvm if isinstance(v, Value) else condition.real(v).llvm for v in (yes, no)]
    return condition.like(condition.builder.select(condition.llvm, *sides))


def clamp(x: Value, low: float | None, high: float | None) -> Value:
    """x between the bounds; NaN stays NaN."""
    if low is not None:
        x = select(x < low, low, x)
    if high is not None:
        x = select(x > high, high, x)
    return x


def sign_bit(x: Value) -> Value:
    """The encoding of x with all but its sign cleared."""
    return x.bits() & (1 << (int(x.form.integer.width) - 1))


def with_sign(magnitude: Value, x: Value) -> Value:
    """A number that is not negative, with the sign of x; unlike a comparison, this tells -0 from 0."""
    return (magnitude.bits() | sign_bit(x)).number()


def flip_sign(y: Value, x: Value) -> Value:
    """y, negated where x is negative or -0."""
    return (y.bits() ^ sign_bit(x)).number()


def evaluate(z: Value, coefficients: Sequence[float]) -> Value:
    """The polynomial with these coefficients, from degree 0 upwards."""
    if z.form is WIDE and len(coefficients) > 4:
        # Two chains of half the length, at some cost in accuracy, of which there is plenty.
        square = z * z
        return evaluate(square, coefficients[1::2]) * z + evaluate(square, coefficients[::2])
    if z.form is SINGLE and len(coefficients) > 4:
        # The lowest coefficients decide the accuracy and come last, one by one; the others pairwise (G. Estrin,
        # Organization of computer systems, 1960): a chain of half the length, where the processor waits for results.
        last, first = coefficients[:2], [z.real(c) for c in coefficients[2:]]
        result = _pairwise(z, first)
    else:
        last, result = coefficients[:-1], z.real(coefficients[-1])
    for c in reversed(last):
        result = result * z + c
    return result


def _pairwise(z: Value, terms: Sequence[Value]) -> Value:
    """The polynomial with these coefficients, as one of half the degree in z * z, whose coefficients are sums of two."""
    while len(terms) > 1:
        pairs = zip_longest(terms[::2], terms[1::2])
        terms, z = [low if high is None else high * z + low for low, high in pairs], z * z
    return terms[0]


def library(name: str, *arguments: Value) -> Value:
    """A call of the C library, in double."""
    first = arguments[0]
    kind = ir.FunctionType(first.form.real, [first.form.real] * len(arguments))
    function = first.builder.module.globals.get(name) or ir.Function(first.builder.module, kind, name)
    return first.like(first.builder.call(function, [a.llvm for a in arguments]))


# ---------------------------------------------------------------------- callables for kernels


def as_intrinsic(name: str, formula: Formula, single: Form, arity: int) -> Any:
    """A callable for kernels.

    It takes numbers and returns float32 if there is a float32 and no float64 among them, else float64. The
    arithmetic behind float32 is `single`.
    """

    def typed(*arguments: Any) -> Any:
        if not all(isinstance(a, types.Number) for a in arguments):
            return None
        if types.float32 in arguments and types.float64 not in arguments:
            number, outside, inside = types.float32, SINGLE, single
        else:
            number, outside, inside = types.float64, DOUBLE, DOUBLE

        def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Sequence[ir.Value]) -> ir.Value:
            result = formula(*(Value(builder, a, outside).convert(inside) for a in args))
            return result.convert(outside).llvm

        return number(*[number] * arity), lower

    # Numba counts the parameters of the function that it is given.
    def unary(typingctx: Any, x: Any) -> Any:
        return typed(x)

    def binary(typingctx: Any, x: Any, y: Any) -> Any:
        return typed(x, y)

    function = unary if arity == 1 else binary
    function.__name__ = function.__qualname__ = name
    function.__doc__ = formula.__doc__
    return intrinsic(function)
