"""What answers at once: help and mistakes on the command line, before anything slow is imported."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import Parser, UserError, real_number, whole_number

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {"bounds": "labels", "demo": "--seeds", "download": "--output_dir", "export_released": "--clip_weights",
         "evaluate": "--rerank", "process": "--allow_partial", "search": "--query"}
IMPORTING = {"experiments": "--seeds", "dev/mutants": "--sample",
             "dev/ranking_picture": "--ranks", "dev/settings_page": "--output", "dev/trace": "--list",
             "dev/train_demo_agw": "--steps", "dev/train_demo_clip": "--steps"}      # may import what is slow first
SMALL = ("numpy", "scipy", "PIL")
SCRIPTS = ("train_prepare", "train_clip", "test")
PROGRAM = """
import contextlib, io, json, os, runpy, sys
found, root, slow, *scripts = [], *sys.argv[1:]
for script in scripts:
    for word in ("--help", "--no_such_flag"):
        before, sys.argv, said = (list(sys.path), set(sys.modules)), [script, word], (io.StringIO(), io.StringIO())
        sys.path[:1] = [os.path.dirname(script)]        # as python does
        code = 0
        with contextlib.redirect_stdout(said[0]), contextlib.redirect_stderr(said[1]):
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
        found.append((script, word, code, *(s.getvalue() for s in said), [n for n in slow.split() if n in sys.modules]))
        sys.path[:] = before[0]
        for name in set(sys.modules) - before[1]:       # every script finds its own imports
            place = getattr(sys.modules[name], "__file__", None) or ""
            if place.startswith(root) and "site-packages" not in place:
                del sys.modules[name]
print(json.dumps(found))
"""


def test_scripts_and_tools_answer_at_once_from_any_folder(tmp_path):
    """Help and mistakes, the latter in one sentence with exit code 2, before anything slow is imported."""
    names = [*SCRIPTS, *(f"tools/{name}" for name in TOOLS), "data/process", *(f"tools/{name}" for name in IMPORTING)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, f"{ROOT}/", "torch torchvision sklearn faiss open_clip timm "
                           "matplotlib numpy scipy PIL", *(str(ROOT / f"{name}.py") for name in names)],
                          cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 2 * len(names)
    for script, word, code, out, err, imported in found:
        name = script.removeprefix(f"{ROOT}/").removesuffix(".py")
        if word == "--help":
            told = {**TOOLS, **IMPORTING}.get(name.removeprefix("tools/"), "")
            assert (code, err) == (0, "") and told in out and f"python {name.replace('data/', 'tools/')}.py" in out
        else:
            assert code == 2 and err.startswith("error: the command line is not understood") and err.count("\n") == 1
        allowed = imported if name.removeprefix("tools/") in IMPORTING else [] if name in SCRIPTS else SMALL
        assert set(imported) <= set(allowed), name
    assert not list(tmp_path.iterdir())


def test_every_tool_is_tried():
    found = {path.relative_to(ROOT / "tools").with_suffix("").as_posix() for pattern in ("*.py", "dev/*.py")
             for path in (ROOT / "tools").glob(pattern) if path.stat().st_size}
    assert found == {*TOOLS, *IMPORTING}


@pytest.mark.parametrize("kind, text", [(whole_number(1, 9), "0"), (whole_number(1, 9), "1.5"),
                                        (real_number(0, 9), "nan"), (real_number(0, 9), "-1")])
def test_numbers_of_flags_have_bounds(kind, text):
    parser = Parser("")
    parser.add_argument("--number", type=kind)
    with pytest.raises(UserError, match="argument --number: .* is no (whole )?number from"):
        parser.parse_args([f"--number={text}"])


def test_every_requirement_has_a_version_that_ci_ran_with():
    def name(line):
        return re.split(r"[<>=;! ]", line, maxsplit=1)[0].lower().replace("_", "-")

    wanted = {name(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1] not in ("#", "")}
    text = (ROOT / "constraints.txt").read_text()
    pinned = {name(line) for line in text.splitlines() if line[:1] != "#"}
    assert wanted - pinned == {"faiss-cpu"} and "# faiss-cpu" in text
    assert all("==" in line and "python_version" in line for line in text.splitlines() if line[:1] != "#")
    assert not re.search(r"https?:|file:|@ |^nvidia|^cuda|^triton", text, re.M)
