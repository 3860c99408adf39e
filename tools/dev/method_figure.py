"""Draw the method: two modalities, stems, trunk, clusters, memories that swap, prompts.

    python tools/dev/method_figure.py [--output assets/method.svg]
"""
import io
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

from utils.errors import Parser, exit_on_user_error  # noqa: E402

INK, MUTED, PAPER, BACK = "#1d2127", "#5f6773", "#ffffff", "#f6f8fa"
VISIBLE, INFRARED, SHARED, TEXT = "#2563c9", "#d1560a", "#14804f", "#8a3fc2"
CLOTHES = (("#c0392b", "#2c3e50"), ("#f1c40f", "#34495e"), ("#27ae60", "#6d4c41"))    # above and below, of three people
GREYS = (("#d9d9d9", "#8c8c8c"), ("#9e9e9e", "#6b6b6b"), ("#bdbdbd", "#a6a6a6"))
TOP, BOTTOM = 4.05, 2.05        # heights of the modalities' rows


def main():
    """Write the figure."""
    parser = Parser(__doc__)
    parser.add_argument("--output", default=ROOT / "assets" / "method.svg", type=Path)
    output, buffer = parser.parse_args().output, io.BytesIO()
    import matplotlib  # slow: after the words were read

    from utils.checkpoint import write_atomically

    with matplotlib.rc_context({"svg.hashsalt": "cclnet", "font.size": 10.5, "font.family": "DejaVu Sans"}):
        options = {"metadata": {"Date": None}} if output.suffix == ".svg" else {"dpi": 150}
        draw().savefig(buffer, format=output.suffix[1:], facecolor=PAPER, **options)
    write_atomically(output, lambda file: file.write(buffer.getvalue()))
    print(f"written to {output}")


def draw():
    """Return the matplotlib figure, in a plane of 13.4 x 5.2 units."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.4, 5.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 13.4), ylim=(0, 5.2))
    axes.axis("off")
    image_side(axes)
    memories(axes)
    texts(axes)
    return figure


def image_side(axes):
    """Draw people, stems, trunk and the two heads."""
    for y, name, colours, colour in ((TOP, "visible", CLOTHES, VISIBLE), (BOTTOM, "infrared", GREYS, INFRARED)):
        axes.text(1.05, y + 0.78, f"{name} images", ha="center", color=colour, weight="bold")
        for index, (above, below) in enumerate(colours):
            person(axes, 0.5 + 0.55 * index, y - 0.55, above, below)
        box(axes, 2.35, y - 0.35, 1.15, 0.7, f"stem\n{name}", colour)
        arrow(axes, (1.98, y), (2.35, y))
        arrow(axes, (3.5, y), (3.95, 3.05 + np.sign(y - 3.05) * 0.4))
    box(axes, 3.95, 2.25, 1.3, 1.6, "shared trunk\nof CLIP's\nimage tower", SHARED)
    box(axes, 5.75, 2.7, 1.2, 0.7, "GeM pool,\nbatch norm", SHARED)
    arrow(axes, (5.25, 3.05), (5.75, 3.05))
    axes.text(7.42, 3.0, "feature", color=MUTED, fontsize=9.5)


def memories(axes):
    """Draw each modality's clusters and memory, the losses, and the swap between the memories."""
    for y, name, colour, title in ((TOP, "visible", VISIBLE, 0.5), (BOTTOM, "infrared", INFRARED, -0.5)):
        arrow(axes, (6.95, 3.05), (7.85, y))
        axes.text(8.62, y + 0.78, "clusters = pseudo labels", ha="center", color=INK, fontsize=9.5)
        clusters(axes, 8.62, y, colour, seed=len(name))
        arrow(axes, (9.4, y), (9.95, y))
        axes.text(10.83, y + title, f"memory of {name} prototypes", ha="center", va="center",
                  color=INK, fontsize=9.5)
        for index in range(5):
            box(axes, 9.98 + 0.35 * index, y - 0.3, 0.28, 0.6, "", colour, fill=0.25 + 0.13 * index)
        arrow(axes, (11.75, y), (12.1, y))
        axes.text(12.16, y, "contrastive\nloss", va="center", color=colour, weight="bold")
    arrow(axes, (10.5, 3.7), (10.86, 2.4), colour=SHARED, width=2)
    arrow(axes, (11.2, 2.4), (10.86, 3.7), colour=SHARED, width=2)
    axes.text(11.3, 3.05, "memory swapping:\nmatched prototypes\n(Hungarian) are mixed", va="center", color=SHARED,
              fontsize=9.5, weight="bold")


def texts(axes):
    """Draw the projection, the prompts, the frozen text tower and the image-to-text loss."""
    box(axes, 3.95, 0.5, 1.3, 0.7, "attention pool", SHARED)
    arrow(axes, (4.6, 2.25), (4.6, 1.2))
    arrow(axes, (5.25, 0.85), (6.25, 0.85))
    axes.text(5.72, 0.95, "projection", ha="center", color=MUTED, fontsize=9.5)
    box(axes, 6.25, 0.5, 1.4, 0.7, "image-to-text\nloss", TEXT)
    arrow(axes, (8.3, 0.85), (7.65, 0.85))
    box(axes, 8.3, 0.5, 1.3, 0.7, "CLIP's text\ntower (frozen)", TEXT)
    arrow(axes, (10.0, 0.85), (9.6, 0.85))
    for y, start, learned, end in ((0.98, "A visible photo of a ", 11.42, 12.03),
                                   (0.68, "An infrared photo of a ", 11.59, 12.2)):
        axes.text(10.08, y, start, color=INK, fontsize=9.5)
        axes.text(learned, y, "X X X X", color=TEXT, weight="bold", fontsize=9.5)
        axes.text(end, y, "person.", color=INK, fontsize=9.5)
    axes.text(10.08, 0.37, "X: learned words, four per cluster", color=MUTED, fontsize=9)
    for y, words in ((0.98, "train_prepare.py: the upper part"), (0.72, "train_clip.py: learns the X, then"),
                     (0.46, "trains the upper part with both losses")):
        axes.text(0.22, y, words, color=INK, fontsize=9.5, weight="bold")


def person(axes, x, y, above, below):
    """Draw a person, 1.1 high, whose feet stand at (x, y)."""
    from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

    axes.add_patch(FancyBboxPatch((x - 0.22, y - 0.04), 0.44, 1.18, boxstyle="round,pad=0.02", fc=BACK, ec="#dfe3e8"))
    axes.add_patch(Circle((x, y + 0.96), 0.11, fc="#8a6d5a" if above in dict(CLOTHES) else "#e8e8e8", ec="none"))
    axes.add_patch(FancyBboxPatch((x - 0.1, y + 0.46), 0.2, 0.34, boxstyle="round,pad=0.03", fc=above, ec="none"))
    for side in (-0.12, 0.02):
        axes.add_patch(Rectangle((x + side, y), 0.1, 0.46, fc=below, ec="none"))


def box(axes, x, y, width, height, text, colour, fill=0.12):
    """Draw a rounded box with text."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08",
                                  fc=to_rgba(colour, fill), ec=colour, lw=1.3))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=INK, fontsize=10)


def arrow(axes, start, end, colour=MUTED, width=1.3):
    """Draw an arrow."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 1,
                                              "shrinkB": 1})


def clusters(axes, x, y, colour, seed):
    """Draw three groups of points, and an outlier, around (x, y)."""
    from matplotlib.patches import Ellipse

    rng = np.random.default_rng(seed)
    for dx, dy in ((-0.45, 0.2), (0.4, 0.25), (0.0, -0.3)):
        axes.add_patch(Ellipse((x + dx, y + dy), 0.62, 0.5, fc=colour, alpha=0.12, ec=colour, lw=1))
        points = rng.normal(0, 0.09, (7, 2))
        axes.scatter(x + dx + points[:, 0], y + dy + points[:, 1], s=13, color=colour, linewidths=0)
    axes.scatter([x + 0.62], [y - 0.42], s=13, color="#9aa3ad")


if __name__ == "__main__":
    exit_on_user_error(main)
