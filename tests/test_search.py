"""Search a folder of images with a model that was never trained: the copy of a query comes first."""
import shutil

import pytest
import scripts
import torch

from model.cclnet import CCLNet
from model.towers.registry import load_tower
from tests.tiny import HEIGHT, WIDTH, tiny_banks
from utils.errors import UserError
from utils.modality import Modality

search = scripts.load("tools/search")


@pytest.fixture(scope="module")
def words(tiny_clip_file, tmp_path_factory):
    """A command line: checkpoint, a gallery with folders in it, a query."""
    from PIL import Image
    folder = tmp_path_factory.mktemp("search")
    for number, pixels in enumerate(tiny_banks()[Modality.RGB].images[::6]):
        (folder / f"gallery/person{number}").mkdir(parents=True)
        Image.fromarray(pixels).save(folder / f"gallery/person{number}/a.png")
    model = CCLNet(load_tower(tiny_clip_file, height=HEIGHT, width=WIDTH))
    torch.save({"state_dict": model.state_dict(), "model": model.describe()}, folder / "model.pth")
    shutil.copy(folder / "gallery/person3/a.png", folder / "query.png")
    (folder / "gallery/notes.txt").write_text("no image")
    (folder / "gallery/.thumbnails/person9").mkdir(parents=True)        # as file managers and macOS leave them
    for name in (".thumbnails/person9/a.png", "person1/._a.png"):
        (folder / "gallery" / name).write_text("no image")
    return {"--checkpoint": folder / "model.pth", "--gallery": folder / "gallery", "--query": folder / "query.png",
            "--output": folder / "found", "--count": 3, "--device": "cpu"}


def call(words, monkeypatch, **changes):
    words = {**words, **{f"--{name}": value for name, value in changes.items()}}
    monkeypatch.setattr("sys.argv", ["search", *(str(word) for pair in words.items() for word in pair)])
    search.main()


def test_search_twice_and_in_a_changed_folder(words, monkeypatch, capsys, tmp_path):
    """A folder inside one that begins with a dot is no hidden one."""
    gallery = shutil.copytree(words["--gallery"], tmp_path / ".hidden/gallery")
    call(words, monkeypatch, gallery=gallery)
    first = capsys.readouterr().out
    assert "5 visible images\n" in first and first.index("person3/a.png") < first.index("   2 ")
    text = (words["--output"] / "search.html").read_text()
    assert text.count("data:image/jpeg") == 4 and "person3" in text
    call(words, monkeypatch, gallery=gallery)
    again = capsys.readouterr().out
    assert "features from the last search" in again and again.splitlines()[1:] == first.splitlines()[1:]
    shutil.copy(words["--query"], gallery / "\x1b[31m.png")
    call(words, monkeypatch, gallery=gallery)
    said = capsys.readouterr().out
    assert "6 visible images\n" in said
    assert "\x1b" not in said and "\\x1b[31m.png" in said     # what does not print does not reach the terminal


def test_bad_input(words, monkeypatch, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    for changes, message in (({"gallery": tmp_path / "empty"}, "holds no image"),
                             ({"query": tmp_path / "x.png"}, "is no file"),
                             ({"gallery": tmp_path}, "does not decode .*; take it out of the gallery"),
                             ({"query": tmp_path / "broken.jpg"}, "does not decode .*; name another query")):
        with pytest.raises(UserError, match=message):
            call(words, monkeypatch, **changes)
