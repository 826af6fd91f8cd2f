"""JAX: operations, losses and transformations, against the reference evaluation and JAX's own autodiff."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import lossforge as lf
from lossforge import ir
from lossforge.compiler import vjp_program
from lossforge.errors import (
    DtypeError,
    FrameworkError,
    IndexRangeError,
    ParameterError,
    ShapeError,
)
from lossforge.interpreter import evaluate
from lossforge.ir import Kind, Node, Port, Program
from lossforge.primitives import PRIMITIVES

jax = pytest.importorskip("jax")
jnp = jax.numpy

DTYPES = ("float32", "float64")
RTOL = {"float32": 1e-5, "float64": 1e-9}


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture
def quickly_compiled() -> Iterator[None]:
    """XLA compiles in half the time where its optimisations are off; the other tests run with them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest, x64: None) -> str:
    return str(request.param)


def close(got: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Equal up to `rtol` of each entry or of the largest one, whichever is more, NaN and inf included."""
    expected = np.asarray(expected)
    finite = np.abs(expected[np.isfinite(expected)])
    np.testing.assert_allclose(np.asarray(got), expected, rtol, rtol * finite.max(initial=0.0))


# ------------------------------------------------------------------------------------- the operation table

X, Y = (Port(ir.input_(name, ("*shape",)), ("*shape",)) for name in "xy")
POINTS = {  # where an operation is not defined, or not smooth, everywhere
    "log": (0.1, 4), "sqrt": (0.1, 4), "log1p": (-0.9, 3), "xlogy": (0.1, 4), "pow": (0.1, 3),
    "asin": (-0.9, 0.9), "acos": (-0.9, 0.9), "atanh": (-0.9, 0.9), "lgamma": (0.2, 6), "digamma": (1.7, 6),
    "acosh": (1.1, 4),
    "polygamma": (0.2, 6), "div": (0.3, 3), "atan2": (0.3, 3), "tan": (-1.2, 1.2),
}  # fmt: skip


def _elementwise(op: str) -> Node:
    """An expression that holds the operation and has a gradient even if the operation is flat."""
    x, y = X.node, Y.node
    row = PRIMITIVES[op]
    if op in ir.COMPARISONS:
        return ir.where(ir.elementwise(op, x, y), x * y, x - 2 * y)
    if op in ir.LOGICAL:
        conditions = [ir.elementwise("gt", v, 0.0) for v in (x, y)][: row.arity]
        return ir.where(ir.elementwise(op, *conditions), x * y, x - 2 * y)
    if op == "where":
        return ir.where(ir.elementwise("gt", x, 0.0), x * y, x - y)
    if op == "cast":
        return ir.as_kind(ir.elementwise("gt", x, y), Kind.FLOAT) * x * y
    if op == "polygamma":
        return ir.elementwise(op, 1.0, x) * y
    if op == "surrogate":
        return x * ir.elementwise(op, ir.elementwise("sign", x), y * y * x)
    node = ir.elementwise(op, *(x, y)[: row.arity])
    return node * x * y if row.flat else node * (x if op == "div" else y)


M, N, I = (Port(ir.input_(n, a, k), a) for n, a, k in (  # noqa: E741
    ("m", ("a", "b"), Kind.FLOAT), ("n", ("b", "c"), Kind.FLOAT), ("i", ("c",), Kind.INDEX)))  # fmt: skip


def _structures() -> dict[str, Node]:
    m, n, i = M.node, N.node, I.node
    table = {op: ir.reduction(op, m, {"b"}) * ir.reduction(op, n, {"b", "c"}) for op in sorted(ir.REDUCTIONS)}
    for op in sorted(ir.INDEX_REDUCTIONS):
        table[op] = ir.take(m, ir.reduction(op, m * m, {"b"}), "b") * ir.reduction("sum", n * n, {"b"})
    copy = ir.rename(m, "a", "a2")
    same = ir.where(ir.elementwise("eq", ir.iota("a"), ir.iota("a2")), 2.0, 0.0)
    gram = ir.reduction("sum", m * copy, {"b"}) + same
    others = ir.reduction("sum", n * n, {"b", "c"})
    vectors = ir.matrix("eigenvectors", gram, "a", "a2")
    return table | {
        "take": ir.take(m * m, i, "b") * ir.reduction("sum", n * n, {"b"}),
        "iota": m * m * ir.as_kind(ir.iota("b"), Kind.FLOAT) * n,
        "size": m * m / ir.size("b") * ir.sizes(("a", "b", "c")),
        "rename": ir.reduction("logsumexp", ir.reduction("sum", m * copy, {"b"}), {"a2"})
        * ir.reduction("sum", n * n, {"b", "c"}),
        "flip": ir.flip(m * m, "b") * m * ir.reduction("sum", n * n, {"b"}),
        "cumsum": ir.cumsum(m * m, "b") * m * ir.reduction("sum", n * n, {"b"}),
        "cumsum reversed": ir.cumsum(m * m, "b", True) * m * ir.reduction("sum", n * n, {"b"}),
        "sort": ir.take(m * m, ir.argsort(m, "b"), "b") * m * ir.reduction("sum", n * n, {"b"}),
        "shift": ir.window(m * m, "b", "b", ir.extent(1), ir.extent(-1)) * m * ir.reduction("sum", n * n, {"b"}),
        "cut": ir.reduction("sum", ir.window(m * m, "b", "b2", ir.extent(1), ir.extent(1)), {"b2"}) * m * n,
        "join": ir.reduction("logsumexp", ir.join(m * m, ("b", "a"), "ab"), {"ab"}) * m * n,
        "split": ir.split(ir.flip(ir.join(m * m, ("a", "b"), "ab"), "ab"), "ab", ("a", "b")) * m * n,
        "inverse": ir.reduction("logsumexp", ir.matrix("inverse", gram, "a", "a2"), {"a2"}) * others,
        "log-determinant": ir.matrix("logdet", gram, "a", "a2") * ir.matrix("detsign", gram, "a", "a2") * others,
        "Cholesky": ir.reduction("logsumexp", ir.matrix("cholesky", gram, "a", "a2"), {"a2"}) * others,
        "eigenvalues": ir.reduction("logsumexp", ir.matrix("eigenvalues", gram, "a", "a2"), {"a2"}) * others,
        "eigenvectors": ir.reduction("logsumexp", vectors * vectors, {"a2"}) * others,  # their signs are open
        "contraction": ir.elementwise("sin", ir.reduction("sum", m * n, {"b"})),
    }


def _check_program(
    inputs: tuple[Port, ...], node: Node, arrays: list[Any], same: list[Any] | None = None, dtype: str = "float64"
) -> None:
    """Value, gradient and its gradient by JAX, against the reference evaluation of the derived graphs.

    The reference takes the arrays `same` instead, if given, for which the answers are to be the same.
    """
    from lossforge.adapters.jax import JaxAdapter

    order = tuple(sorted(node.axes))
    program = Program(inputs, (Port(node, order),), ("value",), (None,))
    wrt = tuple(p.name for p in inputs if p.node.kind is Kind.FLOAT)
    rng = np.random.default_rng(1)
    given, exact = (
        [np.asarray(a, dtype) if p.node.kind is Kind.FLOAT else a for a, p in zip(values, inputs, strict=True)]
        for values in (arrays, same or arrays)
    )

    def reference(of: Program, *more: np.ndarray) -> list[np.ndarray]:
        """The outputs in the order of their ports."""
        found = evaluate([o.node for o in of.outputs], dict(zip(of.inputs, [*exact, *more], strict=True)))
        sizes = {
            a: n for p, v in zip(of.inputs, [*exact, *more], strict=True) for a, n in zip(p.order, v.shape, strict=True)
        }
        result = []
        for out, value in zip(of.outputs, found, strict=True):
            names = sorted(out.node.axes)
            value = value.transpose([names.index(a) for a in out.order if a in names])
            value = value.reshape([sizes[a] if a in names else 1 for a in out.order])
            result.append(np.broadcast_to(value, [sizes[a] for a in out.order]))
        return result

    first = vjp_program(program, wrt)
    (value,) = reference(program)
    upstream = rng.normal(size=value.shape).astype(dtype)
    gradients = reference(first, upstream)
    directions = [rng.normal(size=g.shape).astype(dtype) for g in gradients]
    second = reference(vjp_program(first, wrt), upstream, *directions)
    floats = [k for k, p in enumerate(inputs) if p.node.kind is Kind.FLOAT]

    def derivatives(*arrays: Any) -> tuple[Any, ...]:
        def along(*arrays: Any) -> Any:
            return jnp.sum(JaxAdapter().run(program, arrays)[0] * upstream)

        def along_gradient(*arrays: Any) -> Any:
            found = jax.grad(along, floats)(*arrays)
            return sum(jnp.sum(g * d) for g, d in zip(found, directions, strict=True)), found

        again, found = jax.grad(along_gradient, floats, has_aux=True)(*arrays)
        return JaxAdapter().run(program, arrays)[0], found, again

    value_, gradients_, second_ = jax.jit(derivatives)(*map(jnp.asarray, given))
    assert value_.dtype == gradients_[0].dtype == second_[0].dtype == dtype
    close(value_, value, RTOL[dtype])
    for got, expected in zip((*gradients_, *second_), (*gradients, *second), strict=True):
        close(got, expected, RTOL[dtype])


@pytest.mark.parametrize("op", sorted(PRIMITIVES))
def test_operation(op: str, dtype: str, rng: np.random.Generator) -> None:
    low, high = POINTS.get(op, (-2.5, 2.5))
    x, y = rng.uniform(low, high, (2, 16))
    if op in {"abs", "maximum", "minimum", "sign", *ir.COMPARISONS}:
        x[:3], y[:3] = [0.0, 1.0, -1.0], [0.0, 1.0, 2.0]  # kinks and ties
    with jax.disable_jit():  # operation by operation: each is compiled once for all rows of the table
        _check_program((X, Y), _elementwise(op), [x, y], dtype=dtype)


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("name", sorted(_structures()))
def test_structure(name: str, dtype: str, rng: np.random.Generator) -> None:
    m, n = rng.uniform(0.5, 2, (3, 4)), rng.uniform(0.5, 2, (4, 2))
    _check_program((M, N, I), _structures()[name], [m, n, rng.integers(0, 4, 2)], dtype=dtype)


def test_shortest_tangents_do_not_lose_special_values(x64: None) -> None:
    @lf.loss
    def plain(pred, true):
        return pred * true

    bad = jnp.array([jnp.nan, jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(jax.grad(lambda p: plain(p, bad, reduction="sum"))(jnp.ones(3)), bad)


# ------------------------------------------------------------------------------------- a table of losses


@lf.loss
def huber(pred, true, *, delta=1.0):
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


@lf.loss
def quantile(pred, true, *, q=0.3):
    return lf.maximum(q * (true - pred), (q - 1) * (true - pred))


@lf.loss("batch class *space, batch *space -> batch *space")
def cross_entropy(logits, target):
    return -lf.take(lf.log_softmax(logits, "class"), target, "class")


@lf.loss("batch class *space, batch class *space -> batch class")
def dice(pred, true, *, smooth=1e-3):
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space")
    return 1 - (2 * overlap + smooth) / (total + smooth)


@lf.loss("batch d, batch d -> batch", wrt=("a", "b"))
def info_nce(a, b, *, temperature=0.5):
    similarity = lf.sum(a * lf.rename(b, batch="other"), "d") / temperature
    return lf.logsumexp(similarity, "other") - lf.sum(a * b, "d") / temperature


@lf.loss(wrt=("mean", "scale"))
def gaussian(mean, scale, true, *, floor=0.1):
    return lf.log(scale + floor) + 0.5 * ((true - mean) / (scale + floor)) ** 2


def _huber(p: Any, t: Any, delta: Any = 1.0) -> Any:
    e = p - t
    return jnp.where(jnp.abs(e) <= delta, 0.5 * e**2, delta * (jnp.abs(e) - 0.5 * delta))


def _cross_entropy(logits: Any, target: Any) -> Any:
    log_p = jnp.moveaxis(jax.nn.log_softmax(logits, 1), 1, -1)
    return -jnp.take_along_axis(log_p, target[..., None], -1)[..., 0]


def _dice(p: Any, t: Any, smooth: Any = 1e-3) -> Any:
    space = tuple(range(2, p.ndim))
    return 1 - (2 * (p * t).sum(space) + smooth) / (p.sum(space) + t.sum(space) + smooth)


def _info_nce(a: Any, b: Any, temperature: Any = 0.5) -> Any:
    s = a @ b.T / temperature
    return jax.nn.logsumexp(s, axis=1) - jnp.diag(s)


def _gaussian(m: Any, s: Any, t: Any, floor: Any = 0.1) -> Any:
    return jnp.log(s + floor) + 0.5 * ((t - m) / (s + floor)) ** 2


def _pinball(p: Any, t: Any, q: Any = 0.3) -> Any:
    return jnp.where(t > p, q * (t - p), (q - 1) * (t - p))


Draw = Callable[[np.random.Generator], tuple[Any, ...]]
LOSSES: dict[str, tuple[lf.Loss, Callable[..., Any], Draw, tuple[int, ...]]] = {
    # the loss, the same written out, its arguments, and which of them are predictions
    "huber": (huber, _huber, lambda r: (2 * r.normal(size=(4, 3)), r.normal(size=(4, 3))), (0,)),
    "huber_integers": (huber, _huber, lambda r: (2 * r.normal(size=(4, 3)), r.integers(-2, 3, (4, 3))), (0,)),
    "quantile": (quantile, _pinball, lambda r: (r.normal(size=(4, 3)), r.normal(size=(4, 3))), (0,)),
    "cross_entropy": (
        cross_entropy, _cross_entropy, lambda r: (3 * r.normal(size=(4, 3)), r.integers(0, 3, 4)), (0,),
    ),
    "cross_entropy_2d": (
        cross_entropy, _cross_entropy,
        lambda r: (r.normal(size=(2, 3, 2, 3)), r.integers(0, 3, (2, 2, 3))), (0,),
    ),
    "dice": (dice, _dice, lambda r: (r.random((2, 3, 2, 4)), r.random((2, 3, 2, 4)) > 0.5), (0,)),
    "info_nce": (info_nce, _info_nce, lambda r: (r.normal(size=(4, 3)), r.normal(size=(4, 3))), (0, 1)),
    "gaussian": (
        gaussian, _gaussian, lambda r: (r.normal(size=5), r.random(5) + 0.3, r.normal(size=5)), (0, 1),
    ),
}  # fmt: skip


def _reduced(values: Any, how: str, weight: Any = None, mask: Any = None) -> Any:
    w = (
        jnp.ones_like(values)
        if weight is None
        else jnp.broadcast_to(weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim)), values.shape)
    )
    w = w if mask is None else w * mask
    total = jnp.where(w == 0, 0.0, w * values)
    return total if how == "none" else total.sum() if how == "sum" else total.sum() / w.sum()


CALLS = {
    "float64": ["mean", "sum weight", "none mask", "mean weight mask"],
    "float32": ["none weight mask"],
}


@pytest.mark.usefixtures("quickly_compiled", "x64")
@pytest.mark.parametrize(("dtype", "call"), [(d, c) for d in CALLS for c in CALLS[d]])
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str, call: str, dtype: str, rng: np.random.Generator) -> None:
    loss, written_out, draw, wrt = LOSSES[name]
    arrays = [jnp.asarray(a, dtype if np.asarray(a).dtype == np.float64 else None) for a in draw(rng)]
    shape = jax.eval_shape(written_out, *arrays).shape
    how, *extra = call.split()
    options: dict[str, Any] = {}
    if "weight" in extra:
        options["weight"] = jnp.asarray(rng.random(shape[:1]) + 0.5, dtype)
    if "mask" in extra:
        options["mask"] = jnp.asarray(np.arange(np.prod(shape)).reshape(shape) % 3 != 1)
    upstream = jnp.asarray(rng.normal(size=shape if how == "none" else ()), dtype)

    def ours(*arrays: Any) -> Any:
        return jnp.sum(loss(*arrays, reduction=how, **options) * upstream)

    def expected(*arrays: Any) -> Any:
        return jnp.sum(_reduced(written_out(*arrays), how, **options) * upstream)

    def everything(f: Callable[..., Any]) -> Any:
        """Value, gradient, and the gradient of the gradient's sum of cosines: a product with the Hessian."""

        def twice(*arrays: Any) -> Any:
            return sum(jnp.sum(jnp.cos(g)) for g in jax.grad(f, wrt)(*arrays))

        return jax.jit(lambda *a: (*jax.value_and_grad(f, wrt)(*a), jax.grad(twice, wrt)(*a)))(*arrays)

    got, wanted = everything(ours), everything(expected)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert g.dtype == dtype
        close(g, w, RTOL[dtype])


# ------------------------------------------------------------------------------------- transformations

_hessian_by_forward = lambda f, wrt=0: jax.jacfwd(jax.jacfwd(f, wrt), wrt)  # noqa: E731
_hessian_by_reverse = lambda f, wrt=0: jax.jacrev(jax.jacrev(f, wrt), wrt)  # noqa: E731


def _scanned(f: Callable[..., Any]) -> Callable[..., Any]:
    """Gradient descent in a `scan`."""

    def descend(x: Any) -> Any:
        return jax.lax.scan(lambda x, _: (x - 0.1 * jax.grad(f)(x), f(x)), x, length=4)

    return descend


TRANSFORMATIONS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "plain": lambda f: f,
    "grad": jax.grad,
    "value_and_grad": jax.value_and_grad,
    "grad of jit": lambda f: jax.grad(jax.jit(f)),
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "hessian": jax.hessian,
    "forward over forward": _hessian_by_forward,
    "reverse over reverse": _hessian_by_reverse,
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
    "third derivative": lambda f: lambda x: jax.jvp(_hessian_by_reverse(f), (x,), (jnp.cos(x),))[1],
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),)),
    "linearize": lambda f: lambda x: jax.linearize(f, x)[1](jnp.cos(x)),
    "vjp": lambda f: lambda x: jax.vjp(f, x)[1](2.5),
    "hvp": lambda f: jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), jnp.sin(x))),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "scan": _scanned,
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, 2 * x])),
    "vmap of grad": lambda f: lambda x: jax.vmap(jax.grad(f))(jnp.stack([x, 2 * x])),
    "grad of vmap": lambda f: jax.grad(lambda x: jax.vmap(f)(jnp.stack([x, 2 * x])).prod()),
    "vmap of hessian": lambda f: lambda x: jax.vmap(jax.hessian(f))(jnp.stack([x, 2 * x])),
    "cond": lambda f: jax.grad(lambda x: jax.lax.cond(x.sum() > 0, f, lambda x: 2 * f(x), x)),
    "loop": lambda f: jax.jacfwd(lambda x: jax.lax.fori_loop(0, 3, lambda _, s: s + f(s * x), 1.0)),
}
EAGER = ("plain", "value_and_grad", "grad of jit", "jacfwd", "vjp", "linearize", "vmap", "hvp")


def _both(name: str, reduction: str, rng: np.random.Generator) -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    """A loss and the same written out, as functions of one array, and the array."""
    loss, written_out, draw, _ = LOSSES[name]
    x, *rest = map(jnp.asarray, draw(rng))
    # The sine makes the upstream gradient of each entry another one, and adds curvature.
    return (
        lambda x: jnp.sin(loss(x, *rest, reduction=reduction)).sum(),
        lambda x: jnp.sin(_reduced(written_out(x, *rest), reduction)).sum(),
        x,
    )


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize(("name", "reduction"), [("huber", "mean"), ("info_nce", "none")])
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_transformation(transformation: str, name: str, reduction: str, x64: None, rng: np.random.Generator) -> None:
    ours, written_out, x = _both(name, reduction, rng)
    transform = TRANSFORMATIONS[transformation]
    got, expected = (jax.jit(transform(f))(x) for f in (ours, written_out))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        close(g, w)


@pytest.mark.parametrize("transformation", EAGER)
def test_transformation_without_jit(transformation: str, x64: None, rng: np.random.Generator) -> None:
    ours, written_out, x = _both("cross_entropy", "none", rng)
    transform = TRANSFORMATIONS[transformation]
    for g, w in zip(*(jax.tree.leaves(transform(f)(x)) for f in (ours, written_out)), strict=True):
        close(g, w)


def test_disabled_jit(x64: None, rng: np.random.Generator) -> None:
    ours, written_out, x = _both("huber", "none", rng)
    with jax.disable_jit():
        close(jax.grad(ours)(x), jax.grad(written_out)(x))


def test_vmap_over_targets_parameters_weights_and_masks(x64: None, rng: np.random.Generator) -> None:
    p, t, w = (jnp.asarray(a) for a in rng.normal(size=(3, 5, 4)))
    d, m = jnp.asarray(rng.random(5) + 0.2), t > 0.3
    got = jax.vmap(jax.grad(lambda p, t, d, w, m: huber(p, t, delta=d, weight=w**2, mask=m)))(p, t, d, w, m)
    for i in range(5):
        one = jax.grad(lambda p, i=i: _reduced(_huber(p, t[i], d[i]), "mean", w[i] ** 2, m[i]))(p[i])
        close(got[i], one)


def test_sharded(x64: None, rng: np.random.Generator) -> None:
    """Under `shard_map` with its checks on; a mesh of one device still types what varies along it."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("data")
    p, t = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.integers(0, 3, 4))

    def total(p: Any, t: Any) -> Any:
        local = lambda p, t: jax.lax.psum(cross_entropy(p, t, reduction="sum"), "data")  # noqa: E731
        spec = jax.sharding.PartitionSpec()
        return jax.shard_map(local, mesh=mesh, in_specs=(split, split), out_specs=spec)(p, t)

    close(jax.jit(jax.grad(total))(p, t), jax.grad(lambda p: _cross_entropy(p, t).sum())(p))
    close(jax.hessian(total)(p, t), jax.hessian(lambda p: _cross_entropy(p, t).sum())(p))


def test_exported_with_symbolic_sizes(rng: np.random.Generator) -> None:
    from jax import export

    n, k = export.symbolic_shape("n, k")
    shapes = jax.ShapeDtypeStruct((n, k), "float32"), jax.ShapeDtypeStruct((n,), "int32")
    exported = export.export(jax.jit(jax.value_and_grad(cross_entropy)))(*shapes)
    for size in (2, 5):
        arrays = jnp.asarray(rng.normal(size=(size, 3)), "float32"), jnp.zeros(size, "int32")
        for got, expected in zip(exported.call(*arrays), jax.value_and_grad(cross_entropy)(*arrays), strict=True):
            close(got, expected, 1e-6)


# ------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_learned_parameter(reduction: str, x64: None, rng: np.random.Generator) -> None:
    p, t = (jnp.asarray(a) for a in rng.normal(size=(2, 6)))
    ours = lambda d, p: jnp.sum(jnp.sin(huber(p, t, delta=d, reduction=reduction)))  # noqa: E731
    expected = lambda d, p: jnp.sum(jnp.sin(_reduced(_huber(p, t, d), reduction)))  # noqa: E731
    for derivative in (jax.grad, jax.hessian, _hessian_by_forward, _hessian_by_reverse):
        got, wanted = (jax.jit(derivative(f, (0, 1)))(0.4, p) for f in (ours, expected))
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            close(g, w)


def test_value_of_a_parameter_compiles_nothing(rng: np.random.Generator) -> None:
    traces = []

    @jax.jit
    def step(p: Any, delta: Any) -> Any:
        traces.append(1)
        return jax.grad(huber)(p, jnp.zeros(3), delta=delta)

    for delta in (0.5, 1.0, 2.0):
        np.testing.assert_allclose(step(jnp.array([0.1, 3.0, -3.0]), delta), np.array([0.1, delta, -delta]) / 3, 1e-6)
    assert len(traces) == 1


def test_eager_call_is_compiled_once_for_all_values_of_a_parameter() -> None:
    shape = jnp.zeros(123)  # of no other test
    huber(shape, shape, delta=0.5)
    with jax.no_tracing():  # raises if anything is traced, and so if anything is compiled
        for delta in (0.5, 0.25, 0.75):
            assert float(huber(shape, shape, delta=delta)) == 0


# ------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_half_precision_computes_in_float32(half: str, reduction: str, rng: np.random.Generator) -> None:
    p, t = (jnp.asarray(a, half) for a in 3 * rng.normal(size=(2, 64)))
    wide = (p.astype("float32"), t.astype("float32"))
    f = lambda p, t: huber(p, t, reduction=reduction)  # noqa: E731
    assert f(p, t).dtype == "float32"
    np.testing.assert_array_equal(f(p, t), f(*wide))
    for ours in (jax.grad(lambda p: f(p, t).sum()), lambda p: huber.grad(p, t, reduction=reduction)):
        gradient = ours(p)
        assert gradient.dtype == half
        np.testing.assert_array_equal(gradient, jax.grad(lambda p: f(p, wide[1]).sum())(wide[0]).astype(half))


def test_half_precision_gradient_is_scaled_before_it_is_rounded() -> None:
    n = 2**22  # the gradient of the mean, 1/n, is below float16's smallest number; loss scaling brings it back
    p, t = jnp.ones(n, "float16"), jnp.zeros(n, "float16")
    gradient = jax.grad(lambda p: huber(p, t) * 2.0**20)(p)
    np.testing.assert_array_equal(gradient, np.float16(0.25))


@pytest.mark.parametrize("args", [("float64", "float32"), ("float32", "float64"), ("float64", "float16")])
def test_float64_among_the_arguments_decides(args: tuple[str, str], x64: None, rng: np.random.Generator) -> None:
    p, t = (jnp.asarray(a, d) for a, d in zip(rng.normal(size=(2, 9)), args, strict=True))
    value, gradient = jax.value_and_grad(huber)(p, t)
    assert value.dtype == "float64" and gradient.dtype == args[0]
    close(value, _huber(p.astype("float64"), t.astype("float64")).mean(), 1e-15)


def test_without_x64_everything_is_float32(rng: np.random.Generator) -> None:
    p, t = (jnp.asarray(a) for a in rng.normal(size=(2, 9)))
    value, gradient = jax.value_and_grad(huber)(p, t, delta=0.5)
    assert value.dtype == gradient.dtype == "float32"


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint32", "int64"])
def test_class_indices_of_any_integer_dtype(kind: str, x64: None, rng: np.random.Generator) -> None:
    logits, target = jnp.asarray(rng.normal(size=(4, 3))), np.array([0, 2, 1, 2])
    got = jax.jit(jax.grad(cross_entropy))(logits, jnp.asarray(target, kind))
    close(got, jax.grad(lambda x: _cross_entropy(x, jnp.asarray(target)).mean())(logits))


# ------------------------------------------------------------------------------------- NaN stays where it is


@lf.loss
def guarded(pred, true):
    return lf.where(pred > 0, lf.log(pred) * true, 0.0)


@lf.loss("batch class -> batch")
def guarded_rows(pred):
    return lf.where(lf.min(pred, "class") > 0, lf.sum(lf.log(pred) ** 2, "class"), 0.0)


@lf.loss("batch class, batch -> batch")
def picked(pred, target):
    return -lf.take(lf.log(pred) + lf.sqrt(pred), target, "class")


@lf.loss("batch class -> batch")
def pairs(pred):
    root = lf.sqrt(pred)
    positive = lf.min(pred, "class") > 0
    both = positive & lf.rename(positive, batch="other")
    return lf.sum(lf.where(both, lf.sum(root * lf.rename(root, batch="other"), "class"), 0.0), "other")


GUARDED: dict[str, tuple[lf.Loss, Any, Any]] = {
    # the loss, arguments with a 0 where an unguarded derivative is infinite, and with a harmless number there
    "where": (guarded, ([0.0, 1.0, 2.0], [1.0, 1.0, 1.0]), ([-1.0, 1.0, 2.0], [1.0, 1.0, 1.0])),
    "where a row": (guarded_rows, ([[0.0, 2.0], [1.0, 3.0]],), ([[-1.0, 2.0], [1.0, 3.0]],)),
    "take": (picked, ([[0.0, 0.5], [0.3, 0.7]], [1, 0]), ([[0.1, 0.5], [0.3, 0.7]], [1, 0])),
}

DERIVATIVES: dict[str, Callable[..., Any]] = {
    "grad": jax.grad,
    "forward": jax.jacfwd,
    "hessian": jax.hessian,
    "reverse over reverse": _hessian_by_reverse,
    "third": lambda f: jax.jacfwd(_hessian_by_reverse(f)),
}


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", GUARDED)
def test_infinite_derivative_behind_a_guard(name: str, reduction: str, derivative: str, x64: None) -> None:
    loss, *cases = GUARDED[name]
    at_zero, elsewhere = (
        jax.jit(DERIVATIVES[derivative](lambda x, rest=rest: jnp.sin(loss(x, *rest, reduction=reduction)).sum()))(x)
        for x, *rest in ([jnp.asarray(a) for a in case] for case in cases)
    )
    assert np.isfinite(at_zero).all()
    close(at_zero, elsewhere, 1e-12)


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_infinite_derivative_behind_a_guard_on_both_copies_of_an_axis(derivative: str, x64: None) -> None:
    def written_out(x: Any) -> Any:
        positive = (x > 0).all(1, keepdims=True)
        root = jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
        return (root @ root.T).sum()

    x = jnp.array([[0.0, 2.0], [1.0, 3.0], [2.0, 5.0]])
    got, expected = (
        jax.jit(DERIVATIVES[derivative](f))(x) for f in (lambda x: pairs(x, reduction="none").sum(), written_out)
    )
    close(got, expected)


B = ir.as_kind(ir.iota("b"), Kind.FLOAT)
MOVED: dict[str, Callable[[Node], Node]] = {
    "take": lambda x: ir.take(x, I.node, "b"),
    "sort": lambda x: ir.take(x, ir.argsort(ir.elementwise("cos", B), "b"), "b"),
    "rename": lambda x: ir.rename(x, "b", "b2") * (B + 1.0),
    "flip": lambda x: ir.flip(x, "b"),
    "cumsum": lambda x: ir.cumsum(x, "b"),
    "cumsum reversed": lambda x: ir.cumsum(x, "b", True),
    "shift": lambda x: ir.window(x, "b", "b", ir.extent(1), ir.extent(-1)),
    "cut": lambda x: ir.window(x, "b", "b2", ir.extent(1), ir.extent(1)),
    "join": lambda x: ir.join(x, ("b", "a"), "ab"),
    "split": lambda x: ir.split(ir.flip(ir.join(x, ("b", "a"), "ab"), "ab"), "ab", ("a", "b")),
    "sum": lambda x: ir.reduction("sum", x, {"b"}),
}


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("name", MOVED)
def test_infinite_derivative_behind_a_guard_on_moved_entries(name: str, x64: None, rng: np.random.Generator) -> None:
    m, index = rng.uniform(0.5, 2, (3, 4)), np.array([1, 3])
    zeros = [0, 2, 2], [0, 1, 3]
    m[zeros] = 0  # a square root has no derivative there
    (reached,) = evaluate([MOVED[name](M.node)], {M: (m == 0).astype(float), I: index})
    moved = MOVED[name](ir.elementwise("sqrt", M.node))
    axes = tuple(sorted(moved.axes))
    guard = Port(ir.input_("guard", axes, Kind.BOOL), axes)
    assert 0 < (reached == 0).sum() < reached.size
    harmless = m.copy()
    harmless[zeros] = [0.001, 0.002, 0.003]
    arrays = [[x, index, reached == 0] for x in (m, harmless)]
    _check_program((M, I, guard), ir.where(guard.node, moved * moved * moved, 0.0), *arrays)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_masked_entries_have_no_influence(reduction: str, bad: float, x64: None) -> None:
    p, t = jnp.array([[bad, 1.0], [2.0, 5.0]]), jnp.array([[0.0, bad], [1.0, 2.0]])
    mask = jnp.array([[False, False], [True, True]])
    weight = jnp.array([bad, 1.0])
    f = lambda p: jnp.sum(huber(p, t, mask=mask, reduction=reduction, weight=weight))  # noqa: E731
    scale = 2 if reduction == "mean" else 1
    assert f(p) == 3.0 / scale
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_array_equal(derivative(f)(p), np.array([[0, 0], [1, 1]]) / scale)
    for derivative in (jax.hessian, _hessian_by_reverse):
        np.testing.assert_array_equal(np.abs(jax.jit(derivative(f))(p)), 0)


@pytest.mark.parametrize("weight", [None, 0.0])
def test_nothing_left_gives_zero_and_a_zero_gradient(weight: float | None, x64: None) -> None:
    p = jnp.array([jnp.nan, 1.0])
    mask = jnp.zeros(2, bool) if weight is None else None
    f = lambda p: huber(p, jnp.zeros(2), mask=mask, weight=weight)  # noqa: E731
    p = p if weight is None else jnp.ones(2)
    assert f(p) == 0.0
    for derivative in (jax.grad, jax.jacfwd, jax.hessian, _hessian_by_reverse):
        np.testing.assert_array_equal(np.abs(jax.jit(derivative(f))(p)), 0)


def test_nan_in_gives_nan_out() -> None:
    p = jnp.array([jnp.nan, 1.0])
    value, gradient = jax.value_and_grad(huber)(p, jnp.zeros(2))
    assert np.isnan(value) and np.isnan(gradient[0]) and gradient[1] == 0.5


@pytest.mark.parametrize("index", [-1, 3])
def test_class_outside_of_its_axis(index: int) -> None:
    logits, target = jnp.zeros((2, 3)), jnp.array([1, index])
    with pytest.raises(IndexRangeError, match="axis 'class' has size 3"):
        cross_entropy(logits, target)
    traced = jax.jit(lambda x, t: cross_entropy(x, t, reduction="none"))(logits, target)
    assert np.isfinite(traced[0]) and np.isnan(traced[1])
    assert cross_entropy(logits, target, mask=jnp.array([True, False])) == pytest.approx(np.log(3))
    masked = jax.jit(jax.grad(cross_entropy))(logits, target, mask=jnp.array([True, False]))
    np.testing.assert_allclose(masked, [[1 / 3, -2 / 3, 1 / 3], [0, 0, 0]], 1e-6)


# ------------------------------------------------------------------------------------- the loss's own methods


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_hand_written_gradient_is_what_runs(reduction: str, x64: None) -> None:
    @lf.loss
    def absolute(pred, true, w):
        return w * lf.abs(pred - true)

    @absolute.gradient
    def by_hand(pred, true, w):
        return lf.where(pred >= true, w, -w)  # at a tie w, where the derived one is 0

    p, t, w = jnp.array([2.0, -1.0, 3.0]), jnp.array([0.0, -1.0, 4.0]), jnp.array([1.0, 2.0, 3.0])
    ours = lambda p: absolute(p, t, w, reduction=reduction).sum()  # noqa: E731
    expected = np.array([1.0, 2.0, -3.0]) / (3 if reduction == "mean" else 1)
    for derivative in (jax.grad, jax.jacfwd, lambda f: jax.jit(jax.jacrev(f))):
        close(derivative(ours)(p), expected)
    for derivative in (jax.hessian, _hessian_by_reverse):
        close(derivative(lambda p: jnp.sin(ours(p)))(p), -jnp.sin(ours(p)) * np.outer(expected, expected))


def test_methods_of_a_loss(dtype: str, rng: np.random.Generator) -> None:
    p, t, v = (jnp.asarray(a, dtype) for a in rng.normal(size=(3, 4, 3)))
    written_out = lambda p: _info_nce(p, t).mean()  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(written_out))(p)
    full = jax.jit(jax.hessian(written_out))(p).reshape(12, 12)
    for got, expected in (
        (info_nce.value_and_grad(p, t, wrt="a"), (value, gradient)),
        (info_nce.grad(p, t, wrt="a"), gradient),
        (info_nce.hessian_diagonal(p, t, wrt="a"), jnp.diag(full).reshape(4, 3)),
        (info_nce.hvp(p, t, wrt="a", vector=v), (full @ v.ravel()).reshape(4, 3)),
        (jax.jit(info_nce.value_and_grad)(p, t)[1][0], gradient),
    ):
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert isinstance(g, jax.Array) and g.dtype == dtype
            close(g, e, RTOL[dtype])


def test_derivatives_go_on_from_a_method(x64: None, rng: np.random.Generator) -> None:
    p, t = (jnp.asarray(a) for a in rng.normal(size=(2, 6)))

    @lf.loss
    def quartic(pred, true):
        return (pred - true) ** 4

    got = jax.grad(lambda p: quartic.hessian_diagonal(p, t, reduction="sum").sum())(p)
    close(got, 24 * (p - t))


# ------------------------------------------------------------------------------------- loss.jax()


def test_bound_function(x64: None, rng: np.random.Generator) -> None:
    f = huber.jax(delta=0.5, reduction="sum")
    p, t, w = (jnp.asarray(a) for a in rng.normal(size=(3, 4, 3)))
    written_out = lambda p, t: _huber(p, t, 0.5).sum()  # noqa: E731
    close(f(p, t), written_out(p, t))
    for transform in (jax.jit, jax.grad, jax.hessian, jax.vmap, lambda f: jax.vmap(jax.grad(f))):
        close(transform(f)(p, t), jax.jit(transform(written_out))(p, t))
    close(f(p, t, weight=w**2, mask=t > 0), _reduced(_huber(p, t, 0.5), "sum", w**2, t > 0))


def test_bound_function_as_an_object() -> None:
    f = huber.jax(delta=0.5, reduction="sum")
    assert repr(f) == "<JAX function huber(pred, true, delta=0.5, reduction='sum')>"
    assert f.__name__ == "huber"
    assert f == huber.jax(delta=0.5, reduction="sum") != huber.jax(delta=1.0, reduction="sum")
    traces = []

    def apply(loss: Any, p: Any) -> Any:
        traces.append(1)
        return loss(p, jnp.zeros(3))

    apply = jax.jit(apply, static_argnums=0)
    apply(f, jnp.ones(3)), apply(huber.jax(delta=0.5, reduction="sum"), jnp.ones(3))
    assert len(traces) == 1


# ------------------------------------------------------------------------------------- bad input

Z3 = jnp.zeros(3)
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "shape": (lambda: huber(Z3, jnp.zeros((3, 1))), ShapeError, r"\(3, 1\).*\(3,\)"),
    "shape under jit": (lambda: jax.jit(huber)(Z3, jnp.zeros((3, 1))), ShapeError, r"\(3, 1\).*\(3,\)"),
    "integer prediction": (lambda: huber(jnp.zeros(3, int), jnp.zeros(3)), DtypeError, "floating point"),
    "float target": (lambda: cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2)), DtypeError, "integer dtype"),
    "complex": (lambda: huber(jnp.zeros(3), jnp.zeros(3, complex)), DtypeError, "real numbers"),
    "numpy among jax": (lambda: huber(Z3, np.zeros(3)), FrameworkError, "'pred' is of jax.*'true' is of numpy"),
    "unknown parameter": (lambda: huber(Z3, Z3, gamma=1.0), ParameterError, "'gamma'"),
    "unknown parameter, bound": (lambda: huber.jax(gamma=1.0), ParameterError, "'gamma'.*delta"),
    "unknown reduction, bound": (lambda: huber.jax(reduction="avg"), ParameterError, "'avg'"),
    "vector parameter": (
        lambda: huber(Z3, Z3, delta=jnp.ones(3)), ParameterError, "must be a number",
    ),
    "list for a parameter": (lambda: huber(Z3, Z3, delta=[1.0]), ParameterError, "'delta'"),
    "list for an argument": (lambda: huber(Z3, [0.0] * 3), ShapeError, "'true'.*jax array"),
    "list for a weight": (lambda: huber(Z3, Z3, weight=[1.0] * 3), ShapeError, "weight"),
    "weight of a wrong shape": (lambda: huber(Z3, Z3, weight=jnp.ones(2)), ShapeError, "weight"),
    "float mask": (lambda: huber(Z3, Z3, mask=jnp.ones(3)), DtypeError, "mask"),
    "empty batch": (lambda: jax.jit(huber)(jnp.zeros((0, 3)), jnp.zeros((0, 3))), ShapeError, "empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input(name: str) -> None:
    call, error, text = ERRORS[name]
    with pytest.raises(error, match=text):
        call()
