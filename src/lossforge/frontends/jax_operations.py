"""What the operations of a jaxpr mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lossforge import ir
from lossforge.frontends import spectral, windows
from lossforge.frontends.approximations import bessel_i0e, bessel_i1e, erf_inverse
from lossforge.frontends.places import Stacked, coordinates, scattered
from lossforge.frontends.positional import Dim, Importer, Refused, Rule, Tensor, rule_for
from lossforge.frontends.recording import Step, Varying
from lossforge.frontends.rules import arithmetic, cut, kind_of
from lossforge.ir import Kind, Node


def _reduce(op: str) -> Rule:
    def rule(imp: Importer, step: Step, x: Any) -> Tensor:
        if not step.attrs["axes"]:
            return imp.tensor(x)
        return imp.cast(imp.reduce(op, x, step.attrs["axes"]), kind_of(step.dtypes[0]))

    return rule


def _broadcast(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    t, shape = imp.tensor(x), step.shapes[0]
    places = list(step.attrs["broadcast_dimensions"])
    dims = tuple(t.dims[places.index(i)] if i in places else () for i in range(len(shape[0])))
    return imp.expand(Tensor(t.node, dims), shape)


def _dot(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    (cx, cy), (bx, by) = step.attrs["dimension_numbers"]
    rx, ry = step.attrs["rank"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left = [next(letters) for _ in range(rx)]
    right = [next(letters) for _ in range(ry)]
    for i, j in (*zip(cx, cy, strict=True), *zip(bx, by, strict=True)):
        right[j] = left[i]
    out = [left[i] for i in bx] + [c for i, c in enumerate(left) if i not in (*cx, *bx)]
    out += [c for j, c in enumerate(right) if j not in (*cy, *by)]
    return imp.einsum(f"{''.join(left)},{''.join(right)}->{''.join(out)}", x, y)


def _iota(imp: Importer, step: Step) -> Tensor:
    d = step.attrs["dimension"]
    counter = imp.positions([s[d] for s in step.shapes[0]], d, len(step.shapes[0][0]))
    return imp.cast(imp.expand(counter, step.shapes[0]), kind_of(step.dtypes[0]))


def _linspace(imp: Importer, step: Step, start: Any, stop: Any) -> Tensor:
    counts = [s[0] for s in step.shapes[0]]
    last = Tensor(imp.symbol([n - 1 for n in counts]), ())
    share = imp.elementwise("div", imp.arange(counts), last)
    return imp.map(lambda a, b, x: a + (b - a) * x, start, stop, share)


def _solve(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    a, b = imp.tensor(x), imp.tensor(y)
    n = imp.extents(a.dims[-1])
    if a.rank == b.rank and imp.extents(b.dims[-2]) != n == imp.extents(b.dims[-1]):  # vectors, by jax.vmap
        return imp.transpose(imp.solve(a, imp.transpose(b)))
    return imp.solve(a, b)


def _triangular_solve(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    given = step.attrs
    half = imp.triangle(x, given["lower"], given["unit_diagonal"])
    return imp.solve(imp.transpose(half) if given["transpose_a"] else half, y, given["left_side"])


def _eigen(imp: Importer, step: Step, x: Any) -> tuple[Tensor, Tensor]:
    values, vectors = imp.eigen(x if step.attrs["lower"] else imp.transpose(x))
    return vectors, values


def _singular(imp: Importer, step: Step, x: Any) -> tuple[Tensor, ...]:
    left, values, right = imp.singular(x, step.attrs["full_matrices"] and step.attrs["compute_uv"])
    return (values, left, right) if step.attrs["compute_uv"] else (values,)


def _select(imp: Importer, step: Step, which: Any, *cases: Any) -> Tensor:
    kind = kind_of(step.dtypes[0])
    if len(cases) == 2:
        return imp.cast(imp.elementwise("where", imp.cast(which, Kind.BOOL), cases[1], cases[0]), kind)
    result = imp.tensor(cases[-1])
    for k, case in reversed(list(enumerate(cases[:-1]))):
        result = imp.elementwise("where", imp.elementwise("le", which, k), case, result)
    return imp.cast(result, kind)


def _slice(imp: Importer, step: Step, x: Any) -> Tensor:
    t = imp.tensor(x)
    strides = step.attrs["strides"] or (1,) * t.rank
    for d in range(t.rank):
        ends = [_each(imp, step.attrs[k][d]) for k in ("start_indices", "limit_indices")]
        t = imp.slice(t, d, ends[0], ends[1], imp.integer(strides[d]))
    return t


def _each(imp: Importer, value: Any) -> list[int]:
    return list(value.values) if isinstance(value, Varying) else [value] * imp.count


def _gather(imp: Importer, step: Step, x: Any, indices: Any) -> Tensor:
    """Entries at index arrays, one for each dimension that is indexed, alone or beside batch dimensions."""
    t = imp.tensor(x)
    numbers, sizes = step.attrs["dimension_numbers"], step.attrs["slice_sizes"]
    start = dict(zip(map(imp.integer, numbers["start_index_map"]), coordinates(imp, indices), strict=True))
    # Where all entries are taken, they begin with the first, whatever the index says.
    indexed = [d for d in start if tuple(_each(imp, sizes[d])) != imp.extents(t.dims[d]) or sizes[d] == 1]
    if any(isinstance(sizes[d], Varying) or sizes[d] != 1 for d in indexed):
        raise Refused("an index that takes more than one entry; use slices at constant places, or jnp.take")
    at = [_in_range(start[d]) for d in indexed]
    batch, places = numbers["operand_batching_dims"], numbers["start_indices_batching_dims"]
    collapsed = numbers["collapsed_slice_dims"]
    offset = [d for d in range(t.rank) if d not in (*collapsed, *batch)]
    # Dimensions of the result: those of the index, with the operand's others put in at offset_dims.
    rank = len(step.shapes[0][0])
    from_index = [i for i in range(rank) if i not in numbers["offset_dims"]]
    for d in indexed:
        t = imp.single(t, d)
    dims: list[Dim] = [()] * rank
    for where, source in zip(numbers["offset_dims"], offset, strict=True):
        dims[where] = () if source in indexed else t.dims[source]
    for operand, place in zip(batch, places, strict=True):
        dims[from_index[place]] = t.dims[operand]
    waiting = [t.dims[d] for d in indexed]
    result = Tensor(t.node, (*dims, *waiting))
    for k, index in enumerate(at):
        left = len(indexed) - k - 1
        spread: list[Dim] = [()] * (rank + left)
        for i, where in enumerate(from_index):
            spread[where] = index.dims[i]
        along = result.dims[rank]
        dim = next((i for i, d in enumerate(spread) if along and along[0] in d), 0)
        others = Tensor(result.node, (*result.dims[:rank], *result.dims[rank + 1 :]))
        result = imp.gather((others, along), Tensor(index.node, tuple(spread)), dim)
    return result


def _numbers(imp: Importer, t: Tensor) -> list[int] | None:
    """The value, in each recording, of a whole number that depends on sizes alone."""

    def value(node: Node) -> list[float] | None:
        if node.op == "constant":
            return [float(node.attrs[0])] * imp.count
        if node.op == "size" and node.attrs[0] in imp.sizes:
            return [float(n) for n in imp.sizes[node.attrs[0]]]
        given = [value(a) for a in node.args]
        known = [g for g in given if g is not None]
        if len(known) < len(given) or not known:
            return None
        if node.op in ("add", "sub", "mul"):
            act = {"add": float.__add__, "sub": float.__sub__, "mul": float.__mul__}[node.op]
            return [act(a, b) for a, b in zip(*known, strict=True)]
        return known[0] if node.op == "cast" else None

    if t.rank and any(t.dims):
        return None
    found = value(t.node)
    return None if found is None else [int(v) for v in found]


def _starts(imp: Importer, indices: Sequence[Tensor]) -> list[list[int]]:
    found = [_numbers(imp, _in_range(i)) for i in indices]
    if any(f is None for f in found):
        raise Refused("entries at a place that is worked out from values; use jnp.where with a mask of positions")
    return [f for f in found if f is not None]


def _dynamic_slice(imp: Importer, step: Step, x: Any, *starts: Any) -> Tensor:
    t = imp.tensor(x)
    for d, start in enumerate(map(imp.tensor, starts)):
        sizes = [s[d] for s in step.shapes[0]]
        start = _in_range(start)
        first = _numbers(imp, start)
        if first is not None:
            t = imp.slice(t, d, first, [f + n for f, n in zip(first, sizes, strict=True)])
        elif set(sizes) == {1} and start.rank == 0:
            t = imp.unsqueeze(imp.index(t, [(d, start)]), d)
        else:
            raise Refused("a slice that begins where values say; use a mask and jnp.where")
    return t


def _dynamic_update_slice(imp: Importer, step: Step, x: Any, update: Any, *starts: Any) -> Tensor:
    first = _starts(imp, [imp.tensor(s) for s in starts])
    new = imp.tensor(update)
    return _put(
        imp, imp.tensor(x), new, {d: (f, imp.extents(new.dims[d])) for d, f in enumerate(first)}, lambda old, n: n
    )


_COLLECTED = {"add": ("sum", 0.0), "mul": ("prod", 1.0), "maximum": ("max", -math.inf), "minimum": ("min", math.inf)}
"""For each way of writing upon what is there, the reduction of what meets at one place, and what changes nothing."""


def _scatter(by: str | None) -> Rule:
    """Writing entries (None), or combining them: in a block at a constant place, or one by one at index arrays."""

    def rule(imp: Importer, step: Step, x: Any, indices: Any, updates: Any) -> Tensor:
        t, new, at = imp.tensor(x), imp.tensor(updates), coordinates(imp, indices)
        numbers = step.attrs["dimension_numbers"]
        indexed = [imp.integer(d) for d in numbers["scatter_dims_to_operand_dims"]]
        beside = dict(zip(numbers["scatter_indices_batching_dims"], numbers["operand_batching_dims"], strict=True))
        inserted = numbers["inserted_window_dims"]
        if all(i.rank == 0 for i in at):
            first = _starts(imp, at)
            for d in sorted(inserted):
                new = imp.unsqueeze(new, d)
            block = {d: (f, imp.extents(new.dims[d])) for d, f in zip(indexed, first, strict=True)}
            for d in inserted:
                block[d] = (block[d][0], (1,) * imp.count)

            def act(old: Tensor, n: Tensor) -> Tensor:
                return n if by is None else imp.elementwise(by, old, n)

            return imp.cast(_put(imp, t, new, block, act), t.node.kind)
        if sorted(indexed) != sorted(inserted):
            raise Refused("writing blocks at index arrays; use jnp.where")
        ranged = [_in_range(i) for i in at]
        return imp.cast(_put_each(imp, step, t, new, ranged, indexed, beside, by), t.node.kind)

    return rule


def _put(
    imp: Importer,
    x: Tensor,
    new: Tensor,
    block: Mapping[int, tuple[Sequence[int], Sequence[int]]],
    act: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """`x` with a block of entries acted upon; for each dimension, the block's first entry and its length."""
    for d, (first, length) in block.items():
        n = imp.extents(x.dims[d])
        stop = [f + m for f, m in zip(first, length, strict=True)]
        if not any(first) and tuple(stop) == tuple(n):
            continue
        rest = {k: v for k, v in block.items() if k != d}
        parts = [imp.slice(x, d, [0] * imp.count, first)] if all(first) else []
        parts.append(_put(imp, imp.slice(x, d, first, stop), new, rest, act))
        if all(s < m for s, m in zip(stop, n, strict=True)):
            parts.append(imp.slice(x, d, stop, n))
        return imp.concat(parts, d)
    shapes = [tuple(imp.extents(d)[i] for d in x.dims) for i in range(imp.count)]
    return imp.expand(act(x, new), shapes)


def _put_each(
    imp: Importer,
    step: Step,
    x: Tensor,
    new: Tensor,
    at: Sequence[Tensor],
    indexed: Sequence[int],
    beside: Mapping[int, int],
    by: str | None,
) -> Tensor:
    """Updates at index arrays; dimensions of these that lie beside one of `x`, or count its entries, take its place."""
    rank = max(i.rank for i in at)
    counting = next((k for k, i in enumerate(at) if rank == 1 and not beside and i.node.op == "iota"), None)
    homes = dict(beside) if counting is None else {0: indexed[counting]}
    if len(homes) < rank:
        if beside or list(indexed) != list(range(len(indexed))) or (by is None and new.node.axes):
            raise Refused("writing at index arrays that may hold a place twice; use jnp.where")
        if by is not None:
            return imp.elementwise(by, x, scattered(imp, at, new, step.shapes[0], *_COLLECTED[by]))
        touched = scattered(imp, at, Tensor(ir.constant(1.0), new.dims), step.shapes[0])
        return imp.elementwise("where", imp.elementwise("gt", touched, 0.0), Tensor(new.node, ()), x)

    def placed(t: Tensor, rest: Sequence[int]) -> Tensor:
        """The dimensions of an index at their homes, and others at the places `rest`."""
        dims: list[Dim] = [()] * x.rank
        for i, dim in enumerate(t.dims):
            dims[homes[i] if i < rank else rest[i - rank]] = dim
        return Tensor(t.node, tuple(dims))

    here: Tensor | None = None
    for k, index in enumerate(at):
        if k == counting:
            continue
        position = imp.positions([s[indexed[k]] for s in step.shapes[0]], indexed[k], x.rank)
        equal = imp.elementwise("eq", position, placed(index, ()))
        here = equal if here is None else imp.elementwise("and", here, equal)
    updates = placed(new, [i for i in range(x.rank) if i not in indexed and i not in homes.values()])
    if by is not None:
        updates = imp.elementwise(by, x, updates)
    return updates if here is None else imp.elementwise("where", here, updates, x)


def _negative(imp: Importer, x: Any) -> Tensor:
    return imp.elementwise("neg", x)


def _in_range(index: Tensor) -> Tensor:
    """An index without the wrapping of negative positions that JAX puts before each gather: classes are 0, 1, 2 …."""
    node = index.node
    while node.op == "cast" and node.kind is Kind.INDEX:
        node = node.args[0]
    if node.op == "where" and node.args[0].op == "lt":
        number, bound = node.args[0].args
        if (
            bound.op in ("constant", "cast")
            and node.args[2] is number
            and not (bound.op == "constant" and bound.attrs[0])
        ):
            return Tensor(number, index.dims)
    return Tensor(node, index.dims)


def _scan(op: str) -> Rule:
    return lambda imp, step, x: imp.scan(op, x, step.attrs["axis"], bool(step.attrs["reverse"]))


def _sort(imp: Importer, step: Step, *operands: Any) -> Any:
    d = step.attrs["dimension"]
    keys = [imp.single(imp.tensor(k), d) for k in operands[: step.attrs.get("num_keys", 1)]]
    varied = [k for k in keys if set(k.dims[d]) & k.node.axes] or keys[
        :1
    ]  # what is the same everywhere decides nothing
    if len(varied) > 1:
        raise Refused("a sort by several keys; sort by one, and take the others along with jnp.take_along_axis")
    values, order = imp.sort(varied[0], d)
    found = []
    for other in operands:
        t = imp.single(imp.tensor(other), d)
        if t == varied[0]:
            found.append(values)
        elif t.node.op == "iota":
            found.append(order)
        elif not set(t.dims[d]) & t.node.axes:
            found.append(t)
        else:
            found.append(imp.gather((Tensor(t.node, (*t.dims[:d], (), *t.dims[d + 1 :])), t.dims[d]), order, d))
    return tuple(found) if len(found) > 1 else found[0]


def _top_k(imp: Importer, step: Step, x: Any) -> tuple[Tensor, Tensor]:
    t = imp.tensor(x)
    values, order = imp.sort(t, t.rank - 1, descending=True)
    stop = [s[-1] for s in step.shapes[0]]
    return tuple(imp.slice(v, t.rank - 1, [0] * imp.count, stop) for v in (values, order))  # type: ignore[return-value]


def _clamp(imp: Importer, step: Step, low: Any, x: Any, high: Any) -> Tensor:
    raised = imp.elementwise("where", imp.elementwise("lt", x, low), low, x)
    return imp.elementwise("where", imp.elementwise("gt", raised, high), high, raised)


def _concatenate(imp: Importer, step: Step, *parts: Any) -> Tensor:
    return _joined(imp, [imp.tensor(p) for p in parts], step.attrs["dimension"])


def _stack(imp: Importer, step: Step, *parts: Any) -> Tensor:
    return _joined(imp, [imp.unsqueeze(p, step.attrs["axis"]) for p in parts], step.attrs["axis"])


def _joined(imp: Importer, tensors: Sequence[Tensor], d: int) -> Tensor:
    if d == tensors[0].rank - 1 and all(set(imp.extents(p.dims[d])) == {1} for p in tensors):
        whole = imp.concat(tensors, d)
        return Stacked(whole.node, whole.dims, tuple(imp.select(p, d, 0) for p in tensors))
    return imp.concat(tensors, d)


def _stacked(imp: Importer, step: Step, *parts: Any) -> Tensor:
    """What the rounds of a loop gave, along a new first dimension."""
    return _joined(imp, [imp.unsqueeze(p, 0) for p in parts], 0)


def _pad(imp: Importer, step: Step, x: Any, value: Any) -> Tensor:
    widths = [tuple(imp.integer(n) for n in w) for w in step.attrs["padding_config"]]
    if any(inner for *_, inner in widths):
        raise Refused("padding between entries; use jnp.stack with zeros, and reshape")
    number = imp.tensor(value).node
    if number.op == "cast":
        (number,) = number.args
    if number.op != "constant":
        raise Refused("padding with a value that is not a constant; use jnp.concatenate")
    return windows.pad(imp, x, [(w[0], w[1]) for w in widths], "constant", float(number.attrs[0]))


def _convolution(imp: Importer, step: Step, x: Any, kernel: Any) -> Tensor:
    numbers = step.attrs["dimension_numbers"]
    if any(n != 1 for n in step.attrs["lhs_dilation"]) or step.attrs["batch_group_count"] != 1:
        raise Refused("a transposed convolution; repeat or fill entries, and convolve")
    result = windows.convolve(
        imp,
        imp.permute(x, numbers["lhs_spec"]),
        imp.permute(kernel, numbers["rhs_spec"]),
        stride=step.attrs["window_strides"],
        padding=step.attrs["padding"],
        dilation=step.attrs["rhs_dilation"],
        groups=step.attrs["feature_group_count"],
    )
    out = list(numbers["out_spec"])
    return imp.permute(result, [out.index(d) for d in range(len(out))])


def _window(op: str) -> Rule:
    def rule(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
        given = step.attrs
        if any(n != 1 for n in given["base_dilation"]):
            raise Refused("windows over entries that are spread out; fill in zeros before")
        size, stride, pads = given["window_dimensions"], given["window_strides"], given["padding"]
        spread = given["window_dilation"]
        if op == "max":
            return windows.maximum_pool(imp, x, size, stride, pads, dilation=spread)
        t = imp.tensor(x)
        for d, taps in enumerate(size):
            stencil = windows.stencil_of(imp.integer(taps), stride[d], spread[d], pads[d])
            if stencil != windows.stencil_of(1):
                t = imp.slide(t, d, stencil)
                t = imp.reduce("sum", t, [t.rank - 1]) if taps > 1 else t
        return t

    return rule


def _entry(imp: Importer, step: Step, x: Any) -> Tensor:
    """The entry of one round of a loop."""
    return imp.select(x, 0, step.attrs["index"])


def _split(imp: Importer, step: Step, x: Any) -> tuple[Tensor, ...]:
    return cut(imp, step, imp.tensor(x), step.attrs["axis"])


def _unstack(imp: Importer, step: Step, x: Any) -> tuple[Tensor, ...]:
    return tuple(imp.select(x, step.attrs["axis"], i) for i in range(len(step.outputs)))


def _tile(imp: Importer, step: Step, x: Any) -> Tensor:
    """Copies one after the other: an axis that says which copy stands before that of the entries."""
    t = imp.tensor(x)
    counts = [_each(imp, n) for n in step.attrs["reps"]]
    dims = [(imp.ghost(n), *dim) if set(n) != {1} else dim for n, dim in zip(counts, t.dims, strict=True)]
    return Tensor(t.node, tuple(dims))


def _rev(imp: Importer, step: Step, x: Any) -> Tensor:
    t = imp.tensor(x)
    for d in step.attrs["dimensions"]:
        t = imp.along("flip", t, d)
    return t


def _power(imp: Importer, step: Step, x: Any) -> Tensor:
    return imp.elementwise("pow", x, imp.cast(step.attrs["y"], Kind.FLOAT))


def _sum_of(op: str) -> Rule:
    return lambda imp, step, x: imp.reduce(op, x, step.attrs["axes"])


def _logical(op: str) -> Rule:
    def rule(imp: Importer, step: Step, *args: Any) -> Tensor:
        tensors = [imp.tensor(a) for a in args]
        truths = all(t.node.kind is Kind.BOOL or _is_truth(t.node) for t in tensors)
        if step.dtypes[0] != "bool" and not (truths and op != "not"):
            raise Refused("bits of integers; use arithmetic, or comparisons")
        found = imp.elementwise(op, *(imp.cast(t, Kind.BOOL) for t in tensors))
        return imp.cast(found, kind_of(step.dtypes[0]))

    return rule


def _is_truth(node: Node) -> bool:
    """Whether a whole number is 0 or 1, since it was a truth value."""
    while node.op in ("cast", "rename", "window"):
        node = node.args[0]
        if node.kind is Kind.BOOL:
            return True
    return node.op == "constant" and node.attrs[0] in (0, 1)


def _formula(function: Callable[..., Any]) -> Rule:
    return lambda imp, step, *args: imp.map(function, *args)


def _f(op: str, *args: Any) -> Any:
    return ir.elementwise(op, *args)


def _same(imp: Importer, step: Step, x: Any, *rest: Any) -> Tensor:
    return imp.tensor(x)


def _converted(imp: Importer, step: Step, x: Any) -> Any:
    return spectral.complex_of(imp, x) if "complex" in step.dtypes[0] else imp.cast(x, kind_of(step.dtypes[0]))


def _fourier(imp: Importer, step: Step, x: Any) -> Any:
    kind, lengths = str(step.attrs["fft_type"]).rpartition(".")[2], step.attrs["fft_lengths"]
    value = spectral.complex_of(imp, x)
    dims = list(range(value.real.rank - len(lengths), value.real.rank))
    if kind == "IRFFT":
        return spectral.real_inverse(imp, value, dims, [s[-1] for s in step.shapes[0]], scale=1.0)
    inverse = kind == "IFFT"
    return spectral.fourier(imp, value, dims, inverse=inverse, half=kind == "RFFT", scale=1.0 if inverse else 0.0)


def _rem(x: Any, y: Any) -> Any:
    q = x / y
    return x - y * _f("sign", q) * _f("floor", _f("abs", q))


def _surrogate(imp: Importer, step: Step, hard: Any, soft: Any) -> Tensor:
    """The value of one with the derivative of the other."""
    return imp.map(lambda h, s: _f("surrogate", h, s), hard, soft)


_PLAIN = {
    "neg": "neg", "exp": "exp", "log": "log", "log1p": "log1p", "expm1": "expm1", "sqrt": "sqrt", "sin": "sin",
    "cos": "cos", "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan", "atan2": "atan2", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "erf": "erf", "erfc": "erfc",
    "lgamma": "lgamma", "digamma": "digamma", "logistic": "sigmoid", "floor": "floor", "ceil": "ceil", "sign": "sign",
    "round": "round", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "eq": "eq", "ne": "ne", "stop_gradient": "stop_gradient",
}  # fmt: skip


def _refused(reason: str) -> Rule:
    def rule(imp: Importer, step: Step, *args: Any) -> Tensor:
        raise Refused(reason)

    return rule


_LOOP = _refused(
    "a loop whose number of rounds depends on values, or is too large to be written out; use array operations, or a "
    "fixed number of rounds of at most 64"
)
_EFFECT = _refused("a call back into Python; use jax.numpy")
_RANDOM = _refused("random numbers; a loss gives one value for its inputs. Make the random array an argument")

_REAL: Mapping[str, Rule] = {
    "while": _LOOP, "scan": _LOOP, "cond": _LOOP,
    **dict.fromkeys(("random_bits", "random_wrap", "random_unwrap", "random_seed", "random_fold_in", "random_split",
                     "random_gamma", "rng_bit_generator", "rng_uniform", "threefry2x32"), _RANDOM),
    **dict.fromkeys(("pure_callback", "io_callback", "debug_callback"), _EFFECT),
    **{k: rule_for(v) for k, v in _PLAIN.items()},
    "add": arithmetic("add"), "add_any": arithmetic("add"), "sub": arithmetic("sub"), "mul": arithmetic("mul"),
    "div": arithmetic("div"), "logaddexp": arithmetic("logaddexp"), "max": arithmetic("maximum"), "min": arithmetic("minimum"), "abs": arithmetic("abs"),
    "pow": arithmetic("pow"), "integer_pow": _power, "square": _formula(lambda x: x * x), "rem": _formula(_rem),
    "exp2": _formula(lambda x: _f("exp", x * math.log(2))), "cbrt": _formula(lambda x: _f("sign", x) * _f("abs", x) ** (1 / 3)),
    "rsqrt": _formula(lambda x: 1.0 / _f("sqrt", x)), "is_finite": _formula(lambda x: _f("lt", _f("abs", x), float("inf"))),
    "erf_inv": _formula(erf_inverse), "bessel_i0e": _formula(bessel_i0e), "bessel_i1e": _formula(bessel_i1e),
    "polygamma": lambda imp, step, n, x: imp.elementwise("polygamma", n, x), "surrogate": _surrogate,
    "and": _logical("and"), "or": _logical("or"), "not": _logical("not"), "xor": _logical("ne"),
    "reduce_sum": _reduce("sum"), "reduce_max": _reduce("max"), "reduce_min": _reduce("min"), "reduce_prod": _reduce("prod"),
    "reduce_and": _reduce("all"), "reduce_or": _reduce("any"),
    "argmax": _sum_of("argmax"), "argmin": _sum_of("argmin"),
    "broadcast_in_dim": _broadcast, "reshape": lambda imp, step, x, *r: imp.reshape(x, step.shapes[0]),
    "squeeze": lambda imp, step, x: imp.squeeze(x, step.attrs["dimensions"]),
    "expand_dims": lambda imp, step, x: imp.reshape(x, step.shapes[0]),
    "transpose": lambda imp, step, x: imp.permute(x, step.attrs["permutation"]),
    "convert_element_type": _converted,
    "dot_general": _dot, "iota": _iota, "linspace": _linspace,
    "cholesky": lambda imp, step, x: imp.matrix("cholesky", x), "triangular_solve": _triangular_solve,
    "inv": lambda imp, step, x: imp.matrix("inverse", x), "solve": _solve, "eigh": _eigen, "svd": _singular,
    "slogdet": lambda imp, step, x: (imp.matrix("detsign", x), imp.matrix("logdet", x)),
    "det": lambda imp, step, x: imp.determinant(x),
    "select_n": _select, "slice": _slice, "gather": _gather,
    "dynamic_slice": _dynamic_slice, "dynamic_update_slice": _dynamic_update_slice,
    "scatter": _scatter(None), "scatter-add": _scatter("add"), "scatter_add": _scatter("add"),
    "scatter-sub": lambda imp, step, x, at, y: _scatter("add")(imp, step, x, at, _negative(imp, y)),
    "scatter-mul": _scatter("mul"), "scatter_mul": _scatter("mul"),
    "scatter-max": _scatter("maximum"), "scatter-min": _scatter("minimum"),
    "cumsum": _scan("sum"), "cumprod": _scan("prod"), "cummax": _scan("max"), "cummin": _scan("min"),
    "cumlogsumexp": _scan("logsumexp"), "pad": _pad, "conv_general_dilated": _convolution,
    "reduce_window_sum": _window("sum"), "reduce_window_max": _window("max"),
    "reduce_window_min": lambda imp, step, x: _negative(imp, _window("max")(imp, step, _negative(imp, x))),
    "sort": _sort, "top_k": _top_k, "clamp": _clamp, "concatenate": _concatenate, "stack": _stack, "stacked": _stacked, "entry": _entry,
    "split": _split, "unstack": _unstack, "tile": _tile, "rev": _rev,
    "copy": _same, "copy_p": _same, "stage": _same, "reduce_precision": _same, "optimization_barrier": lambda imp, step, *x: tuple(map(imp.tensor, x)),
}  # fmt: skip

_LINEAR = frozenset(
    "reshape broadcast_in_dim squeeze expand_dims transpose slice concatenate stack rev reduce_sum pad dynamic_slice gather copy "
    "copy_p reduce_precision".split()
)
RULES: Mapping[str, Rule] = {
    **spectral.with_complex(_REAL, {**spectral.ARITHMETIC, "add_any": spectral.ARITHMETIC["add"],
                                    "convert_element_type": lambda imp, step, x: x}, _LINEAR, "float32"),
    **{op: spectral.ARITHMETIC[op] for op in ("real", "imag", "conj")},
    "complex": lambda imp, step, x, y: spectral.Complex(imp.tensor(x), imp.tensor(y)), "fft": _fourier,
}  # fmt: skip
