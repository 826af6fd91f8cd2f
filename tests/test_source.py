"""Files that stand alone: they pass ruff, need their framework only, and compute what the loss computes."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

import lossforge as lf
from conftest import SEED
from lossforge.errors import FrameworkError, ParameterError

FRAMEWORKS = ("numpy", "torch", "tensorflow", "jax")


@lf.loss
def huber(pred, true, *, delta=1.0):
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


@lf.loss
def focal(logits, true, *, gamma=2.0, hard=False):
    p = lf.sigmoid(logits)
    p_t = lf.where(true > 0.5, p, 1 - p)
    weight = 1.0 if hard else (1 - p_t) ** gamma
    return -weight * lf.log(p_t)


@lf.loss(wrt=("mean", "log_var"))
def gaussian(mean, log_var, true):
    return 0.5 * (log_var + (true - mean) ** 2 * lf.exp(-log_var))


@lf.loss("batch class *space, batch *space -> batch *space")
def cross_entropy(logits, target):
    return -lf.take(lf.log_softmax(logits, "class"), target, "class")


@lf.loss("batch class *space, batch class *space -> batch class")
def dice(pred, true, *, smooth=1e-6):
    overlap = lf.sum(pred * true, "*space")
    total = lf.sum(pred, "*space") + lf.sum(true, "*space")
    return 1 - (2 * overlap + smooth) / (total + smooth)


@lf.loss("batch *space, batch *space -> ")
def dice_of_all(pred, true, *, smooth=1.0):
    return 1 - (2 * lf.sum(pred * true) + smooth) / (lf.sum(pred) + lf.sum(true) + smooth)


@lf.loss("batch d, batch d -> batch", wrt=("a", "b"))
def info_nce(a, b, *, tau):
    others = lf.rename(b, "batch", "other")
    similarity = lf.sum(a * others, "d") / tau
    return lf.logsumexp(similarity, "other") - lf.sum(a * b, "d") / tau


@lf.loss("batch d -> batch")
def logsumexp(pred):  # the name of a helper
    return lf.logsumexp(pred, "d")


def arrays(loss: lf.Loss, rng: np.random.Generator) -> dict[str, np.ndarray]:
    sizes: dict[str, tuple[int, ...]] = {"batch": (3,), "class": (4,), "*space": (5, 2), "d": (2,), "*shape": (3, 7)}
    found = {}
    for port in loss.definition().arguments:
        shape = [n for axis in port.order for n in sizes[axis]]
        found[port.name] = rng.integers(0, 4, shape) if port.name == "target" else rng.normal(size=shape)
    return found


CASES = [
    (huber, {}), (huber, {"delta": 0.3}), (focal, {"gamma": 1.5}), (focal, {"hard": True}), (gaussian, {}),
    (cross_entropy, {}), (dice, {}), (dice_of_all, {}), (info_nce, {"tau": 0.5}), (logsumexp, {}),
]  # fmt: skip

# Runs in a process that cannot import lossforge. It prints what is wrong, one line for each.
DRIVER = '''
import importlib.util, json, sys
from pathlib import Path

import numpy as np

sys.modules["lossforge"] = None
framework, folder = sys.argv[1], Path(sys.argv[2])


def load(name):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if framework == "torch":
    import torch
    to, back = torch.as_tensor, lambda x: x.detach().double().numpy()
    half = lambda x: x.half()
elif framework == "tensorflow":
    import tensorflow as tf
    to, back = tf.convert_to_tensor, lambda x: tf.cast(x, tf.float64).numpy()
    half = lambda x: tf.cast(x, tf.float16)
elif framework == "jax":
    import jax, jax.numpy as jnp
    jax.config.update("jax_enable_x64", True)
    to, back = jnp.asarray, lambda x: np.asarray(x, dtype=float)
    half = lambda x: x.astype(jnp.float16)
else:
    to = back = np.asarray
    half = lambda x: x.astype(np.float16)


def backprop(function, values, which):
    """Gradients of a function by the framework's own backward pass."""
    if framework == "torch":
        values = [v.clone().requires_grad_() if i in which else v for i, v in enumerate(values)]
        return torch.autograd.grad(function(*values), [values[i] for i in which])
    if framework == "tensorflow":
        with tf.GradientTape() as tape:
            tape.watch([values[i] for i in which])
            result = function(*values)
        return tape.gradient(result, [values[i] for i in which])
    return jax.grad(function, argnums=which)(*values)


def close(what, got, want, rtol=1e-12):
    got = back(got)
    if got.shape != want.shape or not np.allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max()):
        print(f"{what}: {got} is not {want}")


for case in json.loads((folder / "cases.json").read_text()):
    name, which = case["name"], tuple(case["which"])
    module, data = load(case["file"]), np.load(folder / f"{case['file']}.npz")
    loss = getattr(module, name)
    both = getattr(module, name + "_value_and_gradient")
    values = [to(data[n]) for n in case["arguments"]]
    for reduction in ("mean", "sum", "none"):
        options = {"reduction": reduction}
        what = f"{case['file']} {reduction}"
        wanted = [data[f"{reduction}_gradient_{i}"] for i in which]
        close(what, loss(*values, **options), data[f"{reduction}_value"])
        value, found = both(*values, **options)
        close(what + " value", value, data[f"{reduction}_value"])
        found = found if len(which) > 1 else (found,)
        for g, want in zip(found, wanted, strict=True):
            close(what + " gradient", g, want)
        only = getattr(module, name + "_gradient")(*values, **options)
        close(what + " gradient alone", only if len(which) == 1 else only[0], wanted[0])
        if framework == "numpy":
            continue
        # Upstream gradients that differ: weights for each entry of an unreduced loss.
        scale = to(data["scale"]) if reduction == "none" else 1.0
        sum_of = (lambda x: tf.reduce_sum(x)) if framework == "tensorflow" else (lambda x: x.sum())
        weighted = lambda *v: sum_of(loss(*v, **options) * scale)
        wanted = [data[f"weighted_gradient_{i}"] for i in which] if reduction == "none" else wanted
        for g, want in zip(backprop(weighted, values, which), wanted, strict=True):
            close(what + " backward", g, want)

    # Half precision computes in float32; the gradient has the dtype of what it belongs to.
    low = [half(v) if i in which else v for i, v in enumerate(values)]
    low = [half(v) if "float" in str(v.dtype) else v for v in low]
    value, found = both(*low)
    if "float32" not in str(value.dtype):
        print(f"{name}: the value of half precision has the dtype {value.dtype}")
    if any("float16" not in str(g.dtype) for g in (found if len(which) > 1 else (found,))):
        print(f"{name}: the gradient of half precision is not in half precision")

    # Wrong calls are refused.
    for bad in case["bad"]:
        wrong = [v[:1] if bad == i else v for i, v in enumerate(values)]
        try:
            loss(*wrong)
            print(f"{name}: accepts a wrong shape")
        except ValueError:
            pass
    try:
        loss(*[to(np.ones(v.shape, dtype=int)) for v in values])
        print(f"{name}: accepts an integer prediction")
    except TypeError:
        pass
    try:
        loss(*values, reduction="average")
        print(f"{name}: accepts an unknown reduction")
    except ValueError as error:
        if "average" not in str(error):
            print(f"{name}: {error}")
    if case["guarded"]:
        try:
            loss(*values, **{case["guarded"]: -1.0})
            print(f"{name}: accepts {case['guarded']} = -1")
        except ValueError:
            pass

    if framework == "torch" and name == "huber":
        again = torch.autograd.functional.hessian(lambda p: loss(p, values[1], reduction="sum"), values[0])
        close("hessian", again, data["hessian"].reshape(again.shape))
        close("func.grad", torch.func.grad(lambda p: loss(p, values[1]))(values[0]), data["mean_gradient_0"])
        rows = torch.func.vmap(torch.func.grad(lambda p, t: loss(p, t, reduction="sum")))(*values)
        close("vmap", rows, data["sum_gradient_0"])
        layer = module.Huber(reduction="sum")
        close("module", layer(*values), data["sum_value"])
        if repr(layer) != f"Huber(delta={case['delta']}, reduction='sum')":
            print(repr(layer))
        try:
            backprop(loss, values, (1,))
            print("gives a gradient with respect to true")
        except NotImplementedError:
            pass
    if framework == "tensorflow" and name == "huber":
        compiled = tf.function(lambda p, t: loss(p, t, reduction="sum"), jit_compile=True)
        close("tf.function", compiled(*values), data["sum_value"])
        with tf.GradientTape() as outer:
            outer.watch(values[0])
            with tf.GradientTape() as inner:
                inner.watch(values[0])
                total = loss(*values, reduction="sum")
            first = inner.gradient(total, values[0])
        close("nested tapes", outer.gradient(first, values[0]), np.einsum("ijij->ij", data["hessian"]))
    if framework == "jax" and name == "huber":
        total = lambda p: loss(p, values[1], reduction="sum")
        close("hessian", jax.hessian(total)(values[0]), data["hessian"])
        close("jit", jax.jit(jax.grad(total))(values[0]), data["sum_gradient_0"])
        rows = jax.vmap(jax.grad(lambda p, t: loss(p, t, reduction="sum")))(*values)
        close("vmap", rows, data["sum_gradient_0"])
        try:
            backprop(loss, values, (1,))
            print("gives a gradient with respect to true")
        except NotImplementedError:
            pass
'''


@pytest.fixture(scope="module")
def expected() -> list[dict[str, np.ndarray]]:
    """Inputs for all cases, and what the losses themselves make of them."""
    rng = np.random.default_rng(SEED)
    found = []
    for loss, options in CASES:
        data = arrays(loss, rng)
        values = list(data.values())
        entries = np.asarray(loss(*values, **options, reduction="none"))
        data |= {"none_value": entries, "sum_value": entries.sum(), "mean_value": entries.mean()}
        data["scale"] = rng.random(entries.shape)
        for p in loss.predictions:
            total = loss.grad(*values, wrt=p, **options, reduction="sum")
            scaled = loss.grad(*values, wrt=p, **options, reduction="sum", weight=data["scale"])
            place = loss.arguments.index(p)
            data |= {f"{r}_gradient_{place}": total for r in ("sum", "none")}
            data |= {f"mean_gradient_{place}": total / entries.size, f"weighted_gradient_{place}": scaled}
        if loss is huber:
            inside = np.abs(values[0] - values[1]).ravel() < options.get("delta", 1.0)
            data["hessian"] = np.diag(inside.astype(float)).reshape(values[0].shape * 2)
        found.append(data)
    return found


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_files_compute_what_the_losses_compute(framework, expected, tmp_path):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"could not import {framework}")
    described = []
    for (loss, options), data in zip(CASES, expected, strict=True):
        file = f"{loss.name}_{len(described)}"
        (tmp_path / f"{file}.py").write_text(loss.source(framework, **options), encoding="utf-8")
        np.savez(tmp_path / f"{file}.npz", **data)
        described.append(
            {
                "file": file,
                "name": "logsumexp_loss" if loss is logsumexp and framework == "numpy" else loss.name,
                "arguments": list(loss.arguments),
                "which": [loss.arguments.index(p) for p in loss.predictions],
                "bad": list(range(1, len(loss.arguments))),
                "guarded": "delta" if loss is huber else "",
                "delta": options.get("delta", 1.0),
            }
        )
    (tmp_path / "cases.json").write_text(json.dumps(described))
    (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(tmp_path / "driver.py"), framework, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == ""


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_files_pass_ruff(framework, tmp_path):
    for number, (loss, options) in enumerate(CASES):
        (tmp_path / f"{number}.py").write_text(loss.source(framework, **options), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout


def test_a_whole_file():
    """What a file looks like: this is how it is meant to be read."""
    assert huber.source("numpy") == HUBER


HUBER = '''\
"""huber: a loss and its gradient, for NumPy alone.

    loss      = ½·quadratic² + δ·(error − quadratic)
    quadratic = min(error, δ)
    error     = |pred − true|

    ∂loss/∂pred = clip(pred − true, −δ, δ) / count
      assuming δ ≥ 0; otherwise another formula is used
    where
      count = the number of entries

Shapes: all arguments have one shape, and so has the loss of each entry.
Written by lossforge 0.1.0, which it does not need.
"""

import numpy as np


def huber(pred, true, *, delta=1.0, reduction="mean"):
    """The loss as one number; that of each entry for reduction="none"."""
    if delta < 0:
        raise ValueError(f"delta is {delta}; these formulas hold for delta >= 0")
    pred, true = prepared(pred, true)
    return reduced(huber_entries(pred, true, delta), reduction)


def huber_gradient(pred, true, *, delta=1.0, reduction="mean"):
    """The gradient with respect to pred; that of the sum for reduction="none"."""
    return huber_value_and_gradient(pred, true, delta=delta, reduction=reduction)[1]


def huber_value_and_gradient(pred, true, *, delta=1.0, reduction="mean"):
    """The loss, and its gradient with respect to pred."""
    pred_dtype = np.asarray(pred).dtype
    if delta < 0:
        raise ValueError(f"delta is {delta}; these formulas hold for delta >= 0")
    pred, true = prepared(pred, true)
    loss = huber_entries(pred, true, delta)
    cotangent = np.ones_like(loss)
    if reduction == "mean":
        cotangent = cotangent / loss.size
    gradient = huber_vjp(pred, true, delta, cotangent)
    return reduced(loss, reduction), gradient.astype(pred_dtype, copy=False)


def prepared(pred, true):
    """The arguments, checked, in the precision to compute in: float32 for half precision."""
    pred = np.asarray(pred)
    true = np.asarray(true)
    if pred.dtype.kind in "biu":
        raise TypeError(f"pred must be floating point, not {pred.dtype}")
    if true.shape != pred.shape:
        raise ValueError(f"true has shape {true.shape} beside pred of shape {pred.shape}")
    dtype = np.float64 if np.float64 in (pred.dtype, true.dtype) else np.float32
    return pred.astype(dtype, copy=False), true.astype(dtype, copy=False)


def reduced(loss, reduction):
    """The mean or the sum of the loss of each entry, or that itself for "none"."""
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f'reduction={reduction!r}; expected "mean", "sum" or "none"')


def huber_entries(pred, true, delta):
    """The loss of each entry."""
    delta = pred.dtype.type(delta)
    error = np.abs(pred - true)
    quadratic = np.minimum(error, delta)
    return 0.5 * (quadratic * quadratic) + delta * (error - quadratic)


def huber_vjp(pred, true, delta, cotangent):
    """The gradient with respect to pred, given that with respect to the loss of each entry."""
    delta = pred.dtype.type(delta)
    return cotangent * np.clip(pred - true, -delta, delta)
'''


def load(text: str) -> dict:
    space: dict = {}
    exec(compile(text, "exported.py", "exec"), space)
    return space


def test_names_of_the_file_give_way_to_those_of_the_loss():
    @lf.loss
    def sigmoid(pred, reduction, *, cotangent=2.0):
        return lf.sigmoid(pred * cotangent) * reduction

    space = load(sigmoid.source("numpy"))
    x, y = np.linspace(-1, 1, 5), np.linspace(1, 2, 5)
    np.testing.assert_allclose(space["sigmoid_loss"](x, y, reduction_="sum"), np.sum(y / (1 + np.exp(-2 * x))))
    gradient = space["sigmoid_loss_gradient"](x, y, cotangent=1.0, reduction_="sum")
    np.testing.assert_allclose(gradient, y * np.exp(-x) / (1 + np.exp(-x)) ** 2)


def test_an_adopted_loss_keeps_its_reduction_in_a_file():
    x, y = np.linspace(-1, 1, 5, dtype=np.float32), np.linspace(1, 2, 5, dtype=np.float32)
    entries = lf.adopt(lambda pred, true: (pred - true) ** 2, x, y)
    np.testing.assert_allclose(load(entries.source("numpy"))["loss"](x, y), (x - y) ** 2, rtol=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_truth_values_stay_truth_values(framework):
    pytest.importorskip(framework)
    x, y, kept = np.linspace(-1, 1, 4), np.zeros(4), np.array([True, False, True, False])
    loss = lf.adopt(lambda pred, true, kept: np.sum(np.where(~kept, 0.0, pred - true)), x, y, kept)
    space = load(loss.source(framework))
    to = {"torch": "torch.as_tensor", "tensorflow": "tf.constant", "jax": "jnp.asarray", "numpy": "np.asarray"}[
        framework
    ]
    given = [eval(to, space)(a) for a in (x, y, kept)]
    np.testing.assert_allclose(np.asarray(space["loss"](*given)), -2 / 3, rtol=1e-6)


def test_a_loss_with_the_name_of_a_class_is_a_function_and_a_module():
    torch = pytest.importorskip("torch")
    x, y = np.linspace(-1, 1, 5, dtype=np.float32), np.linspace(1, 2, 5, dtype=np.float32)
    space = load(lf.adopt(lambda pred, true: ((pred - true) ** 2).mean(), x, y, name="Squared").source("torch"))
    given = torch.from_numpy(x), torch.from_numpy(y)
    torch.testing.assert_close(space["SquaredModule"]()(*given), space["Squared"](*given))


def test_parameters_become_the_defaults():
    assert "def huber(pred, true, *, delta=0.25, reduction=" in huber.source("numpy", delta=0.25)
    assert "def info_nce(a, b, *, tau, reduction=" in info_nce.source("numpy")


def test_a_gradient_written_by_hand_is_in_the_file():
    @lf.loss
    def weighted(pred, true, w):
        return w * lf.abs(true - pred)

    @weighted.gradient
    def by_hand(pred, true, w):
        return w * lf.tanh(1e300 * (pred - true))  # sign, as someone else would write it

    assert "np.tanh" in weighted.source("numpy")


def test_jax_transposes_no_infinite_factor():
    """The transpose of where(c, t · r, 0) is where(c, ct, 0) · r, which is 0 · ∞ for a guarded r."""
    jax = pytest.importorskip("jax")

    @lf.loss
    def rooted(pred, true):
        return lf.where(pred > true, lf.sqrt(lf.maximum(pred - true, 0.0)), 0.0)

    pred, true = np.array([1.0, 4.0, -1.0], np.float32), np.zeros(3, np.float32)
    gradient = jax.grad(load(rooted.source("jax"))["rooted"])(pred, true, reduction="sum")
    np.testing.assert_allclose(gradient, [0.5, 0.25, 0.0])


def test_mistakes():
    with pytest.raises(FrameworkError, match="no framework 'theano'; files can be written for numpy, torch"):
        huber.source("theano")
    with pytest.raises(ParameterError, match="beta"):
        huber.source("numpy", beta=1.0)
