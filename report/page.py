"""Makes a page of HTML, one file that fetches nothing, from the Jinja2 templates beside this module.

Values are escaped; only SVG of `report.figures` is inserted unescaped.
"""
import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageOps

from report.curves import STAGES
from report.figures import MODALITY_NAMES, VARIABLES, chart_figure, save_figures, svg
from utils.checkpoint import write_atomically
from utils.errors import UserError

DARK = {"ink": "#e7eaee", "muted": "#9ba4b0", "grid": "#343a43", "paper": "#1b1f25", "s0": "#6ea4ff", "s1": "#ff9350",
        "s2": "#4fc58a", "s3": "#c794ff", "s4": "#ff7a9f", "s5": "#43c6da", "s6": "#d8bd3c", "s7": "#a9b1bb",
        "back": "#121519", "right": "#3ecb7c", "wrong": "#ff6b6b"}
LIGHT = {**{variable: colour for colour, variable in VARIABLES.items()}, "back": "#f3f5f7", "right": "#128a4a",
         "wrong": "#d02f2f"}
TILE_HEIGHT = 72            # pixels
TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
TEMPLATES.globals["modality_names"] = MODALITY_NAMES


@dataclass(frozen=True)
class Section:
    """One section of a page. `template`: a file in templates/ that shows `content`, which it describes."""

    anchor: str
    heading: str
    template: str
    content: object     # nothing (None, [], {}): the section is left out


@dataclass(frozen=True)
class Table:
    """What table.html shows. The first `text_columns` columns hold text, the others numbers; `note` stands above.

    `more`: a `Table` that is folded away below it, or None.
    """

    head: tuple
    rows: list
    text_columns: int = 1
    note: str = ""
    more: object = None


class Figures:
    """Keeps the figures of a page by name, in the order they were added."""

    def __init__(self):
        self.by_name = {}

    def add(self, name, figure):
        """Keep a figure: its SVG text."""
        self.by_name[name] = figure
        return svg(figure, f"f{len(self.by_name)}")

    def charts(self, charts):
        """Draw and keep `Chart`s: their SVG texts."""
        return [self.add(chart.name, chart_figure(chart)) for chart in charts]

    def curves(self, make_charts, notes=None):
        """Draw the curves of each script: [(its name, notes, SVG texts)].

        Args: make_charts: function of a stage that gives `Chart`s; notes: stage -> what is to be said of its curves.
        """
        found = {}
        for stage, title in STAGES.items():
            drawn, note = self.charts(make_charts(stage)), (notes or {}).get(stage, "")
            if drawn or note:
                said, charts = found.setdefault(title.partition(",")[0], ([], []))
                charts += drawn
                said += [note] if note else []
        return [(script, *of) for script, of in found.items()]

    def save(self, folder, words=(), titles=True):
        """Write those whose names hold one of the words, or all without words, as PNG and PDF.

        Raises: UserError: no name does; as `write_atomically`.
        """
        found = {name: figure for name, figure in self.by_name.items()
                 if not words or any(word in name for word in words)}
        if not found:
            raise UserError(f"this page has no figure{' named ' * bool(words)}{' or '.join(words)}; expected "
                            f"{'one of ' + ', '.join(self.by_name) if self.by_name else 'runs with curves or results'}")
        save_figures(folder, found, titles)


def write_page(path, title, subtitle, sections, images=None):
    """Write a page: its path.

    Args: sections: list of `Section`; images: name -> base64 JPEG, for templates that show pictures by their names.
    Raises: UserError: as `write_atomically`.
    """
    text = TEMPLATES.get_template("page.html").render(
        title=title, subtitle=subtitle, sections=[section for section in sections if section.content],
        images=images or {}, light=LIGHT, dark=DARK)
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "replace")))
    return path


def jpeg_text(image, width, height):
    """Scale a PIL image until it just fits into width x height pixels: base64 text of a JPEG."""
    buffer = io.BytesIO()
    ImageOps.contain(image, (width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()


def tile_text(images):
    """Put small copies of images (H, W, 3) uint8 into one JPEG, in rows.

    Returns: {"jpeg": base64 text, "columns": images in a row, "width", "height": of each in pixels}.
    """
    height, columns = TILE_HEIGHT, min(len(images), 40)
    width = round(height * images[0].shape[1] / images[0].shape[0])
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for index, image in enumerate(images):
        tile = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(tile, (index % columns * width, index // columns * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=80)
    return {"jpeg": base64.b64encode(buffer.getvalue()).decode(), "columns": columns, "width": width, "height": height}
