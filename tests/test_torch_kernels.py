"""PyTorch's CPU tensors in kernels: the same answers as the emitted text, and PyTorch's own expectations of memory."""

import numpy as np
import pytest

import lossforge as lf

torch = pytest.importorskip("torch")

from torch_cases import CASES, FLOAT, assert_close  # noqa: E402


@pytest.mark.parametrize("dtype", FLOAT)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernels_and_text_agree(case, dtype, rng):
    found = []
    arguments, parameters, leaves = case.draw(rng, FLOAT[dtype])
    for on in (True, False):
        before = lf.use_kernels(on)
        try:
            weight = torch.linspace(0.5, 1.5, case.shape[0] if case.shape else 1, dtype=FLOAT[dtype])
            loss = case.loss(*arguments, **parameters, weight=weight if case.shape else None)
            found.append([loss, *torch.autograd.grad(loss * 3, leaves, allow_unused=True)])
        finally:
            lf.use_kernels(before)
    for by_kernels, by_text in zip(*found, strict=True):
        assert (by_kernels is None) == (by_text is None)
        if by_text is not None:
            assert_close(by_kernels, by_text, dtype)


@lf.loss
def squared(pred, true):
    return (pred - true) ** 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_as_good_as_its_rounding(dtype, rng):
    half = getattr(torch, dtype)
    pred = torch.tensor(rng.normal(size=(7, 33)), dtype=half, requires_grad=True)
    true = torch.tensor(rng.normal(size=(7, 33)), dtype=half)
    loss = squared(pred, true)
    assert loss.dtype is torch.float32
    loss.backward()
    exact = 2 * (pred.detach().double() - true.double()) / pred.numel()
    assert pred.grad.dtype is half
    # Half an ulp of rounding to the dtype, and one of the float32 below it.
    assert ((pred.grad.double() - exact).abs() <= exact.abs() * torch.finfo(half).eps * 0.51 + 1e-7).all()


@pytest.mark.parametrize("upstream", [1.0, 65536.0, 0.3])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_under_an_upstream_factor(dtype, upstream, rng):
    half = getattr(torch, dtype)
    pred = torch.tensor(rng.normal(size=(512, 33)), dtype=half, requires_grad=True)
    true = torch.tensor(rng.normal(size=(512, 33)), dtype=half)
    (squared(pred, true) * upstream).backward()
    exact = 2 * upstream * (pred.detach().double() - true.double()) / pred.numel()
    # Half an ulp of rounding to the dtype; bfloat16 takes a second one where the factor is no power of two.
    roundings = 1 if dtype == "float16" or upstream != 0.3 else 2
    # float16's subnormal numbers are 6e-8 apart.
    spacing = torch.finfo(half).smallest_normal * torch.finfo(half).eps
    bound = exact.abs() * torch.finfo(half).eps * 0.51 * roundings + 0.51 * spacing
    assert ((pred.grad.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_second_backward_pass_in_any_precision(dtype, rng):
    pred = torch.tensor(rng.normal(size=(7, 33)), dtype=getattr(torch, dtype), requires_grad=True)
    loss = squared(pred, torch.zeros_like(pred.detach()))
    (first,) = torch.autograd.grad(loss, pred, retain_graph=True)
    kept = first.clone()
    first.zero_()  # it is the caller's own
    (second,) = torch.autograd.grad(loss, pred, torch.tensor(2.0), retain_graph=True)
    spacing = 2**-24 if dtype == "float16" else 0  # of subnormal numbers: they are not rounded in proportion
    torch.testing.assert_close(second, 2 * kept, rtol=0, atol=spacing)
    (batched,) = torch.autograd.grad(loss, pred, torch.tensor([1.0, 4.0]), is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack([kept, 4 * kept]), rtol=0, atol=2 * spacing)


def test_a_prediction_changed_in_place_is_noticed(rng):
    pred = torch.tensor(rng.normal(size=(7, 33)), requires_grad=True)
    moved = pred * 1
    loss = squared(moved, torch.zeros_like(pred))
    moved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


LAYOUTS = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "sliced": lambda t: torch.cat([t, t], 3)[..., ::2][..., : t.shape[3]] * 0 + t,
    "expanded": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, rng):
    pred = LAYOUTS[layout](torch.tensor(rng.normal(size=(2, 3, 4, 5)))).detach().requires_grad_()
    true = torch.tensor(rng.normal(size=(2, 3, 4, 5)))
    loss = squared(pred, true)
    (gradient,) = torch.autograd.grad(loss, pred)
    torch.testing.assert_close(gradient, 2 * (pred.detach() - true) / true.numel(), rtol=1e-12, atol=0)


def test_a_gradient_is_the_callers_own(rng):
    """Its memory is used again only when nobody holds it; accumulation in place may write to it."""
    pred = torch.tensor(rng.normal(size=600_000), dtype=torch.float32, requires_grad=True)
    true = torch.zeros_like(pred)
    squared(pred, true).backward()
    kept = pred.grad
    copy = kept.clone()
    for factor in (2.0, 3.0):
        pred.grad = None
        squared(factor * pred, true).backward()
    torch.testing.assert_close(kept, copy, rtol=0, atol=0)
    squared(pred, true).backward()  # accumulates
    assert pred.grad.data_ptr() != kept.data_ptr()


def test_a_forked_loader_worker_computes_a_loss():
    """In an interpreter of its own, since other tests load libraries that must not be forked."""
    import subprocess
    import sys

    program = """
import torch
from lossforge.catalogue import huber
class Data(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i):
        x = torch.linspace(-3, 3, 400_000) + i
        return huber(x, torch.zeros_like(x))
if __name__ == "__main__":
    data = Data()
    want = torch.stack([data[i] for i in range(8)])
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), want)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_numbers_and_integers_beside_tensors():
    pred = torch.tensor([0.5, 2.0], requires_grad=True)
    true = torch.tensor([0, 1])
    loss = squared(pred, true, reduction="sum")
    loss.backward()
    assert loss.item() == 1.25
    np.testing.assert_array_equal(pred.grad, [1.0, 2.0])
