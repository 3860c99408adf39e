"""Decoding of every kind of image, the cache, and the manifest of a data set."""
import os

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import data.pseudo_labels
from data import images as module
from data import sysu
from data.images import decode_image, open_bank, pick_cache, read_image
from data.manifest import data_manifest, manifest_differences
from data.pseudo_labels import (
    FILE_NAMES,
    ClusterSettings,
    find_pseudo_labels,
    load_pseudo_labels,
    make_pseudo_labels,
    save_pseudo_labels,
)
from tests.trees import sysu_tree, write_image
from utils.errors import UserError
from utils.modality import Modality

GREY = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (32, 1))       # (32, 16), dark to bright


def save(folder, mode, ending):
    path = folder / f"{mode.replace(';', '')}{ending}"
    if mode == "I;16":
        Image.fromarray(GREY.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(GREY).convert(mode).save(path)
    return path


@pytest.mark.parametrize("mode, ending", [
    ("RGB", ".png"), ("RGB", ".jpg"), ("L", ".bmp"), ("L", ".jpg"), ("LA", ".png"), ("RGBA", ".png"), ("P", ".png"),
    ("I;16", ".png"), ("CMYK", ".jpg")])
def test_every_mode_becomes_rgb(tmp_path, mode, ending):
    image = read_image(save(tmp_path, mode, ending), 32, 16)
    assert image.shape == (32, 16, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - GREY[..., None]).max() <= 8


def test_content_decides_where_the_ending_is_wrong(tmp_path):
    save(tmp_path, "RGB", ".png").rename(tmp_path / "a.jpg")
    assert np.array_equal(read_image(tmp_path / "a.jpg", 32, 16), np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp"])
def test_images_stand_upright_as_their_exif_data_say(tmp_path, ending):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(GREY).convert("RGB").save(tmp_path / f"a{ending}", exif=exif, quality=100)
        turned = decode_image(tmp_path / f"a{ending}")[0]
        expected = {1: GREY, 2: GREY[:, ::-1], 3: GREY[::-1, ::-1], 4: GREY[::-1], 5: GREY.T, 6: GREY[::-1].T,
                    7: GREY[::-1, ::-1].T, 8: GREY[:, ::-1].T}[orientation]
        assert turned.size == expected.T.shape
        assert np.abs(np.asarray(turned)[..., 0].astype(int) - expected).max() <= 8, orientation


@pytest.mark.parametrize("ending, exif", [(".png", b"nothing of the kind"), (".png", b"II+\0"),
                                          (".jpg", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0ab\0\0")])
def test_damaged_exif_data_are_passed_over(tmp_path, ending, exif):
    Image.fromarray(GREY).save(tmp_path / f"a{ending}", exif=exif)
    assert decode_image(tmp_path / f"a{ending}")[0].size == (16, 32)


@pytest.mark.parametrize("kind", ["EPS", "PPM", "GIF"])
def test_other_formats_are_refused_whatever_the_file_is_called(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    Image.fromarray(GREY).save(tmp_path / "a.jpg", format=kind)
    with pytest.raises(UserError, match="a.jpg does not decode"):
        read_image(tmp_path / "a.jpg", 32, 16)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)


def become_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage, sentence", [
    (truncate, "does not decode"), (lambda path: path.write_bytes(b""), "does not decode"),
    (link_to_itself, "does not decode|cannot be reached"), (become_folder, "does not decode"),
    (lambda path: path.unlink(), "is missing")], ids=["truncated", "empty", "link loop", "folder", "missing"])
def test_damaged_files_are_named(tmp_path, damage, sentence):
    root = sysu_tree(tmp_path / "SYSU")
    images = sysu.load(root, check_counts=False).train[Modality.RGB]
    damage(root / images.paths[2])
    with pytest.raises(UserError, match=f"{images.paths[2]} .*({sentence})"):
        open_bank(images, root, root, "train", 32, 16)
    assert not (root / "train_rgb_resized_img.npy").exists()


def test_cache_is_written_once_and_again_after_a_change(tmp_path, monkeypatch):
    root = sysu_tree(tmp_path / "SYSU")
    images = sysu.load(root, check_counts=False).test[Modality.IR]
    decoded = []
    monkeypatch.setattr(module, "read_image", lambda path, *size: decoded.append(path) or read_image(path, *size))
    for _ in range(2):
        bank = open_bank(images, root, root, "test", 32, 16)
        assert len(decoded) == len(images)
    assert np.array_equal(bank.images[5], read_image(root / images.paths[5], 32, 16))
    write_image(root / images.paths[0], np.random.default_rng(5))
    open_bank(images, root, root, "test", 32, 16)
    assert len(decoded) == 2 * len(images)
    (root / "test_ir_resized_img.npy").write_bytes(b"cut off")
    open_bank(images, root, root, "test", 32, 16)
    assert len(decoded) == 3 * len(images)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_batches_are_the_same_wherever_the_images_are_held(tmp_path, monkeypatch, device):
    root = sysu_tree(tmp_path / "SYSU")
    images = sysu.load(root, check_counts=False).test[Modality.IR]
    monkeypatch.setattr(module, "READ_AT_ONCE", 4)
    mapped = open_bank(images, root, root, "test", 32, 16)
    bank = open_bank(images, root, root, "test", 32, 16, device, "device")
    for indices in ([3, 0, 3], np.arange(len(images))[::-1], np.array([1], np.int32), np.array([], int)):
        batch, expected = bank.batch(indices), mapped.batch(indices)
        assert batch.dtype == torch.uint8 and batch.device.type == device and torch.equal(batch.cpu(), expected)
        assert len(indices) == 0 or batch.stride() == expected.stride()
    bank.batch([0]).zero_()                                             # a batch is its taker's
    assert torch.equal(bank.batch([0]).cpu(), mapped.batch([0]))
    assert np.array_equal(bank.images[5], mapped.images[5])             # the report reads single images
    assert bank._copy.device.type == device and mapped._copy is None


def test_auto_holds_images_where_they_leave_room(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 9000))
    assert [pick_cache("auto", size, "cuda") for size in (1000, 1001)] == ["device", "mmap"]
    assert pick_cache("auto", 1, "cpu") == "mmap" and pick_cache("device", 10 ** 9, "cpu") == "device"


@pytest.fixture
def two(tmp_path):
    """A data set and an equal copy of it."""
    return [sysu.load(sysu_tree(tmp_path / name / "SYSU"), check_counts=False) for name in "ab"]


def again(data):
    return sysu.load(data.root, check_counts=False)


def test_manifest_is_that_of_a_copy_elsewhere(two):
    first, second = map(data_manifest, two)
    assert first == second and first["train"]["ir"]["images"] == 12
    assert manifest_differences(first, second) == []


def test_manifest_tells_other_data(two):
    here = data_manifest(two[0])
    (two[1].root / "cam3" / "0001" / "0001.jpg").unlink()
    assert manifest_differences(here, data_manifest(again(two[1]))) == ["12 train ir images instead of 11"]
    (two[1].root / "cam3" / "0001" / "0009.jpg").write_bytes(b"x")
    assert manifest_differences(here, data_manifest(again(two[1]))) == [
        "train ir images of other names or in another order"]
    write_image(two[0].root / "cam1" / "0004" / "0001.jpg", np.random.default_rng(7), "L")
    assert manifest_differences(data_manifest(two[0]), here) == ["test rgb images of other sizes"]


def test_images_that_were_swapped_are_other_images(two):
    here, (one, other) = data_manifest(two[0]), (two[1].root / f"cam1/0001/000{n}.jpg" for n in (1, 2))
    content = one.read_bytes()
    padded = content + bytes(max(0, other.stat().st_size - len(content)))
    for path in (one, other, two[0].root / "cam1/0001/0001.jpg", two[0].root / "cam1/0001/0002.jpg"):
        path.write_bytes(path.read_bytes().ljust(len(padded) + 99, b"0"))       # of one size, as RegDB's are
    here, times = data_manifest(two[0]), one.stat()
    assert manifest_differences(data_manifest(two[1]), here) == []
    first = one.rename(two[1].root / "aside")
    other.rename(one)
    first.rename(other)
    for path in (one, other):
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert manifest_differences(data_manifest(two[1]), here) == ["train rgb images of other contents"]
    old = {split: {m: {k: v for k, v in facts.items() if k != "contents"} for m, facts in sets.items()}
           for split, sets in here.items()}
    assert manifest_differences(data_manifest(two[1]), old) == []       # of earlier versions, which knew sizes alone


def test_hashes_are_remembered_and_never_in_a_file_of_others(two, monkeypatch):
    data, memory = two[0], two[0].root / "train_rgb_hashes.json"
    first = data_manifest(data)
    assert memory.is_file()
    monkeypatch.setattr("data.hashes.file_hash", lambda path: pytest.fail("read again"))
    assert data_manifest(data) == first
    monkeypatch.undo()
    for text in ("theirs", "[]", '{"format": "x", "files": {}}'):
        memory.write_text(text)
        assert data_manifest(data) == first and memory.read_text() == text
    memory.unlink()
    memory.symlink_to(data.root / "exp/train_id.txt")
    assert data_manifest(data) == first and "," in (data.root / "exp/train_id.txt").read_text()
    memory.unlink()
    monkeypatch.setattr("data.hashes.write_atomically", lambda *_: (_ for _ in ()).throw(UserError("read-only")))
    assert data_manifest(data) == first and not memory.exists()


def labels_of(data, folder, manifest):
    sizes = {m: len(images) for m, images in data.train.items()}
    save_pseudo_labels(folder, {m: np.arange(n) // 2 - 1 for m, n in sizes.items()}, manifest)
    return sizes


def test_pseudo_labels_are_saved_without_gaps(tmp_path):
    save_pseudo_labels(tmp_path, {m: np.array([3, -1, 0, 3, 5]) for m in Modality}, {})
    for name in FILE_NAMES.values():
        assert np.load(tmp_path / name).tolist() == [1, -1, 0, 1, 2]


def test_pseudo_labels_of_other_images_are_refused(two, tmp_path):
    data = two[0]
    manifest = data_manifest(data)
    sizes = labels_of(data, tmp_path, manifest)
    labels, known = load_pseudo_labels(tmp_path, sizes, manifest)
    assert known and labels[Modality.IR].tolist() == [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    other = {**manifest, "train": {**manifest["train"], "rgb": {**manifest["train"]["rgb"], "paths": "another"}}}
    with pytest.raises(UserError, match="made on other images: this data set has train rgb images of other names"):
        load_pseudo_labels(tmp_path, sizes, other)
    test_only = {**manifest, "test": {"rgb": {}, "ir": {}}}
    assert load_pseudo_labels(tmp_path, sizes, test_only)[1]


def test_pseudo_labels_without_a_manifest_are_accepted_by_length(two, tmp_path):
    manifest = data_manifest(two[0])
    sizes = labels_of(two[0], tmp_path, manifest)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="manifest.json is no manifest"):
        load_pseudo_labels(tmp_path, sizes, manifest)
    (tmp_path / "manifest.json").unlink()
    assert not load_pseudo_labels(tmp_path, sizes, manifest)[1]
    with pytest.raises(UserError, match="hold 24 labels, but the data set has 25"):
        load_pseudo_labels(tmp_path, {Modality.RGB: 25, Modality.IR: 12}, manifest)


@pytest.mark.parametrize("array, words", [
    (np.zeros((4, 1), int), "int64 of shape"), (np.zeros(4), "float64 of shape"),
    (np.array([-2, 0, 1, 1]), "from -1 on"), (np.full(4, -1), "are all -1"),
    (np.zeros(5, int), "hold 5 labels, but the data set has 4"),
    (np.array([0, 1, 2, np.iinfo(np.int64).max]), "expected cluster numbers"),
    (np.array([0, 1, 2, 2 ** 64 - 1], np.uint64), "expected cluster numbers")])
def test_damaged_pseudo_labels_are_refused(tmp_path, array, words):
    good = np.arange(4)
    for broken in Modality:
        for m in Modality:
            np.save(tmp_path / FILE_NAMES[m], array if m is broken else good)
        with pytest.raises(UserError, match=words):
            load_pseudo_labels(tmp_path, {m: 4 for m in Modality}, {})


@pytest.mark.parametrize("labels, accepted", [([-1, -1], False), ([0, 0], True), ([-1, 0], True), ([1, 0], True)])
def test_a_clustering_of_outliers_alone_ends_the_run(monkeypatch, labels, accepted):
    monkeypatch.setattr(data.pseudo_labels, "cluster", lambda *_, **__: np.array(labels))
    settings = ClusterSettings(k1=12, k2=4, eps=0.5, min_samples=4)
    if accepted:
        assert make_pseudo_labels(torch.zeros(2, 3), Modality.IR, settings).tolist() == labels
    else:
        with pytest.raises(UserError, match="all 2 ir images are outliers: no 4 of them lie within CLUSTER.EPS 0.5"):
            make_pseudo_labels(torch.zeros(2, 3), Modality.IR, settings)


@pytest.mark.parametrize("array, expected", [
    ([-1, 0, 0, -1], [-1, 0, 0, -1]), ([7, -1, 3, 7], [1, -1, 0, 1]), ([0, 1, 2, 3], [0, 1, 2, 3]),
    ([0, 1, 2, np.iinfo(np.int64).max - 1], [0, 1, 2, 3]), ([4, 4, 4, 4], [0, 0, 0, 0])])
def test_pseudo_labels_are_numbered_without_gaps(tmp_path, array, expected):
    for m in Modality:
        np.save(tmp_path / FILE_NAMES[m], np.array(array, np.int64))
    labels, known = load_pseudo_labels(tmp_path, {m: 4 for m in Modality}, {})
    assert not known
    for found in labels.values():
        assert found.dtype == np.int64 and found.tolist() == expected


def test_pseudo_labels_beside_the_images_come_last(two, tmp_path):
    data = two[0]
    with pytest.raises(UserError, match="were looked for in .*run/pseudo_labels and .*SYSU/pseudo_labels"):
        find_pseudo_labels("", tmp_path / "run", data.label_dirs())
    labels_of(data, data.root / "pseudo_labels", data_manifest(data))
    assert find_pseudo_labels("", tmp_path / "run", data.label_dirs()) == data.root / "pseudo_labels"
    labels_of(data, tmp_path / "run" / "pseudo_labels", data_manifest(data))
    assert find_pseudo_labels("", tmp_path / "run", data.label_dirs()) == tmp_path / "run" / "pseudo_labels"
