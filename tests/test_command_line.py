"""What answers at once: help and mistakes on the command line, before anything slow is imported."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import Parser, UserError, real_number, whole_number

ROOT = Path(__file__).resolve().parents[1]
SLOW = ("torch", "torchvision", "numpy", "sklearn", "scipy", "faiss", "open_clip", "timm", "PIL", "matplotlib")
PROGRAM = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *(name for name in {slow} if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("script", ["train_prepare.py", "train_clip.py", "test.py"])
@pytest.mark.parametrize("words, code, said", [
    (["--help"], 0, "KEY VALUE"),
    (["--fesh"], 2, "the command line is not understood"),
])
def test_nothing_slow_is_imported(script, words, code, said, tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(slow=SLOW), str(ROOT / script), *words], cwd=tmp_path,
                          env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout + done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].strip() == "imported:"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool", sorted({path.name for path in (ROOT / "tools").glob("*.py")}
                                         - {"__init__.py", "experiments.py"}))
def test_tools_answer_before_anything_slow_is_imported(tool, tmp_path):
    program = PROGRAM.format(slow=("torch", "torchvision", "sklearn", "faiss", "open_clip", "timm", "matplotlib"))
    for words, code in ((["--help"], 0), (["--no_such_flag"], 2)):
        done = subprocess.run([sys.executable, "-c", program, str(ROOT / "tools" / tool), *words], cwd=tmp_path,
                              env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert done.stderr.splitlines()[-1].strip() == "imported:"


@pytest.mark.parametrize("words, found", [(["--some-flag", "3"], 3), (["--some_flag=4"], 4), (["--some-flag=5"], 5)])
def test_flags_are_spelt_with_dashes_or_underscores(words, found):
    for name in ("--some_flag", "--some-flag"):
        parser = Parser("")
        parser.add_argument(name, type=whole_number(0, 9))
        assert parser.parse_args(words).some_flag == found


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
