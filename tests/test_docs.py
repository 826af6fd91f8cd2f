"""The documentation is true: its Python runs, what it shows is what is printed, and its links lead somewhere.

The fenced blocks of a page run in order, in one module and an empty working folder. The word after the fence
says what becomes of a block:

    ```python           runs
    ```python no-run    must compile
    ```output           must be what the block before it printed
    anything else       is left alone

A block that uses a framework imports it itself; where that framework is not installed the block is left out,
and the page counts as skipped once the rest of it has run.
"""

import ast
import contextlib
import importlib.util
import io
import sys
import types
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
OPTIONAL = {"torch", "tensorflow", "keras", "jax", "scipy", "sklearn", "skimage", "matplotlib", "xgboost"}


def tokens(page: Path) -> list[Token]:
    return MarkdownIt().parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Token]:
    return [token for token in tokens(page) if token.type == "fence"]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def missing_packages(tree: ast.Module) -> list[str]:
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    used = {module.partition(".")[0] for module in imported} & OPTIONAL
    return sorted(package for package in used if importlib.util.find_spec(package) is None)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # what a page defines can be pickled
    left_out: list[str] = []
    printed = ""
    for block in blocks(page):
        info, line = block.info.strip(), block.map[0] + 1
        if info == "output":
            assert printed.strip() == block.content.strip(), f"{page}:{line} is not what was printed"
        elif info in ("python", "python no-run"):
            # Blank lines in front give the code its place in the page, in tracebacks and for `inspect`.
            tree = ast.parse("\n" * line + block.content, str(page))
            if info == "python no-run":
                continue
            if missing := missing_packages(tree):
                left_out.append(f"could not import {', '.join(missing)} at {name(page)}:{line}")
                continue
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                exec(compile(tree, str(page), "exec"), module.__dict__)
            printed = stdout.getvalue()
    if left_out:
        pytest.skip("; ".join(left_out))


def local_links(page: Path) -> set[Path]:
    inline = [child for token in tokens(page) for child in token.children or []]
    targets = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in inline]
    paths = [target.partition("#")[0] for target in targets if "://" not in target]
    return {(page.parent / path).resolve() for path in paths if path}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_that_exist(page):
    assert [path for path in local_links(page) if not path.exists()] == []


def test_the_index_names_every_page():
    index = ROOT / "docs/README.md"
    assert {page.resolve() for page in ROOT.glob("docs/**/*.md")} - local_links(index) - {index.resolve()} == set()
