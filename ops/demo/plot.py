"""The demo's picture: rows in use over time, continuous batching above static batches, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no display is needed or looked for

from ops.demo.static import StaticRun
from ops.demo.summary import Continuous
from producer.keys import LANES, Lane

_COLOURS: dict[Lane, str] = {"high": "#e8963c", "normal": "#2f7fb8", "low": "#93bfdd"}
_STATIC, _INK, _FAINT = "#8a8f98", "#22272e", "#d9dde3"

_COLUMNS = 550  # the time axis is cut into so many; what changes faster than that is a blur on any screen

Stretch = tuple[float, float, int]  # from, to (seconds), rows in use


def draw(rows: int, run: Continuous, static: StaticRun, path: Path) -> None:
    """Write the picture to `path`. Both halves share the time axis; lanes are stacked."""
    with rc_context({"font.size": 10, "font.family": "DejaVu Sans", "text.color": _INK, "axes.edgecolor": _FAINT}):
        figure = Figure(figsize=(11, 6), dpi=130)
        above, below = figure.subplots(2, 1, sharex=True)
        width = max(run.seconds, static.seconds) / _COLUMNS
        floor = [0.0] * _COLUMNS
        for lane in LANES:  # stacked, the most urgent at the bottom
            stretches = [(start, end, 1) for start, end in run.spans(lane)]
            floor = _fill(above, width, floor, mean_rows(stretches, width, _COLUMNS), _COLOURS[lane], f"{lane} lane")
        stretches = [(at, until, rows) for (at, rows), (until, _) in pairwise(static.changes)]
        _fill(below, width, [0.0] * _COLUMNS, mean_rows(stretches, width, _COLUMNS), _STATIC, "")
        says = "a row is filled at once, before its end is seen"
        _label(above, rows, run.mean_rows, "Continuous", run.tokens / run.seconds, says)
        says = "a row stays empty until its whole batch has ended"
        _label(below, rows, static.mean_rows, "Static", static.tokens / static.seconds, says)
        legend = {"loc": "upper left", "bbox_to_anchor": (-0.01, -0.02), "ncols": 3, "frameon": False, "fontsize": 9}
        above.legend(**legend)
        below.set_xlabel("seconds")
        below.set_xlim(0, width * _COLUMNS)
        figure.tight_layout(h_pad=1.5)
        figure.savefig(path)


def mean_rows(stretches: Sequence[Stretch], width: float, columns: int) -> list[float]:
    """Rows in use in each of `columns` columns of time, `width` seconds wide: the mean over the column."""
    means = [0.0] * columns
    for start, end, rows in stretches:
        for column in range(max(0, int(start / width)), min(columns - 1, int(end / width)) + 1):
            overlap = min(end, (column + 1) * width) - max(start, column * width)
            means[column] += rows * max(0.0, overlap) / width
    return means


def _fill(
    axes: Axes, width: float, floor: Sequence[float], more: Sequence[float], colour: str, label: str
) -> list[float]:
    """Draw `more` on top of `floor`; the new floor."""
    top = [low + high for low, high in zip(floor, more, strict=True)]
    edges = [column * width for column in range(len(top) + 1)]
    axes.fill_between(edges, [*floor, 0], [*top, 0], step="post", color=colour, linewidth=0, label=label)
    return top


def _label(axes: Axes, rows: int, mean: float, name: str, speed: float, says: str) -> None:
    axes.set_title(f"{name}: {speed:,.0f} tokens/s, {mean:.1f} of {rows} rows in use", loc="left", fontweight="bold")
    axes.set_title(says, loc="right", fontsize=9, color=_STATIC)
    axes.axhline(mean, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(0, rows + 2)  # for a moment an end that is still on its way stands beside the row's next job
    axes.set_ylabel("rows in use")
    axes.set_yticks(range(0, rows + 1, max(1, rows // 4)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(color=_FAINT)
