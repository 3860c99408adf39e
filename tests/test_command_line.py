"""What answers at once: help and mistakes on the command line, before anything slow is imported."""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NO_FOLDER, NO_FILE = "no/such is no folder; expected ", "no/such is no file; expected "
MISTAKES = [("report/__main__", ["no/such"], f"{NO_FOLDER}the OUTPUT_DIR of"),
            ("tools/experiments", ["table", "no/such"], f"{NO_FOLDER}that of a run or of a grid"),
            ("tools/experiments", ["run", "--config_file", "no/such"], f"{NO_FILE}a .yml file"),
            ("tools/evaluate", ["no/such"], f"{NO_FILE}a .npz file"),
            ("tools/process", ["--dataset", "sysu", "--root", "no/such"], f"{NO_FOLDER}that of the data set sysu"),
            ("tools/export_released", ["no/such", "x"], f"{NO_FILE}a checkpoint")]
NAMES = ["train_prepare", "train_clip", "test", "data/process", *(
    path.relative_to(ROOT).with_suffix("").as_posix() for pattern in ("*.py", "dev/*.py")
    for path in sorted((ROOT / "tools").glob(pattern)) if path.stat().st_size)]
PROGRAM = """
import contextlib, io, json, os, runpy, sys
root, slow, calls = sys.argv[1], sys.argv[2].split(), json.loads(sys.argv[3])
for call in calls:
    path = f"{root}/{call['name']}.py"
    before, sys.argv, said = (list(sys.path), set(sys.modules)), [path, *call["words"]], (io.StringIO(), io.StringIO())
    sys.path[:1] = [os.path.dirname(path) if "__main__" not in path else root]        # as python does
    call["code"] = 0
    with contextlib.redirect_stdout(said[0]), contextlib.redirect_stderr(said[1]):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            call["code"] = end.code or 0
    call |= {"out": said[0].getvalue(), "err": said[1].getvalue(), "imported": [n for n in slow if n in sys.modules]}
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:       # every script finds its own imports
        place = getattr(sys.modules[name], "__file__", None) or ""
        if place.startswith(root) and "site-packages" not in place:
            del sys.modules[name]
print(json.dumps(calls))
"""


def test_scripts_and_tools_answer_at_once_from_any_folder(tmp_path):
    """Help and mistakes, the latter in one sentence with exit code 2, before PyTorch is imported."""
    calls = [{"name": name, "words": [word]} for name in NAMES for word in ("--help", "--no_such_flag")]
    calls += [{"name": name, "words": words, "said": said} for name, words, said in MISTAKES]
    calls.sort(key=lambda call: "dev/" in call["name"])         # those may import what is slow, for those behind them
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(ROOT), "torch torchvision sklearn faiss open_clip timm",
                           json.dumps(calls)], cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    for call in json.loads(done.stdout):
        name = call["name"]
        if call["words"] == ["--help"]:
            assert (call["code"], call["err"]) == (0, ""), name
            assert f"python {name.replace('data/', 'tools/')}.py" in call["out"]
        else:
            said = f"error: {call.get('said', 'the command line is not understood')}"
            assert call["code"] == 2 and call["err"].startswith(said) and call["err"].count("\n") == 1, call
        assert "dev/" in name or not call["imported"], call
    assert not list(tmp_path.iterdir())
