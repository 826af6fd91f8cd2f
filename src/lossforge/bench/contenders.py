"""How each contender computes a workload's value and gradient.

A `Contender` makes a `Step` of a workload's arrays, on which everything that is done once has been done: arrays are
converted, functions are wrapped for compilation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from lossforge.bench.workloads import Arrays, Workload

Step = Callable[[], tuple[Any, Any]]
"""Compute value and gradient once, and return them, on a GPU perhaps before they are there; the caller lets go of them."""


@dataclass(frozen=True)
class Contender:
    """One way of computing value and gradient."""

    name: str
    requires: str
    """The module that must be installed."""
    step: Callable[[Workload, Arrays, str], Step]
    """Makes the step of a workload, for its arrays, on a device ("cpu" or "cuda")."""
    array: Callable[[Any], np.ndarray] = np.asarray
    """A gradient of this contender as an array of float64."""
    keeps: bool = False
    """Whether it keeps what it compiled on disk, so that a new process starts warm."""
    imports: tuple[str, ...] = ()
    """What its first call would import: done before, since a first call is measured with imports aside."""

    @property
    def is_ours(self) -> bool:
        """Whether this is lossforge."""
        return self.name.startswith("lossforge")


def _written(framework: str, work: Workload) -> Callable[..., Any]:
    module: ModuleType = importlib.import_module(f"lossforge.bench.written.in_{framework}")
    function: Callable[..., Any] = getattr(module, work.formula)
    return function


# ------------------------------------------------------------------------------------------- NumPy


def _lossforge_numpy(work: Workload, arrays: Arrays, device: str) -> Step:
    loss, values = work.loss(), tuple(_half(arrays) if work.half else arrays.values())
    wrt = loss.arguments[work.wrt]
    return lambda: loss.value_and_grad(*values, wrt=wrt, **work.parameters)


def _half(arrays: Arrays) -> list[np.ndarray]:
    from ml_dtypes import bfloat16

    return [a.astype(bfloat16) for a in arrays.values()]


def _numpy_by_hand(work: Workload, arrays: Arrays, device: str) -> Step:
    """The weighted squared error as one writes it."""
    pred, true, w = arrays.values()
    return lambda: (np.sum(w * (true - pred) ** 2), -2 * w * (true - pred))


# ------------------------------------------------------------------------------------------- PyTorch


def _torch_step(work: Workload, arrays: Arrays, device: str, function: Callable[..., Any]) -> Step:

    tensors = torch_tensors(work, arrays, device)
    prediction = tensors[work.wrt].requires_grad_()

    def step() -> tuple[Any, Any]:
        prediction.grad = None
        value = function(*tensors)
        (value if value.ndim == 0 else value.sum()).backward()
        found, prediction.grad = prediction.grad, None
        return value.detach(), found

    return step


def torch_tensors(work: Workload, arrays: Arrays, device: str) -> list[Any]:
    """The arrays in PyTorch."""
    import torch

    tensors = [torch.from_numpy(a).to(device) for a in arrays.values()]
    return [t.to(torch.bfloat16) if t.is_floating_point() else t for t in tensors] if work.half else tensors


def _lossforge_torch(work: Workload, arrays: Arrays, device: str) -> Step:
    loss = work.loss()
    return _torch_step(work, arrays, device, lambda *tensors: loss(*tensors, **work.parameters))


def _lossforge_torch_compiled(work: Workload, arrays: Arrays, device: str) -> Step:
    import torch

    loss = work.loss()
    return _torch_step(work, arrays, device, torch.compile(lambda *tensors: loss(*tensors)))


def _torch_eager(work: Workload, arrays: Arrays, device: str) -> Step:
    return _torch_step(work, arrays, device, _written("torch", work))


def _torch_compiled(work: Workload, arrays: Arrays, device: str) -> Step:
    import torch

    return _torch_step(work, arrays, device, torch.compile(_written("torch", work)))


def _torch_functional(work: Workload, arrays: Arrays, device: str) -> Step:
    from torch.nn import functional

    names = {"huber": "huber_loss", "cross_entropy": "cross_entropy"}
    return _torch_step(work, arrays, device, getattr(functional, names[work.formula]))


def _monai(work: Workload, arrays: Arrays, device: str) -> Step:
    from monai.losses.dice import DiceLoss

    return _torch_step(work, arrays, device, DiceLoss(softmax=True))


def _liger(work: Workload, arrays: Arrays, device: str) -> Step:
    from liger_kernel.transformers import LigerCrossEntropyLoss  # type: ignore[import-not-found]

    loss = LigerCrossEntropyLoss()
    return _torch_step(work, arrays, device, lambda logits, target: loss(logits.clone(), target))


def _liger_in_place(work: Workload, arrays: Arrays, device: str) -> Step:
    """As it is meant: it writes the gradient over the logits that it is given, which are others in every step."""
    from liger_kernel.transformers import LigerCrossEntropyLoss

    loss = LigerCrossEntropyLoss()
    return _torch_step(work, arrays, device, lambda logits, target: loss(logits.view_as(logits), target))


# ------------------------------------------------------------------------------------------- JAX


def _jax_step(work: Workload, arrays: Arrays, function: Callable[..., Any]) -> Step:
    import jax
    import jax.numpy as jnp

    dtype = jnp.bfloat16 if work.half else None
    values = [jnp.asarray(a, dtype if a.dtype.kind == "f" else None) for a in arrays.values()]
    compiled = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(function(*a)), argnums=work.wrt))
    return lambda: jax.block_until_ready(compiled(*values))  # type: ignore[no-untyped-call]


def _jax_jit(work: Workload, arrays: Arrays, device: str) -> Step:
    return _jax_step(work, arrays, _written("jax", work))


def _lossforge_jax(work: Workload, arrays: Arrays, device: str) -> Step:
    loss = work.loss()
    return _jax_step(work, arrays, lambda *values: loss(*values, **work.parameters))


# ------------------------------------------------------------------------------------------- TensorFlow, Keras


def _tensorflow_step(work: Workload, arrays: Arrays, function: Callable[..., Any], *, jit: bool) -> Step:
    import tensorflow as tf

    values = [tf.constant(a) for a in arrays.values()]
    if work.half:
        values = [tf.cast(v, tf.bfloat16) if v.dtype.is_floating else v for v in values]

    @tf.function(jit_compile=jit)  # type: ignore[untyped-decorator]
    def value_and_gradient(*tensors: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(tensors[work.wrt])
            value = tf.reduce_sum(function(*tensors))
        return value, tape.gradient(value, tensors[work.wrt])

    def step() -> tuple[Any, Any]:
        value, gradient = value_and_gradient(*values)
        value.numpy()  # waits
        return value, gradient

    return step


def _tensorflow_xla(work: Workload, arrays: Arrays, device: str) -> Step:
    return _tensorflow_step(work, arrays, _written("tensorflow", work), jit=True)


def _lossforge_tensorflow(work: Workload, arrays: Arrays, device: str) -> Step:
    loss = work.loss()
    return _tensorflow_step(work, arrays, lambda *tensors: loss(*tensors, **work.parameters), jit=True)


def _keras(work: Workload, arrays: Arrays, device: str) -> Step:
    """Keras' own loss, in a TensorFlow function."""
    import keras

    def dice(true: Any, logits: Any) -> Any:
        each = keras.losses.Dice(axis=tuple(range(2, logits.ndim)))
        return each(true, keras.ops.softmax(logits, 1))

    losses: Mapping[str, Callable[..., Any]] = {
        "huber": keras.losses.Huber(),
        "focal": keras.losses.BinaryFocalCrossentropy(from_logits=True, apply_class_balancing=True),
        "cross_entropy": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "dice": dice,
    }
    loss = losses[work.formula]
    return _tensorflow_step(work, arrays, lambda pred, true: loss(true, pred), jit=False)


# ------------------------------------------------------------------------------------------- a loss of the user's, as it is


def _original_torch(work: Workload, arrays: Arrays, device: str) -> Step:
    return _torch_step(work, arrays, device, work.original)


def _original_torch_compiled(work: Workload, arrays: Arrays, device: str) -> Step:
    import torch

    return _torch_step(work, arrays, device, torch.compile(work.original))


def _original_jax(work: Workload, arrays: Arrays, device: str) -> Step:
    return _jax_step(work, arrays, work.original)


def _original_tensorflow(work: Workload, arrays: Arrays, device: str) -> Step:
    return _tensorflow_step(work, arrays, work.original, jit=False)


def _original_tensorflow_xla(work: Workload, arrays: Arrays, device: str) -> Step:
    return _tensorflow_step(work, arrays, work.original, jit=True)


def _original_numpy(work: Workload, arrays: Arrays, device: str) -> Step:
    """It has no gradient."""
    values = tuple(arrays.values())
    return lambda: (work.original(*values), None)


# ------------------------------------------------------------------------------------------- the stream


def streamed(work: Workload, arrays: Arrays) -> list[np.ndarray]:
    """The inputs that the stream reads: three at most, of the size of the gradient."""
    size = list(arrays.values())[work.wrt].size
    return [a for a in arrays.values() if a.dtype.kind == "f" and a.size == size][:3]


def _stream(work: Workload, arrays: Arrays, device: str) -> Step:
    """Read inputs, write one array of the gradient's size, and do nothing else worth mentioning.

    Bytes are added as integers of 32 bits: the same traffic for every dtype, and no denormal numbers in the way.
    """
    floats = streamed(work, arrays)
    if importlib.util.find_spec("torch") is not None:
        return _stream_in_torch(work, floats, device)
    words = [_words(a.astype(np.float16) if work.half else a) for a in floats]
    return _stream_in_numpy(words)


def _stream_in_torch(work: Workload, floats: Sequence[np.ndarray], device: str) -> Step:
    import torch

    half = np.float16 if work.half else None  # as many bytes as bfloat16
    words = [torch.from_numpy(_words(a if half is None else a.astype(half))).to(device) for a in floats]
    out = torch.empty_like(words[0])

    def step() -> tuple[Any, Any]:
        if len(words) == 1:
            torch.neg(words[0], out=out)
        elif len(words) == 2:
            torch.add(words[0], words[1], out=out)
        else:
            torch.addcmul(words[0], words[1], words[2], out=out)
        return 0.0, out

    return step


def _stream_in_numpy(words: Sequence[np.ndarray]) -> Step:
    from lossforge.runtime.threads import run_chunks

    out, chunk = np.empty_like(words[0]), 1 << 16

    def part(begin: int, end: int) -> None:
        for at in range(begin, end, chunk):  # the sum of a chunk stays in cache
            piece = slice(at, min(at + chunk, end))
            np.add(words[0][piece], words[-1][piece], out=out[piece])
            for more in words[1:-1]:
                np.add(out[piece], more[piece], out=out[piece])

    def step() -> tuple[Any, Any]:
        run_chunks(part, out.size, chunk, cost=out.size)
        return 0.0, out

    return step


def _words(array: np.ndarray) -> np.ndarray:
    """The bytes of an array as integers of 32 bits, in the order in which they lie in memory."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    flat = array.transpose(order).reshape(-1)
    return flat[: flat.size // 2 * 2].view(np.int32)


# ------------------------------------------------------------------------------------------- all of them


def _from_torch(gradient: Any) -> np.ndarray:
    found: np.ndarray = gradient.detach().cpu().double().numpy()
    return found


def _from_tensorflow(gradient: Any) -> np.ndarray:
    import tensorflow as tf

    found: np.ndarray = tf.cast(tf.convert_to_tensor(gradient), tf.float64).numpy()
    return found


def _in_torch(name: str, step: Callable[..., Step], requires: str = "torch", **options: Any) -> Contender:
    return Contender(name, requires, step, array=_from_torch, **options)


def _in_tensorflow(name: str, step: Callable[..., Step], requires: str = "tensorflow", **options: Any) -> Contender:
    return Contender(name, requires, step, array=_from_tensorflow, **options)


_KERNELS = ("numba", "llvmlite.binding", "lossforge.kernels", "lossforge.runtime.object_code")
_KERNELS_IN_TORCH = (*_KERNELS, "lossforge.adapters.torch")
_INDUCTOR = ("torch._dynamo", "torch._inductor.compile_fx")

STREAM = Contender("stream", "numpy", _stream)

CONTENDERS: Mapping[str, Contender] = {
    c.name: c
    for c in (
        Contender("lossforge numpy", "numpy", _lossforge_numpy, keeps=True, imports=_KERNELS),
        _in_torch("lossforge torch", _lossforge_torch, keeps=True, imports=_KERNELS_IN_TORCH),
        _in_torch(
            "lossforge torch compile", _lossforge_torch_compiled, keeps=True, imports=(*_KERNELS_IN_TORCH, *_INDUCTOR)
        ),
        Contender(
            "lossforge jax", "jax", _lossforge_jax, keeps=True, imports=(*_KERNELS, "lossforge.adapters.jax_kernels")
        ),
        _in_tensorflow("lossforge tensorflow", _lossforge_tensorflow, imports=("lossforge.adapters.tensorflow",)),
        Contender("numpy by hand", "numpy", _numpy_by_hand),
        _in_torch("torch eager", _torch_eager),
        _in_torch("torch F", _torch_functional),
        _in_torch("torch compile", _torch_compiled, keeps=True, imports=_INDUCTOR),
        Contender("jax jit", "jax", _jax_jit),
        _in_tensorflow("tensorflow xla", _tensorflow_xla),
        _in_tensorflow("keras", _keras, "keras"),
        _in_torch("monai", _monai, "monai"),
        _in_torch("liger", _liger, "liger_kernel"),
        _in_torch("liger in place", _liger_in_place, "liger_kernel"),
        _in_torch("torch original", _original_torch),
        _in_torch("torch original compile", _original_torch_compiled, keeps=True, imports=_INDUCTOR),
        Contender("jax original jit", "jax", _original_jax),
        _in_tensorflow("tensorflow original", _original_tensorflow),
        _in_tensorflow("tensorflow original xla", _original_tensorflow_xla),
        Contender("numpy original, value alone", "numpy", _original_numpy),
        STREAM,
    )
}
"""By name; `Workload` says who takes part in what."""
