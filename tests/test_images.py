"""Decoding of every kind of image, the cache, and the manifest of a data set."""
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from data import images as module
from data import sysu
from data.images import decode_image, open_banks, pick_cache, read_image
from data.manifest import data_manifest, manifest_differences, stored_range
from data.pseudo_labels import FILE_NAMES, find_pseudo_labels, load_pseudo_labels, origin, save_pseudo_labels
from tests.trees import people_tree, write_image
from utils.errors import UserError
from utils.modality import Modality


def again(data):
    return sysu.load(data.root, check_counts=False)


@pytest.fixture
def data(tmp_path):
    return sysu.load(people_tree(tmp_path / "SYSU"), check_counts=False)


def open_split(data, split="test", **more):
    return open_banks(data, split, data_manifest(data), 32, 16, **more)


GREY = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (32, 1))       # (32, 16), dark to bright


@pytest.mark.parametrize("mode, ending", [("RGB", ".png"), ("L", ".bmp"), ("RGBA", ".png"), ("P", ".png"),
                                          ("CMYK", ".jpg")])
def test_every_mode_becomes_rgb(tmp_path, mode, ending):
    path = tmp_path / f"image{ending}"
    Image.fromarray(GREY).convert(mode).save(path)
    image = read_image(path, 32, 16)
    assert image.shape == (32, 16, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - GREY[..., None]).max() <= 8
    path.rename(tmp_path / "image")         # content decides, not the ending
    assert np.array_equal(read_image(tmp_path / "image", 32, 16), image)


def test_images_stand_upright_as_their_exif_data_say(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(GREY).convert("RGB").save(tmp_path / "a.jpg", exif=exif, quality=100)
    turned = np.asarray(decode_image(tmp_path / "a.jpg"))[..., 0]
    assert np.abs(turned.astype(int) - GREY[::-1].T).max() <= 8
    Image.fromarray(GREY).save(tmp_path / "b.png", exif=b"II+\0")       # damaged: passed over
    assert decode_image(tmp_path / "b.png").size == (16, 32)


def test_other_formats_are_refused_whatever_the_file_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    Image.fromarray(GREY).save(tmp_path / "a.jpg", format="EPS")
    with pytest.raises(UserError, match="a.jpg does not decode"):
        read_image(tmp_path / "a.jpg", 32, 16)


@pytest.mark.parametrize("damage, sentence", [
    (lambda path: path.write_bytes(path.read_bytes()[:-200]), "does not decode"),
    (lambda path: [path.unlink(), path.symlink_to("gone")], "is missing")])
def test_damaged_files_are_named(data, damage, sentence):
    path = data.root / data.train[Modality.RGB].paths[2]
    damage(path)
    with pytest.raises(UserError, match=f"{path} .*{sentence}"):
        open_split(data, "train")
    assert not (data.root / "train_rgb_resized_img.npy").exists()


def test_cache_is_written_once_and_again_after_a_change(data, capsys):
    images, file = data.test[Modality.IR], data.root / "test_ir_resized_img.npy"

    def opened():
        bank = open_split(data)[Modality.IR]
        assert np.array_equal(bank.images[5], read_image(data.root / images.paths[5], 32, 16))
        return "test ir images once into" in capsys.readouterr().out

    assert opened() and not opened()
    write_image(data.root / images.paths[0], np.random.default_rng(5))
    assert opened() and not opened()
    file.write_bytes(b"cut off")
    assert opened() and not opened()
    file.write_bytes(file.read_bytes()[:-1] + b"x")         # of the same size
    assert opened() and not opened()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_batches_are_the_same_wherever_the_images_are_held(data, monkeypatch, device):
    monkeypatch.setattr(module, "AT_ONCE", 4)
    mapped, bank = (open_split(data, **held)[Modality.IR] for held in ({}, {"device": device, "cache": "device"}))
    for indices in ([3, 0, 3], np.arange(len(bank))[::-1], np.array([1], np.int32), np.array([], int)):
        batch, expected = bank.batch(indices), mapped.batch(indices)
        assert batch.dtype == torch.uint8 and batch.device.type == device and torch.equal(batch.cpu(), expected)
        assert len(indices) == 0 or batch.stride() == expected.stride()
    bank.batch([0]).zero_()                                             # a batch is its taker's
    assert torch.equal(bank.batch([0]).cpu(), mapped.batch([0]))
    assert np.array_equal(bank.images[5], mapped.images[5])             # the report reads single images


def test_auto_holds_images_where_they_leave_room(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 9000))
    assert [pick_cache("auto", size, "cuda") for size in (1000, 1001)] == ["device", "mmap"]
    assert pick_cache("auto", 1, "cpu") == "mmap" and pick_cache("device", 10 ** 9, "cpu") == "device"


DEEP = {"counts": (".png", np.uint16, 7000, 9000), "kelvin": (".tif", np.float32, 290, 310),
        "32 bits": (".tif", np.int32, -5, 100_000)}


def deepen(data, kind):
    """Replace the infrared images of a tree by such of more than 8 bits with the same look: the tree, read again."""
    ending, dtype, low, high = DEEP[kind]
    for path in sorted(data.root.glob("cam[36]/*/*.jpg")):
        grey = np.asarray(Image.open(path).convert("L"), np.float64)
        values = low + grey / 255 * (high - low)
        Image.fromarray(values.astype(dtype)).save(path, {".png": "PNG", ".tif": "TIFF"}[ending])
    return again(data)


@pytest.mark.parametrize("kind", DEEP)
def test_more_than_8_bits_keep_their_look(data, kind):
    """One linear map for training and test images, of the least and greatest value in all of them."""
    path = data.test[Modality.IR].paths[3]
    before = np.asarray(Image.open(data.root / path).convert("L"), int)
    data = deepen(data, kind)
    manifest = data_manifest(data)
    (low, high), grey_range = DEEP[kind][2:], manifest["test"]["ir"]["range"]
    assert manifest["train"]["ir"]["range"] == grey_range and "range" not in manifest["test"]["rgb"]
    assert np.abs(np.subtract(grey_range, (low, high))).max() <= (high - low) / 50
    assert stored_range({"manifest": manifest}, Modality.IR) == tuple(grey_range)
    assert stored_range({"manifest": manifest}, Modality.RGB) is stored_range({}, Modality.IR) is None
    shown = np.asarray(decode_image(data.root / path, grey_range=grey_range), int)[..., 0]
    assert np.abs(shown - before).max() <= 5
    bank = open_split(data)[Modality.IR]
    assert np.array_equal(bank.images[3], read_image(data.root / path, 32, 16, grey_range=grey_range))
    assert data_manifest(data) == manifest          # from what was remembered
    with pytest.raises(UserError, match=f"{path} has more than 8 bits a pixel"):
        decode_image(data.root / path)


def test_a_range_of_ones_own_is_another_data_set(data, capsys):
    data = deepen(data, "counts")
    measured, given = data_manifest(data), data_manifest(data, ir_range=[7000, 8000])
    assert manifest_differences(given, measured)[0] == "train ir images of other grey ranges (DATASET.IR_RANGE)"
    banks = [open_banks(data, "test", manifest, 32, 16)[Modality.IR] for manifest in (measured, given)]
    assert banks[1].images.mean() > banks[0].images.mean() * 1.2
    said = capsys.readouterr().out.splitlines()[-1]
    assert "7000 to 8000 become grey levels" in said and "set DATASET.IR_RANGE" in said
    with pytest.raises(UserError, match="one colour throughout; .*DATASET.IR_RANGE"):
        open_banks(data, "test", data_manifest(data, ir_range=[0, 10]), 32, 16)


@pytest.mark.parametrize("pixels, sentence", [
    (np.full((4, 4), 7, np.uint16), "all pixels of the ir images are 7"), (np.zeros((4, 4), np.uint8), "one colour"),
    (np.full((4, 4), np.nan, np.float32), "NaN or infinite")])
def test_constant_and_undefined_images_are_refused(data, pixels, sentence):
    for path in data.root.glob("cam[36]/*/*.jpg"):
        Image.fromarray(pixels).save(path, "TIFF")
    with pytest.raises(UserError, match=sentence):
        open_split(again(data))


@pytest.fixture
def two(tmp_path):
    """A data set and an equal copy of it."""
    return [sysu.load(people_tree(tmp_path / name / "SYSU"), check_counts=False) for name in "ab"]


def test_manifest_tells_other_data_and_is_that_of_a_copy_elsewhere(two):
    here, copy = map(data_manifest, two)
    assert here == copy and here["train"]["ir"]["images"] == 12 and manifest_differences(here, copy) == []
    (two[1].root / "cam3" / "0001" / "0001.jpg").unlink()
    assert manifest_differences(here, data_manifest(again(two[1]))) == ["12 train ir images instead of 11"]
    shutil.copy(two[1].root / "cam3/0001/0002.jpg", two[1].root / "cam3/0001/0009.jpg")
    assert manifest_differences(here, data_manifest(again(two[1]))) == [
        "train ir images of other names or in another order"]


def test_hashes_are_remembered_where_the_folder_can_be_written(two, monkeypatch):
    data, memory = two[0], two[0].root / "image_hashes.json"
    first = data_manifest(data)
    with monkeypatch.context() as patch:
        patch.setattr("data.manifest.file_facts", lambda path: pytest.fail("read again"))
        assert data_manifest(data) == first
    memory.unlink()
    monkeypatch.setattr("data.manifest.write_atomically", lambda *_: (_ for _ in ()).throw(UserError("read-only")))
    assert data_manifest(data) == first and not memory.exists()


def save_labels(data, folder, manifest, unified=False):
    """Save labels of a data set whose images are in pairs, the first two outliers. Returns: numbers of images."""
    sizes = {m: len(images) for m, images in data.train.items()}
    save_pseudo_labels(folder, {m: np.arange(n) // 2 - 1 for m, n in sizes.items()}, manifest, unified)
    return sizes


@pytest.mark.parametrize("unified, rgb, ir", [(False, [1, -1, 0, 1, 2], [0, -1, 1]),
                                              (True, [1, -1, 0, 1, 3], [2, -1, 3])])
def test_saved_labels_keep_their_numbers(two, tmp_path, unified, rgb, ir):
    """Apart, each modality counts from 0; in one range, a number is the same person in both."""
    manifest = data_manifest(two[0])
    given = {Modality.RGB: np.array([3, -1, 0, 3, 9]), Modality.IR: np.array([7, -1, 9], np.int32)}
    save_pseudo_labels(tmp_path, given, manifest, unified)
    assert [np.load(tmp_path / FILE_NAMES[m]).tolist() for m in Modality] == [rgb, ir]
    assert json.loads((tmp_path / "manifest.json").read_text())["unified"] is unified
    labels, known = load_pseudo_labels(tmp_path, {Modality.RGB: 5, Modality.IR: 3}, manifest)
    assert [labels[m].tolist() for m in Modality] == [rgb, ir] and labels[Modality.IR].dtype == np.int64
    assert "does not say how" in origin(known)


def test_pseudo_labels_of_other_images_are_refused(two, tmp_path):
    manifest = data_manifest(two[0])
    sizes = save_labels(two[0], tmp_path, manifest)
    assert load_pseudo_labels(tmp_path, sizes, {**manifest, "test": {"rgb": {}, "ir": {}}})[1] == {}
    other = {**manifest, "train": {**manifest["train"], "rgb": {**manifest["train"]["rgb"], "paths": "another"}}}
    with pytest.raises(UserError, match="made on other images: this data set has train rgb images of other names"):
        load_pseudo_labels(tmp_path, sizes, other)
    np.save(tmp_path / FILE_NAMES[Modality.IR], np.arange(sizes[Modality.IR]))      # beside our manifest
    with pytest.raises(UserError, match="are not those that the manifest.json beside them was written for"):
        load_pseudo_labels(tmp_path, sizes, manifest)


@pytest.mark.parametrize("array, expected", [
    ([-1, 0, 0, -1], [-1, 0, 0, -1]), ([7, -1, 3, 7], [1, -1, 0, 1]),
    ([0, 1, 2, np.iinfo(np.int64).max], [0, 1, 2, 3])])
def test_labels_of_others_are_numbered_without_gaps(tmp_path, array, expected):
    for m in Modality:
        np.save(tmp_path / FILE_NAMES[m], np.array(array))
    labels, known = load_pseudo_labels(tmp_path, {m: 4 for m in Modality}, {})
    assert "no manifest says" in origin(known) and [found.tolist() for found in labels.values()] == [expected] * 2


@pytest.mark.parametrize("array, words", [
    (np.zeros((4, 1), int), "int64 of shape"), (np.zeros(4), "float64 of shape"),
    (np.array([-2, 0, 1, 1]), "from -1 on"), (np.full(4, -1), "are all -1"),
    (np.zeros(5, int), "hold 5 labels, but the data set has 4")])
def test_damaged_pseudo_labels_are_refused(tmp_path, array, words):
    for m in Modality:
        np.save(tmp_path / FILE_NAMES[m], array if m is Modality.IR else np.arange(4))
    with pytest.raises(UserError, match=words):
        load_pseudo_labels(tmp_path, {m: 4 for m in Modality}, {})


def test_pseudo_labels_beside_the_images_come_last(two, tmp_path):
    data, manifest = two[0], data_manifest(two[0])
    with pytest.raises(UserError, match="were looked for in .*run/pseudo_labels and .*SYSU/pseudo_labels"):
        find_pseudo_labels("", tmp_path / "run", data.label_dirs())
    for folder in (data.root / "pseudo_labels", tmp_path / "run" / "pseudo_labels"):
        save_labels(data, folder, manifest)
        assert find_pseudo_labels("", tmp_path / "run", data.label_dirs()) == folder
