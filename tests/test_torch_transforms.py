"""Losses of PyTorch tensors in `torch.func` and under `torch.compile`."""

import pytest

import lossforge as lf
from lossforge.errors import ShapeError

torch = pytest.importorskip("torch")
F = torch.nn.functional
grad, vmap = torch.func.grad, torch.func.vmap

from lossforge.adapters import torch_operators  # noqa: E402
from torch_cases import (  # noqa: E402
    CASES,
    assert_close,
    classes,
    cross_entropy,
    huber,
    normal,
    of_both,
    total,
    written_huber,
)

pytestmark = pytest.mark.filterwarnings(
    # What PyTorch says about itself: on the first use of forward mode, on capturing a tensor that is no leaf, and
    # on constants in `linearize`.
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:Attempted to insert a get_attr Node:UserWarning",
)


KERNELS = False  # the emitted text is tested here; see test_torch_kernels


def double(loss, x, *rest):
    (g,) = torch.autograd.grad(loss(x, *rest), x, create_graph=True)
    return torch.autograd.grad((g * torch.cos(x)).sum() + (g**2).sum(), x)[0]


TRANSFORMATIONS = {
    "value": lambda f, x, y: f(x, y),
    "grad": lambda f, x, y: grad(f)(x, y),
    "grad of both": lambda f, x, y: grad(f, argnums=(0, 1))(x, y),
    "grad of grad": lambda f, x, y: grad(lambda x: (grad(f)(x, y) ** 2).sum())(x),
    "vmap": lambda f, x, y: vmap(f)(x, y),
    "vmap of one": lambda f, x, y: vmap(f, in_dims=(1, None))(x, y[:, 0]),
    "vmap, last to last": lambda f, x, y: vmap(f, in_dims=(1, 1))(x, y),
    "vmap of vmap": lambda f, x, y: vmap(vmap(f, in_dims=(None, 0)), in_dims=(0, None))(x, y),
    "vmap of grad": lambda f, x, y: vmap(grad(f))(x, y),
    "grad of vmap": lambda f, x, y: grad(lambda x: (vmap(f)(x, y) ** 2).sum())(x),
    "vmap over nothing": lambda f, x, y: vmap(lambda s: s * f(x, y))(y[:, 0]),
    "jacrev": lambda f, x, y: torch.func.jacrev(f)(x, y),
    "jacfwd": lambda f, x, y: torch.func.jacfwd(f)(x, y),
    "jvp": lambda f, x, y: torch.func.jvp(f, (x, y), (torch.sin(x), torch.cos(y))),
    "vjp": lambda f, x, y: torch.func.vjp(f, x, y)[1](f(x, y)),
    "hessian": lambda f, x, y: torch.func.hessian(f)(x, y),
    "jacrev of jacrev": lambda f, x, y: torch.func.jacrev(torch.func.jacrev(f))(x, y),
    "jacrev of jacfwd": lambda f, x, y: torch.func.jacrev(torch.func.jacfwd(f))(x, y),
    "jacfwd of jacfwd": lambda f, x, y: torch.func.jacfwd(torch.func.jacfwd(f))(x, y),
    "linearize": lambda f, x, y: torch.func.linearize(lambda x: f(x, y), x)[1](torch.sin(x)),
}
BY_CLASS = sorted(set(TRANSFORMATIONS) - {"grad of both", "grad of vmap", "vmap of one", "vmap of vmap"})
BY_CLASS = [n for n in BY_CLASS if n not in ("vmap", "vmap, last to last", "vmap of grad")]


def elementwise_pair(reduction):
    return (
        lambda x, y: huber(x, y, delta=0.8, reduction=reduction),
        lambda x, y: total(written_huber(x, y, 0.8), reduction),
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations_of_an_elementwise_loss(name, reduction, rng):
    ours, written = elementwise_pair(reduction)
    if "grad" in name and reduction == "none":  # func.grad takes scalars
        (ours, written), outer = elementwise_pair(reduction), torch.sum
        ours, written = (lambda x, y, f=f: outer(f(x, y) * torch.cos(y)) for f in (ours, written))
    x, y = (normal(4, 4)(rng) for _ in range(2))
    transformation = TRANSFORMATIONS[name]
    assert_close(transformation(ours, x, y), transformation(written, x, y))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", BY_CLASS)
def test_transformations_of_a_loss_with_classes(name, reduction, rng):
    x = normal(2, 3, 2)(rng)
    y = normal(2, 2)(rng)
    t = classes(2, 2, below=3)(rng)

    def build(function):
        def loss(x, y):
            result = function(x) * (1.0 if reduction == "mean" else y)
            return result.sum() if "grad" in name else result

        return loss

    ours = build(lambda x: cross_entropy(x, t, reduction=reduction))
    written = build(lambda x: F.cross_entropy(x, t, reduction=reduction))
    transformation = TRANSFORMATIONS[name]
    assert_close(transformation(ours, x, y), transformation(written, x, y))


def test_vmap_over_samples_with_classes(rng):
    x = normal(3, 5, 4)(rng)
    t = classes(3, 4, below=5)(rng)
    one = vmap(lambda x, t: cross_entropy(x[None], t[None]))
    assert_close(one(x, t), F.cross_entropy(x, t, reduction="none").mean(1))
    batched_targets = vmap(lambda t: cross_entropy(x, t), in_dims=0)(torch.stack([t, (t + 1) % 5]))
    assert_close(batched_targets, torch.stack([F.cross_entropy(x, t), F.cross_entropy(x, (t + 1) % 5)]))


def test_vmap_over_a_parameter(rng):
    x, y = (normal(6)(rng, torch.float32) for _ in range(2))
    deltas = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64)
    found = vmap(lambda d: huber(x, y, delta=d))(deltas)
    assert found.dtype is torch.float32
    assert_close(found, torch.stack([F.huber_loss(x, y, delta=float(d)) for d in deltas]), "float32")


@pytest.mark.parametrize("method", ["grad", "value_and_grad", "hvp", "hessian_diagonal"])
def test_methods_without_a_graph(method, rng):
    x, y, v = (normal(5)(rng).requires_grad_() for _ in range(3))

    def squared_error(x, y):
        return (torch.cosh(x - y)).mean()

    @lf.loss
    def ours(pred, true):
        return lf.cosh(pred - true)

    hessian = torch.func.hessian(squared_error)(x, y)
    expected = {
        "grad": grad(squared_error)(x, y),
        "value_and_grad": (squared_error(x, y), grad(squared_error)(x, y)),
        "hvp": hessian @ v,
        "hessian_diagonal": hessian.diagonal(),
    }[method]
    found = getattr(ours, method)(x, y, **({"vector": v} if method == "hvp" else {}))
    for f, e in zip(*((r if isinstance(r, tuple) else (r,)) for r in (found, expected)), strict=True):
        assert not f.requires_grad
        assert_close(f, e.detach())


def test_methods_inside_func_are_functions_of_their_inputs(rng):
    x, y = (normal(5)(rng) for _ in range(2))
    found = grad(lambda x: (huber.grad(x, y) ** 2).sum())(x)
    written = grad(lambda x, y: written_huber(x, y).mean())
    assert_close(found, grad(lambda x: (written(x, y) ** 2).sum())(x))
    rows = vmap(lambda x, y: huber.grad(x, y))(x[:, None], y[:, None])
    assert_close(rows[:, 0], (x - y).clamp(-1, 1))


# ---------------------------------------------------------------------------------------- under torch.compile


@pytest.fixture(params=["operations", "operators"])
def compiled(request, monkeypatch):
    """`torch.compile` with a clean slate before and after; of small tensors as operations, and left whole."""
    if request.param == "operators":
        monkeypatch.setattr(torch_operators, "SMALL", 0)
        lf.use_kernels(True)
    torch._dynamo.reset()
    yield lambda f, **kwargs: torch.compile(f, **{"backend": "aot_eager", "fullgraph": True, **kwargs})
    torch._dynamo.reset()
    lf.use_kernels(KERNELS)


COMPILED = ["value", "grad", "vmap", "vmap of grad", "grad of vmap", "jacrev", "jvp", "hessian"]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_transformations(name, compiled, rng):
    ours, written = elementwise_pair("mean")
    x, y = (normal(4, 3)(rng) for _ in range(2))
    transformation = TRANSFORMATIONS[name]
    assert_close(compiled(lambda x, y: transformation(ours, x, y))(x, y), transformation(written, x, y))


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("name", ["huber_learned", "cross_entropy_2d", "infonce"])
def test_compiled_backward(name, fullgraph, compiled, rng):
    case = CASES[name]

    def step(*arguments, **parameters):
        return 2 * case.loss(*arguments, reduction="sum", **parameters)

    step = compiled(step, fullgraph=fullgraph)
    arguments, parameters, leaves = case.draw(rng, torch.float64)
    expected = 2 * case.written(*arguments, **parameters).sum()
    found = step(*arguments, **parameters)
    assert_close(found, expected)
    upstream = torch.tensor(-1.7, dtype=torch.float64)
    for f, e in zip(*(torch.autograd.grad(v, leaves, upstream) for v in (found, expected)), strict=True):
        assert_close(f, e)


def test_compiled_with_the_default_compiler_and_upstream_gradients_of_each_entry(compiled, rng):
    loss = compiled(lambda x, y, d: huber(x, y, delta=d, reduction="none"), backend="inductor")
    x, y = (normal(6, 5)(rng, torch.float32).requires_grad_() for _ in range(2))
    delta = torch.tensor(0.7, requires_grad=True)
    upstream = normal(6, 5)(rng, torch.float32)
    found, expected = loss(x, y, delta), written_huber(x, y, delta)
    assert_close(found, expected, "float32")
    leaves = (x, y, delta)
    for f, e in zip(*(torch.autograd.grad(v, leaves, upstream) for v in (found, expected)), strict=True):
        assert_close(f, e, "float32")


def test_compiled_once_for_many_shapes_and_parameters(compiled, rng):
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph

    loss = compiled(lambda x, y, d: huber(x, y, delta=d), backend=backend)
    for n in range(2, 8):
        x, y = (normal(n, 3)(rng) for _ in range(2))
        assert_close(loss(x, y, n / 10), F.huber_loss(x, y, delta=n / 10))
    assert len(graphs) <= 2  # one for the first shape, one for all others


def test_compiled_one_tensor_for_both_arguments(compiled, rng):
    x = normal(5)(rng).requires_grad_()
    step = compiled(lambda x: (huber(x, 2 * x) - huber(x, x)).sum())
    (found,) = torch.autograd.grad(step(x), x)
    assert_close(found, of_both(lambda a, b: written_huber(a, b).mean(), x))


def test_compiled_module_with_a_learned_parameter(compiled, rng):
    module = huber.torch(learn=("delta",), delta=0.6)
    x, y = (normal(5)(rng, torch.float32) for _ in range(2))
    compiled(module)(x, y).backward()
    delta = torch.tensor(0.6, requires_grad=True)
    written_huber(x, y, delta).mean().backward()
    assert_close(module.delta.grad, delta.grad, "float32")


@pytest.mark.parametrize("method", ["value_and_grad", "hessian_diagonal"])
def test_compiled_methods(method, compiled, rng):
    x, y = (normal(5)(rng) for _ in range(2))
    plain = getattr(huber, method)
    torch.testing.assert_close(compiled(lambda x, y: plain(x, y))(x, y), plain(x, y), rtol=1e-14, atol=0)


def test_compiled_double_backward_is_refused_by_the_compiler_or_right(compiled, rng):
    x, y = (normal(4)(rng) for _ in range(2))
    x.requires_grad_()
    (g,) = torch.autograd.grad(compiled(huber)(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError):  # of AOTAutograd, whatever was compiled
        torch.autograd.grad((g**2).sum(), x)
    inside = compiled(lambda x, y: double(huber, x, y), backend="eager", fullgraph=False)
    assert_close(inside(x, y), double(lambda x, y: written_huber(x, y).mean(), x, y))


def test_compiled_errors_are_the_ones_of_a_plain_call(compiled):
    with pytest.raises(ShapeError, match="broadcasts nothing"):
        compiled(lambda x, y: huber(x, y), fullgraph=False)(torch.zeros(3, 1), torch.zeros(3))


def test_compiled_classes_out_of_range_give_nan(compiled):
    loss = compiled(lambda x, t: cross_entropy(x, t))
    assert loss(torch.zeros(2, 3), torch.tensor([0, 3])).isnan()
