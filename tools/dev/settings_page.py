"""Write docs/settings.md: every key of configs/defaults.py with its default, its comment and what it may be.

    python tools/dev/settings_page.py [--output docs/settings.md]

Run it after a key was added or a comment changed; a test compares the file with a fresh one.
"""
import io
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

import yaml  # noqa: E402

from configs.defaults import CHOICES, NUMBERS, as_dict, choices, load_config  # noqa: E402
from utils.errors import Parser, exit_on_user_error  # noqa: E402
from utils.settings import flat  # noqa: E402

HEAD = """# Settings

Made by `python tools/dev/settings_page.py` from `configs/defaults.py`; edit that file, not this page.

`train_prepare.py`, `train_clip.py`, `test.py`, `tools/experiments.py`, `tools/demo.py` and `tools/bounds.py` take
`--config_file FILE.yml` and, after it, `KEY VALUE` pairs:
`python train_prepare.py --config_file configs/regdb.yml SEED 2 CLUSTER.EPS 0.5`. What comes later counts. An unknown
key is answered with the nearest one, a wrong value with what was expected. The defaults are the released recipe for
SYSU-MM01; the last column says what the other files in `configs/` set.
"""


def main():
    """Write the page."""
    parser = Parser(__doc__)
    parser.add_argument("--output", default=ROOT / "docs" / "settings.md", type=Path)
    output = parser.parse_args().output
    from utils.checkpoint import write_atomically  # slow: after the words were read

    write_atomically(output, lambda file: file.write(page().encode()))
    print(f"written to {output}")


def page():
    """Return the page's text."""
    comments = read_comments((ROOT / "configs" / "defaults.py").read_text())
    defaults = flat(as_dict(load_config()))
    files = {path.stem: written(path) for path in sorted((ROOT / "configs").glob("*.yml"))}
    lines, section = [HEAD.rstrip()], None
    for key, default in defaults.items():
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines += ["", f"## {section or 'General'}", "", *([comments[section], ""] if section in comments else []),
                      "| key | default | may be | meaning | elsewhere |", "| --- | --- | --- | --- | --- |"]
        elsewhere = ", ".join(f"{name}: `{values[key]!r}`" for name, values in files.items() if values[key] != default)
        cells = (f"`{key}`", f"`{default!r}`", allowed(key, default), comments.get(key, ""), elsewhere)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def written(path):
    """Return all settings of a .yml file, with {trial} in OUTPUT_DIR as it stands there."""
    settings = yaml.safe_load(path.read_text())
    return {**flat(as_dict(load_config(str(path)))), "OUTPUT_DIR": settings.get("OUTPUT_DIR", load_config().OUTPUT_DIR)}


def allowed(key, default):
    """Say what a key's value may be."""
    if key in CHOICES:
        return ", ".join(f"`{choice or repr(choice)}`" for choice in choices(key))
    rules = [expected for expected, _, names in NUMBERS if key in names]
    kind = {bool: "`True` or `False`", str: "text", list: "a list"}.get(type(default), "")
    return "; ".join(rules) or kind or "a number"


def read_comments(source):
    """Find the comments of configs/defaults.py: {"SECTION" or "SECTION.KEY": comment}.

    A comment stands behind its line, and may run on in indented lines that hold nothing else.
    """
    found, name = {}, None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.start[1] == 0 and token.type in (tokenize.NAME, tokenize.COMMENT):
            assigned = re.match(r"_C\.([\w.]+) = ", token.line)
            name = assigned and assigned[1]
        if name and token.type == tokenize.COMMENT:
            found.setdefault(name, []).append(token.string.lstrip("# "))
    return {name: " ".join(lines) for name, lines in found.items()}


if __name__ == "__main__":
    exit_on_user_error(main)
