"""What the demo says on the terminal."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from lossforge.demo.checking import Checked
from lossforge.demo.story import Story
from lossforge.demo.training import Trained
from lossforge.explain import Explanation

WIDTH = 104
NAMES = {"numpy": "NumPy", "torch": "PyTorch", "tensorflow": "TensorFlow", "jax": "JAX"}


class Report:
    """The demo's voice, on a `rich` console."""

    def __init__(self, console: Console, framework: str) -> None:
        self.console = console
        self.framework = NAMES[framework]
        self.width = min(WIDTH, console.width)

    def begin(self, number: int, story: Story) -> None:
        """The problem, and the definition as it stands in the source."""
        self.console.print()
        self.console.print(Rule(f"[bold]{number}  {story.title}", align="left"))
        self.console.print(story.about, width=self.width)
        functions: list[Callable[..., object]] = [story.ours.loss.function]
        if story.written_by_hand is not None:
            functions.append(story.written_by_hand)
        source = "\n".join(inspect.getsource(f) for f in functions).rstrip()
        code = Syntax(source, "python", theme="ansi_dark", background_color="default")
        self.console.print(Panel(code, title="Defined", title_align="left", width=self.width))

    def derived(self, explanation: Explanation, path: Path) -> None:
        """The gradient and the kinks; the chain rule is in a file."""
        sections = explanation.split("\n\n")
        shown = "\n\n".join(s for s in sections if s.startswith(("GRADIENT", "KINKS")))
        panel = Panel(
            Text(shown),
            title="Derived and explained",
            subtitle=f"step by step in {path}",
            title_align="left",
            width=self.width,
        )
        panel.subtitle_align = "right"
        self.console.print(panel)

    def verified(self, checked: Checked) -> None:
        """How far the gradient is from differences in high precision."""
        self._line(
            "Verified",
            f"{self.framework}'s gradient against differences of the loss in 60-digit arithmetic: "
            f"{checked.entries} entries, largest relative error [bold]{checked.error:.1e}[/]",
        )

    def refused(self, refusal: str) -> None:
        """The gradient written by hand was accepted, a wrong one was not."""
        self._line(
            "",
            "The gradient written by hand agrees with the derived one and is used; a wrong one is refused:",
        )
        self._line("", Text(refusal, style="dim"))

    @contextmanager
    def training(self, names: Sequence[str], steps: int) -> Iterator[Callable[[str, int, float], None]]:
        """Progress bars, one for each contender; call the result with a name, steps taken and the loss."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeElapsedColumn(),
        )
        width = max(map(len, names))
        with Progress(*columns, console=self.console) as progress:
            tasks = {
                n: progress.add_task(f"Training  {n:<{width}}", total=steps, loss=float("nan"), start=False)
                for n in names
            }

            def advance(name: str, steps: int, loss: float) -> None:
                progress.start_task(tasks[name])
                progress.update(tasks[name], advance=steps, loss=loss)

            yield advance

    def results(self, story: Story, ours: Trained, baseline: Trained, files: Sequence[Path]) -> None:
        """The metrics, what else there is to say, and where the pictures are."""
        for metric in story.metrics:
            ours_value, other = metric.of(ours.prediction), metric.of(baseline.prediction)
            self._line(
                "Result" if metric is story.metrics[0] else "",
                f"{metric.name}: [bold]{metric.show(ours_value)}[/] with {ours.name}, "
                f"{metric.show(other)} with {baseline.name}",
            )
        if story.remark is not None:
            self._line("", story.remark(ours.prediction, baseline.prediction))
        self._line("Pictures", "  ".join(map(str, files)))

    def table(self, rows: Sequence[tuple[Story, Trained, Trained]], seconds: float) -> None:
        """The closing table."""
        table = Table(
            title=f"Trained in {self.framework}, {seconds:.0f} s in all",
            title_justify="left",
            title_style="bold",
            width=self.width,
        )
        table.add_column("loss", style="bold")
        table.add_column("before → after", justify="right")
        table.add_column("what counts, on test data")
        table.add_column("with it", justify="right", style="bold")
        table.add_column("baseline")
        for story, ours, baseline in rows:
            metric = story.metrics[0]
            table.add_row(
                ours.name,
                f"{ours.losses[0]:.3f} → {ours.losses[-1]:.3f}",
                metric.name,
                metric.show(ours.scores[-1]),
                f"{metric.show(baseline.scores[-1])}, {baseline.name}",
            )
        self.console.print()
        self.console.print(table)

    def _line(self, head: str, text: str | Text) -> None:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=8, style="bold")
        grid.add_column(width=self.width - 10)
        grid.add_row(head, text)
        self.console.print(grid)
