"""Write docs/settings.md: every setting with its default, what it may be and what it does.

    python tools/dev/settings_page.py

Run it after a setting changed, in configs/settings.py or beside a method in loss/; a test compares the file with a
fresh one.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))     # the tool lies one folder below the imports

import yaml  # noqa: E402

from configs.settings import SETTINGS  # noqa: E402
from utils.errors import Parser, exit_on_user_error  # noqa: E402
from utils.settings import Range, flat  # noqa: E402

HEAD = """# Settings

Made by `python tools/dev/settings_page.py` from `configs/settings.py` and from the classes of the methods in `loss/`;
edit those, not this page.

All scripts and most tools take `--config_file FILE.yml`, and after it `KEY VALUE` pairs, which override the file:

```bash
python train_prepare.py --config_file configs/regdb.yml SEED 2 CLUSTER.EPS 0.5
```

A misspelt key or a wrong value stops the run with a suggestion. The defaults are the authors' recipe for SYSU-MM01; the
last column says which files in `configs/` set another value."""
COLUMNS = ["| key | default | allowed values | meaning | overridden in |", "| --- | --- | --- | --- | --- |"]


def main():
    """Write the page."""
    Parser(__doc__).parse_args()
    output = ROOT / "docs" / "settings.md"
    output.write_text(page(), encoding="utf-8")
    print(f"written to {output}")


def page():
    """Return the page's text: a table per section, then one per method."""
    from loss.methods import METHODS  # slow: after the words were read

    files = {path.stem: flat(yaml.safe_load(path.read_text())) for path in sorted((ROOT / "configs").glob("*.yml"))}
    tables = {}
    for setting in SETTINGS:
        tables.setdefault(setting.name.rpartition(".")[0] or "General", []).append(row(setting, files))
    for name, method in METHODS.items():
        own = {stem: values for stem, values in files.items() if values.get("METHOD.NAME", "cclnet") == name}
        tables[f"METHOD, where METHOD.NAME is {name}"] = [
            row(setting._replace(name=f"METHOD.{setting.name}"), own) for setting in method.declared()]
    return "\n".join([HEAD, *(line for title, rows in tables.items() if rows
                              for line in ("", f"## {title}", "", *COLUMNS, *rows))]) + "\n"


def row(setting, files):
    """Write a line of a table. Args: setting: `utils.settings.Setting`; files: name -> what that .yml file sets."""
    name, default, allowed, text = setting
    if isinstance(allowed, tuple) and not isinstance(allowed, Range):
        allowed = ", ".join(f"`{choice or repr(choice)}`" if isinstance(choice, str) else f"`{choice}`"
                            for choice in allowed)
    others = {}
    for stem, values in files.items():
        if values.get(name, default) != default:
            others.setdefault(repr(values[name]), []).append(stem)
    elsewhere = "; ".join(f"`{value}`: {', '.join(stems)}" for value, stems in others.items())
    if name == "OUTPUT_DIR":
        elsewhere = "every file: a folder of its own"
    cells = (f"`{name}`", f"`{default!r}`", str(allowed), text, elsewhere)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    exit_on_user_error(main)
