"""Makes a page of HTML, one file that fetches nothing, from the Jinja2 templates beside this module.

Values are escaped; only SVG of `report.figures` is inserted unescaped.
"""
import base64
import io
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageOps

from report.figures import MODALITY_NAMES, VARIABLES
from utils.checkpoint import write_atomically

DARK = {"ink": "#e7eaee", "muted": "#9ba4b0", "grid": "#343a43", "paper": "#1b1f25", "s0": "#6ea4ff", "s1": "#ff9350",
        "s2": "#4fc58a", "s3": "#c794ff", "s4": "#ff7a9f", "s5": "#43c6da", "s6": "#d8bd3c", "s7": "#a9b1bb",
        "back": "#121519", "right": "#3ecb7c", "wrong": "#ff6b6b"}
LIGHT = {**{variable: colour for colour, variable in VARIABLES.items()}, "back": "#f3f5f7", "right": "#128a4a",
         "wrong": "#d02f2f"}
TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
TEMPLATES.globals["modality_names"] = MODALITY_NAMES


class Section(NamedTuple):
    """One section of a page. `template`: a file in templates/ that shows `content`, which it describes."""

    anchor: str
    heading: str
    template: str
    content: object     # nothing (None, [], {}): the section is left out


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
