"""Operations of the positional importer, against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.numpy import numpy_backend
from lossforge.compiler import program_vjp
from lossforge.frontends.positional import AxisTable, Importer, Restart, Tensor
from lossforge.frontends.recording import Recording, Ref
from lossforge.interpreter import evaluate
from lossforge.ir import Kind, Port, Program

Build = Callable[..., Tensor]


def imported(
    build: Build, first: Sequence[tuple[int, ...]], second: Sequence[tuple[int, ...]]
) -> tuple[Importer, Tensor]:
    """What `build` makes of inputs that were recorded at two sets of shapes."""
    table = AxisTable()
    names = [f"x{i}" for i in range(len(first))]
    recording = Recording(tuple(zip(first, second, strict=True)), (), Ref(0))
    for _ in range(20):
        importer = Importer(recording, names, [Kind.FLOAT] * len(names), {}, table, {})
        try:
            return importer, build(importer, *(importer.tensor(Ref(i)) for i in range(len(names))))
        except Restart:
            continue
    raise AssertionError("the axes do not settle")


def compare(
    build: Build,
    original: Callable[..., Any],
    first: Sequence[tuple[int, ...]],
    second: Sequence[tuple[int, ...]],
    third: Sequence[tuple[int, ...]],
) -> None:
    """Value and gradients in float64 at a third set of shapes, by the interpreter and by NumPy's text."""
    importer, made = imported(build, first, second)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in third]
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = original(*tensors)
    cotangent = rng.standard_normal(expected.shape)
    slopes = torch.autograd.grad(expected, tensors, torch.tensor(cotangent))
    order = tuple(a for d in made.dims for a in d)
    program = Program(tuple(importer.ports), (Port(made.node, order),), ("y",), (None,))
    whole = program_vjp(program, tuple(p.name for p in importer.ports))
    (shape,) = (np.shape(r) for r in _run(program, arrays))  # flattened dimensions are still several axes here
    given_ = [*arrays, cotangent.reshape(shape)]
    for p, wanted in ((program, [expected.detach().numpy()]), (whole, [s.resolve_neg().numpy() for s in slopes])):
        exact = evaluate([o.node for o in p.outputs], dict(zip(p.inputs, given_, strict=False)))
        for port, a, b, w in zip(p.outputs, exact, _run(p, given_), wanted, strict=True):
            kept = sorted(port.node.axes)
            a = np.expand_dims(
                a.transpose([kept.index(x) for x in port.order if x in kept]),
                tuple(i for i, x in enumerate(port.order) if x not in kept),
            )
            # Some hundred terms of order one, in float64.
            np.testing.assert_allclose(np.broadcast_to(a, np.shape(b)).reshape(w.shape), w, atol=1e-11)
            np.testing.assert_allclose(np.reshape(b, w.shape), w, atol=1e-11)


def _run(program: Program, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    source = assemble(numpy_backend(), [emit(program, numpy_backend())])
    found = compile_text(source, "program", "test")(*arrays[: len(program.inputs)])
    return found if isinstance(found, tuple) else (found,)
