"""Consoles that show text verbatim, in a terminal, a pipe, a file or the cell of a notebook."""

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from studyloom.processes import discard_output
from studyloom.text import printable


class SafeConsole(Console):
    """A console that escapes control sequences in text; only Rich's styles use them."""

    lasting = False  # whether the program continues if the reader of its output closes it

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Renders as Rich does; only its own control segments may hold control sequences."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Raises the BrokenPipeError that Rich handles here, where Rich would raise SystemExit."""
        if not self.lasting:
            raise
        discard_output(self.file.fileno())


def make_console(file: IO[str] | None = None, **options: Any) -> SafeConsole:
    """Makes a console that shows text verbatim: a study may be called `[red]` or `:bug:`."""
    options |= {"file": file or sys.stdout, "highlight": False, "markup": False, "emoji": False}
    console = SafeConsole(**options)
    if console.is_jupyter:
        return CellConsole(**options)
    return console


@dataclass(frozen=True)
class _PrintCall:
    """The arguments of a call of `Console.print`."""

    objects: Sequence[Any]
    options: Mapping[str, Any] = field(default_factory=dict)


class CellConsole(SafeConsole):
    """A console that prints into one output of a notebook's cell.

    A cell would show each call of `print` as a separate output, with a gap before it. Here each
    call replaces the output by one with all that was printed.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._printed: list[_PrintCall] = []
        self._output: Any = None  # IPython's handle of the output; None before the first print

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as any other console, below what it has printed before."""
        self._printed.append(_PrintCall(objects, options))
        self.show()

    def show(self, *block: RenderableType) -> None:
        """Shows everything printed so far, and a block below it until the next call.

        All of it is printed again by a console that records it as HTML, since a cell's output can
        only be replaced as a whole.
        """
        recorder = make_console(
            io.StringIO(),
            record=True,
            width=self.width,
            force_jupyter=False,  # with it, Rich would show an output that cannot be replaced
        )
        calls = [*self._printed]
        if block:
            calls.append(_PrintCall(block))
        for call in calls:
            recorder.print(*call.objects, **call.options)
        style = "white-space:pre-wrap;word-break:normal;line-height:normal;font-family:monospace"
        template = f'<pre style="{style}">{{code}}</pre>'
        html = recorder.export_html(inline_styles=True, code_format=template, clear=False)
        text = recorder.export_text(clear=False)
        content = {"text/html": html, "text/plain": text}
        if self._output is not None:
            self._output.update(content, raw=True)
        elif not self.quiet:
            # Jupyter shows the output in the running cell, as the first call is made in the main
            # thread. Later calls update that output, also from other threads.
            display = import_module("IPython.display").display
            self._output = display(content, raw=True, display_id=True)
