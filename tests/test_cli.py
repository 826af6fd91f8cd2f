"""The command line, as a user calls it."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lossforge.catalogue import LOSSES
from lossforge.cli import main
from lossforge.frontends.inputs import Input, InputError

FILE = '''
import lossforge as lf
from beside import SCALE


@lf.loss
def scaled(pred, true, *, factor=2.0, squared=True):
    """A loss [of a user's own]."""
    error = SCALE * (pred - true)
    return factor * error**2 if squared else factor * lf.abs(error)


def plain(pred, true):
    return pred - true
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("SCALE = 3.0\n")
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_explain_a_loss_of_the_catalogue() -> None:
    result = run("explain", "huber")
    assert result.exit_code == 0
    assert "∂loss/∂pred = clip(pred − true, −δ, δ) / count" in result.output


def test_explain_in_latex() -> None:
    result = run("explain", "huber", "--latex")
    assert result.exit_code == 0
    assert r"\partial" in result.output


def test_explain_the_schedule() -> None:
    result = run("explain", "huber", "--schedule")
    assert "moves 12 bytes for each entry of pred" in result.output


def test_a_loss_of_a_file_with_parameters(file: Path) -> None:
    result = run("explain", f"{file}:scaled", "-p", "squared=False", "-p", "factor=1.5")
    assert result.exit_code == 0
    assert "scaled" in result.output
    assert "KINKS" in result.output


@pytest.mark.parametrize("framework", ["numpy", "torch", "tensorflow", "jax"])
def test_export_to_a_file(framework: str, tmp_path: Path) -> None:
    target = tmp_path / "huber.py"
    result = run("export", "huber", "--to", framework, "-o", str(target))
    assert result.exit_code == 0
    compile(target.read_text(), "huber.py", "exec")


def test_what_is_exported_computes_the_same() -> None:
    space: dict = {}
    exec(run("export", "huber", "-p", "delta=0.5").output, space)
    pred, true = np.linspace(-2, 2, 9), np.zeros(9)
    want = LOSSES["huber"].value_and_grad(pred, true, delta=0.5)
    got = space["huber_value_and_gradient"](pred, true)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-12)


def test_list() -> None:
    result = run("list")
    assert result.exit_code == 0
    assert all(name in result.output for name in ("huber", "cosine"))
    rows = json.loads(run("list", "--json").output)
    assert [r["name"] for r in rows] == list(LOSSES)
    assert all(r["summary"] for r in rows)


MISTAKES = {
    "an unknown name": (("explain", "hubr"), "did you mean huber"),
    "no such file": (("explain", "nowhere.py:loss"), "no file 'nowhere.py'"),
    "an unknown parameter": (("explain", "huber", "-p", "gamma=1"), "unknown parameter 'gamma'"),
    "an unknown workload": (("bench", "nothing"), "no workload 'nothing'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message(mistake: str) -> None:
    arguments, message = MISTAKES[mistake]
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_not_a_loss(file: Path) -> None:
    result = run("explain", f"{file}:SCALE")
    assert result.exit_code == 2
    assert "is a float, not a loss; the file has plain, scaled" in result.stderr.replace("\n", " ")


def test_a_file_that_fails_is_one_message_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("x = 1\ny = x + undefined\n")
    result = run("explain", f"{path}:y")
    assert result.exit_code == 2
    assert f"{path}:2: NameError: name 'undefined' is not defined" in result.stderr
    path.write_text("x = = 1\n")
    assert f"{path}:1: SyntaxError" in run("explain", f"{path}:y").stderr


def test_a_name_that_is_not_there(file: Path) -> None:
    result = run("explain", f"{file}:other")
    assert result.exit_code == 2
    assert "has no 'other'; the file has plain, scaled" in result.stderr


def test_markup_in_a_users_text_is_text(file: Path) -> None:
    assert "error: no file '[bold]x.py'" in run("explain", "[bold]x.py:loss").stderr


def test_help_names_every_command() -> None:
    output = run("--help").output
    assert all(f"  {command} " in output for command in ("explain", "export", "inputs", "list", "demo", "bench"))


# ------------------------------------------------------------------------------------- losses of other libraries

OTHERS = """
import numpy as np


def dice(pred, true, smooth=1.0):
    overlap = np.sum(pred * true, axis=1)
    return np.mean(1 - (2 * overlap + smooth) / (pred.sum(axis=1) + true.sum(axis=1) + smooth))


def multiclass_svm(scores, y):
    rows = np.arange(len(y))
    margins = np.maximum(0, scores - scores[rows, y][:, None] + 1.0)
    margins[rows, y] = 0
    return np.sum(margins) / len(y)


class Scaled:
    def __init__(self, scale=3.0):
        self.scale = scale

    def __call__(self, pred, true):
        return self.scale * np.mean((pred - true) ** 2)


class Given:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, pred, true):
        return self.scale * np.mean((pred - true) ** 2)


def trimmed(pred, true):
    return np.mean(np.sort(np.abs(pred - true))[: int(pred.max())])


def told(y_true, y_pred, w):
    return np.sum(w * (y_true - y_pred) ** 2)


def example_inputs():
    return {"told": (np.zeros(5), np.ones(5), np.full(5, 0.5))}
"""

ADOPTED = {  # name: inputs, and the same as arrays of another size
    "dice": (("8x5:probs", "8x5:binary"), ("3x6:probs", "3x6:binary")),
    "multiclass_svm": (("8x4:logits", "8:classes=4"), ("6x5:logits", "6:classes=5")),
    "Scaled": (("8x5", "8x5"), ("4x3", "4x3")),
}


@pytest.fixture
def others(tmp_path: Path) -> Path:
    path = tmp_path / "others.py"
    path.write_text(OTHERS)
    return path


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("name", ADOPTED)
def test_a_loss_is_translated(name: str, framework: str, others: Path) -> None:
    """The file that stands alone runs without lossforge, and agrees with the original at another size."""
    pytest.importorskip(framework)
    given, elsewhere = ADOPTED[name]
    options = [word for text in given for word in ("--input", text)]
    result = run("export", "--to", framework, f"{others}:{name}", *options)
    assert result.exit_code == 0, result.stderr
    assert "import lossforge" not in result.output
    space: dict = {"__name__": "translated"}
    exec(compile(result.output, "translated.py", "exec"), space)
    rng = np.random.default_rng(6)
    arrays = [Input.parse(text).draw(rng) for text in elsewhere]
    home: dict = {}
    exec(OTHERS, home)
    original = home[name]() if name == "Scaled" else home[name]
    want = original(*(a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays))
    if framework == "torch":
        import torch

        arrays = [torch.from_numpy(a) for a in arrays]
    value, gradient = space[f"{name}_value_and_gradient"](*arrays)
    np.testing.assert_allclose(float(value), want, rtol=1e-5)  # float32 against float64
    assert np.asarray(gradient).shape == tuple(arrays[0].shape)


def test_parameters_are_kept_by_name(others: Path) -> None:
    text = run("export", f"{others}:dice", "-i", "8x5:probs", "-i", "8x5:binary", "-p", "smooth=0.5").output
    assert "smooth=0.5" in text
    assert "scale=3.0" in run("export", f"{others}:Scaled", "-i", "8x5", "-i", "8x5").output


def test_a_loss_of_another_library_is_explained(others: Path) -> None:
    result = run("explain", f"{others}:told")  # its examples stand in the file
    assert result.exit_code == 0, result.stderr
    assert "differentiated with respect to y_pred" in result.output
    assert "respect to w" in run("explain", f"{others}:told", "--wrt", "w").output


SAID = {
    "without examples": (("dice",), "dice takes (pred, true), and lossforge must see an example of each array"),
    "a class with arguments": (("Given", "-i", "8", "-i", "8"), "is a class that needs arguments"),
    "an unknown kind": (("dice", "-i", "8x5:probabilities"), "no kind 'probabilities'; there are floats, logits"),
    "a number out of an array": (("trimmed", "-i", "8", "-i", "8"), "int() takes a Python number out of an array"),
    "too few inputs": (("dice", "-i", "8x5"), "also takes 'true'"),
}


@pytest.mark.parametrize("what", SAID)
def test_what_is_missing_is_said(what: str, others: Path) -> None:
    (name, *options), said = SAID[what]
    result = run("explain", f"{others}:{name}", *options)
    assert result.exit_code == 2
    assert said in result.stderr.replace("\n", " ")


def test_bench_of_a_loss_of_a_file(others: Path, tmp_path: Path) -> None:
    result = run(
        "bench", f"{others}:dice", "-i", "8x5:probs", "-i", "8x5:binary", "--rounds", "1", "--no-first-calls",
        "--only", "lossforge numpy", "--only", "numpy original, value alone", "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    rows = json.loads((tmp_path / "out" / "bench.json").read_text())["results"]
    assert [r["contender"] for r in rows] == ["lossforge numpy", "numpy original, value alone"]
    assert rows[0]["value"] == pytest.approx(rows[1]["value"], rel=1e-5)


def test_bench_says_what_arrays_it_needs(file: Path) -> None:
    assert "what arrays shall it be measured on?" in run("bench", f"{file}:scaled").stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "shape", "dtype", "holds"),
    [
        ("64x10:logits", (64, 10), "float32", lambda a: a.std() > 1.5),
        ("6:classes=4", (6,), "int64", lambda a: a.min() >= 0 and a.max() < 4),
        ("6:classes=4:int32", (6,), "int32", lambda a: a.max() < 4),
        ("5x3:simplex", (5, 3), "float32", lambda a: np.allclose(a.sum(1), 1)),
        ("5x3x2:simplex=1", (5, 3, 2), "float32", lambda a: np.allclose(a.sum(1), 1)),
        ("5x3:unit", (5, 3), "float32", lambda a: np.allclose((a**2).sum(1), 1)),
        ("5x3:onehot", (5, 3), "float32", lambda a: set(a.ravel()) == {0, 1} and (a.sum(1) == 1).all()),
        ("4x2:float64", (4, 2), "float64", lambda a: a.size == 8),
        ("9:bool", (9,), "bool", lambda a: a.any()),
        ("scalar:positive", (), "float32", lambda a: a > 0),
        ("50:signs", (50,), "float32", lambda a: set(a) == {-1, 1}),
    ],
)
def test_inputs(text: str, shape: tuple[int, ...], dtype: str, holds) -> None:
    array = Input.parse(text).draw(np.random.default_rng(0))
    assert (array.shape, str(array.dtype)) == (shape, dtype)
    assert holds(array)


@pytest.mark.parametrize("text", ["6:classes", "ax3", "0x3", "3:logits:float99", "3:classes=many", "3:float32:logits"])
def test_inputs_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match=text.split(":")[0] if text != "6:classes" else "classes=10"):
        Input.parse(text).draw(np.random.default_rng(0))
