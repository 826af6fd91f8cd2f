"""The command line, as a user calls it."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lossforge.catalogue import LOSSES
from lossforge.cli import main
from lossforge.frontends.files import FileError, load_object

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
    result = run("explain", f"{file}:plain")
    assert result.exit_code == 2
    assert "not a Loss; the file has scaled. Decorate" in result.stderr.replace("\n", " ")
    with pytest.raises(FileError, match="has no 'other'; the file has"):
        load_object(f"{file}:other")


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
    assert "has no 'other'; the file has scaled" in result.stderr


def test_markup_in_a_users_text_is_text(file: Path) -> None:
    assert "error: no file '[bold]x.py'" in run("explain", "[bold]x.py:loss").stderr


def test_help_names_every_command() -> None:
    output = run("--help").output
    assert all(f"  {command} " in output for command in ("explain", "export", "list", "demo", "bench"))
