"""The text of a program: what each name in it means, and operands that are numbers."""

import numpy as np
import pytest

import lossforge as lf
from lossforge.codegen.emitter import assemble, compile_text, emit
from lossforge.codegen.numpy import numpy_backend
from lossforge.interpreter import evaluate


@lf.loss("batch class, batch -> batch")
def first_against_best(pred, sizes):
    best = lf.take(pred, lf.argmax(pred, "class"), "class")
    return (lf.take(pred, 0, "class") - best) * sizes


@lf.loss("batch class, batch -> batch class")
def logistic(pred, np):  # an argument and a local variable called like a module and a function of the text
    sigmoid = lf.sigmoid(pred)
    return lf.log1p(sigmoid) * np + sigmoid


@pytest.mark.parametrize("loss", [first_against_best, logistic], ids=lambda loss: loss.name)
def test_the_text_agrees_with_the_reference(loss, rng):
    arrays = [rng.normal(size=(3, 4)), rng.normal(size=3)]
    program = loss.plan("none").value()
    backend = numpy_backend()
    source = assemble(backend, [emit(program, backend, names=dict(loss.definition().names))])
    (expected,) = evaluate([program.outputs[0].node], dict(zip(program.inputs, arrays, strict=True)))
    found = compile_text(source, "program", "test")(*arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-14, err_msg=source)
