"""TensorFlow's eager tensors on the CPU in our kernels, without a copy.

NumPy sees the memory of a tensor as it is, and TensorFlow takes what the kernels have written over by DLPack. Huber's value
and gradient over 2^24 entries: TensorFlow's operations one by one 488 ms, compiled by XLA 81 ms, these kernels
9.8 ms (2 cores of an EPYC 7003).

Only where TensorFlow executes at once. A graph could call them through Python (`tf.py_function`), but no one
knows while it is traced whether XLA will compile it, as Keras has it do by default, and XLA refuses such a call;
neither could the graph be saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from lossforge import kernels
from lossforge.ir import Kind, Program
from lossforge.runtime.buffers import ALIGNMENT


def attempt(program: Program, tensors: Sequence[tf.Tensor], real: str) -> tuple[tf.Tensor, ...] | None:
    """The program's outputs in the computing precision; None where kernels are off, or cannot compute them.

    Args:
        program: what to compute.
        tensors: its inputs. Floats may have another precision.
        real: the precision to compute in.
    """
    if not tf.executing_eagerly() or not all(_is_on_cpu(t) for t in tensors):
        return None
    if any(o.node.kind is not Kind.FLOAT for o in program.outputs):
        return None
    ports = program.inputs
    arrays: list[Any] = [_array(t) if p.order else t.numpy().item() for t, p in zip(tensors, ports, strict=True)]
    formats = tuple(t.dtype.name if p.order else None for t, p in zip(tensors, ports, strict=True))
    found = kernels.attempt(program, arrays, real, (None,) * len(program.outputs), formats)
    return None if found is None else tuple(map(_tensor, found))


def _is_on_cpu(tensor: tf.Tensor) -> bool:
    return isinstance(tensor, tf.__internal__.EagerTensor) and ":CPU:" in tensor.backing_device


def _array(tensor: tf.Tensor) -> np.ndarray:
    """The tensor's own memory; bfloat16 as its bits."""
    array = np.asarray(tensor)
    return array.view(np.uint16) if tensor.dtype == tf.bfloat16 else array


def _tensor(array: np.ndarray) -> tf.Tensor:
    """The array's own memory, which the tensor holds a reference to: nobody writes there while it lives.

    TensorFlow knows no strides, and ends the process over memory that does not begin at a multiple of 64 bytes. Large
    arrays in C order are as it wants them (see `runtime.buffers`), others are copied.
    """
    if not array.flags.c_contiguous or array.ctypes.data % ALIGNMENT:
        return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
