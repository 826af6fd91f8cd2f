"""Losses of PyTorch tensors in autograd: against PyTorch's own derivatives, and in autograd's corners."""

import numpy as np
import pytest

import lossforge as lf
from lossforge.errors import DtypeError, FrameworkError, IndexRangeError, ParameterError, ShapeError

torch = pytest.importorskip("torch")
F = torch.nn.functional

from torch_cases import (  # noqa: E402
    ALL,
    FLOAT,
    assert_close,
    classes,
    cross_entropy,
    dice,
    huber,
    infonce,
    normal,
    of_both,
    positive,
    total,
    written_dice,
    written_huber,
)

pytestmark = pytest.mark.filterwarnings(
    # What PyTorch says about itself: on the first use of forward mode, and on operations that have no rule for
    # the old vmap, by which gradcheck batches upstream gradients.
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
    "ignore:There is a performance drop:UserWarning",
)

KERNELS = False  # the emitted text is tested here; see test_torch_kernels

WEIGHTS = ["", "weight", "weight of each sample", "mask", "weight and mask"]


@pytest.mark.parametrize("dtype", FLOAT)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", ALL)
def test_losses_against_autograd(case, reduction, weights, dtype, rng):
    arguments, parameters, leaves = case.draw(rng, FLOAT[dtype])
    extra = {}
    if "weight" in weights:
        shape = case.shape[:1] if "sample" in weights else case.shape
        extra["weight"] = positive(*shape)(rng, FLOAT[dtype]).requires_grad_()
        leaves = [*leaves, extra["weight"]]
    if "mask" in weights:
        extra["mask"] = torch.tensor(rng.random(size=case.shape) > 0.4)
        extra["mask"].view(-1)[0] = True
    expected = total(case.written(*arguments, **parameters), reduction, **extra)
    found = case.loss(*arguments, **parameters, **extra, reduction=reduction)
    assert found.dtype is expected.dtype
    assert_close(found, expected, dtype)
    upstream = normal(*expected.shape)(rng, FLOAT[dtype])
    for name, f, e in zip(
        [str(tuple(t.shape)) for t in leaves],
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    ):
        assert_close(f, e, dtype, f"gradient of the input of shape {name}")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", ALL)
def test_gradcheck_in_both_modes_and_batched(case, reduction, rng):
    function, leaves = case.function(rng, reduction=reduction)
    # The old vmap, by which gradcheck batches upstream gradients, has no rule for products of matrices.
    batched = case.loss is not infonce or reduction == "mean"
    assert torch.autograd.gradcheck(
        function, leaves, check_forward_ad=True, check_batched_grad=batched, check_batched_forward_grad=True
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", ALL)
def test_gradgradcheck_in_both_modes(case, reduction, rng):
    function, leaves = case.function(rng, reduction=reduction)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True)


def test_third_derivatives(rng):
    x = normal(3)(rng).requires_grad_()
    y = normal(3)(rng)

    def third(loss):
        value = loss(x, y.exp())
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value

    @lf.loss
    def log_cosh(pred, true):
        return lf.log(lf.cosh(pred - true)) * pred

    assert_close(third(log_cosh), third(lambda p, t: ((p - t).cosh().log() * p).mean()))


# ---------------------------------------------------------------------------------------- autograd's corners


def test_one_tensor_for_both_arguments(rng):
    x = normal(5)(rng).requires_grad_()
    assert_close(of_both(huber, x), of_both(lambda a, b: written_huber(a, b).mean(), x))


def test_a_second_backward_pass_adds_the_same_gradient(rng):
    x, y = (normal(5)(rng) for _ in range(2))
    x.requires_grad_()
    loss = huber(x, y)
    for count in (1, 2, 3):
        loss.backward(retain_graph=True)
        assert_close(x.grad, count * (x - y).clamp(-1, 1).detach() / 5)


def test_the_gradient_belongs_to_its_receiver(rng):
    x = normal(5)(rng).requires_grad_()
    loss = huber(x, torch.zeros_like(x))
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    first.zero_()
    assert torch.autograd.grad(loss, x)[0].abs().sum() > 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("changed", [0, 1])
def test_a_change_in_place_before_backward_is_noticed(reduction, changed, rng):
    leaves = [normal(4)(rng).requires_grad_() for _ in range(2)]
    arguments = [t.clone() for t in leaves]
    loss = huber(*arguments, reduction=reduction)
    with torch.no_grad():
        arguments[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_results_share_no_memory_with_arguments_or_each_other():
    @lf.loss
    def linear(pred, other):
        return pred + 0 * lf.stop_gradient(other)

    x = torch.ones(3, requires_grad=True)
    value = linear(x, torch.zeros(3), reduction="none")
    with torch.no_grad():
        value.mul_(5)
    assert x.tolist() == [1, 1, 1]
    both = lf.loss(lambda pred, other: lf.exp(pred + other))
    a, b = both.grad(x, torch.zeros(3), wrt=("pred", "other"), reduction="sum")
    a.zero_()
    assert_close(b, torch.full((3,), float(np.exp(1.0))), "float32")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context, rng):
    x, y = (normal(4)(rng).requires_grad_() for _ in range(2))
    with context():
        value = huber(x, y)
    assert not value.requires_grad
    assert_close(value, written_huber(x, y).mean().detach())
    assert not huber(x.detach(), y.detach()).requires_grad


LAYOUTS = {
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "every second": lambda t: torch.stack([t, t], -1).flatten(3)[..., ::2],
    "expanded": lambda t: t[:1].expand(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", [huber, dice], ids=lambda loss: loss.name)
def test_layouts(loss, layout, rng):
    x, y = (torch.tensor(rng.uniform(0.1, 1, size=(2, 3, 4, 5)), dtype=torch.float64) for _ in range(2))
    if layout == "expanded":
        x = x[:1].expand(x.shape)
    strided = LAYOUTS[layout](x).requires_grad_() if layout != "expanded" else x.detach().requires_grad_()
    plain = x.contiguous().detach().requires_grad_()
    found, expected = loss(strided, y), loss(plain, y)
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found, strided)[0], torch.autograd.grad(expected, plain)[0])


def test_no_dimensions(rng):
    x, y = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 1.7))
    for reduction in ("mean", "sum", "none"):
        loss = huber(x, y, reduction=reduction)
        assert loss.shape == ()
        gradients = torch.autograd.grad(loss, (x, y))
        assert_close(torch.stack(gradients), torch.tensor([-1.0, 1.0], dtype=torch.float64))


def test_all_scalars_stay_in_their_precision():
    @lf.loss(", -> ")
    def squared(pred, true):
        return (pred - true) ** 2

    x = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    loss = squared(x, torch.tensor(0.4, dtype=torch.float64))
    assert loss.dtype is torch.float64
    assert_close(torch.autograd.grad(loss, x)[0], torch.tensor(-0.6, dtype=torch.float64))


def test_everything_masked_is_zero_with_zero_gradient():
    x = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    loss = huber(x, torch.zeros(1, 2), mask=torch.zeros(1, 2, dtype=torch.bool))
    loss.backward()
    assert (loss.item(), x.grad.tolist()) == (0.0, [[0.0, 0.0]])


def test_nan_in_gives_nan_out_in_value_and_gradient():
    x = torch.tensor([0.5, float("nan")], requires_grad=True)
    loss = huber(x, torch.zeros(2))
    loss.backward()
    assert loss.isnan() and x.grad.isnan().tolist() == [False, True]


# ---------------------------------------------------------------------------------------- dtypes and devices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_half_precision_computes_in_float32(dtype, reduction, rng):
    x, y = (normal(300)(rng, dtype) for _ in range(2))
    x.requires_grad_()
    loss = huber(x, y, reduction=reduction)
    expected = total(written_huber(x.float(), y.float()), reduction)
    assert loss.dtype is torch.float32
    assert_close(loss, expected, "float32")
    upstream = torch.ones_like(loss)
    (found,) = torch.autograd.grad(loss, x, upstream)
    (exact,) = torch.autograd.grad(expected, x, upstream)
    assert found.dtype is dtype
    torch.testing.assert_close(found, exact)


def test_a_large_upstream_factor_saves_small_gradients_in_half_precision():
    x = torch.full((1 << 16,), 0.01, dtype=torch.float16, requires_grad=True)
    scale = 65536.0  # of a GradScaler: the gradient itself, 0.01 / 65536, is below the smallest float16
    (found,) = torch.autograd.grad(huber(x, torch.zeros_like(x)) * scale, x)
    torch.testing.assert_close(found, x.detach())


def test_gradients_of_each_dtype_in_one_call(rng):
    x = normal(4)(rng, torch.float16).requires_grad_()
    y = normal(4)(rng, torch.float32).requires_grad_()
    delta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    loss = huber(x, y, delta=delta)
    loss.backward()
    dtypes = [loss.dtype, x.grad.dtype, y.grad.dtype, delta.grad.dtype]
    assert dtypes == [torch.float32, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool], ids=str)
def test_integer_and_bool_targets(dtype, rng):
    x = torch.tensor(rng.uniform(size=(1, 2, 6)), dtype=torch.float64, requires_grad=True)
    true = classes(1, 2, 6, below=2)(rng).to(dtype)
    found, expected = dice(x, true), written_dice(x, true.double()).mean()
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found, x)[0], torch.autograd.grad(expected, x)[0])
    with pytest.raises(DtypeError, match="floating point"):
        huber(true, x)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8], ids=str)
def test_class_indices_of_any_integer_type(dtype, rng):
    x, t = normal(5, 3)(rng), classes(5, below=3)(rng)
    assert_close(cross_entropy(x, t.to(dtype)), F.cross_entropy(x, t))


def test_under_autocast(rng):
    layer = torch.nn.Linear(4, 4)
    x, y = (normal(3, 4)(rng, torch.float32) for _ in range(2))
    similar = lf.loss("batch d, batch d -> batch")(
        lambda pred, true: lf.sum(lf.sum(pred * lf.rename(true, "batch", "other"), "d") ** 2, "other")
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        loss = similar(out, y)
    assert out.dtype is torch.bfloat16 and loss.dtype is torch.float32
    assert_close(loss, ((out.float() @ y.T) ** 2).sum(1).mean(), "float32")
    loss.backward()
    assert layer.weight.grad.dtype is torch.float32


def test_parameters_are_made_where_the_tensors_are():
    x = torch.zeros(3, 2, device="meta", requires_grad=True)
    loss = huber(x, torch.zeros(3, 2, device="meta"), delta=0.7, weight=torch.ones(3, device="meta"))
    assert (loss.device.type, torch.autograd.grad(loss, x)[0].device.type) == ("meta", "meta")
    loss = cross_entropy(x, torch.zeros(3, dtype=torch.int64, device="meta"))
    assert torch.autograd.grad(loss, x)[0].shape == (3, 2)


# ---------------------------------------------------------------------------------------- bad calls


THREE, LOGITS = torch.zeros(3), torch.zeros(2, 3)
BAD = {
    "shape": (lambda: huber(torch.zeros(3, 1), THREE), ShapeError, "broadcasts nothing"),
    "framework": (lambda: huber(THREE, np.zeros(3)), FrameworkError, "numpy"),
    "list": (lambda: huber(THREE, [0.0, 0.0, 0.0]), ShapeError, "'true' is a Python number or list"),
    "list of weights": (lambda: huber(THREE, THREE, weight=[1, 2, 3]), ShapeError, "'weight' is a Python"),
    "weight": (lambda: huber(THREE, THREE, weight=torch.zeros(2)), ShapeError, "weight has shape"),
    "parameter": (lambda: huber(THREE, THREE, beta=1.0), ParameterError, "beta"),
    "array as parameter": (lambda: huber(THREE, THREE, delta=torch.ones(2)), ParameterError, "a number"),
    "empty": (lambda: huber(torch.zeros(0), torch.zeros(0)), ShapeError, "mean of nothing"),
    "complex": (lambda: huber(THREE.to(torch.complex64), THREE), DtypeError, "complex64"),
    "class above": (lambda: cross_entropy(LOGITS, torch.tensor([0, 3])), IndexRangeError, "from 0 to 3"),
    "class below": (lambda: cross_entropy(LOGITS, torch.tensor([-100, 1])), IndexRangeError, "mask="),
    "float class": (lambda: cross_entropy(LOGITS, torch.zeros(2)), DtypeError, "integer"),
    "axis": (lambda: cross_entropy(LOGITS, torch.zeros(3).long()), ShapeError, "'batch'"),
    "module: parameter": (lambda: huber.torch(beta=1.0), ParameterError, "beta"),
    "module: array": (lambda: huber.torch(delta=torch.ones(1)), ParameterError, "a number"),
    "module: reduction": (lambda: huber.torch(reduction="average"), ParameterError, "average"),
    "module: learn": (lambda: huber.torch(learn=("beta",)), ParameterError, "beta"),
    "module: missing": (lambda: no_default.torch(), ParameterError, "no default"),
}


@lf.loss
def no_default(pred, true, *, scale):
    return scale * (pred - true)


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name):
    call, error, match = BAD[name]
    with pytest.raises(error, match=match):
        call()


# ------------------------------------------------------------------------- calls of a form that was seen before


def _value_and_gradient(loss, x, y, **options):
    x = x.detach().requires_grad_()
    value = loss(x, y, **options)
    return value.detach(), *torch.autograd.grad(value.sum(), x)


def _second_derivative(loss, x, y):
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), x)


def _without_gradient(loss, x, y):
    with torch.no_grad():
        value = loss(x.requires_grad_(), y)
    assert not value.requires_grad
    return (value,)


def _forward_mode(loss, x, y):
    with torch.autograd.forward_ad.dual_level():
        dual = loss(torch.autograd.forward_ad.make_dual(x.requires_grad_(), torch.ones_like(x)), y)
        return tuple(torch.autograd.forward_ad.unpack_dual(dual))


def _kernels_on(loss, x, y):
    before = lf.use_kernels(True)
    try:
        return _value_and_gradient(loss, x, y)
    finally:
        lf.use_kernels(before)


def _one_thread(loss, x, y):
    before = lf.get_num_threads()
    lf.set_num_threads(1)
    try:
        return _value_and_gradient(loss, x, y)
    finally:
        lf.set_num_threads(before)


LATER_CALLS = {
    "the same": _value_and_gradient,
    "another parameter": lambda loss, x, y: _value_and_gradient(loss, x, y, delta=0.5),
    "a whole parameter": lambda loss, x, y: _value_and_gradient(loss, x, y, delta=2.0),
    "a learned parameter": lambda loss, x, y: _value_and_gradient(loss, x, y, delta=torch.tensor(0.5)),
    "weights": lambda loss, x, y: _value_and_gradient(loss, x, y, weight=y.abs()),
    "a mask": lambda loss, x, y: _value_and_gradient(loss, x, y, mask=y > 0),
    "a sum": lambda loss, x, y: _value_and_gradient(loss, x, y, reduction="sum"),
    "each entry": lambda loss, x, y: _value_and_gradient(loss, x, y, reduction="none"),
    "by name": lambda loss, x, y: _value_and_gradient(lambda x, y: loss(x, true=y), x, y),
    "the other order": lambda loss, x, y: _value_and_gradient(lambda x, y: loss(true=x, pred=y), x, y),
    "another layout": lambda loss, x, y: _value_and_gradient(loss, x, y.T.contiguous().T),
    "another dtype": lambda loss, x, y: _value_and_gradient(loss, x, y.double()),
    "one tensor twice": lambda loss, x, y: _value_and_gradient(lambda x, y: loss(x, x + 0 * y), x, y),
    "a gradient for both": lambda loss, x, y: _value_and_gradient(loss, x, y.requires_grad_()),
    "a second derivative": _second_derivative,
    "no gradient": _without_gradient,
    "forward mode": _forward_mode,
    "torch.func": lambda loss, x, y: (torch.func.grad(loss)(x, y), torch.func.vmap(loss)(x, y)),
    "as a constant": lambda loss, x, y: (loss(x, y),),
    "kernels on": _kernels_on,
    "one thread": _one_thread,
}


@pytest.mark.parametrize("later", LATER_CALLS)
def test_a_call_is_the_same_whatever_was_called_before(later, rng):
    """How calls are taken is remembered by their form, which must hold all that decides on it."""
    arrays = [normal(4, 3)(rng) for _ in range(2)]
    used, fresh = (lf.loss(huber.function) for _ in range(2))
    for _ in range(2):  # the second call is one of a known form
        _value_and_gradient(used, *arrays)
    expected = LATER_CALLS[later](fresh, *(a.clone() for a in arrays))
    for _ in range(2):
        for a, b in zip(LATER_CALLS[later](used, *(a.clone() for a in arrays)), expected, strict=True):
            assert a.requires_grad == b.requires_grad
            assert_close(a.detach(), b.detach())
    assert_close(_value_and_gradient(used, *arrays)[1], _value_and_gradient(fresh, *arrays)[1])


def test_classes_are_looked_at_in_every_call(rng):
    x = normal(2, 3)(rng).requires_grad_()
    for _ in range(2):
        cross_entropy(x, torch.tensor([0, 2]))
    with pytest.raises(IndexRangeError, match="from 0 to 3"):
        cross_entropy(x, torch.tensor([0, 3]))


def test_masked_classes_may_be_out_of_range(rng):
    x = normal(3, 4)(rng).requires_grad_()
    t = torch.tensor([1, -100, 2])
    found, expected = cross_entropy(x, t, mask=t >= 0), F.cross_entropy(x, t)
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found, x)[0], torch.autograd.grad(expected, x)[0])


def test_classes_out_of_range_give_nan_where_they_cannot_be_read():
    x = torch.zeros(2, 3)
    losses = torch.func.vmap(lambda t: cross_entropy(x, t, reduction="none"))(torch.tensor([[0, 1], [2, 3]]))
    assert losses.isnan().tolist() == [[False, False], [False, True]]


# ---------------------------------------------------------------------------------------- gradients by hand


@lf.loss
def by_hand(pred, true, *, scale=1.0):
    return scale * lf.log(lf.cosh(pred - true))


def test_a_gradient_by_hand_is_what_backward_runs(rng):
    by_hand.gradient(lambda pred, true, scale: scale * lf.tanh(pred - true))
    assert "tanh" in repr(by_hand.plan().vjp(("pred",)).outputs[0].node)
    x = normal(4)(rng).requires_grad_()
    y = torch.zeros(4, dtype=torch.float64)
    upstream = normal(4)(rng)
    (found,) = torch.autograd.grad(by_hand(x, y, scale=3.0, reduction="none"), x, upstream)
    assert_close(found, 3 * upstream * torch.tanh(x.detach()))
    assert torch.autograd.gradgradcheck(lambda x: by_hand(x, y), x)
    assert_close(torch.func.grad(by_hand)(x.detach(), y), torch.tanh(x.detach()) / 4)
