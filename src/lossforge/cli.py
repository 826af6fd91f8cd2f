"""The command line: ``lossforge explain | export | inputs | list | demo | bench``."""

from __future__ import annotations

import ast
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import lossforge
from lossforge.errors import LossforgeError
from lossforge.frontends.inputs import kinds

if TYPE_CHECKING:
    from lossforge.targets import Target

FRAMEWORKS = ("numpy", "torch", "tensorflow", "jax")


class _Commands(click.Group):
    """Errors of lossforge end a command with one message and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LossforgeError as error:
            if ctx.params.get("traceback"):
                raise
            Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
            sys.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(lossforge.__version__, prog_name="lossforge")
@click.option("--traceback", is_flag=True, help="Show where an error was raised.")
def main(traceback: bool) -> None:
    """Write a loss once; its gradient is derived, verified, stable and fast, in the framework you already use.

    LOSS is a name of the catalogue (see `lossforge list`) or FILE.py:NAME, a loss in a file of yours: written for
    lossforge, or a function, module or class written for PyTorch, TensorFlow, Keras, JAX or NumPy, which is adopted
    (then with --input for each array; see `lossforge inputs`).
    """


def _parameters(given: tuple[str, ...]) -> dict[str, Any]:
    """``name=value`` as parameters; a value is a Python literal, or else a name."""
    result: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE", param_hint="-p")
        try:
            result[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            result[name] = value
    return result


def _loss_options(command: Callable[..., None]) -> Callable[..., None]:
    """What tells which loss is meant: the arguments of a command as one `Target`."""

    @click.option("-i", "--input", "inputs", multiple=True, metavar="SHAPE[:KIND]",
                  help="An example of an array argument of a loss to adopt, as 64x10:logits or 64:classes=10; once for each, in their order.")  # fmt: skip
    @click.option(
        "--wrt", multiple=True, metavar="NAME", help="The prediction of a loss to adopt, if it is not found by name."
    )
    @click.option("-p", "--parameter", multiple=True, metavar="NAME=VALUE", help="A parameter of the loss.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, loss: str, inputs: tuple[str, ...], wrt: tuple[str, ...], parameter: tuple[str, ...], **kwargs: Any
    ) -> None:
        from lossforge.targets import Target, parsed

        command(*args, target=Target(loss, inputs, parsed(wrt), _parameters(parameter)), **kwargs)

    return wrapped


@main.command()
@click.argument("loss")
@click.option("--latex", is_flag=True, help="LaTeX instead of text.")
@click.option("--schedule", is_flag=True, help="Also the sweeps over memory that value and gradient take.")
@_loss_options
def explain(target: Target, latex: bool, schedule: bool) -> None:
    """Show how the gradient of LOSS is derived: chain rule, result, kinks and domain.

    \b
    lossforge explain huber -p delta=0.5
    lossforge explain my_losses.py:dice --input 8x100:probs --input 8x100:binary
    """  # noqa: D301 (click reads \b)
    found = target.resolve()
    page = found.loss.explain(latex=latex, schedule=schedule, **found.parameters)
    Console(highlight=False, soft_wrap=True).print(Text(page) if latex else _coloured(page))


def _coloured(page: str) -> Text:
    """A derivation for a terminal: headings and left-hand sides stand out."""
    text = Text(page)
    text.highlight_regex(r"\A.*", "bold")
    text.highlight_regex(r"(?m)^(?P<bold>[A-Z]{4,}) +(?P<dim>.*)$")  # the groups are rich's names of styles
    text.highlight_regex(r"(?m)^  (?P<cyan>\S+) +=")
    return text


@main.command()
@click.argument("loss")
@click.option("--to", "framework", type=click.Choice([*FRAMEWORKS, "numba"]), default="numpy", show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; else the terminal.")
@_loss_options
def export(target: Target, framework: str, output: Path | None) -> None:
    """Write LOSS with its gradient as a file that stands alone, needing only one framework.

    A loss of another framework is translated:

    \b
    lossforge export --to jax my_losses.py:DiceLoss -i 8x64:probs -i 8x64:binary -o dice.py
    """  # noqa: D301 (click reads \b)
    found = target.resolve()
    text = found.loss.source(framework, **found.parameters)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        click.echo(f"wrote {output}")


@main.command()
def inputs() -> None:
    """List what can be written after --input, and other ways to give examples."""
    click.echo(
        "--input SHAPE[:KIND][:DTYPE], once for each array argument of the loss, in their order.\n"
        "SHAPE is 64x10, or `scalar` for a number. KIND tells what values are legal:\n\n"
        f"{kinds()}\n\n"
        "DTYPE is float32 (or int64 for whole numbers) unless it is given, as in 64:classes=10:int32.\n\n"
        "Instead, the file may say it: a function example_inputs() that returns a tuple of arrays, a mapping\n"
        "example_inputs = {NAME: (array, array)} for several losses, or NAME_example_inputs for one of them."
    )


@main.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_(as_json: bool) -> None:
    """List the losses of the catalogue."""
    from lossforge.catalogue import LOSSES

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "arguments": list(loss.arguments),
            "parameters": {k: repr(v) for k, v in loss.parameters.items()},
            "signature": str(loss.signature),
            "summary": (loss.__doc__ or "").strip().split("\n")[0],
        }
        for name, loss in LOSSES.items()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("loss", "arguments", "parameters", "what it is")
    for row in rows:
        parameters = ", ".join(f"{k}={v}" for k, v in row["parameters"].items())
        table.add_row(*(escape(t) for t in (row["name"], ", ".join(row["arguments"]), parameters, row["summary"])))
    Console().print(table)


@main.command()
@click.option("--framework", type=click.Choice(FRAMEWORKS), default="numpy", show_default=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=Path("lossforge-demo"),
              show_default=True, help="The folder for derivations and pictures.")  # fmt: skip
def demo(framework: str, output: Path) -> None:
    """Derive, explain and verify three losses, and train with them on real data."""
    from lossforge.demo import main as run

    run(framework=framework, output=output)


@main.command()
@click.argument("workloads", nargs=-1)
@click.option("--rounds", default=11, show_default=True, help="How often each contender runs.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=Path("lossforge-bench"),
              show_default=True, help="The folder for the JSON file and the chart.")  # fmt: skip
@click.option(
    "--first-calls/--no-first-calls",
    default=True,
    help="Measure first calls, cold and from the cache; without, memory holds what compilers leave behind.",
)
@click.option("--only", multiple=True, metavar="CONTENDER", help="Restrict the run to some contenders.")
@click.option("-i", "--input", "inputs", multiple=True, metavar="SHAPE[:KIND]",
              help="An array argument of a loss of yours, as 4096x1000:logits; see `lossforge inputs`.")  # fmt: skip
@click.option(
    "--wrt", multiple=True, metavar="NAME", help="The prediction of a loss of yours, if it is not found by name."
)
@click.option("-p", "--parameter", multiple=True, metavar="NAME=VALUE", help="A parameter of a loss of yours.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def bench(
    workloads: tuple[str, ...],
    rounds: int,
    output: Path,
    first_calls: bool,
    only: tuple[str, ...],
    inputs: tuple[str, ...],
    wrt: tuple[str, ...],
    parameter: tuple[str, ...],
    device: str,
) -> None:
    """Measure lossforge against what is installed, in turns, as multiples of a streaming pass.

    WORKLOADS: huber, weighted, focal, cross-entropy, dice, dice-last, info-nce, small, focal-half; all by default.
    Or FILE.py:NAME, a loss of yours, on the arrays that --input describes: it runs by lossforge, as it is in its own
    framework, and compiled by it.

    \b
    lossforge bench my_losses.py:dice --input 4096x1000:probs --input 4096x1000:binary
    """  # noqa: D301 (click reads \b)
    from lossforge.bench import bench as run
    from lossforge.bench.report import chart, table, targets
    from lossforge.bench.run import as_json, machine

    console = Console() if sys.stdout.isatty() else Console(width=150)
    known = machine(device)
    console.print(f"{known['device']}, {known['cores']} cores, {known['system']}, Python {known['python']}")
    console.print(", ".join(f"{n} {v}" for n, v in known["versions"].items()))
    with console.status("starting") as status:

        def tell(text: str) -> None:
            status.update(escape(text))
            if not console.is_terminal:
                click.echo(text, err=True)

        results = run(
            [_workload(w, inputs, wrt, parameter) for w in workloads] or None, rounds=rounds, only=only or None,
            first_calls=first_calls, device=device,
            tell=tell,
        )  # fmt: skip
    console.print(table(results))
    if device == "cpu":
        console.print(targets(results))
    output.mkdir(parents=True, exist_ok=True)
    (output / "bench.json").write_text(as_json(results, known), encoding="utf-8")
    console.print(f"wrote {output / 'bench.json'}")
    try:
        chart(results, output / "bench.png")
    except ImportError:
        console.print("no chart: it is drawn by matplotlib, which `pip install lossforge\\[demo]` brings")
    else:
        console.print(f"wrote {output / 'bench.png'}")


def _workload(text: str, inputs: tuple[str, ...], wrt: tuple[str, ...], parameter: tuple[str, ...]) -> str:
    if ":" not in text:
        return text
    from lossforge.bench.own import described
    from lossforge.targets import Target, parsed

    return described(Target(text, inputs, parsed(wrt), _parameters(parameter)))
