"""Several processes give what one gives, and never wait for one that is gone."""
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import scripts
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from clustering import neighbours
from model.batch_norm import spread_batch_norm
from processor.run.folder import read_rows
from tests import workers
from tests.tiny import HEIGHT, WIDTH, one_of
from utils.distributed import ALONE, join_processes
from utils.errors import UserError
from utils.modality import Modality

CASES = {       # weights, splits of the batch norm, whether texts guide, settings
    "cclnet with texts, a batch norm of the whole": ("tiny_clip_file", 1, True, {"METHOD__NAME": "cclnet"}),
    "sdcl on transreid, a batch norm in each half, unified labels": ("ics_file", 2, False, {
        "METHOD__NAME": "sdcl", "METHOD__UNIFY_EPOCH": 2,
        "OPTIM__NAME": "sgd", "OPTIM__LR": 0.01}),      # Adam makes steps of the rounding of gradients that are 0
}


def trained(folder, *arguments):
    """What one process, and each of two, has reached: its checkpoint, and its rows of metrics.jsonl."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda size: workers.launch(size, folder / str(size), workers.train_two_epochs, arguments[0],
                                                  folder / str(size), *arguments[1:]), (1, 2)))
    return [[(torch.load(folder / f"{size}/{rank}/model_last.pth")["state_dict"], read_rows(folder / f"{size}/{rank}"))
             for rank in range(size)] for size in (1, 2)]


def difference(a, b):
    """The largest |a - b| / |b| of the tensors of two states; one that is 0 up to rounding counts as 0.001 long."""
    return max(float((a[name] - value).norm() / value.norm().clamp(min=1e-3)) for name, value in b.items()
               if value.is_floating_point())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_two_processes_train_as_one(case, request, tmp_path):
    """Embedding, clusters, links and all steps of the shipped loop, with the layers of two towers."""
    file = request.getfixturevalue(case[0])
    [(expected, their_rows)], ours = trained(tmp_path, file, *case[1:])
    assert their_rows[-1]["links"] > 0
    start = workers.new_model(file).state_dict()
    assert difference(expected, {name: value.double() for name, value in start.items()}) > 1e-3     # it has trained
    for state, found_rows in ours:
        assert difference(state, expected) < 1e-10
        assert all(torch.equal(state[name], value) for name, value in ours[0][0].items())      # the same in all
        for found, theirs in zip(found_rows, their_rows, strict=True):
            same = {name for name in theirs if name.startswith(("loss", "clusters", "outliers", "link", "lr"))}
            assert {n: found[n] for n in same} == pytest.approx({n: theirs[n] for n in same}, rel=1e-9)


def test_parts_are_those_of_data_parallel(tiny_clip_file, parts=4, views=2):
    """DataParallel scatters each input; each replica joins its pieces; the first replica's statistics are kept."""
    whole, *replicas = (workers.new_model(tiny_clip_file).train() for _ in range(1 + parts))
    rgb, ir = torch.randn(8 * views + 8, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)).split(
        [8 * views, 8])
    names = list(whole.state_dict())
    expected = [replica(rgb_piece, ir_piece) for replica, rgb_piece, ir_piece in
                zip(replicas, rgb.chunk(parts), ir.chunk(parts))]
    model = spread_batch_norm(whole, parts, ALONE, (len(rgb), len(ir)))
    assert list(model.state_dict()) == names
    found = model(rgb, ir)
    for m in Modality:
        torch.testing.assert_close(found["feature"][m], torch.cat([out["feature"][m] for out in expected]), rtol=1e-4,
                                   atol=1e-4)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, replicas[0].get_buffer(name), rtol=1e-4, atol=1e-6)
    with torch.no_grad():       # in evaluation mode nothing differs
        torch.testing.assert_close(model.eval()(rgb, ir), replicas[0].eval()(rgb, ir), rtol=1e-4, atol=1e-5)


def test_search_by_shares_is_the_same_to_the_bit(monkeypatch):
    x = torch.nn.functional.normalize(torch.randn(8300, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    for faiss in (neighbours.faiss, None):
        monkeypatch.setattr(neighbours, "faiss", faiss)
        whole = neighbours.k_nearest(x, 20)
        parts = [neighbours.k_nearest(x, 20, one_of(2, n).share(len(x), neighbours.SEARCH_UNIT)) for n in range(2)]
        for name in ("index", "similarity"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_shares_are_the_whole_in_order():
    for size, (count, unit) in product((1, 2, 3, 8), ((0, 1), (7, 1), (100, 8), (5, 64))):
        parts = [np.arange(count)[one_of(size, rank).share(count, unit)] for rank in range(size)]
        np.testing.assert_array_equal(np.concatenate(parts), np.arange(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 2 * unit


def test_a_run_of_two_processes(finished, tiny_clip_file, tmp_path):
    """The labels, numbers and files of a run of one; the first process alone writes and speaks."""
    folders = [finished / "run", tmp_path / "run"]
    codes, said = workers.launch(2, tmp_path, workers.script, "train_prepare", scripts.settings(
        DATASET__ROOT=finished / "data", MODEL__CLIP_WEIGHTS=tiny_clip_file, OUTPUT_DIR=folders[1],
        DATASET__CACHE="device"))
    assert codes == [0, 0] and not said[1], said
    one, two = ({str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()
                 and "tensorboard" not in path.parts} for folder in folders)
    assert {"prepare_last.pth", "prepare_state.pth", "metrics.jsonl"} < two.keys() <= one.keys()
    labels = [name for name in two if name.endswith(".npy")]
    assert len(labels) == 2 and all(np.array_equal(np.load(one[name]), np.load(two[name])) for name in labels)
    theirs, ours = (read_rows(folder)[0] for folder in folders)
    assert ours.keys() == theirs.keys()
    losses = [name for name in ours if name.startswith("loss")]
    assert losses and [ours[n] for n in losses] == pytest.approx([theirs[n] for n in losses], rel=0.02)
    assert "train_prepare on cpu of 2 processes, DATASET.CACHE mmap" in two["log.txt"].read_text()


def test_torchrun_ends_all_when_one_dies(tmp_path):
    """The others, in a message or in Python, do not wait; the first says where the run goes on."""
    with pytest.raises(ChildFailedError) as ended:
        workers.launch(3, tmp_path, workers.to_the_end)
    assert ended.value.get_first_failure()[1].exitcode == -9
    said = [path.read_text() for path in sorted(tmp_path.rglob("stderr.log"))]
    assert len(said) == 3 and said[0].startswith("stopped; the same command resumes with epoch 7"), said


def test_fewer_gpus_than_processes(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="torchrun has started 4 processes on this machine, which has 2 of the GPUs"):
        join_processes("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one(request, tmp_path):
    """NCCL and torch's SyncBatchNorm: the first epoch's losses up to fp32's rounding."""
    for number, (file, *case) in enumerate(CASES.values()):
        (tmp_path / str(number)).mkdir()
        one, two = trained(tmp_path / str(number), request.getfixturevalue(file), *case, "cuda")
        assert all(torch.equal(state[name], value) for state, _ in two for name, value in two[0][0].items())
        losses = [name for name in one[0][1][0] if name.startswith("loss")]
        assert [two[0][1][0][n] for n in losses] == pytest.approx([one[0][1][0][n] for n in losses], rel=1e-2)
