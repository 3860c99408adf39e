"""`make gpu` on a CPU at small size: no number here says anything."""
import json

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_parts, roofline
from utils.errors import UserError

CPU = torch.device("cpu")


def run(monkeypatch, tmp_path, parts, *words):
    monkeypatch.setattr(gpu, "PARTS", parts)
    gpu.main(["--small", "--device", "cpu", "--folder", str(tmp_path), *words])
    (path,) = tmp_path.glob("gpu-*.json")
    return json.loads(path.read_text()), path.with_suffix(".md").read_text()


def test_the_measurement_runs_on_a_cpu(monkeypatch, tmp_path):
    """All parts but the subprocesses and torch.compile; bf16 takes long on a CPU without it."""
    monkeypatch.setattr(gpu_parts, "PRECISIONS", ("released", "fp32"))
    monkeypatch.setattr(gpu, "SHARED_BY", "released")
    parts = [part for part in gpu.PARTS if part.name not in ("tests", "demo", "compiled", "compiled-released")]
    content, text = run(monkeypatch, tmp_path, parts)
    assert set(content["parts"]) == {part.name for part in parts} and not content["failed"] + content["left_out"]
    rows = {row["what"]: row for part in content["parts"].values() for row in part}
    assert all(np.isfinite(row["seconds"]) and row["seconds"] > 0 for row in rows.values())
    step = rows["training step 2 x 8, released"]
    assert step["per_epoch"] == 300 // 8 + 1 and step["shares"]["arithmetic"] > 0
    assert gpu_parts.Bench(CPU, gpu_parts.FULL).steps == 348        # of SYSU-MM01
    whole, *pieces = (row["seconds"] for row in content["parts"]["epoch"])
    assert len(pieces) == 4 and sum(pieces) == pytest.approx(whole)
    assert set(content["epoch_seconds"]) == {"released", "fp32"}
    hours = content["epoch_seconds"]["released"] * 240 / 3600
    assert f"released {hours:.3g} hours" in text and content["environment"]["torch"] in text


def test_a_part_that_fails_or_has_no_time_or_packages_left(monkeypatch, tmp_path, capsys):
    def broken(bench, left):
        raise RuntimeError("out of luck")

    parts = (gpu.Part("broken", broken, 0), gpu.Part("slow", broken, 600),
             gpu.Part("lacking", broken, 0, ("no_such_one",)),
             gpu.Part("fine", lambda bench, left: [gpu_parts.Row("fine row", 2.0)], 0))
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, tmp_path, parts)
    assert stopped.value.code == 1
    (path,) = tmp_path.glob("gpu-*.json")
    content, text = json.loads(path.read_text()), path.with_suffix(".md").read_text()
    assert content["failed"] == ["broken: RuntimeError: out of luck"] and list(content["parts"]) == ["fine"]
    assert [line.split(":")[0] for line in content["left_out"]] == ["slow", "lacking"]
    assert "no_such_one not installed" in text and "| fine row | 2 s |" in text and "out of luck" in text


def test_a_demo_that_takes_too_long_says_what_it_said(monkeypatch, tmp_path):
    """Its script is stopped, not left behind."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "demo.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: print('and stops', flush=True) or exit(1))\n"
        "print('works', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=r"more than 5 s; it said last:\nworks\nand stops"):
        gpu.run_demo(5)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU.*--small --device cpu"):
        gpu.main([])


def test_work_is_counted_and_bounded():
    """A product of 4 x 3 with 3 x 5 and a sum: operations, bytes, and the larger share."""
    a, b = torch.randn(4, 3), torch.randn(3, 5)
    work = roofline.count(lambda: (a.view(4, 3) @ b).add_(1))
    assert work == roofline.Work(2 * 4 * 3 * 5, 4 * (12 + 15 + 20 + 2 * 20))
    peaks = roofline.Peaks({"fp32": 1e3}, 1e2)
    found = roofline.shares(roofline.Timing(10.0, 9.0), work, peaks, "fp32")
    assert found == pytest.approx({"arithmetic": 120 / 1e3 / 10, "memory": work.bytes / 1e2 / 10, "host": 0.9})


def test_hours_add_up_the_fastest_way_of_each_precision():
    def row(seconds, per_epoch, precision=""):
        return gpu_parts.Row("", seconds, per_epoch, precision)

    rows = {"step": [row(1, 10, "bf16"), row(9, 0, "bf16"), row(2, 10, "tf32")],
            "embedding": [row(0.5, 8, "bf16"), row(0.5, 6, "bf16")], "clustering": [row(4, 1), row(3, 1), row(9, 0)],
            "metrics": [row(5, 0.2)]}
    assert gpu.epoch_seconds(rows) == {"bf16": 10 + 3 + 7 + 1}
