"""Programs as operators under `torch.compile`: one node of the graph, the answers of an eager call, and `opcheck`."""

import functools
import gc

import pytest

torch = pytest.importorskip("torch")

from lossforge.adapters import torch_operators  # noqa: E402
from torch_cases import CASES, assert_close, huber, normal, written_huber  # noqa: E402

OPERATORS = torch.ops.lossforge


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Losses of any size are left whole; no graph is kept from test to test."""
    monkeypatch.setattr(torch_operators, "SMALL", 0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


LAYOUTS = {
    "plain": lambda t: t,
    "transposed": lambda t: t.t().contiguous().t(),
    "sliced": lambda t: torch.stack([t, t], -1)[..., 0],
    "empty": lambda t: t[:0],
}


@pytest.mark.parametrize(
    ("layout", "dtype"), [*((layout, torch.float32) for layout in LAYOUTS), ("transposed", torch.bfloat16)]
)
def test_opcheck(layout, dtype, rng):
    x, y = (LAYOUTS[layout](normal(6, 5)(rng, dtype)) for _ in range(2))
    plan = huber.bind((x, y), {}, reduction="sum").plan
    precision = torch.float64 if dtype is torch.float64 else torch.float32
    is_tensor = (True, True, False)
    keys = [
        torch_operators._register(torch_operators._Entry(plan.value_and_gradient(("pred",)), precision, is_tensor)),
        torch_operators._reduced_key(plan, ("pred",), (x, y, 0.7), precision),
    ]
    torch.library.opcheck(OPERATORS.evaluate.default, (keys[0], [x, y], [0.7]))
    torch.library.opcheck(OPERATORS.reduced.default, (keys[1], [x, y], [0.7]))
    _, token = OPERATORS.reduced(keys[1], [x, y], [0.7])
    cotangent = torch.tensor(-1.7, dtype=precision)
    torch.library.opcheck(OPERATORS.reduced_backward.default, (keys[1], [x, y], [0.7], cotangent, token))


def graph_of(function, *args):
    graphs = []

    def keep(graph, examples):
        graphs.append(graph)
        return graph.forward

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(
        fw_compiler=lambda g, e: make_boxed_func(keep(g, e)), bw_compiler=lambda g, e: make_boxed_func(keep(g, e))
    )
    out = torch.compile(function, backend=backend, fullgraph=True)(*args)
    out.sum().backward()
    return [
        [str(n.target) for n in g.graph.nodes if n.op == "call_function" and "lossforge" in str(n.target)]
        for g in graphs
    ]


def test_a_loss_is_one_node_forward_and_one_backward(rng):
    x, y = (normal(6, 5)(rng, torch.float32) for _ in range(2))
    x.requires_grad_()
    whole = graph_of(lambda x, y: huber(3 * x, y), x, y)
    assert whole == [["lossforge.reduced.default"], ["lossforge.reduced_backward.default"]]
    entries = graph_of(lambda x, y: huber(3 * x, y, reduction="none"), x, y)
    assert entries == [["lossforge.evaluate.default"], ["lossforge.evaluate.default"]]
    half = graph_of(lambda x, y: huber(x.half(), y), x, y)  # its gradient is computed with the upstream factor
    assert half == [["lossforge.evaluate.default"], ["lossforge.evaluate.default"]]


def test_small_losses_and_other_devices_are_left_to_the_compiler(rng, monkeypatch):
    monkeypatch.setattr(torch_operators, "SMALL", 31)
    x, y = (normal(6, 5)(rng, torch.float32) for _ in range(2))
    assert graph_of(lambda x, y: huber(x, y), x.requires_grad_(), y) == [[], []]
    with torch_operators.compiling():
        assert not torch_operators.wanted([torch.zeros(99, device="meta")])


@pytest.mark.parametrize("name", CASES)
def test_every_case_with_uneven_upstream_gradients(name, rng):
    case = CASES[name]
    arguments, parameters, leaves = case.draw(rng, torch.float64)
    for reduction in ("sum", "none"):
        whole = functools.partial(case.loss, reduction=reduction)
        step = torch.compile(lambda *a, loss=whole, **p: loss(*a, **p), backend="aot_eager", fullgraph=True)
        found, expected = step(*arguments, **parameters), case.written(*arguments, **parameters)
        expected = expected.sum() if reduction == "sum" else expected
        assert_close(found, expected)
        upstream = torch.linspace(-1, 2, max(1, expected.numel()), dtype=torch.float64).reshape(expected.shape)
        pairs = (torch.autograd.grad(v, leaves, upstream, allow_unused=True) for v in (found, expected))
        for f, e in zip(*pairs, strict=True):
            if e is not None:
                assert_close(f, e)


def test_a_second_backward_pass_computes_the_gradient_anew(rng):
    x, y = (normal(6, 5)(rng) for _ in range(2))
    x.requires_grad_()
    loss = torch.compile(lambda x, y: huber(x, y), backend="aot_eager", fullgraph=True)(x, y)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    first.zero_()  # it was the caller's own
    (second,) = torch.autograd.grad(loss, x, torch.tensor(3.0, dtype=torch.float64))
    assert_close(second, 3 * kept)


def test_gradients_that_nobody_asks_for_go_with_the_graph(rng):
    x, y = (normal(6, 5)(rng) for _ in range(2))
    step = torch.compile(lambda x, y: huber(x, y), backend="aot_eager", fullgraph=True)
    loss = step(x.requires_grad_(), y)
    assert len(torch_operators._pending) == 1
    del loss
    gc.collect()
    assert not torch_operators._pending


def test_an_operator_refuses_to_be_differentiated(rng):
    x, y = (normal(6, 5)(rng) for _ in range(2))
    plan = huber.bind((x, y), {}).plan
    key = torch_operators._reduced_key(plan, ("pred",), (x, y, 1.0), torch.float64)
    loss, _ = OPERATORS.reduced(key, [x.requires_grad_(), y], [1.0])
    with pytest.raises(RuntimeError, match="no backward pass of its own"):
        loss.backward()


def test_a_graph_from_another_process_says_so(rng):
    with pytest.raises(RuntimeError, match="runs where its loss was traced"):
        OPERATORS.evaluate("no such key", [torch.zeros(3)], [])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inductor_with_changing_shapes(layout, rng):
    step = torch.compile(lambda x, y: huber(x, y, reduction="sum"), fullgraph=True, dynamic=True)
    for n in (4, 7):
        x, y = (LAYOUTS[layout](normal(n, 5)(rng, torch.float32)) for _ in range(2))
        x.requires_grad_()
        (found,) = torch.autograd.grad(step(x, y), x, torch.tensor(2.5))
        (expected,) = torch.autograd.grad(written_huber(x, y).sum(), x, torch.tensor(2.5))
        assert_close(found, expected, "float32")
