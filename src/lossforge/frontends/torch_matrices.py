"""What the ATen operations on matrices mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossforge.frontends.positional import Importer, Rule, Tensor, Unknown
from lossforge.frontends.recording import Step

_FACTORS = Unknown("the factors that a decomposition leaves beside its result; use torch.linalg.cholesky or inv")
_INFO = Unknown("what a decomposition says about its success; leave it to PyTorch to raise")


def _cholesky(imp: Importer, step: Step, x: Any, upper: bool = False) -> tuple[Tensor, Unknown]:
    upper = step.attrs.get("upper", upper)
    lower = imp.matrix("cholesky", imp.transpose(x) if upper else x)
    return imp.transpose(lower) if upper else lower, _INFO


def _solve(imp: Importer, step: Step, x: Any, y: Any) -> tuple[Tensor, Unknown, Unknown, Unknown]:
    return imp.solve(x, y, step.attrs.get("left", True)), _FACTORS, _FACTORS, _INFO


def _solve_triangular(imp: Importer, step: Step, x: Any, y: Any) -> Tensor:
    given = step.attrs
    half = imp.triangle(x, not given["upper"], given.get("unitriangular", False))
    return imp.solve(half, y, given.get("left", True))


def _triangular_solve(
    imp: Importer, step: Step, y: Any, x: Any, upper: bool = True, transpose: bool = False, unit: bool = False
) -> tuple[Tensor, Unknown]:
    half = imp.triangle(x, not upper, unit)
    return imp.solve(imp.transpose(half) if transpose else half, y), _FACTORS


def _squared(imp: Importer, root: Any, upper: bool) -> Tensor:
    """The matrix whose Cholesky factor this is."""
    half = imp.triangle(root, not upper)
    return imp.matmul(imp.transpose(half), half) if upper else imp.matmul(half, imp.transpose(half))


def _cholesky_solve(imp: Importer, step: Step, y: Any, root: Any, upper: bool = False) -> Tensor:
    return imp.solve(_squared(imp, root, step.attrs.get("upper", upper)), y)


def _cholesky_inverse(imp: Importer, step: Step, root: Any, upper: bool = False) -> Tensor:
    return imp.matrix("inverse", _squared(imp, root, step.attrs.get("upper", upper)))


def _eigen(imp: Importer, step: Step, x: Any, upper: str = "L", vectors: bool = True) -> tuple[Tensor, Tensor]:
    return imp.eigen(x if step.attrs.get("UPLO", upper).upper() == "L" else imp.transpose(x))


def _singular(imp: Importer, step: Step, x: Any, full: bool = False, vectors: bool = True, **rest: Any) -> Any:
    return imp.singular(x, step.attrs.get("full_matrices", full) and step.attrs.get("compute_uv", vectors))


MATRICES: Mapping[str, Rule] = {
    "linalg_inv_ex.default": lambda imp, step, x, *rest: (imp.matrix("inverse", x), _INFO),
    "linalg_cholesky_ex.default": _cholesky,
    "cholesky.default": lambda imp, step, x, upper=False: _cholesky(imp, step, x, upper)[0],
    "_linalg_det.default": lambda imp, step, x: (imp.determinant(x), _FACTORS, _FACTORS),
    "_linalg_slogdet.default": lambda imp, step, x: (
        imp.matrix("detsign", x), imp.matrix("logdet", x), _FACTORS, _FACTORS,
    ),
    "_linalg_solve_ex.default": _solve,
    "linalg_solve_triangular.default": _solve_triangular,
    "triangular_solve.default": _triangular_solve,
    "cholesky_solve.default": _cholesky_solve,
    "cholesky_inverse.default": _cholesky_inverse,
    "_linalg_eigh.default": _eigen,
    "_linalg_svd.default": _singular,
}  # fmt: skip

__all__ = ["MATRICES"]
