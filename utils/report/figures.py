"""Figures of numbers, drawn once by matplotlib: as SVG that takes the page's colours, as PNG and as PDF."""
import io
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.checkpoint import write_atomically

SIZE, LOW, SQUARE = (4.4, 2.8), (4.4, 2.2), (6.4, 5.6)      # inches
# Colours of the light theme; in the page each becomes a variable that the dark theme sets to another value.
INK, MUTED, GRID, PAPER = "#1d2127", "#5f6773", "#dfe3e8", "#fefefe"
SERIES = ("#2563c9", "#d1560a", "#14804f", "#8a3fc2", "#b8275d", "#0f7f93", "#7a6400", "#59616c")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", **{c: f"s{i}" for i, c in enumerate(SERIES)}}
PERSONS = ("#3b82f6", "#f97316", "#16a34a", "#a855f7", "#e11d48", "#06a3b7", "#ca8a04", "#8d6e63",
           "#ec4899", "#65a30d", "#5865f2", "#0d9488")
OTHERS = "#9aa3ad"                      # persons beyond those with a colour
MODALITY_COLOURS = {"rgb": SERIES[0], "ir": SERIES[1]}
MODALITY_NAMES = {"rgb": "visible", "ir": "infrared"}
NAMED = re.compile(r'<g id="(?:curve |histogram |(?=person ))([^"]*)">')
REFERRED = r"(?:[mph][0-9a-f]{10}|C[0-9a-f]+_)"     # ids of shapes and clips that matplotlib refers to


@dataclass(frozen=True)
class Line:
    """Holds one curve. `x`, `y`: (N,) numbers; `style`: of matplotlib; `spread`: (N,) half widths of a band, or ()."""

    label: str
    x: list
    y: list
    colour: str
    style: str = "-"
    spread: list = ()


@dataclass(frozen=True)
class Chart:
    """Holds curves over epochs or ranks. `unit` stands under the title; `top`: highest value of the axis, if fixed."""

    name: str
    title: str
    lines: tuple
    unit: str = ""
    x_label: str = "epoch"
    top: float | None = None
    mark: tuple = ()        # (x, text) of a vertical line


@contextmanager
def _style():
    """Draw with the look of the page for the length of a block or, as @_style(), of a function."""
    import matplotlib  # slow to import: only when something is drawn

    settings = {"svg.fonttype": "none", "svg.hashsalt": "cclnet", "font.size": 9, "axes.spines.top": False,
                "axes.spines.right": False, "axes.spines.left": False, "axes.edgecolor": MUTED, "axes.grid": True,
                "axes.grid.axis": "y", "grid.color": GRID, "grid.linewidth": 0.8, "text.color": INK,
                "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "ytick.major.size": 0,
                "figure.facecolor": PAPER, "axes.facecolor": PAPER, "axes.axisbelow": True, "lines.linewidth": 1.8,
                "pdf.fonttype": 42,
                "text.parse_math": False}       # a run's name may hold dollar signs
    with matplotlib.rc_context(settings):
        yield


def _axes(title, unit, size=SIZE):
    """Start a figure with its title and unit: figure, axes."""
    from matplotlib.figure import Figure

    figure, (width, height) = Figure(figsize=size), size
    # Fixed margins in inches: matplotlib's layout engines take longer than the drawing.
    axes = figure.add_axes((0.55 / width, 0.42 / height, 1 - 0.65 / width, 1 - 1.0 / height))
    figure.text(0.06 / width, 1 - 0.05 / height, title, fontsize=10.5, fontweight="bold", va="top")
    figure.text(0.06 / width, 1 - 0.29 / height, unit, color=MUTED, fontsize=8.5, va="top")
    return figure, axes


def _legend(axes, handles=None):
    """Put the lines' names in a row above the axes."""
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.01, 1.0), ncols=4, frameon=False, fontsize=8.5,
                handlelength=1.3, columnspacing=1.0, handletextpad=0.5, borderaxespad=0.1)


@_style()
def chart_figure(chart):
    """Draw a `Chart`: the matplotlib figure."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(chart.title, chart.unit)
    for line in chart.lines:
        marker = "o" if len(line.x) < 12 else None
        # matplotlib leaves labels that begin with "_" out of the legend
        label = f" {line.label}" if line.label.startswith("_") else line.label
        axes.plot(line.x, line.y, color=line.colour, linestyle=line.style, label=label, marker=marker,
                  markersize=3.5, gid=f"curve {line.label}")
        if len(line.spread):
            axes.fill_between(line.x, np.subtract(line.y, line.spread), np.add(line.y, line.spread),
                              color=line.colour, alpha=0.18, linewidth=0)
    values = np.concatenate([line.y for line in chart.lines])
    if chart.top is not None:
        axes.set_ylim(0, chart.top * 1.02)
    elif values.min() >= 0 and values.min() < 0.6 * values.max():
        axes.set_ylim(bottom=0)
    if chart.mark:
        axes.axvline(chart.mark[0], color=MUTED, linewidth=1, linestyle=":")
        axes.text(chart.mark[0], 0.1, f" {chart.mark[1]}", color=MUTED, fontsize=8,
                  bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
                  transform=axes.get_xaxis_transform())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter("{x:.4g}")
    axes.set_xlabel(chart.x_label, loc="right", fontsize=8.5)
    if len(chart.lines) > 1:
        _legend(axes)
    return figure


@_style()
def distance_figure(title, edges, same, different):
    """Draw the densities of distances within and between persons. Args: edges: (B + 1,); others: (B,) counts."""
    figure, axes = _axes(title, "density of pairs", LOW)
    width = np.diff(edges)
    for label, counts, colour in (("same person", same, SERIES[2]), ("different", different, SERIES[4])):
        density = np.array(counts) / max(np.sum(counts), 1) / width
        axes.stairs(density, edges, fill=True, alpha=0.3, color=colour)
        axes.stairs(density, edges, color=colour, linewidth=1.5, label=label, gid=f"histogram {label}")
    axes.set_xlabel("cosine distance", loc="right", fontsize=8.5)
    axes.set_yticks([])
    _legend(axes)
    return figure


@_style()
def map_figure(title, points, persons, modalities):
    """Draw a map of embeddings, coloured by person: a disc for each visible image, a triangle for each infrared one.

    Args: points: (N, 2); persons: (N,) identities; modalities: (N,) "rgb" or "ir".
    """
    from matplotlib.lines import Line2D

    points, persons, modalities = np.array(points), np.array(persons), np.array(modalities)
    known, counts = np.unique(persons, return_counts=True)
    coloured = dict(zip(known[np.argsort(-counts, kind="stable")].tolist(), PERSONS))
    markers = {"rgb": "o", "ir": "^"}
    figure, axes = _axes(title, f"t-SNE; {len(coloured)} of {len(known)} persons in colour", SQUARE)
    axes.set_position((0.01, 0.01, 0.98, 0.88))
    for person in sorted(known.tolist(), key=lambda p: p in coloured):      # grey ones below
        for name, marker in markers.items():
            chosen = (persons == person) & (modalities == name)
            axes.scatter(*points[chosen].T, s=26, marker=marker, linewidths=0.5, edgecolors=PAPER,
                         color=coloured.get(person, OTHERS), alpha=1 if person in coloured else 0.35,
                         gid=f"person {person}, {MODALITY_NAMES[name]}")
    axes.set(xticks=[], yticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)
    _legend(axes, [Line2D([], [], marker=marker, linestyle="", color=MUTED, label=MODALITY_NAMES[name])
                   for name, marker in markers.items()])
    return figure


@_style()
def svg(figure, prefix):
    """Write a figure as SVG for a page: its colours become the page's variables, names of groups become tooltips.

    matplotlib has escaped all text in it.

    Args: prefix: of this figure in the page, so that the ids of two figures never meet.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = NAMED.sub(r'<g class="named"><title>\1</title>', text)
    text = re.sub(rf'\bid="(?!{REFERRED})[^"]*"', "", text)
    text = re.sub(rf'(id="|href="#|url\(#)(?={REFERRED})', rf"\g<1>{prefix}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return re.sub(r'(?:width|height)="[\d.]+pt" ', "", text, count=2)


@_style()
def save_figures(folder, figures):
    """Write figures (name -> Figure) as FOLDER/NAME.png and .pdf; what is no letter or digit in a name becomes "_"."""
    for name, figure in figures.items():
        name = re.sub(r"\W", "_", name)
        for kind, options in (("png", {"dpi": 200, "metadata": {"Software": None}}),
                              ("pdf", {"metadata": {"CreationDate": None}})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
            data = buffer.getvalue()
            write_atomically(Path(folder) / f"{name}.{kind}", lambda file, data=data: file.write(data))
