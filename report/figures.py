"""Figures of numbers, drawn once by matplotlib: as SVG that takes the page's colours, as PNG and as PDF.

A figure's attribute `hover` holds where its points lie and what they say; the page's script shows it at the pointer.
"""
import html
import io
import json
import re
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.checkpoint import write_atomically

SIZE, LOW, SQUARE = (3.5, 2.4), (3.5, 1.7), (5.6, 5.0)      # inches
TITLES, LEGEND_ROW = 0.46, 0.18     # inches above the axes: title and unit, and a row of the legend
LABEL_LINE, LABEL_LINES = 36, 4     # letters of a line of a name in a legend, and lines
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


@dataclass(frozen=True)
class Line:
    """Holds one curve. `x`, `y`: (N,) numbers; `style`: of matplotlib; `spread`: (N,) half widths of a band, or ().

    `named`: whether it stands in the legend; the pointer finds its name anyway.
    """

    label: str
    x: list
    y: list
    colour: str
    style: str = "-"
    spread: list = ()
    width: float = 1.8      # points
    named: bool = True


@dataclass(frozen=True)
class Chart:
    """Holds curves over epochs or ranks. `note` stands under the title; `top`: highest value of the axis, if fixed."""

    name: str
    title: str
    lines: tuple
    y_label: str = ""
    note: str = ""
    x_label: str = "epoch"
    top: float | None = None
    mark: tuple = ()        # (x, text) of a vertical line
    ticks: tuple = ()       # of the x axis, if they are fixed
    number: str = "{:.4g}"  # format of its numbers


@contextmanager
def _style():
    """Draw with the look of the page for the length of a block or, as @_style(), of a function."""
    import matplotlib  # slow to import: only when something is drawn

    settings = {"svg.fonttype": "none", "svg.hashsalt": "cclnet", "font.size": 9, "axes.spines.top": False,
                "axes.spines.right": False, "axes.spines.left": False, "axes.edgecolor": MUTED, "axes.grid": True,
                "axes.grid.axis": "y", "grid.color": GRID, "grid.linewidth": 0.8, "text.color": INK,
                "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "ytick.major.size": 0,
                "xtick.labelsize": 8, "ytick.labelsize": 8,
                "figure.facecolor": PAPER, "axes.facecolor": PAPER, "axes.axisbelow": True, "lines.linewidth": 1.8,
                "pdf.fonttype": 42,
                "text.parse_math": False}       # a run's name may hold dollar signs
    with matplotlib.rc_context(settings):
        yield


def _axes(title, note, x_label, y_label, size=SIZE, legend_rows=1):
    """Start a figure with its title and a note below it: figure, axes. More rows of a legend make it higher."""
    from matplotlib.figure import Figure

    width, height = size[0], size[1] + LEGEND_ROW * (legend_rows - 1)
    figure, above = Figure(figsize=(width, height)), TITLES + LEGEND_ROW * legend_rows + 0.06
    # Fixed margins in inches: matplotlib's layout engines take longer than the drawing.
    axes = figure.add_axes((0.74 / width, 0.42 / height, 1 - 0.84 / width, 1 - (0.42 + above) / height))
    axes.set_xlabel(x_label, loc="right", fontsize=8.5)
    axes.set_ylabel(y_label, fontsize=8.5)
    figure.text(0.06 / width, 1 - 0.05 / height, title, fontsize=10.5, fontweight="bold", va="top")
    figure.text(0.06 / width, 1 - 0.27 / height, note, color=MUTED, fontsize=8.5, va="top")
    return figure, axes


def _columns(labels):
    """Return how many names fit side by side in a legend."""
    longest = max(len(label) for label in labels)
    return max(1, min(len(labels), int(SIZE[0] * 72 // (5.2 * min(longest, LABEL_LINE) + 26))))


def _legend(axes, labels, handles=None):
    """Put the lines' names in rows above the axes."""
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=_columns(labels), frameon=False,
                fontsize=8.5, handlelength=1.3, columnspacing=1.0, handletextpad=0.5, borderaxespad=0.1,
                labelspacing=0.2)


def _shown(label):
    """Wrap a label, and keep one that matplotlib would leave out of the legend because it begins with "_"."""
    label = textwrap.fill(label, LABEL_LINE, max_lines=LABEL_LINES, placeholder="…")
    return f" {label}" if label.startswith("_") else label


def _places(axes, x, y):
    """Return where points of the data lie in the figure's SVG: (N, 2), in its units."""
    figure = axes.figure
    pixels = axes.transData.transform(np.column_stack([x, y])) * 72 / figure.dpi
    return np.round(np.column_stack([pixels[:, 0], 72 * figure.get_figheight() - pixels[:, 1]]), 1)


def _hover(axes, x_label, lines):
    """Describe lines for the page's script. Args: lines: (label, colour, x, y, text of each y)."""
    box, height = axes.get_position(), 72 * axes.figure.get_figheight()
    return {"x": x_label, "top": round(height * (1 - box.y1), 1), "bottom": round(height * (1 - box.y0), 1),
            "lines": [
                {"label": label, "colour": VARIABLES.get(colour, "ink"), "points": [
                    [*place, f"{number:.4g}", text]
                    for place, number, text in zip(_places(axes, x, y).tolist(), x, texts)]}
                for label, colour, x, y, texts in lines]}


@_style()
def chart_figure(chart):
    """Draw a `Chart`: the matplotlib figure."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = np.concatenate([line.y for line in chart.lines])
    labels = [_shown(line.label) for line in chart.lines if line.named]
    from_zero = chart.top is not None or values.min() < 0.75 * values.max() or values.min() == values.max()
    from_zero &= values.min() >= 0
    cut = "" if from_zero or values.min() < 0 else "the axis does not begin at 0"
    figure, axes = _axes(chart.title, "; ".join(filter(None, (chart.note, cut))), chart.x_label, chart.y_label,
                         legend_rows=-(-sum(label.count("\n") + 1 for label in labels) // _columns(labels)))
    for line in chart.lines:
        axes.plot(line.x, line.y, color=line.colour, linestyle=line.style, linewidth=line.width, markersize=3.5,
                  marker="o" if len(line.x) < 12 and line.width > 1 else None,
                  label=_shown(line.label) if line.named else "_", gid=f"curve {line.label}")
        if len(line.spread):
            axes.fill_between(line.x, np.subtract(line.y, line.spread), np.add(line.y, line.spread),
                              color=line.colour, alpha=0.18, linewidth=0)
    if from_zero:
        axes.set_ylim(0, chart.top * 1.02 if chart.top is not None else None)
    if chart.mark:
        _mark(axes, *chart.mark)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    if chart.ticks:
        axes.set_xticks(chart.ticks)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(
        lambda number, _: (chart.number if "e}" in chart.number else "{:.4g}").format(number)))
    if len(chart.lines) > 1:
        _legend(axes, labels)
    bands = ([f" ± {chart.number.format(half)}" for half in line.spread] or [""] * len(line.y)
             for line in chart.lines)
    figure.hover = _hover(axes, chart.x_label, [
        (line.label, line.colour, line.x, line.y, [chart.number.format(y) + half for y, half in zip(line.y, band)])
        for line, band in zip(chart.lines, bands)])
    return figure


def _mark(axes, x, text):
    """Draw a vertical line with a text beside it, on the side that has room."""
    axes.axvline(x, color=MUTED, linewidth=1, linestyle=":")
    left, right = axes.get_xlim()
    on_the_left = x > (left + right) / 2
    axes.text(x, 0.06, f"{text} " if on_the_left else f" {text}", color=MUTED, fontsize=8,
              ha="right" if on_the_left else "left", transform=axes.get_xaxis_transform(),
              bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5, "alpha": 0.8})


@_style()
def distance_figure(title, edges, same, different):
    """Draw the densities of distances within and between persons. Args: edges: (B + 1,); others: (B,) counts."""
    figure, axes = _axes(title, "", "cosine distance", "density of pairs", LOW)
    width, centres, lines = np.diff(edges), np.add(edges[1:], edges[:-1]) / 2, []
    for label, counts, colour in (("same person", same, SERIES[2]), ("different", different, SERIES[4])):
        density = np.array(counts) / max(np.sum(counts), 1) / width
        axes.stairs(density, edges, fill=True, alpha=0.3, color=colour)
        axes.stairs(density, edges, color=colour, linewidth=1.5, label=label, gid=f"histogram {label}")
        lines.append((label, colour, centres, density, [f"{100 * share:.1f} %" for share in density * width]))
    axes.set_yticks([])
    axes.set_ylim(bottom=0)
    _legend(axes, ["same person", "different"])
    figure.hover = _hover(axes, "distance", lines)
    return figure


@_style()
def map_figure(points, persons, modalities, cameras, perplexity, tiles):
    """Draw a map of embeddings, coloured by person: a disc for each visible image, a triangle for each infrared one.

    Args: points: (N, 2); persons, cameras: (N,) numbers; modalities: (N,) "rgb" or "ir"; perplexity: of the t-SNE;
        tiles: of `report.content`, only for the page's script.
    """
    from matplotlib.lines import Line2D

    points, persons, modalities = np.array(points), np.array(persons), np.array(modalities)
    known, counts = np.unique(persons, return_counts=True)
    coloured = dict(zip(known[np.argsort(-counts, kind="stable")].tolist(), PERSONS))
    markers = {"rgb": "o", "ir": "^"}
    figure, axes = _axes("Test embeddings", f"t-SNE, seed 0, perplexity {perplexity:.3g}; {len(coloured)} of "
                         f"{len(known)} persons in colour", "t-SNE, first dimension", "second dimension", SQUARE)
    axes.set_position((0.05, 0.05, 0.94, 0.82))
    for person in sorted(known.tolist(), key=lambda p: p in coloured):      # grey ones below
        for name, marker in markers.items():
            chosen = (persons == person) & (modalities == name)
            axes.scatter(*points[chosen].T, s=30, marker=marker, linewidths=0.5, edgecolors=PAPER,
                         color=coloured.get(person, OTHERS), alpha=1 if person in coloured else 0.35,
                         gid=f"person {person}, {MODALITY_NAMES[name]}")
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.025 * np.maximum(high - low, 1e-3)
    axes.set(xticks=[], yticks=[], xlim=(low[0] - margin[0], high[0] + margin[0]),
             ylim=(low[1] - margin[1], high[1] + margin[1]))
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)
    _legend(axes, list(MODALITY_NAMES.values()),
            [Line2D([], [], marker=marker, linestyle="", color=MUTED, label=MODALITY_NAMES[name])
             for name, marker in markers.items()])
    figure.hover = {"images": [
        [*place, f"person {person}, {MODALITY_NAMES[name]}, camera {camera}"]
        for place, person, name, camera in zip(_places(axes, *points.T).tolist(), persons, modalities, cameras)]}
    return figure


def svg(figure, prefix):
    """Write a figure as SVG for a page: its colours become the page's variables, its `hover` goes with it.

    matplotlib has escaped all text in it.

    Args: prefix: of this figure in the page, so that the ids of two figures never meet.
    """
    buffer = io.StringIO()
    with _style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = NAMED.sub(r'<g class="named" data-name="\1">', text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    hover = html.escape(json.dumps(figure.hover, separators=(",", ":")))
    text = text.replace("<svg ", f'<svg role="img" data-hover="{hover}" ', 1)
    return re.sub(r'(?:width|height)="[\d.]+pt" ', "", text, count=2)


def save_figures(folder, figures, titles=True):
    """Write figures (name -> Figure or PIL image) as FOLDER/NAME.png and .pdf; what is no letter or digit becomes "_".

    Args: titles: whether titles, and the notes below them, stay in the figures.
    """
    for name, figure in tqdm(figures.items(), desc=f"figures to {folder}", unit="figure", disable=None):
        name = re.sub(r"\W", "_", name)
        for kind, write in _files(figure, titles):
            with _style():
                write_atomically(Path(folder) / f"{name}.{kind}", write)


def _files(figure, titles):
    """Yield the ending of each file of a figure, and a function that writes it."""
    if not hasattr(figure, "savefig"):
        yield from ((kind, partial(figure.save, format=kind)) for kind in ("png", "pdf"))
        return
    for text in figure.texts:
        text.set_visible(titles)
    for kind, options in (("png", {"dpi": 200, "metadata": {"Software": None}}),
                          ("pdf", {"metadata": {"CreationDate": None}})):
        yield kind, partial(figure.savefig, format=kind, bbox_inches=None if titles else "tight", **options)
