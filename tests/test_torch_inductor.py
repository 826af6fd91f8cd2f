"""Losses on a GPU, fused by PyTorch's compiler. Without a GPU, CPU tensors take that way, and Dynamo runs what it traced."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import lossforge as lf

torch = pytest.importorskip("torch")

import lossforge.adapters.torch as adapter  # noqa: E402
from lossforge.adapters import torch_inductor, torch_kernels  # noqa: E402
from lossforge.catalogue import LOSSES  # noqa: E402
from test_catalogue import CASES as CATALOGUE  # noqa: E402
from test_catalogue import EACH, FULL  # noqa: E402
from torch_cases import CASES, assert_close, cross_entropy, huber, normal  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
on_a_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Nothing is kept from test to test; without a GPU, CPU tensors count as a GPU's."""
    torch._dynamo.reset()
    torch_inductor.ready.cache_clear()
    monkeypatch.setattr(adapter, "_steps", {})
    if not GPU:
        monkeypatch.setattr(torch_kernels, "form", lambda arrays: None)
        monkeypatch.setattr(torch_kernels, "is_plain", lambda tensor: False)
        monkeypatch.setattr(torch_inductor, "_is_plain", torch_kernels.holds_values)
        monkeypatch.setattr(torch_inductor, "_has_compiler", lambda device: True)
        monkeypatch.setattr(torch_inductor, "BACKEND", "aot_eager")
        multiply = SimpleNamespace(scale=lambda values, factor: values.mul_(factor))
        monkeypatch.setitem(sys.modules, "lossforge.adapters.triton_scale", multiply)
    yield
    torch_inductor.ready.cache_clear()


@pytest.fixture
def graphs(monkeypatch):
    """What the compiler was given."""
    found = []

    def compile_and_tell(graph, examples, **options):
        found.append(graph)
        return torch._dynamo.lookup_backend("inductor" if GPU else "aot_eager")(graph, examples)

    monkeypatch.setattr(torch_inductor, "BACKEND", compile_and_tell)
    return found


def to(device, values):
    return [v.detach().to(device).requires_grad_(v.requires_grad) for v in values]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fused_and_single_operations_agree(case, rng):
    arguments, parameters, _ = case.draw(rng, torch.float64)
    found = []
    for on in (True, False):
        args = to(DEVICE, arguments)
        given = dict(zip(parameters, to(DEVICE, parameters.values()), strict=True))
        leaves = [a for a in (*args, *given.values()) if a.requires_grad]
        before = lf.use_kernels(on)
        try:
            loss = case.loss(*args, **given)
            first = torch.autograd.grad(loss * 3, leaves, create_graph=True, allow_unused=True)
            twice = torch.autograd.grad(sum((g**2).sum() for g in first if g is not None), leaves, allow_unused=True)
        finally:
            lf.use_kernels(before)
        found.append([loss, *first, *twice])
    for by_compiler, by_operation in zip(*found, strict=True):
        assert (by_compiler is None) == (by_operation is None)
        if by_compiler is not None:
            assert_close(by_compiler, by_operation)


def test_a_loss_and_its_gradient_are_one_graph_for_every_size_and_parameter(graphs, rng):
    for n in (6, 7, 6, 8, 9, 10, 11):
        logits = normal(n, 5)(rng, torch.float32).to(DEVICE).requires_grad_()
        cross_entropy(logits, torch.tensor(rng.integers(0, 5, n), device=DEVICE)).backward()
    assert len(graphs) == 3  # for the first size, the second, and all others
    for delta in (0.1, 0.2, 0.3):
        pred = normal(6, 5)(rng, torch.float32).to(DEVICE).requires_grad_()
        huber(pred, torch.zeros_like(pred), delta=delta).backward()
    assert len(graphs) == 4


@pytest.mark.parametrize("upstream", [1.0, 3.0, 65536.0, -0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_an_upstream_factor_in_every_precision(dtype, upstream, rng):
    pred = normal(37, 5)(rng, dtype).to(DEVICE).requires_grad_()
    true = normal(37, 5)(rng, dtype).to(DEVICE)
    (huber(pred, true, delta=0.7) * upstream).backward()
    assert pred.grad.dtype is dtype
    error = pred.detach().double() - true.double()
    exact = upstream * error.clamp(-0.7, 0.7) / error.numel()
    roundings = 2 if dtype is torch.bfloat16 and upstream == 3 else 1  # see `ReducedLoss.backward`
    spacing = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    computed = 4 * (2.0**-52 if dtype is torch.float64 else 2.0**-23)
    bound = exact.abs() * (torch.finfo(dtype).eps * 0.51 * roundings + computed) + 0.51 * spacing
    assert ((pred.grad.double() - exact).abs() <= bound).all()


def test_what_cannot_be_compiled_runs_as_operations_and_says_so(monkeypatch, rng):
    def refuse(graph, examples, **options):
        raise NotImplementedError("no such thing\nand more")

    monkeypatch.setattr(torch_inductor, "BACKEND", refuse)
    pred = normal(6, 5)(rng, torch.float32).to(DEVICE).requires_grad_()
    with pytest.warns(RuntimeWarning, match="runs as single operations: .*no such thing"):
        loss = huber(pred, torch.zeros_like(pred))
    loss.backward()
    torch.testing.assert_close(pred.grad, pred.detach().clamp(-1, 1) / pred.numel())


def test_autocast_leaves_the_precision_alone(rng):
    a = normal(8, 16)(rng, torch.float32).to(DEVICE).requires_grad_()
    loss, b = CASES["infonce"].loss, normal(8, 16)(rng, torch.float32).to(DEVICE)
    plain = loss(a, b)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        cast = loss(a, b)
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------- on a GPU alone


@on_a_gpu
@pytest.mark.parametrize(("name", "parameters"), EACH)
def test_the_catalogue(name, parameters, rng):
    loss = LOSSES[name]
    arrays = CATALOGUE[name].draw(rng, 2, FULL)
    exact, wanted = loss.value_and_grad(*arrays, wrt=loss.predictions, **parameters)
    tensors = [torch.tensor(a, device="cuda", dtype=torch.float32 if a.dtype.kind == "f" else None) for a in arrays]
    chosen = [tensors[loss.arguments.index(p)].requires_grad_() for p in loss.predictions]
    value = loss(*tensors, **parameters)
    for found, expected in zip((value, *torch.autograd.grad(value, chosen)), (exact, *wanted), strict=True):
        expected = np.asarray(expected)
        # The inputs' rounding and up to some hundred more.
        assert np.abs(found.detach().cpu().numpy() - expected).max() <= 1e-4 * max(np.abs(expected).max(), 1e-3)


@on_a_gpu
@pytest.mark.parametrize("factor", [1.0, 3.0, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 4097, 10**7 + 1])
def test_the_kernel_that_scales(count, dtype, factor, rng):
    from lossforge.adapters.triton_scale import scale

    values = torch.tensor(rng.normal(size=count), device="cuda").to(dtype)
    by = torch.tensor(factor, device="cuda")
    expected = (values * by).to(dtype)
    scale(values, by)
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)


@on_a_gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts(layout, rng):
    logits = normal(2, 4, 9, 11)(rng, torch.float32).cuda().to(memory_format=layout).requires_grad_()
    target = torch.tensor(rng.integers(0, 4, (2, 9, 11)), device="cuda")
    (cross_entropy(logits, target) * 2).backward()
    expected = logits.detach().double().requires_grad_()
    (torch.nn.functional.cross_entropy(expected, target) * 2).backward()
    torch.testing.assert_close(logits.grad.double(), expected.grad, rtol=1e-5, atol=1e-9)


@on_a_gpu
def test_a_training_step_in_a_cuda_graph(rng):
    """What is captured is replayed on new values: nothing waits for the GPU, nothing is a constant."""
    pred = normal(64, 10)(rng, torch.float32).cuda().requires_grad_()
    true = normal(64, 10)(rng, torch.float32).cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            (huber(pred, true) * 2).backward()
    torch.cuda.current_stream().wait_stream(stream)
    pred.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (huber(pred, true) * 2).backward()
    with torch.no_grad():
        pred.copy_(normal(64, 10)(rng, torch.float32))
    graph.replay()
    expected = 2 * (pred.detach() - true).clamp(-1, 1) / pred.numel()
    torch.testing.assert_close(pred.grad, expected)


@on_a_gpu
def test_transforms(rng):
    pred, true = (normal(6, 5)(rng, torch.float64).cuda() for _ in range(2))
    expected = (pred - true).clamp(-1, 1) / pred.numel()
    assert_close(torch.func.grad(huber)(pred, true), expected)
    assert_close(torch.func.vmap(torch.func.grad(huber))(pred, true), expected * len(pred))
    compiled = torch.compile(huber)
    leaf = pred.clone().requires_grad_()
    compiled(leaf, true).backward()
    assert_close(leaf.grad, expected)


@on_a_gpu
def test_tensors_on_two_devices_are_refused(rng):
    pred = normal(6, 5)(rng, torch.float32).cuda().requires_grad_()
    with pytest.raises(RuntimeError, match="same device"):
        huber(pred, torch.zeros(6, 5))
