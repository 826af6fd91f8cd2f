"""Importing lossforge is light, and what it exports is there."""

import importlib.resources
import json
import subprocess
import sys

import pytest

HEAVY = ["torch", "tensorflow", "keras", "jax", "numba", "mpmath", "scipy", "click", "rich", "matplotlib"]


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The top-level packages that a fresh interpreter holds after `import lossforge`."""
    program = "import json, sys, lossforge; print(json.dumps([n.partition('.')[0] for n in sys.modules]))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


def test_importing_lossforge_imports_numpy(loaded):
    assert {"lossforge", "numpy"} <= loaded


@pytest.mark.parametrize("package", HEAVY)
def test_importing_lossforge_does_not_import(package, loaded):
    assert package not in loaded


def test_every_exported_name_exists_once():
    import lossforge

    assert len(lossforge.__all__) == len(set(lossforge.__all__))
    assert [name for name in lossforge.__all__ if not hasattr(lossforge, name)] == []


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files("lossforge").joinpath("py.typed").is_file()
