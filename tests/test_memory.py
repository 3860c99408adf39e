"""The memories against loops over samples and clusters: losses, updates, links, and what swapping may touch."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss.association import Links, hungarian

from configs.defaults import load_config
from loss.cclnet import CCLNetMemory, swap
from loss.cluster_memory import ClusterMemory
from processor.setup import train_settings
from tests.tiny import memory_settings
from utils.modality import Modality

TEMPERATURE, MOMENTUM, SCALE, DIM = 0.05, 0.2, 0.1, 16
ORDERS = pytest.mark.parametrize("order", ["released", "simultaneous"])


def prototypes(clusters_rgb=7, clusters_ir=5, seed=0):
    """Unit rows: [(K_rgb, DIM), (K_ir, DIM)]."""
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(k, DIM, generator=generator), dim=1) for k in (clusters_rgb, clusters_ir)]


def cross_memory(swaps, order="released", clusters=(7, 5), seed=0):
    return CCLNetMemory(dict(zip(Modality, prototypes(*clusters, seed))), 2, settings(2 if swaps else 3, order))


def settings(swap_epoch, order="released"):
    return memory_settings(temperature=TEMPERATURE, momentum=MOMENTUM, swap_epoch=swap_epoch, swap_scale=SCALE,
                           swap_order=order)


def rows_of(memory):
    """Copy the prototypes of both modalities."""
    return [memory.memories[m].prototypes.clone() for m in Modality]


def batch(clusters=(7, 5), size=12, seed=0):
    """Features of any length and labels of a batch, both Modality -> (size, ...)."""
    generator = torch.Generator().manual_seed(seed)
    return ({m: 3 * torch.randn(size, DIM, generator=generator) for m in Modality},
            {m: torch.randint(0, k, (size,), generator=generator).numpy() for m, k in zip(Modality, clusters)})


def naive_update(rows, x, labels, momentum):
    rows = rows.clone()
    for sample, label in zip(F.normalize(x, dim=1), labels):
        rows[label] = F.normalize(momentum * rows[label] + (1 - momentum) * sample, dim=0)
    return rows


def naive_swap(rgb, ir, pairs, labels_rgb, labels_ir, scale, simultaneous):
    """Swap pair by pair, as the released code does."""
    rgb, ir, old_rgb = rgb.clone(), ir.clone(), rgb.clone()
    for r, i in pairs:
        old = ir[i].clone()
        if r in labels_rgb:
            rgb[r] = F.normalize(scale * rgb[r] + (1 - scale) * old, dim=0)
        if i in labels_ir:
            ir[i] = F.normalize(scale * old + (1 - scale) * (old_rgb if simultaneous else rgb)[r], dim=0)
    return rgb, ir


def pair_list(links):
    return list(zip(*(clusters.tolist() for clusters in links.pairs())))


@pytest.mark.parametrize("momentum", [0.1, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_update_is_sequential_in_batch_order(seed, momentum):
    start = prototypes(seed=seed)[0]
    memory, generator = ClusterMemory(start, TEMPERATURE, momentum), torch.Generator().manual_seed(100 + seed)
    x, labels = torch.randn(40, DIM, generator=generator), torch.randint(0, 7, (40,), generator=generator)
    memory.update(x, labels)
    torch.testing.assert_close(memory.prototypes, naive_update(start, x, labels, momentum))


def test_update_leaves_other_clusters_alone_and_rows_unit_length():
    memory = ClusterMemory(3 * prototypes()[0], TEMPERATURE, MOMENTUM)
    before = memory.prototypes.clone()
    memory.update(torch.randn(6, DIM), torch.tensor([2, 2, 4, 2, 4, 4]))
    changed = (memory.prototypes != before).any(1)
    assert changed.tolist() == [False, False, True, False, True, False, False]
    torch.testing.assert_close(memory.prototypes.norm(dim=1), torch.ones(7))


def test_losses_are_cross_entropies_with_the_own_modality():
    memory, (x, labels) = cross_memory(swaps=True), batch()
    losses = memory.losses(x, labels)
    assert list(losses) == ["loss_rgb", "loss_ir"]
    for m, rows in zip(Modality, prototypes()):
        logits = F.normalize(x[m], dim=1).double() @ rows.double().T / TEMPERATURE
        expected = -logits.log_softmax(1)[range(len(logits)), labels[m]].mean()
        assert float(losses[f"loss_{m.value}"]) == pytest.approx(float(expected), rel=1e-5)


@ORDERS
@pytest.mark.parametrize("clusters", [(7, 5), (5, 7), (1, 4)])
def test_update_moves_the_prototypes_then_swaps_them(clusters, order):
    memory, expected, linked = cross_memory(True, order, clusters), prototypes(*clusters), 0
    for step in range(3):
        x, labels = batch(clusters, seed=step)
        expected = [naive_update(rows, x[m], labels[m], MOMENTUM) for m, rows in zip(Modality, expected)]
        pairs = pair_list(hungarian(*expected))
        cosines = [float(expected[0][r] @ expected[1][i]) for r, i in pairs] or [0.0]
        expected = naive_swap(*expected, pairs, *labels.values(), SCALE, order == "simultaneous")
        numbers = memory.update(x, labels)
        assert numbers == {"matched": len(pairs), "matched_similarity": pytest.approx(np.mean(cosines), abs=1e-5)}
        linked += len(pairs)
        for rows, wanted in zip(rows_of(memory), expected):
            torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=1e-4)
    assert linked, "the drawn prototypes should match somewhere"


def test_without_swaps_the_modalities_do_not_meet():
    memory, expected = cross_memory(swaps=False), prototypes()
    for step in range(3):
        x, labels = batch(seed=step)
        expected = [naive_update(rows, x[m], labels[m], MOMENTUM) for m, rows in zip(Modality, expected)]
        assert memory.update(x, labels) == {}
        for rows, wanted in zip(rows_of(memory), expected):
            torch.testing.assert_close(rows, wanted)
    assert memory.links().pairs()[0].size        # which links alone would not show


def test_an_epochs_memory_has_the_settings_numbers_and_swaps_from_the_swap_epoch_on():
    settings = train_settings(load_config(None, [
        "METHOD.TEMPERATURE", "0.07", "METHOD.MOMENTUM", "0.3", "METHOD.CROSS_EPOCH", "4", "METHOD.SWAP_SCALE", "0.6",
        "METHOD.SWAP_ORDER", "simultaneous"]), 9)
    start = dict(zip(Modality, prototypes()))
    for epoch in range(1, 10):
        memory = settings.new_memory(start, epoch)
        assert isinstance(memory, CCLNetMemory) and memory.meets == (epoch >= 4)
    assert (memory.settings.swap_scale, memory.settings.swap_order) == (0.6, "simultaneous")
    for m in Modality:
        assert (memory.memories[m].temperature, memory.memories[m].momentum) == (0.07, 0.3)
        torch.testing.assert_close(memory.memories[m].prototypes, start[m])


def test_prototypes_of_an_epoch_are_copies():
    start = dict(zip(Modality, prototypes()))
    kept = {m: rows.clone() for m, rows in start.items()}
    CCLNetMemory(start, 1, settings(1)).update(*batch())
    assert all(torch.equal(start[m], kept[m]) for m in Modality)


@ORDERS
@pytest.mark.parametrize("sizes", [(7, 5), (5, 7), (6, 6), (1, 4)])
def test_swap_orders(order, sizes):
    rgb, ir = prototypes(*sizes)
    links = hungarian(rgb, ir)
    assert pair_list(links), "the drawn prototypes should match somewhere"
    labels = {Modality.RGB: np.arange(0, sizes[0], 2), Modality.IR: np.arange(sizes[1] // 2, sizes[1])}
    expected = naive_swap(rgb, ir, pair_list(links), *labels.values(), SCALE, order == "simultaneous")
    swap(rgb, ir, links, labels, SCALE, order)
    torch.testing.assert_close(rgb, expected[0])
    torch.testing.assert_close(ir, expected[1])


@ORDERS
def test_links_need_not_be_one_to_one(order):
    """Each cluster of the batch is mixed with its own partner, whoever else has that partner or is its own."""
    rgb, ir = prototypes(4, 3)
    links = Links(np.array([1, 1, 0, -1]), np.array([3, 0, 2]))     # RGB 0 and 1 share IR 1, whose own partner is RGB 0
    labels = {Modality.RGB: np.array([0, 1, 1, 3, 0]), Modality.IR: np.array([2, 1, 0, 0, 1])}
    mixed = {0: 1, 1: 1}                                            # 2 is not in the batch, 3 has no partner
    new_rgb = torch.stack([F.normalize(SCALE * row + (1 - SCALE) * ir[mixed[r]], dim=0) if r in mixed else row
                           for r, row in enumerate(rgb)])
    source = new_rgb if order == "released" else rgb.clone()
    new_ir = torch.stack([F.normalize(SCALE * row + (1 - SCALE) * source[partner], dim=0)
                          for row, partner in zip(ir, links.ir_to_rgb)])
    swap(rgb, ir, links, labels, SCALE, order)
    torch.testing.assert_close(rgb, new_rgb)
    torch.testing.assert_close(ir, new_ir)


@ORDERS
def test_clusters_without_a_link_do_not_change(order):
    rgb, ir = prototypes()
    kept = rgb.clone(), ir.clone()
    labels = {Modality.RGB: np.arange(7), Modality.IR: np.arange(5)}
    swap(rgb, ir, Links(np.full(7, -1), np.full(5, -1)), labels, SCALE, order)
    assert torch.equal(rgb, kept[0]) and torch.equal(ir, kept[1])
    swap(rgb, ir, Links(np.array([-1, -1, 3, -1, -1, -1, -1]), np.full(5, -1)), labels, SCALE, order)     # one way only
    assert (rgb != kept[0]).any(1).tolist() == [r == 2 for r in range(7)] and torch.equal(ir, kept[1])


def test_pairs_below_zero_are_dropped():
    rgb, ir = torch.tensor([[1.0, 0.0], [0.6, -0.8]]), torch.tensor([[-1.0, 0.1], [0.8, -0.6]])
    links = hungarian(rgb, ir)                      # the full matching is (0, 1), (1, 0) or (0, 0), (1, 1)
    (pair,) = pair_list(links)
    assert rgb[pair[0]] @ ir[pair[1]] >= 0 and links.ir_to_rgb[pair[1]] == pair[0]
    assert (links.rgb_to_ir < 0).sum() == (links.ir_to_rgb < 0).sum() == 1
    assert hungarian(rgb[:1], -rgb[:1]).rgb_to_ir.tolist() == [-1]


def test_hungarian_links_are_mutual_and_maximise_the_sum():
    rgb, ir = (rows.abs() for rows in prototypes(4, 3))          # all similarities above 0
    links, similarity = hungarian(rgb, ir), (rgb @ ir.T).numpy()
    assert sorted(i for i in links.rgb_to_ir.tolist() if i >= 0) == [0, 1, 2]
    assert [links.rgb_to_ir[r] for r in links.ir_to_rgb] == [0, 1, 2]
    best = max(sum(similarity[r, i] for i, r in enumerate((a, b, c)))
               for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3)
    assert sum(similarity[r, i] for r, i in pair_list(links)) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("given", [False, True])
def test_pairs_are_those_of_the_prototypes_as_they_are_now(given):
    memory = cross_memory(swaps=False)
    memory.update(*batch())
    rows, links = rows_of(memory), Links(np.array([4, 4, -1, 0, -1, -1, 1]), np.full(5, -1)) if given else None
    rgb, ir, similarity = memory.pairs(links)
    expected = links or hungarian(*rows)
    assert list(zip(rgb.tolist(), ir.tolist())) == pair_list(expected) and len(rgb)
    np.testing.assert_allclose(similarity, (rows[0][rgb] * rows[1][ir]).sum(1), rtol=1e-6)
    assert all(isinstance(values, np.ndarray) for values in (rgb, ir, similarity))


def test_a_state_resumes_to_the_bit():
    kept, resumed = cross_memory(swaps=True), cross_memory(swaps=True, seed=1)
    for step in range(3):
        kept.update(*batch(seed=step))
    state = {m: {name: rows.clone() for name, rows in content.items()} for m, content in kept.state_dict().items()}
    assert set(state) == {"rgb", "ir"} and all(set(content) == {"prototypes"} for content in state.values())
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(rows_of(kept), rows_of(resumed)))
    for step in range(3, 6):
        assert kept.update(*batch(seed=step)) == resumed.update(*batch(seed=step))
    assert all(torch.equal(a, b) for a, b in zip(rows_of(kept), rows_of(resumed)))


def test_an_inner_product_of_exactly_zero_links_and_no_link_is_minus_one():
    links = hungarian(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([[0.0, 1.0]]))
    assert links.rgb_to_ir.tolist() == [0, -1] and links.ir_to_rgb.tolist() == [0]
    links = hungarian(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [-0.6, 0.8]]))
    assert links.rgb_to_ir.tolist() == [-1] and links.ir_to_rgb.tolist() == [-1, -1]
    assert links.rgb_to_ir.dtype == links.ir_to_rgb.dtype == np.int64


def test_a_loaded_memory_leaves_the_state_alone():
    memory = ClusterMemory(prototypes()[0], TEMPERATURE, MOMENTUM)
    state = {"prototypes": memory.prototypes.clone()}
    memory.load_state_dict(state)
    memory.update(torch.randn(3, DIM), np.array([0, 1, 1]))
    assert not torch.equal(memory.prototypes, state["prototypes"])
