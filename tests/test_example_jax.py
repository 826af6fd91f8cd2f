"""The example with JAX: a jitted step that learns."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("jax")
pytest.importorskip("sklearn")


def test_the_training_step_learns() -> None:
    path = Path(__file__).parent.parent / "examples" / "jax_training_step.py"
    spec = importlib.util.spec_from_file_location("jax_training_step", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    results = example.main(steps=150)
    assert results["loss after"] < 0.3 * results["loss before"]
    assert results["recall after"] > 0.9
