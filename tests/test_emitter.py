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


@lf.loss("batch class -> batch")
def peak(logits):
    return lf.sum(lf.softmax(logits, "class") ** 2, "class") - lf.max(lf.log_softmax(logits, "class"), "class")


def test_softmaxes_keep_the_digits_of_large_logits(rng):
    """exp(x - logsumexp(x)) in float32 would be wrong by half an ulp of x: 1e-4 at a scale of 3000."""
    logits = (3000 + 3 * rng.normal(size=(50, 40))).astype(np.float32)
    program = peak.plan("none").value()
    source = assemble(numpy_backend(), [emit(program, numpy_backend())])
    (expected,) = evaluate([program.outputs[0].node], {program.inputs[0]: logits.astype(np.float64)})
    found = compile_text(source, "program", "test")(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6, err_msg=source)  # 40 terms of float32


@pytest.mark.parametrize("framework", ["numpy", "torch", "tensorflow", "jax"])
def test_softmaxes_have_their_names(framework):
    source = peak.source(framework)
    assert {"numpy": " softmax(", "torch": "torch.softmax(", "tensorflow": "tf.nn.softmax(", "jax": "jax.nn.softmax("}[
        framework
    ] in source
    assert "log_softmax(" in source and "logsumexp(logits" not in source
