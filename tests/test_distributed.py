"""Several processes give what one gives, stop together, and never wait for one that is gone."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
import trees

import clustering.clustering as clustering
import utils.watch
from model.batch_norm import spread_batch_norm
from tests import shares
from tests.tiny import HEIGHT, WIDTH, one_of, tiny_model
from tests.workers import Workers, script
from utils.distributed import ALONE, checksum, join_processes
from utils.errors import UserError, exit_on_user_error, is_lost_process
from utils.modality import Modality

ROOT = Path(__file__).resolve().parents[1]
IDS = {"train": (1, 2, 3), "val": (4,), "test": (5, 6, 7)}
GLOBAL, LOCAL, HALVES, UNGUIDED = (1, True), (None, True), (2, True), (1, False)      # splits, whether texts guide
METHODS = tuple((1, True, *case) for case in (
    ("none", "prototype"), ("cclnet", "projection"), ("pgm", "prototype"), ("pgm", "text"), ("rpnr", "projection"),
    ("pgm", "centroid", "released"), ("rpnr", "prototype", "released"))) + ((2, True, "pgm", "prototype"),)
CASES = {1: (GLOBAL, HALVES, UNGUIDED, *METHODS), 2: (GLOBAL, HALVES, UNGUIDED, LOCAL, *METHODS), 4: (GLOBAL, HALVES)}


# ---- Results

@pytest.fixture(scope="module")
def trained(tiny_clip_file, tmp_path_factory):
    """12 steps in fp64 by 1, 2 and 4 processes: (number, case) -> (weights and prototypes, losses) of each process."""
    folder, found = tmp_path_factory.mktemp("steps"), {}
    for size, cases in CASES.items():
        workers = Workers(size, folder / str(size), shares.steps, cases, tiny_clip_file, folder / str(size))
        assert workers.codes() == [0] * size, workers.said()
        ranks = [torch.load(folder / str(size) / f"{rank}.pt") for rank in range(size)]
        found |= {(size, case): [rank[number] for rank in ranks] for number, case in enumerate(cases)}
    return found


def difference(a, b):
    """The relative difference of two states: |a - b| / |b| over all their numbers, and of the worst tensor."""
    names = [name for name, value in b.items() if value.is_floating_point()]
    parts = {name: (float((a[name] - b[name]).norm()), float(b[name].norm())) for name in names}
    whole = np.linalg.norm([gap for gap, _ in parts.values()]) / np.linalg.norm([size for _, size in parts.values()])
    return whole, max(gap / size for gap, size in parts.values() if size)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", [GLOBAL, HALVES, UNGUIDED, *METHODS])
def test_steps_are_those_of_one_process(trained, size, case):
    if (size, case) not in trained:
        pytest.skip("two processes show it")
    ours, theirs = trained[size, case], trained[1, case][0]
    whole, worst = difference(ours[0][0], theirs[0])
    assert whole < 1e-10 and worst < 1e-9
    for state, losses in ours:
        assert all(torch.equal(state[name], ours[0][0][name]) for name in state)       # the same in all processes
        for mine, other in zip(losses, theirs[1], strict=True):
            assert mine == pytest.approx(other, rel=1e-9)
    assert len(theirs[1]) == shares.STEPS


def test_local_batch_norm_gives_something_else(trained):
    assert difference(trained[2, LOCAL][0][0], trained[1, GLOBAL][0][0])[0] > 1e-3


def test_two_splits_are_two_processes_with_their_own_batch_norm(trained):
    whole, worst = difference(trained[2, LOCAL][0][0], trained[1, HALVES][0][0])
    assert whole < 1e-10 and worst < 1e-9
    assert difference(trained[1, HALVES][0][0], trained[1, GLOBAL][0][0])[0] > 1e-3


def test_parameters_without_a_gradient_stay(trained, tiny_clip_file):
    """The attention pool where nothing trains it: no gradient, no weight decay."""
    start = tiny_model(tiny_clip_file).double().state_dict()
    end = trained[2, UNGUIDED][0][0]
    still = {name for name in start if torch.equal(start[name], end[name]) and not name.endswith("num_batches_tracked")}
    assert still == {name for name in start if "attnpool." in name} | {"neck.bias"}


def test_parameters_of_the_heads(tiny_clip_file):
    model = tiny_model(tiny_clip_file).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert set(model.parameters_without(("feature",))) == {n for n, _ in model.named_parameters() if "attnpool." in n}
    assert model.parameters_without(("feature", "projection")) == []
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_are_those_of_data_parallel(tiny_clip_file, parts, views):
    """DataParallel scatters each input; each replica joins its pieces; the first replica's statistics are kept."""
    whole, *replicas = (tiny_model(tiny_clip_file).train() for _ in range(1 + parts))
    rgb, ir = torch.randn(8 * views + 8, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)).split(
        [8 * views, 8])
    names = list(whole.state_dict())
    expected = [replica(rgb_piece, ir_piece) for replica, rgb_piece, ir_piece in
                zip(replicas, rgb.chunk(parts), ir.chunk(parts))]
    model = spread_batch_norm(whole, parts, ALONE, views)
    assert list(model.state_dict()) == names
    found = model(rgb, ir)
    for m in Modality:
        torch.testing.assert_close(found["feature"][m], torch.cat([out["feature"][m] for out in expected]), rtol=1e-4,
                                   atol=1e-4)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, replicas[0].get_buffer(name), rtol=1e-4, atol=1e-6)
    with torch.no_grad():       # in evaluation mode nothing differs
        torch.testing.assert_close(model.eval()(rgb, ir), replicas[0].eval()(rgb, ir), rtol=1e-4, atol=1e-5)


def test_one_process_keeps_torchs_own_batch_norm(tiny_clip_file):
    model = tiny_model(tiny_clip_file)
    before = [type(module) for module in model.modules()]
    assert [type(module) for module in spread_batch_norm(model, 1, ALONE).modules()] == before


def test_embedding_and_labels_are_the_same_to_the_bit(tiny_clip_file, tmp_path):
    found = {}
    for size in (1, 2, 3):
        workers = Workers(size, tmp_path / str(size), shares.embedding_and_labels, tiny_clip_file, tmp_path / str(size))
        assert workers.codes() == [0] * size, workers.said()
        found[size] = [torch.load(tmp_path / str(size) / f"{rank}.pt") for rank in range(size)]
    for rank in (*found[2], *found[3]):
        for ours, theirs in zip(rank, found[1][0], strict=True):
            for m in ("rgb", "ir"):
                assert all(torch.equal(ours[m][0][head], theirs[m][0][head]) for head in ("feature", "projection"))
                assert torch.equal(ours[m][1], theirs[m][1])


@pytest.mark.parametrize("faiss", [True, False])
def test_search_by_shares_is_the_same_to_the_bit(monkeypatch, faiss):
    if not faiss:
        monkeypatch.setattr(clustering, "faiss", None)
    x = torch.nn.functional.normalize(torch.randn(9000, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    whole = clustering.k_nearest(x, 20)
    for size in (2, 5):
        parts = [clustering.k_nearest(x, 20, one_of(size, rank).share(len(x), clustering.SEARCH_UNIT))
                 for rank in range(size)]
        for name in ("index", "similarity"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@pytest.mark.parametrize("count, unit", [(0, 1), (1, 1), (7, 1), (100, 8), (5, 64), (96, 32)])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_the_whole_in_order(count, unit, size):
    rows = [np.arange(count)[one_of(size, rank).share(count, unit)] for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(count))
    assert all(len(part) == 0 or part[0] % unit == 0 for part in rows)
    assert max(map(len, rows)) - min(map(len, rows)) <= 2 * unit


def test_a_checksum_sees_one_bit():
    state = {"rgb": {"prototypes": torch.randn(5, 4)}, "ir": {"prototypes": torch.randn(5, 4)}}
    before = checksum(state)
    state["ir"]["prototypes"].view(torch.int32)[3, 2] ^= 1
    assert checksum(state) != before


def differing_memories(folder):
    """Compare memories of which one process's is another's."""
    processes = join_processes("cpu")
    try:
        processes.compare("epoch 1", memories={"rgb": torch.ones(3)}, weights={"w": torch.ones(2)})
        processes.compare("epoch 2", memories={"rgb": torch.ones(3)}, weights={"w": torch.full((2,), processes.rank)})
    except UserError as error:
        (folder / f"{processes.rank}.txt").write_text(str(error))


def test_differing_memories_end_the_run(tmp_path):
    assert Workers(2, tmp_path, differing_memories, tmp_path).codes() == [0, 0]
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text().startswith(
            "after epoch 2 the weights of process 1 differ from those of process 0; expected the same to the bit. ")


# ---- Whole runs

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.people_tree(tmp_path_factory.mktemp("people") / "data", ids=IDS)


@pytest.fixture(scope="module")
def words(data, tiny_clip_file):
    """The words of a command line that writes to a folder."""
    def of(folder, **changes):
        return scripts.settings(**{"DATASET__ROOT": data, "MODEL__CLIP_WEIGHTS": tiny_clip_file, "OUTPUT_DIR": folder,
                                   "PREPARE__EPOCHS": 2, "PROMPT__EPOCHS": 2, "FINETUNE__EPOCHS": 2, **changes})
    return of


def run(size, name, words, folder):
    """Run a script in so many processes to its end: exit codes, and what they said."""
    workers = Workers(size, folder, script, name, words)
    return workers.codes(), workers.said()


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
            and "tensorboard" not in path.parts}


def test_runs_of_one_and_two_processes(words, tmp_path):
    """The same labels, numbers and files; one process writes and speaks; each trains a stage and tests it."""
    for size, folder in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        for name in ("train_prepare", "train_clip"):
            codes, said = run(size, name, words(folder, DATASET__CACHE="device"), tmp_path / f"out{size}")
            assert codes == [0] * size and not any(said[1:]), said
        tested = words(folder)
        codes, said = run(size, "test", ["--resume_path", folder / "model_last.pth", "--save_ranking", *tested],
                          tmp_path / f"out{size}")
        assert codes == [0] * size and not any(said[1:]), said
    one, two = tmp_path / "one", tmp_path / "two"
    assert files(one) == files(two)
    for path in (one / "pseudo_labels").glob("*.npy"):
        np.testing.assert_array_equal(np.load(two / "pseudo_labels" / path.name), np.load(path))
    assert len(rows(one)) == len(rows(two)) == 6
    for ours, theirs in zip(rows(two), rows(one)):
        assert ours.keys() == theirs.keys()
        assert {k: v for k, v in ours.items() if k.startswith("loss")} == pytest.approx(
            {k: v for k, v in theirs.items() if k.startswith("loss")}, rel=0.02)
    assert "train_prepare on cpu of 2 processes, DATASET.CACHE mmap" in (two / "log.txt").read_text()
    assert "train_prepare on cpu, DATASET.CACHE device" in (one / "log.txt").read_text()
    ours, theirs = (json.loads(next(folder.glob("tests/*/metrics.json")).read_text()) for folder in (two, one))
    assert ours["mAP"] == pytest.approx(theirs["mAP"], abs=0.1)


@pytest.mark.parametrize("size, changes, sentence", [
    (2, {"SAMPLER__CLUSTERS": 3, "SAMPLER__INSTANCES": 3},
     "SAMPLER.CLUSTERS 3 x SAMPLER.INSTANCES 3 = 9 images of each modality cannot be shared equally by 2 processes; "),
    (1, {"BATCH_NORM__SPLITS": 3}, "cannot be split into BATCH_NORM.SPLITS 3 equal parts; "),
    (2, {"BATCH_NORM__SPLITS": 3, "SAMPLER__CLUSTERS": 3},
     "BATCH_NORM.SPLITS 3 and 2 processes do not divide one another; "),
    (2, {"PREPARE__EPOCHS": 0}, "PREPARE.EPOCHS is 0; expected a whole number from 1"),
    (2, {"MODEL__CLIP_WEIGHTS": "nowhere.pt"}, "weights nowhere.pt are missing "),
])
def test_errors_are_said_once(words, tmp_path, size, changes, sentence):
    codes, said = run(size, "train_prepare", words(tmp_path / "run", **changes), tmp_path / "out")
    spoken = [text for text in said if text]
    assert codes == [2] * size and len(spoken) == 1, said
    assert spoken[0].startswith("error: ") and sentence in spoken[0] and spoken[0].count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_process_ends_the_others(words, tmp_path):
    """The first alone opens the folder; the other waits for it, says nothing and ends too."""
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    codes, said = run(2, "train_prepare", words(tmp_path / "run"), tmp_path / "out")
    assert codes == [2, 2] and said[1] == "" and "is a folder; expected a file of a run" in said[0]


def fail_or_sleep():
    """Process 1 fails; the watch of the others ends them, of process 2 later than of process 0, which has the store."""
    processes = join_processes("cpu")
    if processes.rank == 1:
        exit_on_user_error(fail)
    utils.watch.BEAT = 1 if processes.rank == 0 else 3
    time.sleep(60)


def fail():
    raise UserError("process 1 has failed")


def test_the_store_outlives_the_last_who_asks_it(tmp_path):
    workers = Workers(3, tmp_path, fail_or_sleep)
    assert workers.codes(60) == [2] * 3 and workers.said() == ["", "error: process 1 has failed\n", ""]


def test_fewer_gpus_than_processes(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="torchrun has started 4 processes on this machine, which has 2 of the GPUs"):
        join_processes("cuda")


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert join_processes("cpu") is ALONE and ALONE.share(7) == slice(0, 7)


@pytest.mark.parametrize("error, is_lost", [
    (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
    (torch.distributed.DistBackendError("NCCL error"), True), (RuntimeError("shapes do not match"), False),
    (ValueError("gloo"), False)])
def test_lost_processes_are_recognised(error, is_lost):
    assert is_lost_process(error) is is_lost


def wait_for(line, folder, workers, seconds=90):
    """Wait until the log has a line, while all processes live."""
    end = time.monotonic() + seconds
    log = folder / "log.txt"
    while line not in (log.read_text() if log.is_file() else ""):
        assert time.monotonic() < end and all(p.is_alive() for p in workers.processes), workers.said()
        time.sleep(0.01)


def strike(size, name, words, folder, line, rank, number):
    """Send a signal to one process after a line of the log: exit codes, what was said, seconds until all had ended."""
    workers = Workers(size, folder.with_name("out"), script, name, words)
    wait_for(line, folder, workers)
    os.kill(workers.processes[rank].pid, number)
    started = time.monotonic()
    codes, seconds = workers.codes(60), time.monotonic() - started
    return codes, [text for text in workers.said() if "error: " in text or "stopped; " in text], seconds


def test_killed_and_stopped_in_every_stage(words, tmp_path):
    """Without torchrun, which would end the others. Each resumes with another number of processes."""
    folder = tmp_path / "run"
    often = words(folder, CHECKPOINT__MINUTES=0)
    for size, name, line, rank in ((2, "train_prepare", "prepare 1/", 1), (2, "train_clip", "prompt 1/", 0),
                                   (4, "train_clip", "finetune 1/", 3)):
        if name == "train_clip" and not (folder / "pseudo_labels").exists():
            codes, said = run(4, "train_prepare", often, tmp_path / "out")
            assert codes == [0] * 4, said
            assert "prepare: resuming with epoch 2" in (folder / "log.txt").read_text()
        codes, said, seconds = strike(size, name, often, folder, line, rank, signal.SIGKILL)
        assert codes == [-signal.SIGKILL if r == rank else 2 for r in range(size)]
        assert seconds < 60 and len(said) == 1 and "another process of this run has ended" in said[0]
    codes, said, _ = strike(2, "train_clip", often, folder, "finetune: resuming", 1, signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM] * 2
    assert len(said) == 1 and "stopped; the same command resumes from" in said[0]
    codes, said = run(1, "train_clip", often, tmp_path / "out")
    assert codes == [0], said
    assert [(row["stage"], row["epoch"]) for row in rows(folder)] == [
        (stage, epoch) for stage in ("prepare", "prompt", "finetune") for epoch in (1, 2)]
    assert not list(folder.glob(".*.partial"))


def test_sigterm_to_torchrun(words, tmp_path):
    """All processes stop after the same step and save once; one resumes. Each has a batch norm of its own."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(ROOT / "train_prepare.py"), *map(str, words(folder, PREPARE__EPOCHS=6, BATCH_NORM__SPLITS=2))]
    with open(tmp_path / "out", "w") as out:
        torchrun = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            end = time.monotonic() + 300
            while "prepare 1/" not in (tmp_path / "out").read_text():
                assert time.monotonic() < end and torchrun.poll() is None, (tmp_path / "out").read_text()
                time.sleep(0.05)
        finally:
            torchrun.send_signal(signal.SIGTERM)
            torchrun.wait(60)
    said = (tmp_path / "out").read_text()
    assert said.count("stopped; the same command resumes from") == 1 and torchrun.returncode not in (0, None)
    codes, said = run(1, "train_prepare", words(folder, PREPARE__EPOCHS=6, BATCH_NORM__SPLITS=2), tmp_path / "resumed")
    assert codes == [0] and "prepare: resuming with epoch" in said[0]
    assert [row["epoch"] for row in rows(folder)] == list(range(1, 7))


# ---- GPUs

@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_steps_on_two_gpus(tiny_clip_file, tmp_path):
    """NCCL and torch's SyncBatchNorm: two GPUs take one GPU's steps, up to fp32's rounding, over the first of them."""
    found = {}
    for size in (1, 2):
        folder = tmp_path / str(size)
        workers = Workers(size, folder, shares.steps, [GLOBAL, HALVES], tiny_clip_file, folder, "cuda")
        assert workers.codes(300) == [0] * size, workers.said()
        found[size] = [torch.load(folder / f"{rank}.pt") for rank in range(size)]
    for case in range(2):
        for state, losses in (rank[case] for rank in found[2]):
            assert all(torch.equal(state[name], found[2][0][case][0][name]) for name in state)
            for mine, other in list(zip(losses, found[1][0][case][1], strict=True))[:3]:
                assert mine == pytest.approx(other, rel=1e-2)
