"""`python tools/process.py`: every finding of --check, exit codes, the cache."""
import runpy
import shutil
import sys

import numpy as np
import pytest
import scripts
from PIL import Image

from data import sysu
from tests.trees import llcm_tree, people_tree, regdb_tree
from tools.process import main, verify


@pytest.fixture
def root(tmp_path):
    return people_tree(tmp_path / "SYSU")


def found_in(root):
    """Lines and problems of `verify`."""
    return verify(sysu.load(root, check_counts=False), check_counts=False)


def line(lines, start):
    return next((text for text in lines if start in text), "")


def test_what_is_found(root):
    (root / "cam1/0001/0003.gif").write_bytes(b"x")
    shutil.copy(root / "cam1/0001/0001.jpg", root / "cam2/0002/0001.jpg")
    lines, problems = found_in(root)
    assert problems == [] and line(lines, "1 other files, which are ignored").endswith(": cam1/0001/0003.gif")
    assert "cam1/0001/0001.jpg = cam2/0002/0001.jpg" in line(lines, "1 groups of identical files within")
    shutil.copy(root / "cam1/0001/0002.jpg", root / "cam5/0006/0002.jpg")
    (root / "cam3/0001/0001.jpg").write_bytes((root / "cam3/0001/0002.jpg").read_bytes()[:-300])
    (root / "cam2/0004/0001.jpg").unlink()
    (root / "cam2/0004/0001.jpg").symlink_to("gone")
    lines, problems = found_in(root)
    assert "cam2/0004/0001.jpg" in line(lines, "2 images do not decode")
    assert problems == ["2 images that do not decode, such as cam3/0001/0001.jpg",
                        "1 images that are in training and test, such as cam1/0001/0002.jpg = cam5/0006/0002.jpg"]


def process(*arguments):
    main([str(word) for word in arguments])


def test_counts_of_llcm_are_no_error(tmp_path, capsys):
    process("--dataset", "llcm", "--root", llcm_tree(tmp_path / "LLCM"), "--check")
    said = capsys.readouterr().out
    assert "6 counts differ from the published ones: 3 training persons instead of 713" in said
    assert not any(word in said for word in ("decode", "identical", "ignored", "empty"))


def test_cache_lies_in_the_folder_of_its_trial(tmp_path):
    root = regdb_tree(tmp_path / "RegDB")
    process("--dataset", "regdb", "--root", root, "--trial", 2, "--allow-partial", "--height", 32,
            "--width", 16, "--cache_dir", tmp_path / "fast")
    images = np.load(tmp_path / "fast" / "trial2" / "train_ir_resized_img.npy")
    assert images.shape == (4, 32, 16, 3)
    with Image.open(root / (root / "idx" / "train_thermal_2.txt").read_text().split()[0]) as first:
        assert np.array_equal(images[0], np.asarray(first.convert("RGB").resize((16, 32), Image.LANCZOS)))


def test_command_line_ends_with_one_sentence_and_code_2(root, monkeypatch, capsys):
    """After all that it has found; under the name that the README of the released code calls it by."""
    monkeypatch.setattr(sys, "argv", ["data/process.py", "--dataset", "sysu", "--root", str(root), "--check"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(scripts.REPOSITORY / "data" / "process.py", run_name="__main__")
    said = capsys.readouterr()
    assert "train ir: 3 persons, 12 images" in said.out
    assert said.err.splitlines()[-1].startswith(f"error: {root} holds 3 training persons instead of 395; 24 training")
    process("--dataset", "sysu", "--root", root, "--check", "--allow-partial")
    assert "is in order" in capsys.readouterr().out and not list(root.glob("*.npy"))
