"""What answers at once: help and mistakes in settings, before anything slow is imported."""
import subprocess
import sys
from pathlib import Path

import pytest

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
    (["SEEED", "2"], 2, "unknown key SEEED; did you mean SEED?"),
    (["CLUSTER.EPS", "2"], 2, "CLUSTER.EPS is 2.0; expected a number from 0 to 1"),
    (["--config_file", "no.yml"], 2, "no.yml is missing"),
    (["--fesh"], 2, "the command line is not understood"),
])
def test_nothing_slow_is_imported(script, words, code, said, tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(slow=SLOW), str(ROOT / script), *words], cwd=tmp_path,
                          env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].strip() == "imported:"
    assert not list(tmp_path.iterdir())
