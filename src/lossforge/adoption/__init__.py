"""Adopt a loss that was written for another library: PyTorch, TensorFlow and Keras, JAX, or NumPy.

The function is recorded at drawn sizes (`frontends.recording`), read as a graph over named axes
(`frontends.positional`), and the graph is compared with the function itself, value and gradient, on drawn inputs at
two shapes. What cannot be read, or does not agree, is refused.
"""

from lossforge.adoption.adopted import AdoptedLoss, adopt

__all__ = ["AdoptedLoss", "adopt"]
