"""A bench's picture: panels of lines, as a PNG. Knows nothing of what the lines mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no display is needed or looked for

_COLOURS = ("#2f7fb8", "#e8963c", "#4c9a6a", "#a0559b", "#b3504a", "#6b7785")
_INK, _FAINT = "#22272e", "#d9dde3"


@dataclass(frozen=True)
class Line:
    """Points in order of x. A floor or another bound is dashed."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One set of axes; `log` are those drawn by powers: "x", "y", "xy" or none."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log: str = "xy"
    steps: bool = False  # a distribution: y changes at each x


def draw(path: Path, title: str, panels: Sequence[Panel], *, columns: int = 2) -> Path:
    """Write the picture; lines with the same label have one colour in all panels. Returns the path."""
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines if not line.dashed))
    colours = {label: _COLOURS[at % len(_COLOURS)] for at, label in enumerate(labels)}
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context({"font.size": 9, "font.family": "DejaVu Sans", "text.color": _INK, "axes.edgecolor": _FAINT}):
        height = 3.9 * rows + 0.4  # inches, the last for the title
        figure = Figure(figsize=(max(8.0, 5.4 * columns), height), dpi=110)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw(axes, panel, colours)
        figure.suptitle(title, x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=10)
        figure.tight_layout(h_pad=1.5, rect=(0, 0, 1, 1 - 0.3 / height))
        figure.savefig(path)
    return path


def _draw(axes: Axes, panel: Panel, colours: dict[str, str]) -> None:
    for line in panel.lines:
        style = "--" if line.dashed else "-"
        colour = _INK if line.dashed else colours[line.label]
        marker = "" if line.dashed or panel.steps else "o"
        how: dict[str, Any] = {"linestyle": style, "color": colour, "marker": marker, "markersize": 3.5}
        how |= {"linewidth": 1.4, "drawstyle": "steps-post" if panel.steps else "default"}
        axes.plot(line.x, line.y, label=line.label, **how)
    if "x" in panel.log:
        axes.set_xscale("log")
    if "y" in panel.log:
        axes.set_yscale("log")
    axes.set_title(panel.title, loc="left", fontweight="bold", fontsize=9.5)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(visible=True, color=_FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
