"""`make gpu` on a CPU at small size: no number here says anything."""
import json

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_parts
from benchmarks.harness import Row
from utils.errors import UserError


def run(monkeypatch, tmp_path, parts):
    """Run parts: the exit code, the sections, the tables."""
    monkeypatch.setattr(gpu, "PARTS", parts)
    try:
        code = gpu.main(["--small", "--device", "cpu", "--folder", str(tmp_path)])
    except SystemExit as stopped:
        code = stopped.code
    (path,) = tmp_path.glob("gpu-*.json")
    return code, json.loads(path.read_text()), path.with_suffix(".md").read_text()


def test_the_measurement_runs_on_a_cpu(monkeypatch, tmp_path):
    """All parts but the subprocesses and torch.compile; bf16 takes long on a CPU without it."""
    monkeypatch.setattr(gpu_parts, "PRECISIONS", ("released", "fp32"))
    monkeypatch.setattr(gpu, "SHARED_BY", "released")
    parts = {name: part for name, part in gpu.PARTS.items() if name not in ("tests", "demo") and "compiled" not in name}
    code, sections, text = run(monkeypatch, tmp_path, parts)
    assert code is None and set(sections) == set(parts)
    rows = {row["what"]: row for section in sections.values() for row in section["rows"]}
    assert all(np.isfinite(row["ours"]) and row["ours"] > 0 for row in rows.values())
    step = rows["training step 2 x 8, released"]
    assert step["per_epoch"] == 300 // 8 + 1 and step["arithmetic"] > 0 and 0 < step["of_epoch"] < 1
    whole, *pieces = (row["ours"] for row in sections["epoch"]["rows"])
    assert len(pieces) == 4 and sum(pieces) == pytest.approx(whole)
    assert "Both stages, 240 epochs" in text and "fp32" in text and sections["step"]["environment"]["torch"] in text


def test_a_part_that_fails_or_has_no_time_or_packages_left(monkeypatch, tmp_path):
    def broken(bench):
        raise RuntimeError("out of luck")

    code, sections, text = run(monkeypatch, tmp_path, {
        "broken": gpu.Part(broken, 0), "slow": gpu.Part(broken, 600), "lacking": gpu.Part(broken, 0, ("no_such_one",)),
        "fine": gpu.Part(lambda bench: [Row("fine row", 2.0)], 0)})
    assert code == 1 and list(sections) == ["fine"] and "| fine row | 2 s |" in text
    assert [line.split(": ")[:2] for line in text.splitlines()[-3:]] == [
        ["Left out", "slow"], ["Left out", "lacking"], ["Failed", "broken"]]
    assert "no_such_one not installed" in text and "out of luck" in text


def test_a_demo_that_takes_too_long_says_what_it_said(monkeypatch, tmp_path):
    """Its script is stopped, not left behind."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "demo.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: print('and stops', flush=True) or exit(1))\n"
        "print('works', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=r"more than 5 s; it said last:\nworks\nand stops"):
        gpu.short_demo(gpu_parts.Bench(torch.device("cpu"), gpu_parts.SMALL), 5)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU.*--small --device cpu"):
        gpu.main([])


def test_hours_add_up_the_fastest_way_of_each_precision():
    def row(seconds, per_epoch, precision=""):
        return Row("", seconds, per_epoch=per_epoch, precision=precision)

    rows = {"step": [row(1, 10, "bf16"), row(9, 0, "bf16"), row(2, 10, "tf32")],
            "embedding": [row(0.5, 8, "bf16"), row(0.5, 6, "bf16")], "clustering": [row(4, 1), row(3, 1), row(9, 0)],
            "metrics": [row(5, 0.2)]}
    assert gpu.epoch_seconds(rows) == {"bf16": 10 + 3 + 7 + 1}
