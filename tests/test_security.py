"""Files that try to run code or to exhaust the machine: each gives an error, and nothing is run."""
import json
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch

from configs.defaults import load_config
from data.images import read_image
from data.pseudo_labels import FILE_NAMES, load_pseudo_labels
from model.clip import load_clip
from model.published import load_checkpoint
from processor.run.resume import find_state
from utils.checkpoint import load_array, load_arrays, write_atomically
from utils.errors import UserError
from utils.modality import Modality


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def trap(tmp_path):
    """The folder that must not appear."""
    folder = tmp_path / "ran"
    yield folder
    assert not folder.exists()


def test_the_attack_is_one(tmp_path):
    pickle.loads(pickle.dumps(Attack(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("load", [load_checkpoint, load_clip], ids=["checkpoint", "CLIP weights"])
def test_weights(load, old_format, trap, tmp_path):
    """The sentence says what was found, without the library's colours and its advice to run the file."""
    path = str(tmp_path / "bad.pth")
    torch.save({"state_dict": {"visual.proj": Attack(trap)}}, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(UserError, match="cannot be read safely .it names .*mkdir, which may be a program") as error:
        load(path)
    assert str(error.value).isprintable()


def test_numbers_beside_the_weights_do_no_harm(tiny_clip_file, tmp_path):
    """As torch and numpy write them, in a file of CLIP as in a checkpoint."""
    state = torch.load(tiny_clip_file, weights_only=True)
    for number, content in enumerate(({**state, "acc": np.float64(0.5)}, {"state_dict": state, "acc": np.float32(1)})):
        torch.save(content, tmp_path / f"{number}.pt")
        assert torch.equal(load_clip(str(tmp_path / f"{number}.pt")).visual.conv1.weight,
                           state["visual.conv1.weight"].float())


@pytest.mark.parametrize("load", [load_checkpoint, load_clip, load_config])
def test_a_pipe_in_a_files_place_is_not_waited_for(load, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe (is|are) missing; "):
        load(str(tmp_path / "pipe"))


def test_archives_that_claim_more_than_they_hold(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(10 ** 5)}}, tmp_path / "whole.pth")
    with (zipfile.ZipFile(tmp_path / "whole.pth") as read,
          zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as write):
        for entry in read.namelist():
            write.writestr(entry, read.read(entry))
    header = json.dumps({"a": {"dtype": "F32", "shape": [10 ** 10], "data_offsets": [0, 4 * 10 ** 10]}}).encode()
    (tmp_path / "bomb.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(40))
    for name in ("bomb.pth", "bomb.safetensors"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            load_checkpoint(tmp_path / name)


def test_state_file(trap, tmp_path):
    torch.save({"stages": Attack(trap)}, tmp_path / "prepare_state.pth")
    with pytest.raises(UserError, match="cannot be read safely"):
        find_state(tmp_path, "prepare", False, {})


def test_pseudo_labels(trap, tmp_path):
    for name in FILE_NAMES.values():
        np.save(tmp_path / name, np.array([Attack(trap)] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        load_pseudo_labels(tmp_path, {m: 3 for m in Modality}, {})


@pytest.mark.parametrize("text", ["SEED: !!python/object/apply:os.mkdir ['{}']",
                                  "OUTPUT_DIR: !!python/name:os.system"])
def test_configuration(text, trap, tmp_path):
    (tmp_path / "bad.yml").write_text(text.format(trap))
    with pytest.raises(UserError, match="SEED|OUTPUT_DIR"):
        load_config(tmp_path / "bad.yml")


def test_command_line_is_data(trap):
    assert load_config(overrides=["OUTPUT_DIR", f"__import__('os').mkdir('{trap}')"]).OUTPUT_DIR.startswith("__import")


@pytest.mark.parametrize("side, bits, said", [(60_000, 8, ".*pixels"),
                                              (4, 16, "16 bits in each channel of RGB, of which 8 would be lost")])
def test_images_that_claim_too_much(tmp_path, side, bits, said):
    """A PNG of a few hundred bytes that claims gigabytes, and one of whose values Pillow would keep a part."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, bits, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                                     + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=f"a.png does not decode .{said}"):
        read_image(tmp_path / "a.png", 32, 16)


def test_array_that_claims_more_than_it_holds(tmp_path):
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%d,), }" % 10 ** 15
    header += b" " * (117 - len(header)) + b"\n"
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(80))
    with pytest.raises(ValueError, match="."):
        load_array(tmp_path / "bad.npy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("change", [
    lambda content: content.replace(b"(7, 3)", b"(7,99)"),                                  # in the array's header
    lambda content: content.replace(struct.pack("<I", 128 + 84), struct.pack("<I", 2 ** 31)),     # of the archive
    lambda content: content[:-30], lambda content: b"text"])
def test_archive_that_claims_more_than_it_holds(tmp_path, save, change):
    save(tmp_path / "a.npz", a=np.arange(21, dtype=np.int32).reshape(7, 3), b=np.array(["x"]))
    assert load_arrays(tmp_path / "a.npz")["a"].shape == (7, 3) and load_arrays(tmp_path / "a.npz")["b"] == "x"
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(change(content))
    if change(content) != content:      # the header of an array that is compressed does not show
        with pytest.raises(ValueError):
            load_arrays(tmp_path / "a.npz")


def test_archives_hold_no_objects_and_are_no_pipes(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("a.npz", "Object arrays"), ("pipe", "no such file"), ("none", "no such file")):
        with pytest.raises(ValueError, match=words):
            load_arrays(tmp_path / name)
        with pytest.raises(ValueError):
            load_array(tmp_path / name)


@pytest.mark.parametrize("tensor", [torch.ones(1).expand(10 ** 13), torch.ones(2, 2).to_sparse(),
                                    torch.empty(3, device="meta")], ids=["repeated", "sparse", "without data"])
def test_tensors_that_claim_more_than_their_file_holds(tensor, tmp_path):
    torch.save({"state_dict": {"neck": [{"weight": tensor}]}}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="without its data; expected dense tensors"):
        load_checkpoint(tmp_path / "bad.pth")


def test_links_are_not_written_through(tmp_path):
    """A file that someone links to another place is replaced, the other place is not touched."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "ours").symlink_to(tmp_path / "theirs")
    write_atomically(tmp_path / "ours", lambda file: file.write(b"ours"))
    assert (tmp_path / "theirs").read_text() == "theirs" and (tmp_path / "ours").read_bytes() == b"ours"


class Overwrites(torch.nn.Module):
    """A TorchScript module that writes a file when it is loaded."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.training = False

    @torch.jit.export
    def __getstate__(self):
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)

    def forward(self, x):
        return x


def test_torchscript_is_not_run(tmp_path):
    archive, target = str(tmp_path / "bad.pt"), tmp_path / "mine"
    torch.jit.script(Overwrites(str(target))).save(archive)
    torch.jit.load(archive)
    assert target.exists()          # the attack is one
    target.write_text("mine")
    with pytest.raises(UserError, match="bad.pt are a TorchScript archive.*nothing of it was run"):
        load_clip(archive)
    assert target.read_text() == "mine"
