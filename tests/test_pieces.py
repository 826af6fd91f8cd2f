"""Programs with large matrix products: in pieces of rows they give what they give as a whole.

In float64 and compared to 64 ulp of the largest entry: sums over rows are added in another order, nothing else.
`tests/test_kernels.py` checks whole programs against the reference interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

import lossforge as lf
from lossforge import kernels, pieces
from lossforge.binding import Bound
from lossforge.ir import Program
from lossforge.pieces import Pieces
from lossforge.runtime import blas, threads
from lossforge.runtime.cache import FASTMATH

EPSILON = np.finfo(np.float64).eps


@lf.loss("batch d, batch d -> batch")
def info_nce(pred, key, *, temperature=0.2):
    similarity = lf.sum(pred * lf.rename(key, "batch", "other"), "d") / temperature
    return lf.logsumexp(similarity, "other") - lf.sum(pred * key, "d") / temperature


@lf.loss("batch d, batch d -> batch")
def sigmoid_pairs(pred, key, *, temperature=0.5, bias=-1.0):
    similarity = lf.sum(pred * lf.rename(key, "batch", "other"), "d") / temperature + bias
    positive = lf.sum(pred * key, "d") / temperature + bias
    return lf.sum(lf.softplus(similarity), "other") - positive


@lf.loss("batch d, batch -> batch")
def supervised_contrastive(pred, label, *, temperature=0.5):
    similarity = lf.sum(pred * lf.rename(pred, "batch", "other"), "d") / temperature
    same = lf.where(label == lf.rename(label, "batch", "other"), 1.0, 0.0)
    return lf.logsumexp(similarity, "other") - lf.sum(same * similarity, "other") / lf.sum(same, "other")


@lf.loss("batch d, batch d -> batch")
def clip(pred, key, *, temperature=0.2):
    similarity = lf.sum(pred * lf.rename(key, "batch", "other"), "d") / temperature
    columns = lf.rename(lf.logsumexp(similarity, "batch"), "other", "batch")
    return lf.logsumexp(similarity, "other") + columns - 2 * lf.sum(pred * key, "d") / temperature


@lf.loss("group batch d, group batch d -> group batch")
def grouped(pred, key):
    similarity = lf.sum(pred * lf.rename(key, "batch", "other"), "d")
    return lf.logsumexp(similarity, "other") - lf.sum(pred * key, "d")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of this module's tests are large."""
    monkeypatch.setattr(pieces, "PIECE", 400)
    monkeypatch.setattr(pieces, "SUMMED_PIECE", 400)
    monkeypatch.setattr(pieces, "SHORTEST", 4)


@pytest.fixture(params=[1, 2, 5])
def some_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(threads, "_limit", request.param)
    return int(request.param)


def program_of(loss: lf.Loss, arrays: Sequence[np.ndarray], wrt: Sequence[str]) -> tuple[Program, list]:
    call = loss.bind(tuple(arrays), {})
    return call.plan.value_and_gradient(tuple(wrt)), list(call.arrays)


def bind(kind: type, loss: lf.Loss, arrays: Sequence[np.ndarray], wrt: Sequence[str], real: str = "float64"):
    program, inputs = program_of(loss, arrays, wrt)
    like = [None, *(str(dict(zip([p.name for p in program.inputs], inputs, strict=True))[w].dtype) for w in wrt)]
    held = [a if p.order else None for a, p in zip(inputs, program.inputs, strict=True)]
    formats = [None if a is None else str(a.dtype) for a in held]
    make = Pieces.of if kind is Pieces else Bound
    return make(program, held, real, like if kind is Pieces else [d or real for d in like], formats), inputs


def embeddings(rng: np.random.Generator, *shape: int, dtype: str = "float64") -> np.ndarray:
    return rng.normal(size=shape).astype(dtype)


@pytest.mark.parametrize("rows", [40, 41, 57])
@pytest.mark.parametrize("loss, wrt", [
    (info_nce, ["pred"]), (info_nce, ["key"]), (info_nce, ["pred", "key"]), (sigmoid_pairs, ["pred", "key"]),
])  # fmt: skip
def test_pieces_are_the_whole(
    loss: lf.Loss, wrt: list[str], rows: int, some_threads: int, rng: np.random.Generator
) -> None:
    arrays = [embeddings(rng, rows, 6), embeddings(rng, rows, 6)]
    cut, inputs = bind(Pieces, loss, arrays, wrt)
    assert isinstance(cut, Pieces) and cut.rows < rows / 2
    whole, _ = bind(Bound, loss, arrays, wrt)
    for got, want in zip(cut(inputs), whole(inputs), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        assert np.abs(got - want).max() <= 64 * EPSILON * np.abs(want).max()


@pytest.mark.parametrize("loss", [clip, supervised_contrastive], ids=lambda x: x.name)
def test_rows_that_depend_on_one_another_stay_together(loss: lf.Loss, rng: np.random.Generator) -> None:
    second = rng.integers(0, 5, 50) if loss is supervised_contrastive else embeddings(rng, 50, 6)
    assert bind(Pieces, loss, [embeddings(rng, 50, 6), second], ["pred"])[0] is None


@lf.loss("batch d, batch d -> batch")
def entropy_of_neighbours(pred, key):
    """Its matrix of similarities is read by a sum that follows its softmax."""
    similarity = lf.sum(pred * lf.rename(key, "batch", "other"), "d")
    return lf.sum(lf.softmax(similarity, "other") * similarity, "other")


@pytest.mark.parametrize("loss, wrt, over", [(info_nce, ["pred"], True), (clip, ["pred"], False)])
def test_a_softmax_is_written_over_a_matrix_that_nobody_reads_any_more(
    loss: lf.Loss, wrt: list[str], over: bool, rng: np.random.Generator
) -> None:
    bound, _ = bind(Bound, loss, [embeddings(rng, 70, 6), embeddings(rng, 70, 6)], wrt)
    softmax = next(k for k in bound.kernels if "exp_nonpositive" in k.source)
    assert (len(softmax.stores) == 0 and "store(part, part_row" in softmax.source) == over


@pytest.mark.parametrize("loss", [info_nce, clip, entropy_of_neighbours], ids=lambda x: x.name)
@pytest.mark.parametrize("rows", [9, 70])
def test_a_matrix_that_is_written_over_was_read_before(loss: lf.Loss, rows: int, rng: np.random.Generator) -> None:
    arrays = [embeddings(rng, rows, 6), embeddings(rng, rows, 6)]
    bound, inputs = bind(Bound, loss, arrays, ["pred", "key"])
    lf.use_kernels(False)
    try:
        value, gradients = loss.value_and_grad(*arrays, wrt=["pred", "key"])
    finally:
        lf.use_kernels(True)
    wanted = [value, *gradients]
    for _ in range(2):
        for got, want in zip(bound(inputs), wanted, strict=True):
            assert np.abs(got - want).max() <= 64 * EPSILON * np.abs(want).max()


def test_small_matrices_stay_whole(rng: np.random.Generator) -> None:
    arrays = [embeddings(rng, 28, 6), embeddings(rng, 28, 6)]
    assert bind(Pieces, info_nce, arrays, ["pred"])[0] is None


@pytest.mark.parametrize("layout", ["transposed", "reversed", "every other"])
def test_pieces_of_any_layout(layout: str, rng: np.random.Generator) -> None:
    make = {
        "transposed": lambda: embeddings(rng, 6, 50).T,
        "reversed": lambda: embeddings(rng, 50, 6)[::-1],
        "every other": lambda: embeddings(rng, 50, 12)[:, ::2],
    }[layout]
    arrays = [make(), make()]
    cut, inputs = bind(Pieces, info_nce, arrays, ["pred"])
    assert isinstance(cut, Pieces)
    want = info_nce.value_and_grad(*(a.copy(order="C") for a in arrays), wrt="pred")
    value, gradient = cut(inputs)
    assert np.abs(value - want[0]) <= 64 * EPSILON * np.abs(want[0])
    assert np.abs(gradient - want[1]).max() <= 64 * EPSILON * np.abs(want[1]).max()


def test_batches_of_matrices(rng: np.random.Generator) -> None:
    arrays = [embeddings(rng, 3, 50, 6), embeddings(rng, 3, 50, 6)]
    cut, inputs = bind(Pieces, grouped, arrays, ["pred"])
    assert isinstance(cut, Pieces)
    whole, _ = bind(Bound, grouped, arrays, ["pred"])
    for got, want in zip(cut(inputs), whole(inputs), strict=True):
        assert np.abs(got - want).max() <= 64 * EPSILON * np.abs(want).max()


def test_half_precision_in_pieces(rng: np.random.Generator) -> None:
    arrays = [embeddings(rng, 50, 6, dtype="float16"), embeddings(rng, 50, 6, dtype="float16")]
    cut, inputs = bind(Pieces, info_nce, arrays, ["pred"], real="float32")
    value, gradient = cut(inputs)
    exact = info_nce.value_and_grad(*(a.astype(np.float64) for a in arrays), wrt="pred")
    assert gradient.dtype == np.float16
    # One rounding of an entry, to half an ulp; its float32 computation is finer by far.
    assert np.abs(gradient - exact[1]).max() <= np.finfo(np.float16).eps * np.abs(exact[1]).max()
    assert abs(value - exact[0]) <= 1e-5 * abs(exact[0])


def test_results_go_where_the_caller_wants_them(rng: np.random.Generator) -> None:
    arrays = [embeddings(rng, 50, 6), embeddings(rng, 50, 6)]
    cut, inputs = bind(Pieces, info_nce, arrays, ["pred"])
    want = cut(inputs)
    room = [np.empty_like(w) for w in want]
    got = cut(inputs, room)
    assert all(g is r for g, r in zip(got, room, strict=True))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


def test_a_loss_uses_pieces_by_itself(rng: np.random.Generator) -> None:
    program, inputs = program_of(info_nce, [embeddings(rng, 60, 6), embeddings(rng, 60, 6)], ["pred"])
    ready = kernels.bind(
        program, [a if p.order else None for a, p in zip(inputs, program.inputs, strict=True)], "float64", [None, None]
    )
    assert isinstance(ready, Pieces) and ready.kernels


def test_kernels_beneath_a_log_sum_exp_may_reorder_sums(rng: np.random.Generator) -> None:
    """Comparing the largest similarity with infinity is not looking for it among the others."""
    bound, _ = bind(Bound, info_nce, [embeddings(rng, 28, 6), embeddings(rng, 28, 6)], ["pred"])
    assert bound.fastmath == FASTMATH


# ------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize(
    "shape", [(3, 5, 7), (300, 20, 4), (4, 20, 300), (2, 4000, 3), (0, 3, 4), (3, 0, 4), (130, 1, 1)]
)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_products(
    shape: tuple[int, int, int], batch: tuple[int, ...], some_threads: int, rng: np.random.Generator
) -> None:
    m, k, n = shape
    x, y = embeddings(rng, *batch, m, k), embeddings(rng, *batch, n, k).swapaxes(-1, -2)
    want = np.einsum("...mk,...kn->...mn", x, y)
    got = blas.matmul(x, y)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=k * EPSILON * 40)  # k products of entries below 5


@pytest.fixture
def libraries() -> Iterator[list]:
    with blas.one_thread():
        found = blas._limit.libraries
    assert found is not None
    if not found:
        pytest.skip("NumPy's BLAS cannot be told how many threads to use")
    before = [library.get_num_threads() for library in found]
    for library in found:
        library.set_num_threads(2)
    yield found
    for library, n in zip(found, before, strict=True):
        library.set_num_threads(n)


def test_blas_gets_its_threads_back(libraries: list) -> None:
    with pytest.raises(ValueError, match="matmul"), blas.one_thread():
        assert {library.get_num_threads() for library in libraries} == {1}
        blas.matmul(np.ones((2, 3)), np.ones((4, 5)))
    assert {library.get_num_threads() for library in libraries} == {2}
    with blas.one_thread():
        with blas.one_thread():
            pass
        assert {library.get_num_threads() for library in libraries} == {1}
    assert {library.get_num_threads() for library in libraries} == {2}


FORK = """
import os
from lossforge.runtime import blas

with blas.one_thread():
    libraries = blas._limit.libraries
for library in libraries:
    library.set_num_threads(2)
with blas.one_thread():
    child = os.fork()
    if not child:
        free = blas._limit.holders == 0 and all(library.get_num_threads() == 2 for library in libraries)
        os._exit(0 if free else 1)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_is_not_bound_by_its_parents_limit(libraries: list) -> None:
    """In an interpreter of its own, since other tests load libraries that must not be forked."""
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
