"""Downloads from a local server that behaves well, breaks off, sends a web page, or sends damaged files."""
import io
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.pseudo_labels import FILE_NAMES
from model.clip import load_clip
from model.published import load_checkpoint
from model.released import LANDMARKS
from tools import download
from utils.errors import UserError


class Handler(BaseHTTPRequestHandler):
    """Serves the server's `files` ({path: bytes}), with open-ended ranges; hangs up after `break_after` bytes."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        limit = self.server.break_after
        self.wfile.write(content[start:] if limit is None else content[start:start + limit])

    def log_message(self, *arguments):
        """Be quiet."""


@pytest.fixture
def server(monkeypatch):
    """A local server in Drive's place; transfers are not retried."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.break_after, server.requests = {}, None, []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(download, "FILE_URL", f"http://127.0.0.1:{server.server_port}/{{id}}")
        monkeypatch.setattr(download, "RETRIES", 0)
        yield server
        server.shutdown()
        thread.join()


def released_bytes(**changes):
    """A small file with the released landmarks."""
    state = {name: torch.ones(8, 4, 1, 1) for name in LANDMARKS}
    state.update({"bottleneck.weight": torch.ones(8), "text_encoder.filling": torch.ones(300_000), **changes})
    file = io.BytesIO()
    torch.save({"state_dict": {k: v for k, v in state.items() if v is not None}, "epoch": 3}, file)
    return file.getvalue()


def put(server, name, content):
    server.files[f"/{download.ASSETS[name].id}"] = content


def test_an_interrupted_download_resumes_and_what_is_there_is_not_fetched_again(server, tmp_path, capsys):
    content, arguments = released_bytes(), ["sysu-prepare", "--output_dir", str(tmp_path)]
    put(server, "sysu-prepare", content)
    server.break_after = 700_000
    with pytest.raises(UserError, match="run the same command again to resume.*drive.google.com/file/d/1mK41"):
        download.main(arguments)
    path = tmp_path / "sysu-prepare" / "model_best.pth"
    [partial] = path.parent.iterdir()
    kept = partial.stat().st_size
    assert 0 < kept < len(content) and partial.suffix == ".part"
    server.break_after = None
    download.main(arguments)
    assert path.read_bytes() == content and "downloaded and checked" in capsys.readouterr().out
    assert server.requests[-1][1] == f"bytes={kept}-"
    asked = len(server.requests)
    download.main(arguments)
    assert len(server.requests) == asked and [p.name for p in path.parent.iterdir()] == ["model_best.pth"]
    path.write_bytes(content[:1000])
    with pytest.raises(UserError, match="model_best.pth is there, but .*; delete it"):
        download.main(arguments)
    with pytest.raises(UserError, match="404.*drive.google.com/file/d/1ga6ZCL.* with a browser to"):       # moved
        download.download("sysu-clip-2024-03", output_dir=tmp_path)


@pytest.mark.parametrize("content, found", [
    (b"  <!DOCTYPE html><html><body>Quota exceeded</body></html>", "a web page instead of the file"),
    (released_bytes(**{"bottleneck.weight": None}), "lacks bottleneck.weight")])
def test_wrong_file_is_deleted_and_named(server, tmp_path, content, found):
    put(server, "regdb-clip-trial1", content)
    with pytest.raises(UserError, match=f"RegDB trial 1.*{found}.*drive.google.com/file/d/1F8Hh.*model_best.pth"):
        download.download("regdb-clip-trial1", output_dir=tmp_path)
    assert not list((tmp_path / "regdb-clip-trial1").iterdir())


def test_a_server_that_never_answers(monkeypatch, tmp_path):
    """Neither a released file, nor a model on the hub, nor OpenAI's CLIP is waited for for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        for target, value in ((f"{download.__name__}.FILE_URL", address), (f"{download.__name__}.RETRIES", 0),
                              (f"{download.__name__}.TIMEOUT", 0.2), ("model.published.SECONDS", 0.2),
                              ("huggingface_hub.hf_hub_url", lambda *_: address), ("model.state_dict.SECONDS", 0.2),
                              ("model.clip.CACHE_DIR", str(tmp_path)),
                              ("open_clip.pretrained.get_pretrained_url", lambda *_: f"{address}1/RN50.pt")):
            monkeypatch.setattr(target, value)
        for fetch in (lambda: download.download("sysu-prepare", output_dir=tmp_path),
                      lambda: load_checkpoint("hf://nobody/nothing"), load_clip):
            with pytest.raises(UserError, match="timed out"):
                fetch()


def test_labels_go_beside_the_images(server, tmp_path, monkeypatch):
    """What is no array of labels is refused; what is there is neither listed nor fetched again."""
    folder, names = tmp_path / "RegDB" / "pseudo_labels", list(FILE_NAMES.values())
    listed = [SimpleNamespace(id=f"{name}-id", path=f"folder/{name}") for name in names]
    good = np.arange(2060) % 200 - 1
    monkeypatch.setattr(download.gdown, "download_folder", lambda **_: listed)

    def fetch(second=good):
        for name, array in zip(names, (good, second)):
            file = io.BytesIO()
            np.save(file, array)
            server.files[f"/{name}-id"] = file.getvalue()
        return download.download("regdb-labels", root=tmp_path / "RegDB")

    with pytest.raises(UserError, match="from -1 on.*drive.google.com/drive/folders/1porz"):
        fetch(np.full(2060, -2))
    assert [p.name for p in folder.iterdir()] == names[:1]
    paths = fetch()
    assert paths == [folder / name for name in names] and (np.load(paths[1]) == good).all()
    monkeypatch.setattr(download.gdown, "download_folder", lambda **_: 1 / 0)
    assert fetch() == paths
    paths[0].unlink()
    with pytest.raises(UserError, match="cannot be listed .*division by zero.*drive/folders/1porz.* with a browser"):
        fetch()
    monkeypatch.setattr(download.gdown, "download_folder", lambda **_: listed[:1])
    with pytest.raises(UserError, match=f"holds {names[0]} instead of"):
        fetch()
