"""TensorFlow and Keras: functions and losses, as the graph of a concrete function."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from lossforge.frontends.recording import Recording, kept, kept_numbers
from lossforge.frontends.tensorflow_graph import line_of, read
from lossforge.frontends.tensorflow_rules import LITERAL, RULES


class TensorFlowFrontEnd:
    """See `lossforge.frontends.recording.FrontEnd`."""

    name = "tensorflow"
    patience = 10_000

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.traced = function, 0
        self.rules = RULES
        self.literal = LITERAL

    def signature(self) -> inspect.Signature:
        """The names of the arguments."""
        return inspect.signature(getattr(self.function, "call", self.function))

    def attributes(self) -> dict[str, float]:
        """Numbers that a Keras loss passes on to its function, or keeps."""
        return kept_numbers(self.function)

    def explain(self, error: Exception) -> str:
        """What an exception of the tracer means for the user."""
        text = (str(error).strip().splitlines() or [""])[0]
        place = line_of([(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)])
        at = f" in {place}" if place else ""
        if isinstance(error, tf.errors.OperatorNotAllowedInGraphError) or "Python `bool`" in text:
            return f"it takes a decision from values{at}; use tf.where, or tf.cond ({text[:200]})"
        if "symbolic" in text or "NumPy" in text or "'numpy'" in text or "Python number" in text:
            return f"it takes a Python number or a NumPy array from values{at}; use tensors throughout ({text[:200]})"
        return f"TensorFlow cannot run it at other sizes or trace it{at} ({type(error).__name__}: {text[:300]})"

    def record(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Recording:
        """The graph of the function, for these shapes."""
        with kept(self.function, parameters) as options:
            made = tf.function(lambda *a: self.function(*a, **options), autograph=False)
            concrete = made.get_concrete_function(*(tf.TensorSpec(a.shape, a.dtype) for a in arrays))
        recording = read(concrete, arrays)
        self.traced += len(recording.steps)
        return recording

    def call(self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> None:
        """Try whether the function takes arrays of these shapes and dtypes, without its gradient."""
        with kept(self.function, parameters) as options:
            self.function(*map(tf.constant, arrays), **options)

    def run(
        self, arrays: Sequence[np.ndarray], parameters: Mapping[str, Any], wrt: Sequence[int]
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """The value, and the gradient of its sum by a tape."""
        given = [tf.constant(a) for a in arrays]
        watched = [given[i] for i in wrt]
        with kept(self.function, parameters) as options, tf.GradientTape() as tape:
            for w in watched:
                tape.watch(w)
            value = self.function(*given, **options)
        slopes = tape.gradient(value, watched, unconnected_gradients="zero")
        return value.numpy(), [tf.convert_to_tensor(s).numpy() for s in slopes]


def front_end(function: Callable[..., Any]) -> TensorFlowFrontEnd:
    """The front end for one function."""
    return TensorFlowFrontEnd(function)
