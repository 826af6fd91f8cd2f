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


@lf.loss("batch class, batch -> batch")
def depends_on_size(pred, target):  # a condition that is a number, and its negation
    few = lf.size("batch") < 3
    return lf.where(few, lf.sum(pred, "class"), target) * lf.where(~few, lf.max(pred, "class"), 2.0)


@lf.loss("batch class, batch -> batch")
def first_above(pred, target):
    return lf.take(pred, lf.argmax(pred > target, "class"), "class")


@lf.loss("class, -> ")
def one_sample(logits, target):
    return -lf.take(lf.log_softmax(logits, "class"), target, "class")


MATRIX_AND_ROW = [np.array([[0.5, -1.25, 2.0], [1.5, 0.25, -0.75]]), np.array([0.375, -0.5])]


@pytest.mark.parametrize(
    ("loss", "arrays"),
    [
        *((x, MATRIX_AND_ROW) for x in (first_against_best, logistic, depends_on_size, first_above)),
        (one_sample, [MATRIX_AND_ROW[0][0], np.array(2)]),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_the_text_agrees_with_the_reference(loss, arrays):
    program = loss.plan("none").value()
    backend = numpy_backend()
    source = assemble(backend, [emit(program, backend, names=dict(loss.definition().names))])
    (expected,) = evaluate([program.outputs[0].node], dict(zip(program.inputs, arrays, strict=True)))
    found = compile_text(source, "program", "test")(*arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-14, err_msg=source)
