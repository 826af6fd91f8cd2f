"""What kernels do besides arithmetic, each as one instruction: loads, stores, choices, roundings, formats.

Numba's own subscripts count negative positions from the end and its conditional expressions branch; both keep loops
from being vectorised. Half-precision arrays come as their bits (uint16), since Numba has no arithmetic for them.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD = ir.IntType(32)
_LOW_AND_HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """The entry at a position of a flat array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        return context.unpack_value(builder, signature.return_type, address)

    return array.dtype(array, types.int64), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write an entry of a flat array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        context.pack_value(builder, array.dtype, args[2], address)
        return context.get_dummy_value()

    return types.none(array, types.int64, array.dtype), codegen


@intrinsic
def accumulate(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Add a number to an entry of a flat array in float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        wide = context.cast(builder, args[2], signature.args[2], types.float64)
        builder.store(builder.fadd(builder.load(address), wide), address)
        return context.get_dummy_value()

    return types.none(array, types.int64, value), codegen


@intrinsic
def plus(typingctx: Any, x: Any, y: Any) -> Any:
    """The sum of two numbers, which may be added to others in any order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args, flags=("reassoc", "nsz"))

    return x(x, x), codegen


@intrinsic
def select(typingctx: Any, condition: Any, x: Any, y: Any) -> Any:
    """`x` if the condition holds, else `y`; both are evaluated."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(args[0], args[1], args[2])

    return x(types.boolean, x, x), codegen


def _instruction(name: str, x: Any, arity: int, *, flags: tuple[str, ...] = ()) -> Any:
    """The signature and the code of one of LLVM's own functions of numbers of one type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        function = builder.module.declare_intrinsic(name, [kind], ir.FunctionType(kind, [kind] * arity))
        return builder.call(function, args, fastmath=flags)

    return x(*[x] * arity), codegen


@intrinsic
def maximum(typingctx: Any, x: Any, y: Any) -> Any:
    """The larger of two numbers; NaN if one is."""
    return _instruction("llvm.maximum", x, 2, flags=("nsz",))


@intrinsic
def minimum(typingctx: Any, x: Any, y: Any) -> Any:
    """The smaller of two numbers, NaN if one is, or of two positions."""
    if isinstance(x, types.Integer):
        return _instruction("llvm.smin", x, 2)
    return _instruction("llvm.minimum", x, 2, flags=("nsz",))


@intrinsic
def absolute(typingctx: Any, x: Any) -> Any:
    """The absolute value."""
    return _instruction("llvm.fabs", x, 1)


@intrinsic
def sqrt(typingctx: Any, x: Any) -> Any:
    """The square root."""
    return _instruction("llvm.sqrt", x, 1)


@intrinsic
def floor(typingctx: Any, x: Any) -> Any:
    """The largest whole number that is not above."""
    return _instruction("llvm.floor", x, 1)


@intrinsic
def ceil(typingctx: Any, x: Any) -> Any:
    """The smallest whole number that is not below."""
    return _instruction("llvm.ceil", x, 1)


@intrinsic
def rint(typingctx: Any, x: Any) -> Any:
    """The nearest whole number, ties to even."""
    return _instruction("llvm.rint", x, 1)


@intrinsic
def narrow(typingctx: Any, position: Any) -> Any:
    """A position as a 32-bit integer, which compares in half the time; the nearest one where it does not fit."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        low = builder.trunc(args[0], _WORD)
        high = builder.trunc(builder.ashr(args[0], ir.Constant(args[0].type, 32)), _WORD)
        return _nearest_word(builder, low, high)

    return types.int32(types.int64), codegen


@intrinsic
def load_narrow(typingctx: Any, array: Any, index: Any) -> Any:
    """A whole number at a position of a flat array, as `narrow` makes it.

    One of 64 bits is read in two halves: the loop vectoriser takes as many entries at a time as a register holds of the
    widest type that it sees.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        if array.dtype.bitwidth < 64:
            value = builder.load(address)
            if array.dtype.bitwidth == 32:
                large = builder.icmp_signed("<", value, ir.Constant(_WORD, 0))
                return value if array.dtype.signed else builder.select(large, ir.Constant(_WORD, 2**31 - 1), value)
            return (builder.sext if array.dtype.signed else builder.zext)(value, _WORD)
        low, high = _halves(builder, address)
        if array.dtype.signed:
            return _nearest_word(builder, low, high)
        fits = builder.icmp_signed(
            "==", builder.or_(high, builder.lshr(low, ir.Constant(_WORD, 31))), ir.Constant(_WORD, 0)
        )
        return builder.select(fits, low, ir.Constant(_WORD, 2**31 - 1))

    return types.int32(array, types.int64), codegen


@intrinsic
def load_whole(typingctx: Any, array: Any, index: Any, like: Any) -> Any:
    """A whole number of 64 bits at a position of a flat array, as a real number like another, in two halves.

    As many entries are read at a time as there are real numbers in a register; see `load_narrow`.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        low, high = _halves(builder, address)
        kind, exact = args[2].type, ("contract",)
        # The low half is read as signed: where that makes it 2**32 too small, the high one is one more.
        negative = builder.icmp_signed("<", low, ir.Constant(_WORD, 0))
        above = (builder.sitofp if array.dtype.signed else builder.uitofp)(high, kind)
        above = builder.fadd(
            above, builder.select(negative, ir.Constant(kind, 1.0), ir.Constant(kind, 0.0)), flags=exact
        )
        return builder.fadd(
            builder.fmul(above, ir.Constant(kind, 2.0**32), flags=exact), builder.sitofp(low, kind), flags=exact
        )

    return like(array, types.int64, like), codegen


def _halves(builder: Any, address: Any) -> tuple[Any, Any]:
    """The low and the high word of 64 bits in memory."""
    words = builder.bitcast(address, _WORD.as_pointer())
    low, high = (builder.load(builder.gep(words, [ir.Constant(_WORD, i)])) for i in _LOW_AND_HIGH)
    return low, high


def _nearest_word(builder: Any, low: Any, high: Any) -> Any:
    """The 32-bit integer that is nearest to a number of 64 bits in two halves; it compares with others alike."""
    sign = ir.Constant(_WORD, 31)
    fits = builder.icmp_signed("==", high, builder.ashr(low, sign))
    extreme = builder.xor(builder.ashr(high, sign), ir.Constant(_WORD, 2**31 - 1))
    return builder.select(fits, low, extreme)


@intrinsic
def from_bfloat16(typingctx: Any, bits: Any) -> Any:
    """The float32 that has these upper bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def to_bfloat16(typingctx: Any, value: Any) -> Any:
    """The nearest bfloat16 of a float32, ties to even; NaN stays NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(args[0], word)
        odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
        rounded = builder.add(builder.add(bits, ir.Constant(word, 0x7FFF)), odd)
        quiet = builder.or_(bits, ir.Constant(word, 0x400000))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        chosen = builder.lshr(builder.select(is_nan, quiet, rounded), ir.Constant(word, 16))
        return builder.trunc(chosen, ir.IntType(16))

    return types.uint16(types.float32), codegen


@intrinsic
def from_float16(typingctx: Any, bits: Any) -> Any:
    """The float32 of a float16's bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def to_float16(typingctx: Any, value: Any) -> Any:
    """The bits of the nearest float16 of a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


__all__ = [
    "absolute", "accumulate", "ceil", "floor", "from_bfloat16", "from_float16", "load", "load_narrow", "load_whole",
    "maximum", "minimum", "narrow", "plus", "rint", "select", "sqrt", "store", "to_bfloat16", "to_float16",
]  # fmt: skip
