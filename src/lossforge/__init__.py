"""lossforge: write a loss once; its gradient is derived, verified, stable and fast, in the framework you already use."""

import sys as _sys

from lossforge import errors
from lossforge.adoption import adopt
from lossforge.errors import LossforgeError
from lossforge.frontends.language import (
    abs,
    acos,
    acosh,
    argmax,
    argmin,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    ceil,
    clip,
    cos,
    cosh,
    digamma,
    erf,
    erfc,
    exp,
    expm1,
    floor,
    hypot,
    iota,
    lgamma,
    log,
    log1p,
    log_sigmoid,
    log_softmax,
    logaddexp,
    logical_and,
    logical_not,
    logical_or,
    logsumexp,
    max,
    maximum,
    mean,
    min,
    minimum,
    mod,
    norm,
    one_hot,
    power,
    prod,
    reciprocal,
    relu,
    rename,
    round,
    rsqrt,
    sigmoid,
    sign,
    sin,
    sinh,
    size,
    softmax,
    softplus,
    sqrt,
    square,
    stop_gradient,
    sum,
    surrogate,
    take,
    tan,
    tanh,
    var,
    where,
    xlogy,
)
from lossforge.loss import Loss, loss
from lossforge.runtime.switch import use_kernels
from lossforge.runtime.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Loss", "LossforgeError", "abs", "acos", "acosh", "adopt", "argmax", "argmin", "asin", "asinh", "atan", "atan2",
    "atanh", "ceil", "clip", "cos", "cosh", "digamma", "erf", "erfc", "errors", "exp", "expm1", "floor",
    "get_num_threads", "hypot", "iota", "lgamma", "log", "log1p", "log_sigmoid", "log_softmax", "logaddexp", "logical_and",
    "logical_not", "logical_or", "logsumexp", "loss", "max", "maximum", "mean", "min", "minimum", "mod",
    "norm", "one_hot", "power", "prod", "reciprocal", "relu", "rename", "round", "rsqrt", "sigmoid", "sign",
    "sin", "sinh", "size", "set_num_threads", "softmax", "softplus", "sqrt", "square", "stop_gradient", "sum",
    "surrogate", "take", "tan", "tanh", "use_kernels", "var", "where", "xlogy",
]  # fmt: skip

if "keras" in _sys.modules:  # keras.models.load_model knows the class of a saved loss once its module is loaded
    from lossforge.adapters import keras as _keras  # noqa: F401
