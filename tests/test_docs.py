"""README and docs: their examples run, and what they name (files, tests, commands, keys, messages) is there."""
import re
from pathlib import Path

import pytest

from configs.defaults import as_dict, flat, load_config
from tools import method_figure, settings_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYS = flat(as_dict(load_config()))
pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def text_of(page):
    return page.read_text(encoding="utf-8")


def commands(page):
    """The command lines of a page: [words of one], from code blocks and between backticks."""
    blocks = re.findall(r"```\w*\n(.*?)```", text_of(page), re.DOTALL)
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL))
    lines = [line.split("#")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()] + inline
    return [" ".join(line.split()).removeprefix("$ ").split() for line in lines
            if re.match(r"(\$ )?(OMP_NUM_THREADS=\d+ )?(python|make|torchrun) ", " ".join(line.split()))]


def test_the_settings_page_is_of_todays_settings():
    """Run `python tools/settings_page.py` if this fails."""
    assert text_of(ROOT / "docs/settings.md") == settings_page.page()


def test_settings_are_explained_by_their_comments():
    keys, headings = settings_page.read_comments(
        "_C = CfgNode()\n_C.A = CfgNode()   # all\n_C.A.B = [1,\n    2]   # two,\n          # words\n# no\n"
        "_C.A.C = '#'\n")
    assert (keys, headings) == ({"A.B": "two, words", "A.C": ""}, {"A": "all"})


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if anchor:
            headings = [re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
                        for line in text_of(other).splitlines() if line.startswith("#")]
            assert anchor in [*headings, *re.findall(r'<a id="([^"]+)"', text_of(other))], target


@pages
def test_named_tests_and_files_exist(page):
    for file, name in re.findall(r"`(tests/test_\w+\.py)::(\w+)`", text_of(page)):
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.(?:py|yml|md|png|pt))`", text_of(page)):
        assert name.startswith(("runs/", "dataset/")) or (ROOT / name).is_file(), name


@pages
def test_commands_are_those_of_the_scripts(page):
    """Scripts, options, make's targets and KEY VALUE pairs exist."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        words = words[1:] if words[0].startswith("OMP") else words
        if words[0] == "make":
            assert words[1] in targets, words
            continue
        script = words[2].replace(".", "/") if words[1] == "-m" else next((w for w in words if w.endswith(".py")), None)
        if script is None or script.startswith("http"):
            continue
        path = ROOT / (f"{script}/__main__.py" if (ROOT / script).is_dir() else script.removesuffix(".py") + ".py")
        assert path.is_file(), words
        known = path.read_text() + (ROOT / "configs/command_line.py").read_text() + tool_behind(path)
        for option in (word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("--")):
            assert words[0] == "torchrun" or option[2:].replace("-", "_") in known.replace("-", "_"), (words, option)
        assert [word for word in words if re.fullmatch(r"[A-Z]+\.[A-Z_0-9]+", word) and word not in KEYS] == [], words


def tool_behind(path):
    """The source of the tool that an old spelling runs."""
    tool = ROOT / "tools" / path.name
    return tool.read_text() if tool.is_file() else ""


@pages
def test_named_settings_exist(page):
    sections = {key.partition(".")[0] for key in KEYS if "." in key}
    named = re.findall(rf"`((?:{'|'.join(sections)})\.[A-Z_0-9]+)\b", text_of(page))
    assert [key for key in named if key not in KEYS] == []


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    source = " ".join(path.read_text() for folder in ("configs", "data", "model", "processor", "utils", "loss")
                      for path in (ROOT / folder).rglob("*.py")) + (ROOT / "test.py").read_text()
    source = re.sub(r'"\s*\n\s*f?"', "", source)        # sentences run over several lines
    messages = re.findall(r"^> (.+)$", text_of(ROOT / "docs/troubleshooting.md"), re.MULTILINE)
    assert len(messages) > 8
    assert [message for message in messages if message not in source] == []


def test_the_methods_figure_is_the_scripts(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["method_figure.py", "--output", str(tmp_path / "method.svg")])
    method_figure.main()
    drawn, kept = ((folder / "method.svg").read_text() for folder in (tmp_path, ROOT / "assets"))
    assert drawn.count("<path") == kept.count("<path") > 50
