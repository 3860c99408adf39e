"""Figures of numbers, drawn once by matplotlib: as SVG that takes the page's colours, as PNG and as PDF.

A figure's attribute `hover` holds where its points lie and what they say; the page's script shows it at the pointer.
"""
import html
import io
import json
import re
import textwrap
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.checkpoint import write_atomically

WIDTH, HEIGHT, SQUARE = 3.5, 2.4, (5.6, 5.0)      # inches
TITLES, LEGEND_ROW = 0.46, 0.18     # inches above the axes: title and unit, and a row of the legend
LABEL_LINE, LABEL_LINES = 36, 4     # letters of a line of a name in a legend, and lines
# Colours of the light theme; in the page each becomes a variable that the dark theme sets to another value.
INK, MUTED, GRID, PAPER = "#1d2127", "#5f6773", "#dfe3e8", "#fefefe"
SERIES = ("#2563c9", "#d1560a", "#14804f", "#8a3fc2", "#b8275d", "#0f7f93", "#7a6400", "#59616c")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", **{c: f"s{i}" for i, c in enumerate(SERIES)}}
PERSONS = ("#3b82f6", "#f97316", "#16a34a", "#a855f7", "#e11d48", "#06a3b7", "#ca8a04", "#8d6e63",
           "#ec4899", "#65a30d", "#5865f2", "#0d9488")
OTHERS = "#9aa3ad"                      # persons beyond those with a colour
MODALITY_NAMES = {"rgb": "visible", "ir": "infrared"}


class Line(NamedTuple):
    """Holds one curve. `x`, `y`: (N,) numbers; `style`: of matplotlib; `spread`: (N,) half widths of a band, or ()."""

    label: str
    x: list
    y: list
    colour: str
    style: str = "-"
    spread: list = ()
    width: float = 1.8      # points


class Chart(NamedTuple):
    """Holds curves over epochs or ranks. `note` stands under the title; `top`: highest value of the axis, if fixed."""

    name: str
    title: str
    lines: list
    y_label: str = ""
    note: str = ""
    x_label: str = "epoch"
    top: float | None = None
    mark: float | None = None       # where a dotted line stands
    detail: bool = False            # whether the page folds it away


@contextmanager
def _style():
    """Draw with the look of the page for the length of a block or, as @_style(), of a function."""
    import matplotlib  # slow to import: only when something is drawn

    settings = {"svg.fonttype": "none", "svg.hashsalt": "cclnet", "font.size": 9, "axes.spines.top": False,
                "axes.spines.right": False, "axes.spines.left": False, "axes.edgecolor": MUTED, "axes.grid": True,
                "axes.grid.axis": "y", "grid.color": GRID, "grid.linewidth": 0.8, "text.color": INK,
                "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "ytick.major.size": 0,
                "xtick.labelsize": 8, "ytick.labelsize": 8, "figure.facecolor": PAPER, "axes.facecolor": PAPER,
                "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8.5, "legend.handlelength": 1.3,
                "legend.columnspacing": 1.0, "legend.handletextpad": 0.5, "legend.borderaxespad": 0.1,
                "legend.labelspacing": 0.2, "pdf.fonttype": 42,
                "text.parse_math": False}       # a run's name may hold dollar signs
    with matplotlib.rc_context(settings):
        yield


def _axes(title, note, x_label, y_label, size, legend_rows):
    """Start a figure with its title and a note below it: figure, axes."""
    from matplotlib.figure import Figure

    (width, height), above = size, TITLES + LEGEND_ROW * legend_rows + 0.06
    figure = Figure(figsize=size)
    # Fixed margins in inches: matplotlib's layout engines take longer than the drawing.
    axes = figure.add_axes((0.74 / width, 0.42 / height, 1 - 0.84 / width, 1 - (0.42 + above) / height))
    axes.set_xlabel(x_label, loc="right", fontsize=8.5)
    axes.set_ylabel(y_label, fontsize=8.5)
    figure.text(0.06 / width, 1 - 0.05 / height, title, fontsize=10.5, fontweight="bold", va="top")
    figure.text(0.06 / width, 1 - 0.27 / height, note, color=MUTED, fontsize=8.5, va="top")
    return figure, axes


def _places(axes, x, y):
    """Return where points of the data lie in the figure's SVG: a list of N pairs, in its units."""
    x, y = axes.transData.transform(np.column_stack([x, y])).T * 72 / axes.figure.dpi
    return np.round(np.column_stack([x, 72 * axes.figure.get_figheight() - y]), 1).tolist()


@_style()
def chart_figure(chart):
    """Draw a `Chart`: the matplotlib figure. The axis begins at 0 unless a number is below it."""
    from matplotlib.ticker import MaxNLocator

    labels = [textwrap.fill(line.label, LABEL_LINE, max_lines=LABEL_LINES, placeholder="…") for line in chart.lines]
    columns = max(1, int(WIDTH * 72 // (5.2 * min(max(map(len, labels)), LABEL_LINE) + 26)))    # that fit side by side
    rows = -(-sum(label.count("\n") + 1 for label in labels) // columns)
    figure, axes = _axes(chart.title, chart.note, chart.x_label, chart.y_label,
                         (WIDTH, HEIGHT + LEGEND_ROW * (rows - 1)), rows)
    for line, label in zip(chart.lines, labels):
        axes.plot(line.x, line.y, color=line.colour, linestyle=line.style, linewidth=line.width, markersize=3.5,
                  marker="o" if len(line.x) < 12 and line.width > 1 else None, label=label)
        if len(line.spread):
            axes.fill_between(line.x, np.subtract(line.y, line.spread), np.add(line.y, line.spread),
                              color=line.colour, alpha=0.18, linewidth=0)
    if min(min(line.y) for line in chart.lines) >= 0:
        axes.set_ylim(0, chart.top and chart.top * 1.02)
    if chart.mark:
        axes.axvline(chart.mark, color=MUTED, linewidth=1, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(integer=isinstance(chart.lines[0].x[0], int), nbins=7))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda number, _: f"{number:.4g}")
    if len(labels) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns)
    box, height = axes.get_position(), 72 * figure.get_figheight()
    figure.hover = {"x": chart.x_label, "top": height * (1 - box.y1), "bottom": height * (1 - box.y0), "lines": []}
    for line in chart.lines:
        bands = [f" ± {half:.4g}" for half in line.spread] or [""] * len(line.x)
        figure.hover["lines"].append({"label": line.label, "colour": VARIABLES[line.colour], "points": [
            [*place, f"{x:.4g}", f"{y:.4g}{band}"]
            for place, x, y, band in zip(_places(axes, line.x, line.y), line.x, line.y, bands)]})
    return figure


@_style()
def map_figure(shown):
    """Draw a map of embeddings, coloured by person: a disc for each visible image, a triangle for each infrared one.

    Args: shown: the "map" of `report.content.retrieval_content`.
    """
    from matplotlib.lines import Line2D

    points, persons, modalities = (np.array(shown[key]) for key in ("points", "persons", "modalities"))
    known, counts = np.unique(persons, return_counts=True)
    coloured = dict(zip(known[np.argsort(-counts, kind="stable")].tolist(), PERSONS))
    figure, axes = _axes("Test embeddings", f"t-SNE, seed 0, perplexity {shown['perplexity']:.3g}; {len(coloured)} of "
                         f"{len(known)} persons in colour", "t-SNE, first dimension", "second dimension", SQUARE, 1)
    axes.set_position((0.05, 0.05, 0.94, 0.82))
    markers = {"rgb": "o", "ir": "^"}
    for in_colour in (False, True):      # grey ones below
        for name, marker in markers.items():
            chosen = (modalities == name) & (np.isin(persons, list(coloured)) == in_colour)
            axes.scatter(*points[chosen].T, s=30, marker=marker, linewidths=0.5, edgecolors=PAPER,
                         c=[coloured.get(person, OTHERS) for person in persons[chosen]], alpha=1 if in_colour else 0.35)
    axes.set(xticks=[], yticks=[])
    axes.margins(0.025)
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)
    axes.legend(handles=[Line2D([], [], marker=marker, linestyle="", color=MUTED, label=MODALITY_NAMES[name])
                         for name, marker in markers.items()], loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)
    figure.hover = {"images": [[*place, f"person {person}, {MODALITY_NAMES[name]}, camera {camera}"] for
                               place, person, name, camera in zip(_places(axes, *points.T), persons, modalities,
                                                                  shown["cameras"])]}
    return figure


class Figures(dict):
    """The figures of a page by name: of matplotlib, or PIL images."""

    def add(self, name, figure):
        """Keep a figure: its SVG for the page, whose colours are the page's variables, with its `hover`.

        matplotlib has escaped all text in it.
        """
        self[name], buffer, prefix = figure, io.StringIO(), f"f{len(self)}"    # so that ids of two figures never meet
        with _style():
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        text = buffer.getvalue()
        text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg"):], flags=re.DOTALL)
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
        for colour, variable in VARIABLES.items():
            text = text.replace(colour, f"var(--{variable})")
        hover = html.escape(json.dumps(figure.hover, separators=(",", ":")))
        text = text.replace("<svg ", f'<svg role="img" data-hover="{hover}" ', 1)
        return re.sub(r'(?:width|height)="[\d.]+pt" ', "", text, count=2)

    def save(self, folder, titles=True):
        """Write all as FOLDER/NAME.png and .pdf; what is no letter or digit in a name becomes "_".

        Args: titles: whether titles, and the notes below them, stay in the figures.
        Raises: UserError: as `write_atomically`.
        """
        for name, figure in self.items():
            for kind in ("png", "pdf"):
                path = Path(folder) / f"{re.sub(r'[^a-zA-Z0-9]', '_', name)}.{kind}"
                write_atomically(path, partial(_save, figure, kind, titles))


def _save(figure, kind, titles, file):
    if not hasattr(figure, "savefig"):
        return figure.save(file, format=kind)
    for text in figure.texts:
        text.set_visible(titles)
    with _style():
        figure.savefig(file, format=kind, dpi=200, bbox_inches=None if titles else "tight")
