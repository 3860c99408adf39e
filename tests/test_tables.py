"""The table of many runs: which belong together, what their results are of, and its forms."""
import csv
import json
import re
import shutil

import pytest

from tests.tested import record
from tools import experiments
from tools.lib import summary
from utils.errors import UserError


def ours(folder):
    """The table's rows of our runs."""
    return [row for row in summary.summarise(summary.read_runs([folder], "python"), ()) if not row.source]


def test_table_of_two_methods(tmp_path, capsys):
    for seed, value in ((1, 0.5), (2, 0.6), (3, 0.7)):
        for checkpoint, more in (("model_last", 0), ("model_best", 0.1)):
            record(tmp_path / f"a{seed}", value=value + more, seed=seed, METHOD={"SWAP_ORDER": "released"},
                   TEST={"EVERY": seed}, checkpoint=checkpoint)
    record(tmp_path / "b1", value=0.25, METHOD={"SWAP_ORDER": "simultaneous"})
    released, other = ours(tmp_path)
    assert (released.method, released.n) == ("cclnet, METHOD.SWAP_ORDER released", 3)
    assert (other.method, other.n) == ("cclnet, METHOD.SWAP_ORDER simultaneous", 1)
    assert released.numbers["last epoch", "rank1"] == pytest.approx((60, 10))
    assert released.numbers["best on test", "mAP"] == pytest.approx((70, 10))
    assert other.numbers["last epoch", "rank1"] == (25, None) and ("best on test", "rank1") not in other.numbers
    experiments.main(["table", str(tmp_path)])
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if "released " in line and "train_clip" in line)
    assert line.split()[-18:] == ["60.00", "±", "10.00"] * 3 + ["70.00", "±", "10.00"] * 3
    assert text.index("last epoch") < text.index("best on test") < text.index("method")
    assert re.search(r"^CCLNet, CLIP RN50: README of the released code +train_clip .*–  +55.31 +50.38 +–$", text, re.M)
    assert "abstract of the paper, ACM MM 2023: Rank-1 54.0" in text and "PGM, " not in text


def test_what_a_grid_varied_tells_runs_apart(tmp_path):
    """Also a key that makes no other method elsewhere."""
    for device in ("cpu", "cuda"):
        record(tmp_path / device, DEVICE=device)
        (tmp_path / device / "experiment.json").write_text(json.dumps({"varied": {"DEVICE": device}}))
    assert [row.method for row in ours(tmp_path)] == ["cclnet, DEVICE cpu", "cclnet, DEVICE cuda"]


def test_only_tests_of_the_checkpoints_as_they_are_and_as_the_run_is_are_its_results(tmp_path):
    record(tmp_path / "a", seed=1)
    record(tmp_path / "b", seed=2)
    (tmp_path / "b/model_last.pth").write_text("trained again since")
    for number, tested in enumerate(({"TEST__TRIALS": 1}, {"INPUT__HEIGHT": 96}, {"PRECISION": "bf16"}), start=3):
        record(tmp_path / str(number), seed=number, tested=tested)
    record(tmp_path / "a", checkpoint="downloaded")     # another one in the folder
    assert [len(tests) for _, tests in summary.read_runs([tmp_path], "python")] == [0, 0, 0, 1, 0]


def test_the_table_of_a_paper(tmp_path, capsys):
    """Of each method the last stage, both modes side by side; every name can be written."""
    for name, more in (("cclnet", 0), ("pgm", 0.07)):
        for seed in (1, 2):
            for mode in ("all", "indoor"):
                for checkpoint, value in (("prepare_last", 0.9), ("model_last", 0.5), ("model_best", 0.6)):
                    record(tmp_path / f"{name}{seed}", value + more + seed / 100, checkpoint, seed, mode=mode,
                           METHOD={"NAME": name})
    words, names = ["table", str(tmp_path), "--latex"], ["Ours_1 & 100 % #^~{}", r"[*\\é]"]
    experiments.main([*words, "--names", *names])
    plain = capsys.readouterr().out
    assert "dagger" not in plain and "90.00" not in plain and plain.count("Rank-20") == 2
    first, second = (line for line in plain.splitlines() if line.endswith("\\\\") and "pm" in line)
    assert first.startswith(r"Ours\_1 \& 100 \% \#\textasciicircum{}\textasciitilde{}\{\} & 51.50{\tiny$\pm$0.7} & ")
    assert second.startswith(r"{[}{*}\textbackslash{}\textbackslash{}é] & \textbf{58.50}{\tiny$\pm$0.7} & ")
    assert first.count("textbf") == 0 and second.count("textbf") == 10
    experiments.main([*words, "--published", "pgm", "sdcl"])
    published = capsys.readouterr().out
    rows = [line.split(" & ")[:2] for line in published.splitlines() if re.match(r".* & .*\d\d\.\d\d", line)]
    assert rows == [[r"PGM, AGW ResNet-50$^\dagger$", "56.29"], [r"SDCL, ViT-B/16$^\dagger$", "65.29"],
                    ["cclnet", r"51.50{\tiny$\pm$0.7}"], [r"cclnet$^\dagger$", r"61.50{\tiny$\pm$0.7}"],
                    ["pgm", r"58.50{\tiny$\pm$0.7}"], [r"pgm$^\dagger$", r"\textbf{68.50}{\tiny$\pm$0.7}"]]
    with pytest.raises(UserError, match="--names gives a and a; expected a name of its own for each of 2 methods: cc"):
        experiments.main([*words, "--names", "a", "a"])


def test_a_table_shows_what_was_logged(tmp_path, capsys):
    """Of the last epoch of the checkpoint's own stage; a number that only some runs have is left out."""
    for seed, share in ((1, 0.25), (2, 0.75)):
        folder = tmp_path / f"seed{seed}"
        record(folder, seed=seed)
        record(folder, seed=seed, checkpoint="prepare_last")
        lines = [{"stage": "prepare", "epoch": 1, "share": 0.1, "own": 1},
                 {"stage": "finetune", "epoch": 1, "share": 9},
                 {"stage": "finetune", "epoch": 2, "share": share, **({"own": 1} if seed == 1 else {})}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    experiments.main(["table", str(tmp_path), "--logged", "share"])
    head, *lines = capsys.readouterr().out.splitlines()[1:]
    assert head.endswith("  share") and next(line for line in lines if "train_clip" in line).endswith("0.50 ± 0.35")
    experiments.main(["table", str(tmp_path), "--logged", "share", "--logged", "own", "--csv"])
    head, prepare, clip, *_ = csv.reader(capsys.readouterr().out.splitlines())
    assert head[-4:] == ["logged share", "logged share sd", "logged own", "logged own sd"]
    assert (clip[-4:], prepare[-4:]) == (["0.5000", "0.3536", "", ""], ["0.1000", "0.0000", "1.0000", "0.0000"])
    with pytest.raises(UserError, match="--logged names shard, which is no number of all .* own, share"):
        experiments.main(["table", str(tmp_path), "--logged", "shard"])


def test_tables_of_what_does_not_compare(tmp_path):
    def refuses(sentence, *folders):
        with pytest.raises(UserError, match=sentence):
            experiments.main(["table", *map(str, folders)])

    (tmp_path / "empty").mkdir()
    refuses("empty holds no run", tmp_path / "empty")
    for folder in ("runs", "runs/seed1"):
        record(tmp_path / folder)
    refuses(r"runs is the folder of a run and holds others \(seed1\).* as in .*seed1$", tmp_path / "runs")
    (tmp_path / "runs/seed1").rename(tmp_path / "runs/old-1")       # kept by --fresh
    experiments.main(["table", str(tmp_path / "runs")])
    record(tmp_path / "a" / "1")
    record(tmp_path / "b" / "1", DATASET={"NAME": "llcm", "TRIAL": 1})
    refuses("trained on the data set llcm; of .* that is sysu, and their numbers do not compare", tmp_path / "a",
            tmp_path / "b")
    record(tmp_path / "c" / "1", TEST={"TRIALS": 2}, tested={"TEST__TRIALS": 2})
    refuses("tested with TEST.TRIALS 2; of .* that is 10, and", tmp_path / "a", tmp_path / "c")
    record(tmp_path / "d" / "1", images="others", seed=2)
    refuses("tested on images with the digest others", tmp_path / "a", tmp_path / "d")
    shutil.copytree(tmp_path / "a/1", tmp_path / "a/copy")
    refuses("are runs of the same settings, seed and data", tmp_path / "a")
    shutil.rmtree(tmp_path / "a/copy")
    shutil.rmtree(tmp_path / "a/1/tests")
    refuses("no test with protocol python was found in any run; missing: ", tmp_path / "a")
