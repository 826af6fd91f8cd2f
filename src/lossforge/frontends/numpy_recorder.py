"""Arrays that write down what NumPy does to them: a `Recorder`, and a `Selection` of its entries by truth values."""

from __future__ import annotations

import functools
import inspect
import itertools
import linecache
import sys
import threading
import types
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from lossforge.errors import AdoptionError
from lossforge.frontends.decisions import Decisions, passing
from lossforge.frontends.recording import Ref, Step
from lossforge.frontends.sources import is_of

_state = threading.local()


def active() -> Tape:
    """The tape of the function that this thread records."""
    found: Tape = _state.tape
    return found


def activate(tape: Tape | None) -> None:
    """Record what this thread does."""
    _state.tape = tape


class Tape:
    """The steps that were taken, in their order."""

    def __init__(self) -> None:
        self.decisions = Decisions()
        self.count = itertools.count()
        self.steps: list[Step] = []
        self.known: dict[Any, tuple[int, ...]] = {}
        self.firsts: dict[int, int] = {}
        """For each result, the first that was worked out in the same way."""
        self.live: dict[int, weakref.ref[Recorder]] = {}

    def argument(self, array: np.ndarray, ref: Ref | None = None) -> Recorder:
        """An argument of the function; `ref` is that of one which was made before."""
        made = Recorder(self, array, ref or Ref(next(self.count)))
        made.is_argument = True
        return made

    def counting(self, n: int) -> Recorder:
        """0, 1, 2 … n − 1."""
        made: Recorder = self.note("arange", (0, 1), {}, np.arange(n))
        made.counting = True
        return made

    def filled(self, shape: Any, value: Any, dtype: Any = None) -> Recorder:
        """One number in every entry."""
        made: Recorder = self.note("full", (value,), {}, np.full(shape, plain(value), dtype))
        return made

    def eye(self, n: int, dtype: Any = float) -> Recorder:
        """An identity matrix."""
        made: Recorder = self.note("eye", (), {}, np.eye(n, dtype=dtype))
        made.identity = True
        return made

    def note(self, op: str, args: Sequence[Any], attrs: Mapping[str, Any], value: Any) -> Any:
        """Write one step down; its results as recorders."""
        several = isinstance(value, list | tuple)
        values = value if several else (value,)
        arrays = [np.asarray(v) for v in values]
        given, options = tuple(map(_ref, args)), {k: _ref(v) for k, v in attrs.items()}
        numbers = tuple(next(self.count) for _ in arrays)
        shapes, dtypes = tuple((a.shape,) for a in arrays), tuple(_dtype_name(a.dtype) for a in arrays)
        self.steps.append(Step(op, given, options, numbers, shapes, line(), dtypes))
        try:
            key = (op, self.first(given), self.first(tuple(options.items())), tuple(map(type, given)), shapes)
            self.firsts.update(zip(numbers, self.known.setdefault(key, numbers), strict=True))
        except TypeError:  # an array among the arguments
            pass
        made = [Recorder(self, a, Ref(n)) for a, n in zip(arrays, numbers, strict=True)]
        constant = _is_constant(args) and _is_constant(tuple(attrs.values()))
        for recorder, v in zip(made, values, strict=True):
            recorder.constant, recorder.scalar = constant, isinstance(v, np.generic)
        return made if several else made[0]

    def alive(self) -> list[Recorder]:
        """The arrays that the function still has."""
        return [r for found in list(self.live.values()) if (r := found()) is not None]

    def first(self, value: Any) -> Any:
        """A value of the recording, as it was worked out for the first time."""
        if isinstance(value, tuple):
            return tuple(map(self.first, value))
        return Ref(self.firsts.get(value.index, value.index)) if isinstance(value, Ref) else value


_dtype_name = functools.lru_cache(64)(str)


def _is_constant(value: Any) -> bool:
    """Whether no argument had a part in it."""
    if type(value) is Recorder:
        return value.constant
    return not isinstance(value, list | tuple) or all(map(_is_constant, value))


def _frame() -> types.FrameType | None:
    """The user's function that is being run."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and is_of(frame.f_code.co_filename, ("lossforge", "numpy", "scipy")):
        frame = frame.f_back
    return frame


def line() -> str:
    """The line of the user's source that is being run."""
    frame = _frame()
    return f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}" if frame else ""


def _converter() -> str:
    """The function of a library that the user's line calls, or the line itself."""
    frame: Any = sys._getframe(2)
    called = None
    while frame is not None and any(f"/{p}/" in frame.f_code.co_filename for p in ("numpy", "scipy", "site-packages")):
        frame, called = frame.f_back, frame
    if called is not None:
        home = [p for p in str(called.f_globals.get("__name__", "")).split(".") if not p.startswith("_")]
        return ".".join([*home, called.f_code.co_name])
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() if frame is not None else ""


def _ref(value: Any) -> Any:
    if type(value) is Recorder:
        return value.ref
    if isinstance(value, list | tuple):
        return tuple(map(_ref, value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, slice):
        return ("slice", _ref(value.start), _ref(value.stop), _ref(value.step))
    if isinstance(value, type):
        return value.__name__
    return "..." if value is Ellipsis else str(value) if isinstance(value, np.dtype) else value


def plain(value: Any) -> Any:
    """A value as NumPy takes it, recorders replaced by their arrays."""
    if type(value) is Recorder:
        return value.array[()] if value.scalar else value.array
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    if isinstance(value, Selection | Nonzero):
        refuse(_SELECTED)
    return value


def refuse(what: str) -> NoReturn:
    """Refuse the function, with the line."""
    raise AdoptionError(f"{line()}: {what}")


_SELECTED = (
    "a selection by truth values, whose size depends on them, can be computed with entry by entry and summed up; for "
    "anything else, multiply by the mask, or use np.where, and divide by the mask's sum"
)
DECISION = "a decision that depends on values (`if`, `and`, `or`, max, min); use np.where, np.maximum …"
_METHODS = frozenset(
    "sum mean max min prod std var reshape ravel transpose squeeze clip argmax argmin cumsum cumprod take argsort any all "
    "swapaxes round dot trace diagonal repeat nonzero".split()
)


class Recorder(NDArrayOperatorsMixin):
    """An array that writes down what is done to it."""

    def __init__(self, tape: Tape, array: np.ndarray, ref: Ref) -> None:
        self.tape, self.array, self.ref = tape, array, ref
        self.is_argument = False
        self.constant = False
        """Whether no argument had a part in it."""
        self.scalar = False
        """Whether NumPy has it as a number, which no assignment changes."""
        self.counting = False
        """Whether it is 0, 1, 2 …"""
        self.identity = False
        """Whether it is an identity matrix."""
        self.base: Recorder | None = None
        """The array of which it is a part that shares its memory, at `keys`."""
        self.keys: tuple[Any, ...] = ()
        place = id(self)
        tape.live[place] = weakref.ref(self, lambda _: tape.live.pop(place, None))

    __class__ = property(lambda self: np.ndarray)  # isinstance holds as in the function's usual life

    # ------------------------------------------------------------------ protocols

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.pop("out", None)
        if any(isinstance(i, Selection) for i in inputs):
            return selected_ufunc(ufunc, method, inputs, options)
        from lossforge.frontends.numpy_composites import REDUCTIONS, UFUNCS

        inputs = tuple(np.asarray(i) if isinstance(i, list | tuple) else i for i in inputs)
        if ufunc in (np.equal, np.not_equal) and any(i is None for i in inputs):
            result = np.zeros_like(next(i for i in inputs if i is not None), dtype=bool) | (ufunc is np.not_equal)
        elif method == "__call__" and ufunc.__name__ in UFUNCS and not options:
            result = UFUNCS[ufunc.__name__](*inputs)
        elif method in ("reduce", "accumulate", "at") and (ufunc.__name__, method) in REDUCTIONS:
            result = REDUCTIONS[ufunc.__name__, method](*inputs, **options)
        elif method == "outer":
            a, b = inputs
            result = ufunc(a[(..., *(None,) * np.ndim(b))], b)
        else:
            value = getattr(ufunc, method)(*map(plain, inputs), **{k: plain(v) for k, v in options.items()})
            name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
            result = self.tape.note(name, inputs, options, value)
        if out is None:
            return result
        (target,) = out
        if type(target) is not Recorder:
            refuse(f"np.{ufunc.__name__}(…, out=…) writes into an array that was not made by the function")
        if target.scalar:  # `x += 1` for a number makes another number
            return result
        target.write(result)
        return target

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from lossforge.frontends.numpy_composites import FUNCTIONS

        name = func.__name__
        if name in ("shape", "ndim", "size"):
            return func(*map(plain, args), **kwargs)
        if kwargs.get("out") is not None:
            refuse(f"np.{name}(…, out=…) writes into an array; use the result instead")
        for v in (*args, *kwargs.values()):
            if isinstance(v, Selection):
                return v.__array_function__(func, types, args, kwargs)
        if name in FUNCTIONS:
            return FUNCTIONS[name](*args, **kwargs)
        try:
            given = inspect.signature(func).bind(*args, **kwargs).arguments
        except ValueError:  # a function without a signature
            refuse(f"np.{name}: lossforge does not know this operation")
        value = func(*plain(args), **{k: plain(v) for k, v in kwargs.items()})
        if value is None:
            refuse(f"np.{name} writes into an array; use np.where")
        return self.tape.note("np." + name, (), {k: v for k, v in given.items() if v is not np._NoValue}, value)

    # ------------------------------------------------------------------ entries

    def __getitem__(self, key: Any) -> Any:
        keys = tuple(map(_key, key if isinstance(key, tuple) else (key,)))
        if keys and isinstance(keys[0], Nonzero):
            if len(keys) == keys[0].mask.ndim and all(isinstance(k, Nonzero) for k in keys):
                return Selection(self, keys[0].mask)
            refuse(_SELECTED)
        masks = [k for k in keys if type(k) is Recorder and k.dtype.kind == "b"]
        if masks:
            if len(keys) == 1:
                return Selection(self, masks[0])
            refuse("a selection by truth values beside other indices; index by the mask alone")
        if self.identity and len(keys) == 1 and type(keys[0]) is Recorder and keys[0].dtype.kind in "iu":
            return self.tape.note("one_hot", keys, {"depth": self.shape[1]}, self.array[plain(keys[0])])
        result: Recorder = self.tape.note("getitem", (self, *keys), {}, self.array[plain(keys)])
        if not result.scalar and all(k is None or k is Ellipsis or isinstance(k, int | slice) for k in keys):
            result.base, result.keys = self, keys
        return result

    def __setitem__(self, key: Any, value: Any) -> None:
        from lossforge.frontends.numpy_composites import replaced

        keys = tuple(map(_key, key if isinstance(key, tuple) else (key,)))
        if type(value) is Recorder and value.base is self and value.keys == keys:  # `x[i] += 1`: it was written to
            return
        if self.base is not None and all(type(k) is int for k in self.keys):  # `x[i][j] = value`
            self.base[(*self.keys, *keys)] = value
        else:
            self.write(replaced(self, keys, value))

    @property
    def root(self) -> Recorder:
        """The array whose memory it shares, as a part of it or of a part."""
        return self if self.base is None else self.base.root

    def write(self, new: Any) -> None:
        """Take another value, as an assignment to entries does; refused where an unknown array would change with it."""
        root = self.root
        if root.is_argument:
            refuse("an argument is written to in place, which the caller would see; copy it first, x = x.copy()")
        for other in self.tape.alive():
            if other.root is not root and np.may_share_memory(other.array, root.array):
                refuse(
                    "an array is written to in place that shares its memory with another; copy it first, or use np.where"
                )
        if new.shape != self.shape:
            refuse(f"an array of shape {self.shape} is written to in place with one of shape {new.shape}")
        if new.dtype.kind != self.dtype.kind:
            new = new.astype(self.dtype)
        self.become(new)

    def become(self, new: Recorder) -> None:
        """Hold what another holds; so do the arrays that share the memory."""
        from lossforge.frontends.numpy_composites import replaced

        if self.base is not None:
            self.base.become(replaced(self.base, self.keys, new))
            return
        self._hold(new.fresh())

    def _hold(self, new: Recorder) -> None:
        self.array, self.ref, self.constant = new.array, new.ref, new.constant
        self.counting = self.identity = False
        for part in self.tape.alive():
            if part.base is self:
                part._hold(self.tape.note("getitem", (self, *part.keys), {}, self.array[plain(part.keys)]))

    # ------------------------------------------------------------------ attributes and methods

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "ndim", "size", "dtype", "nbytes", "itemsize", "device"):
            return getattr(self.array, name)
        if name in ("T", "mT"):
            return np.transpose(self) if name == "T" else np.swapaxes(self, -1, -2)
        if name == "real" and self.array.dtype.kind != "c":
            return self
        if name in ("real", "imag"):
            return self.tape.note(name, (self,), {}, getattr(self.array, name))
        if name in _METHODS:
            return lambda *args, **kwargs: self._method(name, *args, **kwargs)
        if name == "flatten":
            return lambda *_: np.ravel(self).copy()
        if name == "copy":
            return lambda *_: self.fresh()
        if name == "fill":
            return lambda value: self.write(value + np.zeros_like(self))
        if name == "astype":
            return self._astype
        if name == "item" and self.array.size == 1:
            return lambda *_: np.reshape(self, ())
        if name in ("item", "tolist"):
            refuse(f".{name}() takes a Python number out of an array; keep arrays")
        if name.startswith("__") or not hasattr(self.array, name):  # a check for what else it may be
            raise AttributeError(f"an array has no attribute {name!r}")
        refuse(f"the attribute .{name} of an array, which cannot be recorded; use the functions of NumPy")

    def is_like(self, other: Recorder) -> bool:
        """Whether both were worked out in the same way."""
        return bool(self.tape.first(self.ref) == self.tape.first(other.ref))

    def fresh(self) -> Recorder:
        """A copy."""
        made = Recorder(self.tape, self.array.copy(), self.ref)
        made.constant, made.counting, made.identity = self.constant, self.counting, self.identity
        return made

    def _astype(self, dtype: Any, **_: Any) -> Any:
        return self.tape.note("astype", (self,), {}, self.array.astype(dtype))

    def _method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name in ("reshape", "transpose") and len(args) > 1:
            args = (args,)
        return getattr(np, name)(self, *args, **kwargs)

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self.array)))

    # ------------------------------------------------------------------ what makes a number of it

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        if self.constant:
            return self.array.astype(args[0]) if args and args[0] is not None else self.array.copy()
        refuse(
            f"{_converter()}: an array is converted by a function that cannot be recorded; work on it with NumPy's own"
        )

    def _number(self, how: str, advice: str) -> Any:
        if self.constant:
            return self.array.item()
        refuse(f"{how}; {advice}")

    def __hash__(self) -> int:
        return hash(self._number("entries of an array are put into a set or a dictionary", "use np.where"))

    def __bool__(self) -> bool:
        return bool(self.array.item()) if self.constant or self.array.size != 1 else decided(self)

    def __round__(self, digits: int | None = None) -> Any:
        return np.round(self, digits or 0)

    def __float__(self) -> float:
        return float(self._number("float() takes a Python number out of an array", "keep arrays"))

    def __int__(self) -> int:
        return int(self._number("int() takes a Python number out of an array", "keep arrays"))

    def __index__(self) -> int:
        return int(self._number("a position or size is taken from values", "keep arrays"))


def decided(condition: Any) -> bool:
    """The answer to a condition that Python asks for."""
    frame = _frame()
    if frame is not None and (answer := passing(frame.f_code, frame.f_lasti)) is not None:
        return answer
    place = line()
    told: Any = np.reshape(condition if condition.dtype.kind == "b" else condition != 0, ())
    return active().decisions.decide(place, told, active().first(told.ref))


def _key(key: Any) -> Any:
    if type(key) is Recorder and key.constant and key.ndim == 0 and key.dtype.kind in "iu":
        return int(key)
    if isinstance(key, range) and key == range(len(key)):
        return active().counting(len(key))
    if isinstance(key, range | list):
        key = np.asarray(key)
    if type(key) is np.ndarray and key.dtype.kind == "b" and key.ndim == 1:
        return np.flatnonzero(key)
    return key


class Nonzero:
    """The positions of the true entries of a mask along one dimension, as ``np.nonzero`` gives them."""

    def __init__(self, mask: Recorder) -> None:
        self.mask = mask


class Selection(NDArrayOperatorsMixin):
    """The entries of an array where a mask is true: ``x[mask]``. All entries are kept, and reductions mind the mask."""

    def __init__(self, whole: Recorder, mask: Recorder) -> None:
        if whole.shape[: mask.ndim] != mask.shape:
            refuse(f"a mask of shape {mask.shape} on an array of shape {whole.shape}")
        self.whole, self.mask = whole, mask

    @property
    def wide(self) -> Any:
        """The mask with the dimensions of the array."""
        return self.mask[(..., *(None,) * (self.whole.ndim - self.mask.ndim))]

    def filled(self, value: Any) -> Any:
        """The array with other entries where the mask is false."""
        return np.where(self.wide, self.whole, value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return selected_ufunc(ufunc, method, inputs, options)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from lossforge.frontends.numpy_composites import SELECTED, SELECTED_ENTRIES

        name = func.__name__
        if name in SELECTED:
            return SELECTED[name](*args, **kwargs)
        if name in SELECTED_ENTRIES:
            return _entrywise(func, args, kwargs)
        refuse(f"np.{name}: {_SELECTED}")

    @property
    def size(self) -> Any:
        """How many entries, as a value that is known when the loss is computed."""
        rest = self.whole.shape[self.mask.ndim :]
        return np.sum(self.mask) * int(np.prod(rest)) if rest else np.sum(self.mask)

    @property
    def shape(self) -> tuple[Any, ...]:
        """The shape; its first entry is a value."""
        return (np.sum(self.mask), *self.whole.shape[self.mask.ndim :])

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.whole.ndim - self.mask.ndim + 1

    def __getattr__(self, name: str) -> Any:
        if name in ("sum", "mean", "max", "min", "prod", "std", "var", "any", "all", "clip", "dot", "round"):
            return lambda *args, **kwargs: getattr(np, name)(self, *args, **kwargs)
        if name == "copy":
            return lambda *_: self
        if name == "astype":
            return lambda dtype, **_: Selection(self.whole.astype(dtype), self.mask)
        if name.startswith("__"):
            raise AttributeError(name)
        refuse(f".{name}: {_SELECTED}")

    def __len__(self) -> int:
        refuse("the length of a selection depends on values; divide by np.sum(mask) instead of len(x[mask])")

    def __iter__(self) -> Any:
        refuse(_SELECTED)

    def __bool__(self) -> bool:
        return active().decisions.decide(line())

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        refuse(_SELECTED)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, Selection) and key.mask.is_like(self.mask) and key.ndim == 1:
            return Selection(self.whole, self.mask & key.whole)
        refuse(_SELECTED)

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, Selection) or not key.mask.is_like(self.mask) or np.ndim(value):
            refuse(_SELECTED)
        here = key.whole[(..., *(None,) * (self.whole.ndim - key.whole.ndim))]
        changed: Any = np.where(here, value, self.whole)
        self.whole = changed


def selected_ufunc(ufunc: Any, method: str, inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """A ufunc of selections by one mask: of all entries."""
    if method == "reduce" and ufunc.__name__ in ("add", "multiply", "maximum", "minimum"):
        name = {"add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min"}[ufunc.__name__]
        return getattr(np, name)(inputs[0], axis=options.get("axis", 0))
    out = options.get("out")
    if method != "__call__" or (out is not None and not isinstance(out[0], Selection)):
        refuse(_SELECTED)
    result = _entrywise(ufunc, inputs, {k: v for k, v in options.items() if k != "out"})
    if out is not None:  # a selection is an array of its own, which nothing else shares
        out[0].whole, result = result.whole, out[0]
    return result


def _entrywise(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Selection:
    given = [x for x in (*args, *kwargs.values()) if isinstance(x, Selection)]
    mask = given[0].mask
    if any(not x.mask.is_like(mask) for x in given):
        refuse("selections by different truth values meet; use np.where")
    rank = max(x.ndim for x in given)

    def entries(x: Any) -> Any:
        if isinstance(x, Selection):
            if x.ndim != rank:
                refuse(_SELECTED)
            return x.whole
        if np.ndim(x) >= rank and np.ndim(x):
            refuse(f"an array of {np.ndim(x)} dimensions meets a selection by truth values")
        return x

    whole = function(*map(entries, args), **{k: entries(v) for k, v in kwargs.items()})
    return Selection(whole, mask)


__all__ = ["Nonzero", "Recorder", "Selection", "Tape", "activate", "active", "decided", "line", "plain", "refuse"]
