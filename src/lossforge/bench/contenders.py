"""How each contender computes a workload's value and gradient: functions that return a step to be timed.

A step computes value and gradient once, waits until both are there, and returns the value as a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lossforge.bench.workloads import Arrays, Workload

Step = Callable[[], float]


# ------------------------------------------------------------------------------------------- lossforge


def lossforge_numpy(work: Workload, arrays: Arrays) -> Step:
    """Through NumPy: `value_and_grad`."""
    loss, values = work.loss(), tuple(arrays.values())
    wrt = loss.arguments[work.wrt]

    def step() -> float:
        value, gradient = loss.value_and_grad(*values, wrt=wrt, **work.parameters)
        del gradient
        return float(np.sum(value))

    return step


def lossforge_torch(work: Workload, arrays: Arrays) -> Step:
    """Through PyTorch: a call and `backward`."""
    loss = work.loss()
    return _torch_step(work, arrays, lambda *tensors: loss(*tensors, **work.parameters))


# ------------------------------------------------------------------------------------------- NumPy


def numpy_by_hand(work: Workload, arrays: Arrays) -> Step:
    """The weighted squared error as the article writes it."""
    pred, true, w = arrays["pred"], arrays["true"], arrays["weight"]

    def step() -> float:
        value = np.sum(w * (true - pred) ** 2)
        gradient = -2 * w * (true - pred)
        del gradient
        return float(value)

    return step


# ------------------------------------------------------------------------------------------- PyTorch


def _torch_step(work: Workload, arrays: Arrays, function: Callable[..., Any]) -> Step:
    import torch

    tensors = [torch.from_numpy(a) for a in arrays.values()]
    if work.half:
        tensors = [t.to(torch.bfloat16) for t in tensors]
    prediction = tensors[work.wrt].requires_grad_()

    def step() -> float:
        prediction.grad = None
        value = function(*tensors).sum()
        value.backward()
        return float(value.detach())

    return step


def _written_in_torch(name: str) -> Callable[..., Any]:
    import torch
    from torch.nn.functional import log_softmax, logsigmoid

    def huber(pred: Any, true: Any, delta: float = 1.0) -> Any:
        error = (pred - true).abs()
        quadratic = error.clamp(max=delta)
        return (0.5 * quadratic**2 + delta * (error - quadratic)).mean()

    def focal(logits: Any, true: Any, gamma: float = 2.0, alpha: float = 0.25) -> Any:
        hit, miss = logsigmoid(logits), logsigmoid(-logits)
        positive = alpha * true * torch.exp(gamma * miss) * hit
        return (-positive - (1 - alpha) * (1 - true) * torch.exp(gamma * hit) * miss).mean()

    def cross_entropy(logits: Any, target: Any) -> Any:
        return -log_softmax(logits, 1).gather(1, target[:, None]).mean()

    def dice(logits: Any, true: Any, smooth: float = 1e-5) -> Any:
        pred = logits.softmax(1)
        axes = tuple(range(2, pred.ndim))
        overlap = (pred * true).sum(axes)
        return (1 - (2 * overlap + smooth) / (pred.sum(axes) + true.sum(axes) + smooth)).mean()

    def info_nce(anchor: Any, positive: Any, temperature: float = 0.1) -> Any:
        similarity = anchor @ positive.T / temperature
        return (similarity.logsumexp(1) - similarity.diagonal()).mean()

    functions: Mapping[str, Callable[..., Any]] = {
        "huber": huber, "small": huber, "focal": focal, "focal-half": focal, "cross-entropy": cross_entropy,
        "dice": dice, "dice-last": dice, "info-nce": info_nce,
    }  # fmt: skip
    return functions[name]


def torch_eager(work: Workload, arrays: Arrays) -> Step:
    """Written out in PyTorch."""
    return _torch_step(work, arrays, _written_in_torch(work.name))


def torch_compile(work: Workload, arrays: Arrays) -> Step:
    """The written-out one under `torch.compile`."""
    import torch

    return _torch_step(work, arrays, torch.compile(_written_in_torch(work.name)))


def torch_functional(work: Workload, arrays: Arrays) -> Step:
    """`torch.nn.functional`'s own."""
    from torch.nn import functional

    names = {"huber": "huber_loss", "small": "huber_loss", "cross-entropy": "cross_entropy"}
    return _torch_step(work, arrays, getattr(functional, names[work.name]))


def monai(work: Workload, arrays: Arrays) -> Step:
    """MONAI's `DiceLoss`."""
    from monai.losses.dice import DiceLoss

    return _torch_step(work, arrays, DiceLoss(softmax=True))


# ------------------------------------------------------------------------------------------- JAX


def jax_jit(work: Workload, arrays: Arrays) -> Step:
    """Written out in JAX: `jit` of `value_and_grad`."""
    import jax
    import jax.numpy as jnp

    def huber(pred: Any, true: Any, delta: float = 1.0) -> Any:
        error = jnp.abs(pred - true)
        quadratic = jnp.minimum(error, delta)
        return jnp.mean(0.5 * quadratic**2 + delta * (error - quadratic))

    def focal(logits: Any, true: Any, gamma: float = 2.0, alpha: float = 0.25) -> Any:
        hit, miss = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        positive = alpha * true * jnp.exp(gamma * miss) * hit
        return jnp.mean(-positive - (1 - alpha) * (1 - true) * jnp.exp(gamma * hit) * miss)

    def cross_entropy(logits: Any, target: Any) -> Any:
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], 1))

    functions: Mapping[str, Callable[..., Any]] = {
        "huber": huber, "small": huber, "focal": focal, "focal-half": focal, "cross-entropy": cross_entropy,
    }  # fmt: skip
    compiled = jax.jit(jax.value_and_grad(functions[work.name]))
    values = [jnp.asarray(a, jnp.bfloat16 if work.half else None) for a in arrays.values()]

    def step() -> float:
        value, gradient = compiled(*values)
        gradient.block_until_ready()
        return float(value)

    return step


# ------------------------------------------------------------------------------------------- TensorFlow, Keras


def _tensorflow_step(arrays: Arrays, function: Callable[..., Any], *, jit: bool, wrt: int = 0) -> Step:
    import tensorflow as tf

    values = [tf.constant(a) for a in arrays.values()]

    @tf.function(jit_compile=jit)  # type: ignore[untyped-decorator]
    def value_and_gradient(*tensors: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(tensors[wrt])
            value = tf.reduce_sum(function(*tensors))
        return value, tape.gradient(value, tensors[wrt])

    def step() -> float:
        value, gradient = value_and_gradient(*values)
        del gradient
        return float(value)

    return step


def tensorflow_xla(work: Workload, arrays: Arrays) -> Step:
    """Written out in TensorFlow, compiled by XLA."""
    import tensorflow as tf

    def huber(pred: Any, true: Any, delta: float = 1.0) -> Any:
        error = tf.abs(pred - true)
        quadratic = tf.minimum(error, delta)
        return tf.reduce_mean(0.5 * tf.square(quadratic) + delta * (error - quadratic))

    def focal(logits: Any, true: Any, gamma: float = 2.0, alpha: float = 0.25) -> Any:
        hit, miss = tf.math.log_sigmoid(logits), tf.math.log_sigmoid(-logits)
        positive = alpha * true * tf.exp(gamma * miss) * hit
        return tf.reduce_mean(-positive - (1 - alpha) * (1 - true) * tf.exp(gamma * hit) * miss)

    functions: Mapping[str, Callable[..., Any]] = {"huber": huber, "small": huber, "focal": focal}
    return _tensorflow_step(arrays, functions[work.name], jit=True)


def keras_loss(work: Workload, arrays: Arrays) -> Step:
    """Keras' own loss, in a TensorFlow function."""
    import keras

    losses: Mapping[str, Callable[[], Any]] = {
        "huber": keras.losses.Huber,
        "small": keras.losses.Huber,
        "focal": lambda: keras.losses.BinaryFocalCrossentropy(from_logits=True, apply_class_balancing=True),
        "cross-entropy": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }
    loss = losses[work.name]()
    return _tensorflow_step(arrays, lambda pred, true: loss(true, pred), jit=False)


# ------------------------------------------------------------------------------------------- a loss of the user's, as it is


def original_torch(work: Workload, arrays: Arrays) -> Step:
    """The function that was adopted, eagerly."""
    return _torch_step(work, arrays, work.original)


def original_torch_compiled(work: Workload, arrays: Arrays) -> Step:
    """The function that was adopted, under `torch.compile`."""
    import torch

    return _torch_step(work, arrays, torch.compile(work.original))


def original_jax(work: Workload, arrays: Arrays) -> Step:
    """The function that was adopted, under `jit` of `value_and_grad`."""
    import jax
    import jax.numpy as jnp

    compiled = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(work.original(*a)), argnums=work.wrt))
    values = [jnp.asarray(a) for a in arrays.values()]

    def step() -> float:
        value, gradient = compiled(*values)
        gradient.block_until_ready()
        return float(value)

    return step


def original_tensorflow(work: Workload, arrays: Arrays) -> Step:
    """The function that was adopted, as a TensorFlow function."""
    return _tensorflow_step(arrays, work.original, jit=False, wrt=work.wrt)


def original_tensorflow_compiled(work: Workload, arrays: Arrays) -> Step:
    """The function that was adopted, compiled by XLA."""
    return _tensorflow_step(arrays, work.original, jit=True, wrt=work.wrt)


def original_numpy(work: Workload, arrays: Arrays) -> Step:
    """The function that was adopted, which has no gradient."""
    values = tuple(arrays.values())
    return lambda: float(np.sum(work.original(*values)))


# ------------------------------------------------------------------------------------------- the stream


def stream(work: Workload, arrays: Arrays) -> Step:
    """A pass that reads the floating inputs and writes one gradient, and does nothing else worth mentioning.

    With more than two inputs the pass over two is scaled by the bytes: see `run`.
    """
    prediction = list(arrays.values())[work.wrt]
    floats = [a for a in arrays.values() if a.dtype.kind == "f" and a.shape == prediction.shape][:2]
    try:
        import torch
    except ImportError:
        out = np.empty_like(floats[0])

        def numpy_step() -> float:
            np.add(floats[0], floats[-1], out=out) if len(floats) == 2 else np.negative(floats[0], out=out)
            return 0.0

        return numpy_step
    tensors = [torch.from_numpy(a) for a in floats]
    if work.half:
        tensors = [t.to(torch.bfloat16) for t in tensors]
    result = torch.empty_like(tensors[0])

    def step() -> float:
        torch.add(tensors[0], tensors[1], out=result) if len(tensors) == 2 else torch.neg(tensors[0], out=result)
        return 0.0

    return step


CONTENDERS: Mapping[str, tuple[str, Callable[[Workload, Arrays], Step]]] = {
    # name: the module that must be installed, and how it is done
    "stream": ("numpy", stream),
    "lossforge numpy": ("numpy", lossforge_numpy),
    "lossforge torch": ("torch", lossforge_torch),
    "numpy by hand": ("numpy", numpy_by_hand),
    "torch eager": ("torch", torch_eager),
    "torch F": ("torch", torch_functional),
    "torch compile": ("torch", torch_compile),
    "jax jit": ("jax", jax_jit),
    "tensorflow xla": ("tensorflow", tensorflow_xla),
    "keras": ("keras", keras_loss),
    "monai": ("monai", monai),
    "torch original": ("torch", original_torch),
    "torch original compiled": ("torch", original_torch_compiled),
    "jax original compiled": ("jax", original_jax),
    "tensorflow original": ("tensorflow", original_tensorflow),
    "tensorflow original compiled": ("tensorflow", original_tensorflow_compiled),
    "numpy original, value alone": ("numpy", original_numpy),
}
