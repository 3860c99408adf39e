"""Several processes give what one gives, and never wait for one that is gone."""
import json
from itertools import product

import numpy as np
import pytest
import scripts
import torch
import trees
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from clustering import neighbours
from model.batch_norm import spread_batch_norm
from tests import shares
from tests.tiny import HEIGHT, WIDTH, one_of
from tests.workers import Workers, script
from utils.distributed import ALONE, join_processes
from utils.errors import UserError
from utils.modality import Modality

IDS = {"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)}
CASES = {       # weights, splits of the batch norm, whether texts guide, settings
    "cclnet with texts, a batch norm of the whole": ("tiny_clip_file", 1, True, {"METHOD__NAME": "cclnet"}),
    "sdcl on transreid, a batch norm in each half, unified labels": ("ics_file", 2, False, {
        "METHOD__NAME": "sdcl", "METHOD__UNIFY_EPOCH": 2, "OPTIM__NAME": "sgd",
        "OPTIM__LR": 0.01}),      # Adam makes steps of the rounding of gradients that are 0
}


# ---- Results

def trained(folder, *arguments, seconds=300):
    """What one process, and each of two, has reached: its checkpoint, and its rows of metrics.jsonl."""
    workers = [Workers(size, folder / str(size), shares.train_two_epochs, arguments[0], folder / str(size),
                       *arguments[1:]) for size in (1, 2)]
    assert [each.codes(seconds) for each in workers] == [[0], [0, 0]], [each.said() for each in workers]
    return [[(torch.load(folder / f"{size}/{rank}/model_last.pth")["state_dict"], rows(folder / f"{size}/{rank}"))
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
    start = shares.new_model(file).state_dict()
    assert difference(expected, {name: value.double() for name, value in start.items()}) > 1e-3     # it has trained
    for state, found_rows in ours:
        assert difference(state, expected) < 1e-10
        assert all(torch.equal(state[name], value) for name, value in ours[0][0].items())      # the same in all
        for found, theirs in zip(found_rows, their_rows, strict=True):
            same = {name for name in theirs if name.startswith(("loss", "clusters", "outliers", "link", "lr"))}
            assert {n: found[n] for n in same} == pytest.approx({n: theirs[n] for n in same}, rel=1e-9)


@pytest.mark.parametrize("parts, views", [(2, 1), (4, 2)])
def test_parts_are_those_of_data_parallel(tiny_clip_file, parts, views):
    """DataParallel scatters each input; each replica joins its pieces; the first replica's statistics are kept."""
    whole, *replicas = (shares.new_model(tiny_clip_file).train() for _ in range(1 + parts))
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


@pytest.mark.parametrize("faiss", [True, False])
def test_search_by_shares_is_the_same_to_the_bit(monkeypatch, faiss):
    if not faiss:
        monkeypatch.setattr(neighbours, "faiss", None)
    x = torch.nn.functional.normalize(torch.randn(9000, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    whole = neighbours.k_nearest(x, 20)
    parts = [neighbours.k_nearest(x, 20, one_of(2, rank).share(len(x), neighbours.SEARCH_UNIT)) for rank in range(2)]
    for name in ("index", "similarity"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_shares_are_the_whole_in_order():
    for size, (count, unit) in product((1, 2, 3, 8), ((0, 1), (1, 1), (7, 1), (100, 8), (5, 64), (96, 32))):
        parts = [np.arange(count)[one_of(size, rank).share(count, unit)] for rank in range(size)]
        np.testing.assert_array_equal(np.concatenate(parts), np.arange(count))
        assert all(len(part) == 0 or part[0] % unit == 0 for part in parts)
        assert max(map(len, parts)) - min(map(len, parts)) <= 2 * unit


# ---- Whole runs

def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_runs_of_one_and_two_processes(tiny_clip_file, tmp_path):
    """The same labels, numbers and files; the first process alone writes and speaks."""
    data = trees.people_tree(tmp_path / "data", ids=IDS)
    folders = [tmp_path / "run1", tmp_path / "run2"]
    for size, folder in enumerate(folders, 1):      # one after the other: they share the images' cache
        words = scripts.settings(DATASET__ROOT=data, MODEL__CLIP_WEIGHTS=tiny_clip_file, OUTPUT_DIR=folder,
                                 DATASET__CACHE="device")
        workers = Workers(size, tmp_path / f"out{size}", script, "train_prepare", words)
        assert workers.codes() == [0] * size and not any(workers.said()[1:]), workers.said()
    one, two = ({str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()
                 and "tensorboard" not in path.parts} for folder in folders)
    assert one.keys() == two.keys()
    for name in one:
        assert not name.endswith(".npy") or np.array_equal(np.load(one[name]), np.load(two[name])), name
    (theirs,), (ours,) = map(rows, folders)
    assert ours.keys() == theirs.keys()
    losses = [name for name in ours if name.startswith("loss")]
    assert losses and [ours[n] for n in losses] == pytest.approx([theirs[n] for n in losses], rel=0.02)
    assert "train_prepare on cpu of 2 processes, DATASET.CACHE mmap" in two["log.txt"].read_text()


def test_differing_weights_end_the_run(tmp_path):
    assert Workers(2, tmp_path, shares.differing_weights, tmp_path).codes() == [0, 0]
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text().startswith(
            "after epoch 2 the weights of process 1 differ from those of process 0; expected the same to the bit. ")


# ---- The end

def test_torchrun_ends_all_when_one_dies(tmp_path):
    """By its launcher: the others, in a message or in Python, do not wait; the first says where the run goes on."""
    logs = DefaultLogsSpecs(log_dir=str(tmp_path), redirects=Std.ALL)
    config = LaunchConfig(1, 1, 3, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="run", logs_specs=logs,
                          start_method="forkserver", max_restarts=0)
    with pytest.raises(ChildFailedError) as ended:
        elastic_launch(config, shares.to_the_end)()
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
    for number, case in enumerate(CASES.values()):
        file = request.getfixturevalue(case[0])
        one, two = trained(tmp_path / str(number), file, *case[1:], "cuda")
        for state, found in two:
            assert all(torch.equal(state[name], value) for name, value in two[0][0].items())
            losses = [name for name in found[0] if name.startswith("loss")]
            assert [found[0][n] for n in losses] == pytest.approx([one[0][1][0][n] for n in losses], rel=1e-2)
