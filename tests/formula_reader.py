"""Reads formulas as `lossforge.explain` prints them, and works them out: the printer's counterpart.

Values are arrays with one dimension for each axis of the loss, of size 1 where they do not vary. The grammar
is that of the text alone, so that a wrong precedence, a lost sign or a wrong idiom gives a wrong number.
"""

import math
import re

import numpy as np

from lossforge import special

TOKEN = re.compile(
    r"\s*(log Γ|log σ|log 2π|log \d+|log π|∂\w+/∂[\w′]+|√|\d+\.?\d*(?:e-?\d+)?|[½¼¾⅛]|[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+"
    r"|[^\W\d](?:[^\W⁰¹²³⁴⁵⁶⁷⁸⁹]|′)*|[-+−·/^()\[\]|,<>≤≥=≠→])"
)
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
FRACTIONS = {"½": 0.5, "¼": 0.25, "¾": 0.75, "⅛": 0.125}
RELATIONS = {
    "<": np.less,
    "≤": np.less_equal,
    ">": np.greater,
    "≥": np.greater_equal,
    "=": np.equal,
    "≠": np.not_equal,
}
FUNCTIONS = {
    "exp": np.exp,
    "log": np.log,
    "sign": np.sign,
    "max": np.maximum,
    "min": np.minimum,
    "clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "where": np.where,
    "abs": np.abs,
    "σ": special.sigmoid,
    "sigmoid": special.sigmoid,
    "log σ": special.log_sigmoid,
    "log Γ": special.lgamma,
    "ψ": special.digamma,
    "softplus": special.softplus,
    "logaddexp": np.logaddexp,
    "tanh": np.tanh,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "sin": np.sin,
    "cos": np.cos,
    "arctan": np.arctan,
    "erf": special.erf,
    "round": np.round,
    "stop_gradient": lambda x: x,
    "surrogate": lambda hard, soft: hard,
}


class Reader:
    """A formula, some variables and the axes' sizes: what it comes to."""

    def __init__(self, text: str, variables: dict[str, object], sizes: dict[str, int]) -> None:
        self.tokens = TOKEN.findall(text)
        assert "".join(self.tokens).replace(" ", "") == text.replace(" ", ""), f"cannot read {text!r}"
        self.at = 0
        self.variables = variables
        self.axes = list(sizes)
        self.sizes = sizes

    def read(self):
        result = self.logical()
        assert self.at == len(self.tokens), f"left over: {self.tokens[self.at :]}"
        return result

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def next(self, expected: str = "") -> str:
        token = self.peek()
        assert not expected or token == expected, f"expected {expected!r}, got {token!r} in {self.tokens}"
        self.at += 1
        return token

    def logical(self):
        x = self.relation()
        while self.peek() in ("and", "or"):
            combine = np.logical_and if self.next() == "and" else np.logical_or
            x = combine(x, self.relation())
        return x

    def relation(self):
        if self.peek() == "not":
            self.next()
            return np.logical_not(self.relation())
        x = self.sum()
        return RELATIONS[self.next()](x, self.sum()) if self.peek() in RELATIONS else x

    def sum(self):
        x = self.product()
        while self.peek() in ("+", "−"):
            x = x + self.product() if self.next() == "+" else x - self.product()
        return x

    def product(self):
        if self.peek() == "−":
            self.next()
            return -self.product()
        x = self.power()
        while self.peek() in ("·", "/"):
            x = x * self.power() if self.next() == "·" else x / self.power()
        return x

    def power(self):
        if self.peek() == "√":
            self.next()
            return np.sqrt(self.postfix())
        x = self.postfix()
        if self.peek() == "^":
            self.next()
            return x ** self.postfix()
        if re.fullmatch(r"[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", self.peek()):
            return x ** float(self.next().translate(SUPERSCRIPTS))
        return x

    def postfix(self):
        x = self.atom()
        while self.peek() == "[":
            self.next()
            axis = self.next()
            if self.peek() == "→":
                self.next()
                x = np.swapaxes(x, self.dimension(axis), self.dimension(self.next()))
            else:
                self.next("=")
                chosen = self.position(axis) == self.sum()
                x = np.sum(np.where(chosen, x, 0), axis=self.dimension(axis), keepdims=True)
            self.next("]")
        return x

    def dimension(self, axis: str) -> int:
        return self.axes.index(axis)

    def position(self, axis: str):
        shape = [1] * len(self.axes)
        shape[self.dimension(axis)] = self.sizes[axis]
        return np.arange(self.sizes[axis]).reshape(shape)

    def atom(self):
        token = self.next()
        if token == "(":
            x = self.logical()
            self.next(")")
            return x
        if token == "[":
            x = self.logical()
            self.next("]")
            return np.asarray(x, dtype=float)
        if token == "|":
            if self.peek() in self.sizes and self.tokens[self.at + 1] == "|":
                x = self.sizes[self.next()]
            else:
                x = np.abs(self.logical())
            self.next("|")
            return x
        if token in FRACTIONS:
            return FRACTIONS[token]
        if token[0].isdigit():
            return float(token)
        if token in ("π", "log π", "log 2π") or token.startswith("log ") and token[4:].isdigit():
            inner = token.removeprefix("log ")
            number = {"π": math.pi, "2π": 2 * math.pi}.get(inner) or float(inner)
            return math.log(number) if token.startswith("log") else number
        if token in self.variables and self.peek() != "(":
            return self.variables[token]
        if token in self.sizes:
            return self.position(token)
        return self.call(token)

    def call(self, name: str):
        axes: list[str] | None = None
        if self.peek() == "[":
            self.next()
            axes = [self.next()]
            while self.peek() == ",":
                self.next()
                axes.append(self.next())
            self.next("]")
        self.next("(")
        args = [self.logical()]
        while self.peek() == ",":
            self.next()
            if name in ("softmax", "log_softmax"):
                axes = [*(axes or []), self.next()]
            else:
                args.append(self.logical())
        self.next(")")
        reductions = ("sum", "mean", "logsumexp", "softmax", "log_softmax")
        if name in reductions or (len(args) == 1 and name in ("max", "min")):
            return self.along(name, args[0], axes)
        return FUNCTIONS[name](*args)

    def along(self, name: str, x, axes: list[str] | None):
        x = np.asarray(x, dtype=float)
        x = x.reshape([1] * (len(self.axes) - x.ndim) + list(x.shape))
        varying = [i for i, n in enumerate(x.shape) if n > 1]
        dims = tuple(varying if axes is None else map(self.dimension, axes))
        if name in ("sum", "mean", "max", "min"):
            return getattr(np, name)(x, axis=dims, keepdims=True)
        total = special.logsumexp(x, dims)
        return {"logsumexp": total, "log_softmax": x - total, "softmax": np.exp(x - total)}[name]


def value_of(text: str, variables: dict[str, object], sizes: dict[str, int]):
    """What a formula comes to."""
    with np.errstate(all="ignore"):
        return Reader(text, variables, sizes).read()
