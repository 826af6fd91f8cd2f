"""Sums of products as matrix products: the value stays, and no factor spans both matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lossforge as lf
from lossforge.catalogue import LOSSES
from lossforge.contractions import factor_sums
from lossforge.interpreter import evaluate
from lossforge.ir import Node, Port, elementwise, input_, reduction, where
from lossforge.schedule import Product, schedule

SIZES = {"i": 3, "j": 4, "k": 5}
X, Y = input_("x", {"i", "k"}), input_("y", {"j", "k"})
ROW, COLUMN, SHARED, PAIR = (
    input_(n, axes) for n, axes in (("row", {"i"}), ("column", {"j"}), ("shared", {"k"}), ("pair", {"i", "j"}))
)
NUMBER = input_("number", set())
INPUTS = (X, Y, ROW, COLUMN, SHARED, PAIR, NUMBER)


def positive(x: Node) -> Node:
    return elementwise("gt", x, 0.0)


def values(rng: np.random.Generator) -> dict[Port, np.ndarray]:
    """Away from 0, since some are divisors."""
    found = {}
    for node in INPUTS:
        order = tuple(sorted(node.axes))
        shape = [SIZES[a] for a in order]
        found[Port(node, order)] = rng.uniform(0.5, 2, shape) * rng.choice([-1.0, 1.0], shape)
    return found


PRODUCTS = {
    "plain": X * Y,
    "a norm": where(positive(ROW), (X / ROW) * Y, 0.0),
    "norms of both": where(positive(ROW), (X / ROW) * where(positive(COLUMN), Y / COLUMN, 0.0), 0.0),
    "masked elsewhere": where(positive(COLUMN), 0.0, X * Y),
    "weights along the sum": SHARED * (X * Y),
    "a number": (NUMBER * X) * (-(Y / NUMBER)),
    "a divisor outside": (X * Y) / ROW,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_sum_becomes_a_matrix_product(name: str, rng: np.random.Generator) -> None:
    before = reduction("sum", PRODUCTS[name], ("k",))
    (after,) = factor_sums([before])
    assert after.op == "sum" and after.args[0].op == "mul"
    assert {a.axes for a in after.args[0].args} == {frozenset("ik"), frozenset("jk")}
    arrays = values(rng)
    (want,), (got,) = evaluate([before], arrays), evaluate([after], arrays)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)  # 5 terms below 16


@pytest.mark.parametrize(
    "x", [X * PAIR * Y, X * (Y + ROW), X * SHARED, where(positive(PAIR), X * Y, 0.0), X + Y], ids=str
)
def test_what_spans_both_matrices_stays(x: Node) -> None:
    total = reduction("sum", x, ("k",))
    assert factor_sums([total]) == [total]


COUNT = reduction("sum", where(positive(X), 1.0, 0.0), ("k",))
"""Zero for rows in which x is nowhere positive."""


@pytest.mark.parametrize(
    "x",
    [where(positive(X), PAIR / COUNT, 0.0), where(positive(COUNT), (X / COUNT) * PAIR, 0.0)],
    ids=["a condition of one side", "a condition of both"],
)
def test_a_division_stays_under_the_condition_that_it_is_made_for(x: Node, rng: np.random.Generator) -> None:
    before = reduction("sum", x, ("i",))
    (after,) = factor_sums([before])
    arrays = values(rng)
    arrays[Port(X, ("i", "k"))][1] = -1.0
    (want,), (got,) = evaluate([before], arrays), evaluate([after], arrays)
    assert after.args[0].op == "mul" and np.isfinite(want).all()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)  # 3 terms below 4


@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_no_value_changes(data: st.DataObject, seed: int) -> None:
    def tree(depth: int) -> Node:
        kind = data.draw(st.sampled_from(["leaf", "mul", "mul", "neg", "div", "where"])) if depth else "leaf"
        if kind == "leaf":
            return data.draw(st.sampled_from(INPUTS))
        if kind == "mul":
            return tree(depth - 1) * tree(depth - 1)
        if kind == "neg":
            return -tree(depth - 1)
        if kind == "div":
            return tree(depth - 1) / data.draw(st.sampled_from(INPUTS))
        condition, x = positive(data.draw(st.sampled_from(INPUTS))), tree(depth - 1)
        return where(condition, x, 0.0) if data.draw(st.booleans()) else where(condition, 0.0, x)

    x = tree(4)
    axes = tuple(sorted(a for a in x.axes if data.draw(st.booleans())))
    if not axes:
        return
    before = reduction("sum", x, axes)
    (after,) = factor_sums([before])
    arrays = values(np.random.default_rng(seed))
    (want,), (got,) = evaluate([before], arrays), evaluate([after], arrays)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-10 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("name", ["info_nce", "nt_xent"])
def test_losses_of_all_pairs_are_matrix_products(name: str) -> None:
    """Nothing runs over pairs and features at once; unit vectors are stored once and read under both names."""
    loss = LOSSES[name]
    call = loss.bind((np.ones((8, 3)), np.ones((8, 3))), {})
    steps = schedule(call.plan.value_and_gradient(loss.predictions)).steps
    assert any(isinstance(s, Product) for s in steps)
    for sweep in schedule(call.plan.value_and_gradient(loss.predictions)).sweeps:
        assert len({*sweep.outer, *sweep.inner}) <= 2
        assert not any(n.op == "rename" for n in sweep.stores)


def test_the_texts_of_pairs_multiply_matrices() -> None:
    for framework, product in (("numpy", "np.einsum("), ("torch", "torch.einsum("), ("jax", "jnp.einsum(")):
        assert LOSSES["nt_xent"].source(framework).count(product) >= 8, framework


def test_a_large_batch_needs_no_cube(rng: np.random.Generator) -> None:
    """Of 600 × 600 × 300 entries, 800 MB: these are matrices of 600 × 600 and 600 × 300."""
    loss = LOSSES["nt_xent"]
    first, second = rng.normal(size=(2, 600, 300))
    value, (gradient, _) = loss.value_and_grad(first, second)
    step = 1e-6 * rng.normal(size=first.shape)
    change = float(loss(first + step, second)) - float(loss(first - step, second))
    assert change == pytest.approx(2 * float((gradient * step).sum()), rel=1e-5)
    before = lf.use_kernels(False)
    try:
        assert float(loss(first, second)) == pytest.approx(float(value), rel=1e-12)
    finally:
        lf.use_kernels(before)
