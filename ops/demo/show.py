"""What is seen while the demo runs: rows that fill and change in a terminal, plain lines elsewhere.

A frame is made of a few hundred ready-styled segments, since the terminal shares its cores with the worker.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.style import Style

from ops.demo.traffic import Followed, Traffic
from producer.keys import LANES, Lane

PLAIN_EVERY_S = 1.0
LANE_COLOURS: dict[Lane, str] = {"high": "yellow", "normal": "cyan", "low": "magenta"}
_NARROW, _WIDE = 30, 44  # columns of a prompt
_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN, _DIM, _BOLD = Style(), Style(dim=True), Style(bold=True)
_FRESH = Style(color="green", bold=True)
_WRONG = Style(color="red")
_LANES = {lane: Style(color=colour) for lane, colour in LANE_COLOURS.items()}

Line = list[tuple[str, Style]]


class Display(Protocol):
    """Where a run is shown. `say` is a line that stays; `traffic` and `static` show how things stand now."""

    def say(self, line: str) -> None: ...

    def traffic(self, traffic: Traffic) -> None: ...

    def static(self, seconds: float, jobs: int, rows: int) -> None: ...

    def close(self) -> None: ...


class PlainDisplay:
    """A line now and then, for pipes and logs."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._next = 0.0

    def say(self, line: str) -> None:
        """Print it."""
        print(line, flush=True)

    def traffic(self, traffic: Traffic) -> None:
        """Each second: how full, how many, how fast, and one row as it stands."""
        if not self._is_time():
            return
        figures = (
            f"{traffic.elapsed:5.1f} s  rows {traffic.in_rows:2}/{self._rows}  queued {traffic.waiting.total():4}  "
            f"finished {traffic.finished.total():5}  {traffic.tokens_per_s:6,.0f} tokens/s"
        )
        shown = next((job for job in traffic.rows if job is not None and job.tokens > 3), None)
        self.say(figures + (f"  {_one_line(shown.asked.example.prompt)} -> {_tail(shown, 40)}" if shown else ""))

    def static(self, seconds: float, jobs: int, rows: int) -> None:
        """The same for static batches, each second."""
        if self._is_time():
            self.say(f"{seconds:5.1f} s  rows {rows:2}/{self._rows}  finished {jobs:5}")

    def close(self) -> None:
        """Nothing to put away."""

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + PLAIN_EVERY_S
        return True


class TerminalDisplay:
    """The rows, live. Draws when it is told something new, never by itself."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._speeds: list[float] = []
        self._spark_at = 0.0
        self._live.start()

    def say(self, line: str) -> None:
        """Print it above the rows."""
        self._console.print(line, markup=False)

    def traffic(self, traffic: Traffic) -> None:
        """A new frame."""
        if traffic.elapsed >= self._spark_at:
            self._speeds.append(traffic.tokens_per_s)
            self._spark_at = traffic.elapsed + 0.5
        self._live.update(_Frame(traffic, self._speeds, self._console.size.height - 1), refresh=True)

    def static(self, seconds: float, jobs: int, rows: int) -> None:
        """A bar of rows in use that shrinks as a batch runs out."""
        bar: Line = [("█" * rows, _LANES["normal"]), ("░" * (self._rows - rows), _DIM)]
        text = f"  {seconds:5.1f} s   rows {rows:2}/{self._rows} "
        self._live.update(_Lines([[(text, _PLAIN), *bar, (f"   finished {jobs}", _PLAIN)]]), refresh=True)

    def close(self) -> None:
        """Give the terminal back as it was."""
        self._live.stop()


def display_for(rows: int, *, plain: bool) -> Display:
    """Live rows on a terminal that can, plain lines anywhere else or if asked for."""
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    return PlainDisplay(rows) if plain or dumb or not sys.stdout.isatty() else TerminalDisplay(rows)


class _Lines:
    """Lines for rich, cut to the console's width."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._lines:
            left = options.max_width
            for text, style in line:
                if left > 0:
                    yield Segment(text[:left], style)
                left -= len(text)
            yield Segment.line()


class _Frame:
    """All that is known of the traffic, in at most `height` lines."""

    def __init__(self, traffic: Traffic, speeds: list[float], height: int) -> None:
        self._traffic, self._speeds, self._height = traffic, speeds, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [*self._head(), *self._table(options.max_width)]
        yield _Lines(lines[: max(1, self._height)])

    def _head(self) -> list[Line]:
        traffic = self._traffic
        rows, used = len(traffic.rows), traffic.in_rows
        speed: Line = [
            (f"  {traffic.elapsed:5.1f} s   rows ", _PLAIN),
            (f"{used:2}/{rows} ", _BOLD),
            ("█" * used, _LANES["normal"]),
            ("░" * (rows - used), _DIM),
            (f"   {traffic.tokens_per_s:6,.0f} tokens/s ", _BOLD),
            (_spark(self._speeds[-24:]), _LANES["normal"]),
        ]
        finished = traffic.finished.total()
        exact: Line = [(f"   exact {traffic.exact:,} of {finished:,}", _PLAIN)]
        return [
            speed,
            [("  queued   ", _PLAIN), *_per_lane(traffic.waiting), (f"   {_total(traffic.waiting.total())}", _PLAIN)],
            [("  finished ", _PLAIN), *_per_lane(traffic.finished), (f"   {_total(finished)}", _PLAIN), *exact],
            [],
        ]

    def _table(self, width: int) -> Iterator[Line]:
        prompt_width = _WIDE if width >= 110 else _NARROW
        text_width = max(10, width - prompt_width - 22)
        head = f"  row  lane    {'prompt':{prompt_width}} {'answer':{text_width}} tok"
        yield [(head, _DIM)]
        for number, job in enumerate(self._traffic.rows):
            yield _row(number, job, prompt_width, text_width)


def _row(number: int, job: Followed | None, prompt_width: int, text_width: int) -> Line:
    label = (f"  {number:3}  ", _DIM)
    if job is None:
        return [label]
    lane = job.asked.job.lane
    prompt = _one_line(job.asked.example.prompt)[:prompt_width].ljust(prompt_width)
    text = _tail(job, text_width)
    fresh = min(job.fresh, len(text))
    padding = " " * (text_width - len(text))
    if job.ended is None:
        old = len(text) - fresh
        answer: Line = [(text[:old], _PLAIN), (text[old:], _FRESH), (f"{padding}{job.tokens:4}", _DIM)]
        return [label, (f"{lane:7} ", _LANES[lane]), (prompt + " ", _PLAIN), *answer]
    return [label, (f"{lane:7} {prompt} ", _DIM), (text, _DIM if job.exact else _WRONG), (f"{padding} end", _DIM)]


def _per_lane(counts: dict[Lane, int]) -> Line:
    return [part for lane in LANES for part in ((f" {lane} ", _LANES[lane]), (f"{counts.get(lane, 0):5,}", _PLAIN))]


def _total(count: int) -> str:
    return f"all {count:5,}"


def _spark(values: list[float]) -> str:
    top = max(values, default=0.0) or 1.0
    return "".join(_BARS[min(8, round(8 * value / top))] for value in values)


def _one_line(text: str) -> str:
    """The text in one line of cells that are one column wide, whatever a model says."""
    return "".join(c if " " <= c <= "~" else " " if c.isspace() else "?" for c in text)


def _tail(job: Followed, width: int) -> str:
    """The end of the answer so far."""
    text = _one_line(job.text[-width - 1 :])
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]
