"""JAX on the CPU by our kernels: the same answers as by XLA's operations, under every transformation."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import lossforge as lf
from lossforge import kernels
from lossforge.dtypes import EPSILON

jax = pytest.importorskip("jax")
jnp = jax.numpy

ROWS, COLUMNS = 260, 256  # as many entries as kernels are called for
CALL = "custom_call @lossforge"


@lf.loss
def huber(pred, true, *, delta=1.0):
    error = lf.abs(pred - true)
    quadratic = lf.minimum(error, delta)
    return 0.5 * quadratic**2 + delta * (error - quadratic)


@lf.loss("batch class, batch -> batch")
def cross_entropy(logits, target):
    return -lf.take(lf.log_softmax(logits, "class"), target, "class")


@lf.loss("batch class *space, batch class *space -> batch class")
def softmax_dice(logits, true, *, smooth=1e-3):
    pred = lf.softmax(logits, "class")
    overlap = lf.sum(pred * true, "*space")
    return 1 - (2 * overlap + smooth) / (lf.sum(pred, "*space") + lf.sum(true, "*space") + smooth)


@lf.loss("batch d, batch d -> batch")
def info_nce(anchor, positive, *, temperature=4.0):
    similarity = lf.sum(anchor * lf.rename(positive, "batch", "other"), "d") / temperature
    return lf.logsumexp(similarity, "other") - lf.sum(anchor * positive, "d") / temperature


LOSSES = {loss.name: loss for loss in (huber, cross_entropy, softmax_dice, info_nce)}


def arrays(name: str, rng: np.random.Generator, dtype: str = "float32") -> tuple[Any, Any]:
    shape = (5, 4, 60, 60) if name == "softmax_dice" else (ROWS, COLUMNS)
    first = jnp.asarray(rng.standard_normal(shape), dtype)
    if name == "cross_entropy":
        return first, jnp.asarray(rng.integers(0, COLUMNS, ROWS))
    return first, jnp.asarray(rng.standard_normal(shape), dtype)


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def both_ways(function: Callable[..., Any], *args: Any, called: bool = True) -> tuple[Any, Any]:
    """What a function gives by kernels, which it must call, and by XLA's operations."""
    by_kernels = jax.jit(function)
    assert (CALL in by_kernels.lower(*args).as_text()) is called
    got = by_kernels(*args)
    before = lf.use_kernels(False)
    try:
        by_operations = jax.jit(lambda *args: function(*args))
        assert CALL not in by_operations.lower(*args).as_text()
        return got, by_operations(*args)
    finally:
        lf.use_kernels(before)


def check(function: Callable[..., Any], *args: Any, dtype: str = "float32", called: bool = True) -> None:
    """Equal to 256 units of the last place of each array's largest entry: sums of 10⁵ terms, in another order."""
    got, want = both_ways(function, *args, called=called)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        g, w = (np.asarray(x, np.float64) for x in (g, w))
        np.testing.assert_allclose(g, w, 0, 256 * EPSILON[dtype] * np.abs(w).max(initial=0))


# ------------------------------------------------------------------------------------- the same answers


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient(name: str, reduction: str, rng: np.random.Generator) -> None:
    def total(*args: Any) -> Any:
        return jnp.sin(LOSSES[name](*args, reduction=reduction)).sum()

    check(jax.value_and_grad(total), *arrays(name, rng))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(dtype: str, rng: np.random.Generator, x64: None) -> None:
    inputs = arrays("huber", rng, dtype)
    # Kernels sum in float64; float32 is what half precision is computed in.
    check(jax.value_and_grad(lambda *args: huber(*args, reduction="sum")), *inputs, dtype=dtype)
    check(jax.value_and_grad(lambda p, t, w: 3e4 * huber(p, t, weight=w)), *inputs, abs(inputs[0]), dtype=dtype)


def test_weights_masks_and_parameters(rng: np.random.Generator) -> None:
    inputs = arrays("huber", rng)
    weight, mask = jnp.asarray(rng.random(ROWS), "float32"), jnp.asarray(rng.random((ROWS, COLUMNS)) < 0.5)

    def loss(delta: Any, weight: Any, *inputs: Any) -> Any:
        return huber(*inputs, delta=delta, weight=weight[:, None], mask=mask)

    check(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)), jnp.float32(0.7), weight, *inputs)


def test_a_gradient_written_by_hand_is_differentiated_further(rng: np.random.Generator) -> None:
    @lf.loss
    def squared(pred, true):
        return (pred - true) ** 2

    @squared.gradient
    def _(pred, true):
        return 2 * (pred - true)

    pred, true = arrays("huber", rng)
    check(jax.value_and_grad(squared), pred, true)
    check(lambda *args: jax.jvp(jax.grad(squared), args, args)[1], pred, true, called=False)


# ------------------------------------------------------------------------------------- transformations


def _hvp(f: Callable[..., Any], x: Any, y: Any) -> Any:
    return jax.jvp(jax.grad(lambda x: f(x, y)), (x,), (jnp.cos(x),))[1]


def _scan(f: Callable[..., Any], x: Any, y: Any) -> Any:
    return jax.lax.scan(lambda at, _: (at - 50 * jax.grad(f)(at, y), f(at, y)), x, length=3)


def _loop(f: Callable[..., Any], x: Any, y: Any) -> Any:
    return jax.lax.fori_loop(0, 3, lambda i, total: total + f(x, y), 0.0)


TRANSFORMED: dict[str, Callable[..., Any]] = {
    "jvp": lambda f, x, y: jax.jvp(f, (x, y), (jnp.cos(x), jnp.sin(y))),
    "jvp of a gradient": _hvp,
    "gradient of a gradient": lambda f, x, y: jax.grad(lambda x: (jax.grad(f)(x, y) * jnp.sin(x)).sum())(x),
    "linearize": lambda f, x, y: jax.linearize(f, x, y)[1](y, x),
    "vjp": lambda f, x, y: jax.vjp(f, x, y)[1](jnp.float32(3)),
    "checkpoint": lambda f, x, y: jax.grad(jax.checkpoint(lambda x: jnp.sin(f(x, y))))(x),
    "scan": _scan,
    "loop": _loop,
    "vmap": lambda f, x, y: jax.vmap(f)(jnp.stack([x, y]), jnp.stack([y, y])),
    "vmap of one": lambda f, x, y: jax.vmap(f, (2, None))(jnp.stack([x, y], 2), y),
    "vmap of a gradient": lambda f, x, y: jax.vmap(jax.grad(f), (None, 0))(x, jnp.stack([x, y])),
    "gradient of vmap": lambda f, x, y: jax.grad(lambda x: jnp.sin(jax.vmap(f)(x, x * x)).sum())(jnp.stack([x, y])),
    "cond": lambda f, x, y: jax.lax.cond(x[0, 0] > 9, lambda: 0.0, lambda: f(x, y)),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations(name: str, rng: np.random.Generator) -> None:
    # The residual of Huber's second derivative is a truth value, which kernels do not write.
    check(
        partial(TRANSFORMED[name], huber), *arrays("huber", rng), called="of a gradient" not in name or name[0] == "v"
    )


def test_second_derivatives_of_a_softmax(rng: np.random.Generator) -> None:
    logits, target = arrays("cross_entropy", rng)
    check(lambda logits: _hvp(cross_entropy, logits, target), logits)


def test_vmap_over_a_parameter(rng: np.random.Generator) -> None:
    deltas = jnp.asarray([0.5, 1.0, 2.0])
    check(jax.vmap(lambda d, *args: huber(*args, delta=d), (0, None, None)), deltas, *arrays("huber", rng))


def test_without_jit(rng: np.random.Generator) -> None:
    inputs = arrays("huber", rng)
    eager = huber(*inputs), jax.grad(huber)(*inputs)
    with jax.disable_jit():
        np.testing.assert_allclose(huber(*inputs), eager[0], rtol=1e-5)
    lf.use_kernels(False)
    try:
        again = huber(*inputs), jax.grad(huber)(*inputs)
    finally:
        lf.use_kernels(True)
    for got, want in zip(eager, again, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-10)


def test_a_donated_array(rng: np.random.Generator) -> None:
    pred, true = arrays("huber", rng)
    want = jax.jit(jax.value_and_grad(huber))(pred, true)
    got = jax.jit(jax.value_and_grad(huber), donate_argnums=0)(jnp.array(pred), true)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


# ------------------------------------------------------------------------------------- where operations stay


def test_small_arrays_stay_operations() -> None:
    x = jnp.ones((64, 10))
    assert CALL not in jax.jit(jax.value_and_grad(huber)).lower(x, x).as_text()


def test_what_kernels_do_not_spell_stays_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "attempt_bound", lambda *args: None)
    x = jnp.ones(1 << 16)
    step = jax.jit(jax.value_and_grad(huber))
    assert CALL not in step.lower(x, x).as_text()
    assert step(x, x)[0] == 0


def test_an_exported_function_stands_alone() -> None:
    shape = jax.ShapeDtypeStruct((1 << 16,), "float32")
    exported = jax.export.export(jax.jit(jax.grad(huber)))(shape, shape)
    assert "lossforge" not in exported.mlir_module().replace("/lossforge", "")
    x = jnp.full(1 << 16, 3.0)
    np.testing.assert_allclose(exported.call(x, 0 * x), 1 / x.size)


def test_an_exported_function_of_any_size() -> None:
    n = jax.export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct(n, "float32")
    exported = jax.export.export(jax.jit(jax.grad(huber)))(shape, shape)
    for size in (5, 1 << 16):
        np.testing.assert_allclose(exported.call(jnp.full(size, 3.0), jnp.zeros(size)), 1 / size)


# ------------------------------------------------------------------------------------- threads, errors, processes


def test_an_error_in_a_kernel_is_an_error_of_the_call(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    inputs = arrays("huber", rng)
    step = jax.jit(lambda *args: huber(*args, reduction="sum"))
    want = step(*inputs)

    def fail(*args: Any) -> None:
        raise MemoryError("no room for scratch")

    with monkeypatch.context() as patch:
        patch.setattr(kernels, "run", fail)
        with pytest.raises(Exception, match="MemoryError: no room for scratch"):
            jax.block_until_ready(step(*inputs))
    np.testing.assert_array_equal(step(*inputs), want)


def test_threads(rng: np.random.Generator) -> None:
    pairs = [arrays("huber", rng) for _ in range(4)]
    step = jax.jit(jax.value_and_grad(huber))
    want = [step(*pair) for pair in pairs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            got = step(*pairs[i])
            if not all(np.array_equal(g, w) for g, w in zip(got, want[i], strict=True)):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


def run(program: str, *arguments: str, devices: int = 1) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program, *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


PREAMBLE = """
import sys, jax, jax.numpy as jnp, numpy as np, lossforge as lf
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from lossforge.catalogue import huber
CALL = "custom_call @lossforge"
step = jax.jit(jax.value_and_grad(huber))
x, y = jnp.sin(jnp.arange(1 << 18).reshape(512, 512)), jnp.zeros((512, 512))
"""

LATE = """
import atexit
def late():
    try:
        jax.block_until_ready(step(x, y))
    except Exception as error:
        print(error)
atexit.register(late)  # handlers run in reverse order: after lossforge's own, which comes with the first call
step(x, y)
"""


def test_a_call_while_python_exits_is_refused() -> None:
    assert "a kernel is called while Python exits" in run(LATE)


SEVERAL_DEVICES = """
want = step(x, y)
mesh = Mesh(jax.devices(), "i")
on = lambda x: jax.device_put(x, NamedSharding(mesh, P("i")))
assert CALL not in step.lower(on(x), on(y)).as_text()
split = jax.jit(jax.shard_map(lambda x, y: jax.lax.pmean(huber(x, y), "i"), mesh=mesh, in_specs=P("i"), out_specs=P()))
halves = [a.reshape(2, 256, 512) for a in (x, y)]
second = jax.device_put((x, y), jax.devices()[1])
assert CALL in step.lower(*second).as_text()
for name, got in {
    "sharded": step(on(x), on(y)),
    "second device": step(*second),
    "shard_map": (split(x, y), jax.grad(split)(x, y)),
    "pmap": (jax.pmap(huber)(*halves).mean(), jax.pmap(jax.grad(huber))(*halves).reshape(512, 512) / 2),
}.items():
    for g, w in zip(got, want):
        np.testing.assert_allclose(g, w, 1e-5, 1e-10, err_msg=name)
print("ok")
"""


def test_several_devices() -> None:
    assert run(SEVERAL_DEVICES, devices=2) == "ok\n"


IN_TWO_PROCESSES = """
import pickle, pathlib
from jax.experimental import serialize_executable
folder = pathlib.Path(sys.argv[1])
file = folder / "serialized"
if not file.exists():
    file.write_bytes(pickle.dumps(serialize_executable.serialize(step.lower(x, y).compile())))
else:
    huber(x.reshape(-1), y.reshape(-1))
    loaded = serialize_executable.deserialize_and_load(*pickle.loads(file.read_bytes()))
    try:
        jax.block_until_ready(loaded(x, y))
    except Exception as error:
        assert "compiled in another process" in str(error), error
    else:
        raise AssertionError("its kernels are known")
    assert step(x, y)[0] == loaded(x, y)[0]  # they are known now

jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
again = jax.jit(jax.value_and_grad(lambda *arrays: 2 * huber(*arrays)))
assert CALL in again.lower(x, y).as_text()
print(float(again(x, y)[0]), flush=True)
again(x, y)  # and leave while it runs
"""


def test_compiled_programs_in_another_process(tmp_path: Any) -> None:
    def compiled() -> set[str]:
        return {f.name for f in (tmp_path / "cache").iterdir() if f.name.endswith("-cache") and "lambda" in f.name}

    first = run(IN_TWO_PROCESSES, str(tmp_path))
    before = compiled()
    assert before
    assert run(IN_TWO_PROCESSES, str(tmp_path)) == first
    assert compiled() == before
