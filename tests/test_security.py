"""Files that try to run code: each gives an error, and nothing is run."""
import os
import struct
import zlib

import numpy as np
import pytest
import torch

from configs.defaults import load_config
from data.images import read_image
from data.pseudo_labels import FILE_NAMES, load_pseudo_labels
from model.clip import load_clip
from model.published import load_checkpoint
from processor.run.folder import find_state
from tools.lib.feature_file import read_features
from utils.checkpoint import write_atomically
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


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("load", [load_checkpoint, load_clip,
                                  lambda path: find_state(os.path.dirname(path), "prepare", False, {})],
                         ids=["checkpoint", "CLIP weights", "state"])
def test_weights(load, old_format, trap, tmp_path):
    """The sentence says what was found, without the library's colours and its advice to run the file."""
    path = str(tmp_path / "prepare_state.pth")
    torch.save({"state_dict": {"visual.proj": Attack(trap)}}, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(UserError, match="cannot be read safely .it names .*mkdir, which may be a program") as error:
        load(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("load", [load_checkpoint, load_clip, load_config, read_features])
def test_a_pipe_in_a_files_place_is_not_waited_for(load, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe (is|are) missing; "):
        load(str(tmp_path / "pipe"))


@pytest.mark.parametrize("text", ["SEED: !!python/object/apply:os.mkdir ['{}']",
                                  "OUTPUT_DIR: !!python/name:os.system"])
def test_configuration(text, trap, tmp_path):
    (tmp_path / "bad.yml").write_text(text.format(trap))
    with pytest.raises(UserError, match="SEED|OUTPUT_DIR"):
        load_config(tmp_path / "bad.yml")


def test_images_of_which_bits_would_be_lost(tmp_path):
    """A PNG of 16 bits in each of three channels, of which Pillow would keep 8."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                                     + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    with pytest.raises(UserError, match="a.png does not decode .16 bits in each channel of RGB, "):
        read_image(tmp_path / "a.png", 32, 16)


def test_arrays_hold_no_objects(trap, tmp_path):
    for name in FILE_NAMES.values():
        np.save(tmp_path / name, np.array([Attack(trap)], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", rgb_features=np.array([Attack(trap)], object))
    with pytest.raises(UserError, match="cannot be read .*Python objects"):
        load_pseudo_labels(tmp_path, {m: 1 for m in Modality}, {})
    with pytest.raises(UserError, match="Object arrays"):
        read_features(tmp_path / "a.npz")


def test_links_are_not_written_through(tmp_path):
    """A file that someone links to another place is replaced, the other place is not touched."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "ours").symlink_to(tmp_path / "theirs")
    write_atomically(tmp_path / "ours", lambda file: file.write(b"ours"))
    assert (tmp_path / "theirs").read_text() == "theirs" and (tmp_path / "ours").read_bytes() == b"ours"


def test_torchscript_is_not_run(tmp_path, monkeypatch):
    """Its __setstate__ may hold a program."""
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "bad.pt"))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("TorchScript was loaded"))
    with pytest.raises(UserError, match="bad.pt are a TorchScript archive.*nothing of it was run"):
        load_clip(str(tmp_path / "bad.pt"))
