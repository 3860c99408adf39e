"""`python tools/process.py`: the table, every finding of --check, exit codes, the cache."""
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data import llcm, regdb, sysu
from data.verify import count_table, verify
from tests.trees import llcm_tree, regdb_tree, sysu_tree, write_image
from tools.process import main
from utils.errors import UserError


@pytest.fixture
def root(tmp_path):
    return sysu_tree(tmp_path / "SYSU")


def found_in(root, module=sysu):
    """Lines and problems of `verify`."""
    return verify(module.load(root, check_counts=False), check_counts=False)


def line(lines, start):
    return next((text for text in lines if start in text), "")


@pytest.mark.parametrize("tree, module", [(sysu_tree, sysu), (regdb_tree, regdb), (llcm_tree, llcm)])
def test_sound_trees_have_no_findings(tmp_path, tree, module):
    lines, problems = found_in(tree(tmp_path / "set"), module)
    assert problems == [] and line(lines, "rgb images stored in mode RGB: ")
    assert not any(word in text for text in lines for word in ("decode", "identical", "ignored", "empty"))


def test_table_names_split_modality_camera(root):
    lines = count_table(sysu.load(root, check_counts=False))
    assert line(lines, "training IR images").split()[-3:] == ["12", "11,909", "differs"]
    assert line(lines, "train ir, camera 6: 3 persons").split()[-1] == "6"


def test_damaged_and_looping_files_are_found(root):
    (root / "cam1" / "0001" / "0001.jpg").write_bytes((root / "cam1" / "0001" / "0002.jpg").read_bytes()[:-300])
    link = root / "cam2" / "0004" / "0001.jpg"
    link.unlink()
    link.symlink_to(link.name)
    lines, problems = found_in(root)
    assert len(problems) == 1 and problems[0].startswith("2 images that do not decode, such as cam1/0001/0001.jpg")
    assert "cam2/0004/0001.jpg" in line(lines, "2 images do not decode")


def test_duplicates_within_a_split_are_told_and_across_splits_refused(root):
    shutil.copy(root / "cam1" / "0001" / "0001.jpg", root / "cam2" / "0002" / "0001.jpg")
    lines, problems = found_in(root)
    assert problems == []
    assert "cam1/0001/0001.jpg = cam2/0002/0001.jpg" in line(lines, "1 groups of identical files within")
    shutil.copy(root / "cam1" / "0001" / "0002.jpg", root / "cam5" / "0006" / "0002.jpg")
    assert found_in(root)[1] == ["1 images that are in training and test, such as cam1/0001/0002.jpg = "
                                 "cam5/0006/0002.jpg"]


def test_ignored_files_and_empty_folders_are_told(root):
    (root / "cam1" / "0001" / "0003.gif").write_bytes(b"x")
    (root / "cam1" / "0009").mkdir()
    (root / "cam1" / "0002" / "again").symlink_to(root / "cam1")          # a loop of folders
    lines, problems = found_in(root)
    assert problems == []
    assert all(path in line(lines, "2 other files") for path in ("cam1/0001/0003.gif", "cam1/0002/again"))
    assert "cam1/0009" in line(lines, "1 empty folders")


def process(*arguments):
    main([str(word) for word in arguments])


def test_check_prints_everything_before_it_refuses(root, monkeypatch, capsys):
    monkeypatch.setattr(sysu.SysuDataSet, "published", {"training persons": 395, "training IR images": 11909})
    with pytest.raises(UserError, match="holds 3 training persons instead of 395; 12 training IR images instead of 11"):
        process("--dataset", "sysu", "--root", root, "--check")
    assert "differs" in capsys.readouterr().out
    process("--dataset", "sysu", "--root", root, "--check", "--allow-partial")
    assert "is in order" in capsys.readouterr().out
    assert not list(root.glob("*.npy"))


def test_counts_of_llcm_are_no_error(tmp_path, capsys):
    process("--dataset", "llcm", "--root", llcm_tree(tmp_path / "LLCM"), "--check")
    assert "differs" in capsys.readouterr().out


def test_cache_lies_in_the_folder_of_its_trial(tmp_path):
    root = regdb_tree(tmp_path / "RegDB")
    process("--dataset", "regdb", "--root", root, "--trial", 2, "--allow-partial", "--height", 32,
            "--width", 16, "--cache_dir", tmp_path / "fast")
    images = np.load(tmp_path / "fast" / "trial2" / "train_ir_resized_img.npy")
    assert images.shape == (4, 32, 16, 3)
    with Image.open(root / (root / "idx" / "train_thermal_2.txt").read_text().split()[0]) as first:
        assert np.array_equal(images[0], np.asarray(first.convert("RGB").resize((16, 32), Image.LANCZOS)))


def test_command_line_ends_with_one_sentence_and_code_2(root):
    write_image(root / "cam1" / "0001" / "0007.jpg", np.random.default_rng(3))
    run = subprocess.run([sys.executable, "data/process.py", "--dataset", "sysu", "--root", str(root), "--check"],
                         capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith(f"error: {root} holds 3 training persons instead of 395; 25 training")
    assert "Traceback" not in run.stderr
