"""Which precision a call computes in.

dtypes go by name (``"float32"``), since each framework has its own objects for them. Half precision is computed in
float32; a gradient comes back in the dtype of what it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

Computing: TypeAlias = Literal["float32", "float64"]

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
INTEGERS = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"})
BOOLEANS = frozenset({"bool"})

EPSILON: Mapping[str, float] = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
"""The distance from 1 to the next number."""


def computing(dtypes: Iterable[str]) -> Computing:
    """The precision for arguments of these dtypes: float64 if one of them is, else float32."""
    return "float64" if "float64" in set(dtypes) else "float32"
