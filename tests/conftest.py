"""What every test shares: a printed seed, quiet and single-threaded frameworks, a kernel cache of its own.

With LOSSFORGE_REQUIRE_ALL=1 (set by `make test`) a test that skips for want of a package fails instead, so
that the full environment really runs everything.
"""

import os
import shutil
import tempfile
import zlib
from collections.abc import Generator

import hypothesis
import numpy as np
import pytest

CHOSEN_SEED = os.environ.get("LOSSFORGE_TEST_SEED")
SEED = int(CHOSEN_SEED or 20260214)
REQUIRE_ALL = os.environ.get("LOSSFORGE_REQUIRE_ALL") == "1"

# Read by the frameworks when they are first imported, which no test file does before this one is loaded.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "2",  # errors only
    "TF_ENABLE_ONEDNN_OPTS": "0",  # sums in one order on every machine
    "KERAS_BACKEND": "tensorflow",
    "JAX_PLATFORMS": "cpu",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",  # PyTorch: the test processes already fill the cores
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

# Without a chosen seed Hypothesis derives one from each test, so that every run draws the same examples.
hypothesis.settings.register_profile(
    "lossforge", derandomize=CHOSEN_SEED is None, database=None, deadline=None, print_blob=True
)
hypothesis.settings.load_profile("lossforge")


@pytest.hookimpl(tryfirst=True)  # before Hypothesis reads its option
def pytest_configure(config: pytest.Config) -> None:
    if CHOSEN_SEED is not None:
        config.option.hypothesis_seed = SEED
    if not hasattr(config, "workerinput"):  # xdist's workers inherit the folder
        cache = tempfile.mkdtemp(prefix="lossforge-test-cache-")
        os.environ["LOSSFORGE_CACHE_DIR"] = cache
        config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


def pytest_report_header() -> str:
    return f"lossforge: seed {SEED} (another by LOSSFORGE_TEST_SEED)"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the seed and the test's name alone, not on the tests before it."""
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_missing_package(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_missing_package(report)
    return report


def _refuse_missing_package(report: pytest.TestReport | pytest.CollectReport) -> None:
    if REQUIRE_ALL and report.skipped and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        if "could not import" in reason:
            report.outcome = "failed"
            report.longrepr = f"{path}:{line}: {reason}\nLOSSFORGE_REQUIRE_ALL=1: this skip is a failure"


@pytest.fixture(autouse=True)
def _kernels(request: pytest.FixtureRequest) -> Generator[None]:
    """A test module that says ``KERNELS = False`` tests the emitted text of a framework, not the kernels."""
    if getattr(request.module, "KERNELS", True):
        yield
        return
    from lossforge import use_kernels

    before = use_kernels(False)
    yield
    use_kernels(before)
