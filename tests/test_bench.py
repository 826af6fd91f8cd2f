"""The bench: every contender computes the same, and every outcome is reported. Nothing here judges a time."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lossforge.bench import Result, bench, contenders, run, worker
from lossforge.bench.report import chart, markdown, table, targets
from lossforge.bench.results import mebibytes, seconds
from lossforge.bench.run import as_json, judged, machine
from lossforge.bench.targets import Target, faster, frugal, level, prompt, rounded, stream, within
from lossforge.bench.workloads import WORKLOADS, workload
from lossforge.cli import main
from lossforge.errors import LossforgeError

# ------------------------------------------------------------------------------------- contenders

TAKING_PART = [
    (w.name, c)
    for w in WORKLOADS
    for c in w.contenders
    if not c.endswith("compile") and not (contenders.CONTENDERS[c].is_ours and w.name not in ("huber", "focal-half"))
]
"""Those under `torch.compile` are the same functions, and take a quarter of a minute each; our losses have tests of
their own."""


@pytest.mark.parametrize(("name", "contender"), TAKING_PART)
def test_every_contender_computes_the_same_gradient(name: str, contender: str) -> None:
    work, who = workload(name), contenders.CONTENDERS[contender]
    pytest.importorskip(who.requires)
    arrays = work.make(np.random.default_rng(0), True)
    value, gradient = who.step(work, arrays, "cpu")()
    error, ulps = worker._errors(work, arrays, who.array(gradient))
    assert np.isfinite(float(value))
    assert error is not None and ulps is not None
    # In bfloat16 some contenders compute every step in it; Keras clips what focal loss takes logarithms of.
    assert error < (0.1 if work.half else 1e-3 if who.name == "keras" else 1e-5)


def test_every_contender_is_known() -> None:
    for work in WORKLOADS:
        for name in (*work.contenders, *work.on_gpu):
            assert name in contenders.CONTENDERS
    assert {c for w in WORKLOADS for c in (*w.contenders, *w.on_gpu)} == {
        c for c in contenders.CONTENDERS if c != "stream" and "original" not in c
    }


def test_errors_in_units_of_the_last_place() -> None:
    work = workload("focal-half")
    arrays = work.make(np.random.default_rng(0), True)
    inputs = [worker._bfloat16(a) for a in arrays.values()]
    exact = work.loss().value_and_grad(*inputs)[1]
    error, ulps = worker._errors(work, arrays, exact)
    assert error is not None and error < 1e-14 and ulps is not None and ulps < 1e-9  # float64's own rounding
    _, ulps = worker._errors(work, arrays, worker._bfloat16(exact))
    assert ulps is not None and 0.45 < ulps <= 0.5
    _, ulps = worker._errors(work, arrays, exact * (1 + 2.0**-7))  # one unit, where the fraction is all zeros
    assert ulps is not None and 1 <= ulps <= 2


@pytest.mark.parametrize("of", [contenders._stream_in_torch, None], ids=["torch", "numpy"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_stream_reads_every_input(of: Any, count: int) -> None:
    if of is not None:
        pytest.importorskip("torch")
    n = 100_003
    arrays = [np.arange(i, i + n, dtype=np.int32).view(np.float32) for i in range(count)]
    words = [contenders._words(a) for a in arrays]
    step = of(workload("huber"), arrays, "cpu") if of else contenders._stream_in_numpy(words)
    _, out = step()
    first, *more = (w.astype(np.int64) for w in words)
    if of is not None:
        want = -first if count == 1 else first + (more[0] if count == 2 else more[0] * more[1])
    else:
        want = 2 * first if count == 1 else first + sum(more)
    np.testing.assert_array_equal(np.asarray(out), want.astype(np.int32))


def test_the_stream_of_channels_last_is_contiguous() -> None:
    array = np.moveaxis(np.zeros((2, 3, 4, 5), np.float32), -1, 1)
    words = contenders._words(array)
    assert words.shape == (120,)
    assert np.shares_memory(words, array)


# ------------------------------------------------------------------------------------- targets

FAST = Result("w", "ours", median=1.0, stream=1.0, memory=1000, cold=1.0, warm=0.05, ulps=0.5)
OTHERS = [Result("w", "a", median=4.0), Result("w", "b", median=2.5), Result("w", "gone", "not installed")]
SLOW = replace(FAST, workload="v", median=1.4)
# The machine's pace halves after two of three rounds, in the first of which the slower one was disturbed.
PACED = [
    Result("w", "steady", median=1.0, rounds=(1.0, 1.0, 2.0)),
    Result("w", "slower", median=3.0, rounds=(9.0, 1.5, 3.0)),
]

JUDGEMENTS: list[tuple[Target, str, bool | None]] = [
    (stream("ours", 1.15), "1.00 ×", True),
    (stream("ours", 0.9), "1.00 ×", False),
    (stream("gone", 9), "", None),
    (stream("nobody", 9), "", None),
    (faster("ours", 2, ("a", "b")), "2.50 × (b)", True),
    (faster("ours", 3, ("a", "b")), "2.50 × (b)", False),
    (faster("ours", 2, ("a", "gone")), "4.00 × (a); without gone", None),
    (faster("ours", 5, ("a", "gone")), "4.00 × (a); without gone", False),
    (faster("ours", 1, ("gone",)), "", None),
    (within("ours", 0.5, "b"), "0.40 ×", True),
    (within("a", 1.2, "b"), "1.60 ×", False),
    (within("slower", 1.6, "steady"), "1.50 ×", True),
    (faster("steady", 1.6, ("slower",)), "1.50 ×", False),
    (within("slower", 3.1, "b"), "1.20 ×", True),
    (level("ours", 1.5, "v"), "1.40 × (v as against this)", True),
    (level("ours", 1.3, "v"), "1.40 × (v as against this)", False),
    (level("ours", 1.3, "not measured"), "", None),
    (frugal("ours"), "0.0 MiB", True),
    (frugal("gone"), "", None),
    (rounded("ours"), "0.500 ulp", True),
    (prompt("ours")[0], "1 s", True),
    (prompt("ours", warm=0.01)[1], "50 ms", False),
]


@pytest.mark.parametrize(("target", "said", "met"), JUDGEMENTS, ids=lambda x: getattr(x, "text", ""))
def test_targets(target: Target, said: str, met: bool | None) -> None:
    results = {(r.workload, r.contender): r for r in (FAST, SLOW, *OTHERS, *PACED)}
    assert target.judge("w", results) == (said, met)


# ------------------------------------------------------------------------------------- a run


def test_a_run_and_its_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ("--rounds", "2", "--only", "lossforge numpy", "--output", str(tmp_path))
    done = CliRunner().invoke(main, ["bench", "small", *options])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "bench.json").read_text())
    (row,) = record["results"]
    result = Result(**{k: v for k, v in row.items() if k != "multiple"})
    assert result.contender == "lossforge numpy" and result.problem is None
    assert all(v is not None and v > 0 for v in (result.median, result.stream, result.cold, result.warm))
    assert result.error is not None and result.error < 1e-6
    assert {t["met"] for t in record["targets"]} == {None}  # both are about PyTorch
    assert record["machine"]["versions"]["numpy"] == np.__version__
    assert "lossforge numpy" in done.output and "open" in done.output
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def _who(name: str, monkeypatch: pytest.MonkeyPatch, script: str, requires: str = "numpy") -> None:
    """Put a script of ours in place of a contender's process."""
    known = contenders.CONTENDERS[name]
    patched = {**contenders.CONTENDERS, name: replace(known, requires=requires, keeps=False)}
    monkeypatch.setattr(run, "CONTENDERS", patched)
    command = run._command

    def instead(work: str, contender: str, mode: str, device: str) -> list[str]:
        return [sys.executable, "-c", script] if contender == name else command(work, contender, mode, device)

    monkeypatch.setattr(run, "_command", instead)


READY = 'print(\'{"first": 1, "memory": null, "error": 0, "ulps": 0, "value": 0}\', flush=True)\n'
PROBLEMS = {
    "not installed": ("", "no_such_module", "no_such_module is not installed"),
    "broken": ("raise ValueError('no such loss')", "numpy", "ValueError: no such loss"),
    "silent": ("raise SystemExit(1)", "numpy", "it ended without a word"),
    "broken later": (READY + "input(); raise MemoryError('too large')", "numpy", "MemoryError: too large"),
    "broken at once": (READY + "raise MemoryError('too large')", "numpy", "MemoryError: too large"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_who_cannot_be_measured_is_reported(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, requires, said = PROBLEMS[problem]
    _who("torch F", monkeypatch, script, requires)
    results = bench(["small"], rounds=1, only=["lossforge numpy", "torch F"], first_calls=False)
    ours, peer = results
    assert ours.problem is None and ours.median is not None
    assert peer.contender == "torch F" and peer.problem == said and peer.median is None
    (mine, _) = judged(results)
    assert mine["met"] is None
    assert said in markdown(json.loads(as_json(results, machine())))


def test_without_a_stream_there_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    _who("stream", monkeypatch, "raise ValueError('no memory')")
    with pytest.raises(LossforgeError, match="the streaming pass failed: ValueError: no memory"):
        bench(["small"], rounds=1, only=[], first_calls=False)


MISTAKES = {
    "workload": ({"names": ["hubr"]}, "no workload 'hubr'; there are huber, "),
    "contender": ({"only": ["torch"]}, "no contender 'torch'; there are lossforge numpy, "),
    "workload on a GPU": ({"names": ["small"], "device": "cuda"}, "no workload 'small'; there are huber, focal"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    options, message = MISTAKES[mistake]
    with pytest.raises(LossforgeError, match=message):
        bench(**options)  # type: ignore[arg-type]


def test_without_a_gpu() -> None:
    if importlib.util.find_spec("torch") is not None and importlib.import_module("torch").cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(LossforgeError, match="no GPU here"):
        bench(["huber"], device="cuda")


# ------------------------------------------------------------------------------------- reports


def _results() -> list[Result]:
    return [
        Result(w.name, c, None, 0.01 * (i + 1), 0.01, 2 << 20, 0.5, 0.05, 1.0, 1e-7, 0.5, 0.1)
        for w in WORKLOADS[:3]
        for i, c in enumerate(w.contenders)
    ] + [Result("huber", "monai", "[red] is | not installed")]


def test_tables_hold_every_result() -> None:
    from rich.console import Console

    console = Console(width=200, record=True)
    console.print(table(_results()), targets(_results()))
    text = console.export_text()
    assert "Huber, mean, 2^24" in text and "[red] is | not installed" in text
    assert text.count("lossforge numpy ") >= 3
    assert "MISSED" in text and "met" in text


def test_markdown_has_as_many_cells_in_every_row() -> None:
    lines = markdown(json.loads(as_json(_results(), machine()))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in rows} == {8, 5}
    assert sum("lossforge numpy**" in line for line in rows) == 3


def test_a_chart_of_nothing_is_none(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chart([Result("huber", "monai", "not installed")], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_units() -> None:
    assert [seconds(t) for t in (None, 2.5, 0.0123, 4e-5, 5e-8)] == ["", "2.5 s", "12.3 ms", "40 µs", "50 ns"]
    assert [mebibytes(b) for b in (None, 3 << 20, -5000)] == ["", "3.0 MiB", "0.0 MiB"]
