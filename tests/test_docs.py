"""README and docs: what they name (files, tests, commands, settings, messages) is there, their numbers are those of the
logs. tests/test_extending.py and tests/test_tutorial.py run their code."""
import json
import re
from pathlib import Path

import numpy as np
import pytest

from configs.settings import SETTINGS
from loss.methods import METHODS
from tools import demo
from tools.dev import settings_page
from tools.lib import summary

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
ROOMS = [path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").is_file()]
KEYS = {setting.name for setting in SETTINGS} | {f"METHOD.{setting.name}" for method in METHODS.values()
                                                 for setting in method.declared()}
COMMAND = r"(?:OMP_NUM_THREADS=\d+ )?((?:python|make|torchrun) .*)"
pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page):
    """The words of the command lines of a page, from blocks and between backticks."""
    text, fenced = text_of(page).replace("\\\n", " "), re.compile(r"```\w*\n(.*?)```", re.DOTALL)
    blocks = "\n".join(fenced.findall(text)) + "\n" + "\n".join(re.findall(r"^ {4}(.*)", text, re.MULTILINE))
    lines = blocks.splitlines() + [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", fenced.sub("", text))]
    return [found[1].split("#")[0].split() for found in (re.match(COMMAND, line.strip()) for line in lines) if found]


def test_the_settings_page_is_of_todays_settings():
    """Run `python tools/dev/settings_page.py` if this fails."""
    assert text_of("docs/settings.md") == settings_page.page()


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if page.parent == ROOT / "docs":        # the site has nothing else
            assert other.is_relative_to(page.parent), target
        if anchor:
            headings = [re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
                        for line in text_of(other).splitlines() if line.startswith("#")]
            assert anchor in [*headings, *re.findall(r'<a id="([^"]+)"', text_of(other))], target


@pages
def test_named_files_functions_and_tests_exist(page):
    """A function or class is named as FILE::NAME or FILE::CLASS.NAME."""
    for file, names in re.findall(r"\b([\w/]+\.py)::([\w.]+\w)", text_of(page)):
        for name in names.split("."):
            assert re.search(rf"^ *(?:def|class) {name}\b", text_of(file), re.MULTILINE), f"{file}::{names}"
    rooms = "|".join([*ROOMS, "tests", "docs", "assets"])
    for name in re.findall(rf"(?<![\w/.])((?:{rooms})/[\w/.-]*\.(?:py|yml|md|json|png|pt|svg))\b", text_of(page)):
        assert (ROOT / name).is_file(), name
    for name in re.findall(rf"`((?:{rooms})/[\w/]*/?)`", text_of(page)):
        assert (ROOT / name).is_dir(), name


@pages
def test_commands_are_those_of_the_scripts(page):
    """Scripts and tools, their options, and make's targets exist; what a page writes into a file of one's own too."""
    targets = re.findall(r"^(\w+):", text_of("Makefile"), re.MULTILINE)
    own = re.findall(r"^# (\w+\.py)$", text_of(page), re.MULTILINE)
    for words in commands(page):
        script = next((word for word in words if word.endswith(".py")), None)
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[1] == "-m" and words[2] not in ("pytest", "venv", "pip"):
            script = words[2].replace(".", "/") + ("/__main__.py" if (ROOT / words[2]).is_dir() else ".py")
        if script and script not in own:
            known = text_of(script) + text_of("configs/command_line.py")
            known += text_of(f"tools/{Path(script).name}") if script == "data/process.py" else ""
            for word in words[words.index(script) + 1 if script in words else 3:]:
                option = word.strip("[]").partition("=")[0]
                assert option[:2] != "--" or option[2:].replace("-", "_") in known.replace("-", "_"), (words, option)


@pages
def test_named_settings_exist(page):
    """Wherever they stand; a page that adds a method declares its settings itself."""
    text = text_of(page)
    named = set(re.findall(r"\b([A-Z][A-Z_]+\.[A-Z][A-Z_0-9]+)\b(?!\.)", text)) - KEYS
    assert [key for key in named if f'Setting("{key.removeprefix("METHOD.")}"' not in text] == []


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    source = " ".join(path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py")) + text_of("test.py")
    source = re.sub(r'"\s*\n\s*f?"', "", source)        # sentences run over several lines
    messages = re.findall(r"^> (.+)$", text_of("docs/troubleshooting.md"), re.MULTILINE)
    assert len(messages) > 8
    assert [message for message in messages if message not in source] == []


def test_the_readmes_table_is_that_of_the_reference_logs():
    results = [[tests[name, "all"] for name in demo.TESTED]
               for _, tests in summary.read_runs([ROOT / "docs/reference/demo"], "python")]
    cells = re.compile(r"[\d.]+ ± [\d.]+")
    for stage, line in zip(demo.STAGES, demo.table(results).splitlines()[1:], strict=True):
        row = re.search(rf"^\| {stage}.*$", text_of("README.md"), re.MULTILINE).group()     # the first table's
        assert cells.findall(row) == cells.findall(line), stage


def test_the_tables_of_results_are_those_of_the_reference_logs():
    """Of every method, space and tower: the last epochs of both scripts; texts have no prepare of their own."""
    reference, text = ROOT / "docs/reference", text_of("docs/results.md")
    for folder in (reference / "demo", *sorted(reference.glob("methods/*")), *sorted(reference.glob("towers/*"))):
        stages = ["model"] * folder.name.endswith("-text") or ["prepare", "model"]
        for stage in stages[:1 if folder.parent.name == "towers" else 2]:
            paths = sorted(folder.glob(f"seed*/tests/{stage}_last-python-*/metrics.json"))
            records = [json.loads(path.read_text()) for path in paths]
            records = [next(r for r in record.get("results", [record]) if r["mode"] == "all") for record in records]
            assert [path.parts[-4] for path in paths] == [f"seed{number}" for number in range(1, 6)], folder
            spread = [100 * np.array([record[key] for record in records]) for key in ("rank1", "mAP")]
            cells = " | ".join(f"{x.mean():.1f} ± {x.std(ddof=1):.1f}" for x in spread)
            assert f"| {cells} |" in text, (folder.name, stage)
