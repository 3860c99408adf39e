"""The cluster memory against a loop over samples, and what swapping may touch."""
import pytest
import torch
import torch.nn.functional as F

from loss.cluster_memory import ClusterMemory, PrototypeSimilarity, match_prototypes, swap


def memories(clusters_rgb=7, clusters_ir=5, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [ClusterMemory(torch.randn(k, dim, generator=generator)) for k in (clusters_rgb, clusters_ir)]


@pytest.mark.parametrize("seed", range(5))
def test_update_is_sequential_in_batch_order(seed):
    memory, _ = memories(seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    x, labels = torch.randn(40, 16, generator=generator), torch.randint(0, 7, (40,), generator=generator)
    expected = memory.prototypes.clone()
    for sample, label in zip(F.normalize(x, dim=1), labels):
        expected[label] = F.normalize(0.1 * expected[label] + 0.9 * sample, dim=0)
    memory.update(x, labels)
    torch.testing.assert_close(memory.prototypes, expected)


def test_update_leaves_other_clusters_alone_and_rows_unit_length():
    memory, _ = memories()
    before = memory.prototypes.clone()
    memory.update(torch.randn(6, 16), torch.tensor([2, 2, 4, 2, 4, 4]))
    changed = (memory.prototypes != before).any(1)
    assert changed.tolist() == [False, False, True, False, True, False, False]
    torch.testing.assert_close(memory.prototypes.norm(dim=1), torch.ones(7))


def naive_swap(rgb, ir, pairs, labels_rgb, labels_ir, scale, simultaneous):
    rgb, ir, old_rgb = rgb.clone(), ir.clone(), rgb.clone()
    for r, i in pairs:
        old = ir[i].clone()
        if r in labels_rgb:
            rgb[r] = F.normalize(scale * rgb[r] + (1 - scale) * old, dim=0)
        if i in labels_ir:
            ir[i] = F.normalize(scale * old + (1 - scale) * (old_rgb if simultaneous else rgb)[r], dim=0)
    return rgb, ir


@pytest.mark.parametrize("order", ["released", "simultaneous"])
@pytest.mark.parametrize("sizes", [(7, 5), (5, 7), (6, 6), (1, 4)])
def test_swap_orders(order, sizes):
    rgb, ir = memories(*sizes)
    matched = match_prototypes(PrototypeSimilarity(rgb, ir).values)
    pairs = list(zip(matched.rgb.tolist(), matched.ir.tolist()))
    assert pairs, "the drawn prototypes should match somewhere"
    labels_rgb = torch.arange(0, sizes[0], 2)
    labels_ir = torch.arange(sizes[1] // 2, sizes[1])
    expected = naive_swap(rgb.prototypes, ir.prototypes, pairs, labels_rgb.tolist(), labels_ir.tolist(), 0.1,
                          order == "simultaneous")
    swap(rgb, ir, labels_rgb, labels_ir, 0.1, order)
    torch.testing.assert_close(rgb.prototypes, expected[0])
    torch.testing.assert_close(ir.prototypes, expected[1])


def test_pairs_below_zero_are_dropped():
    rgb = ClusterMemory(torch.tensor([[1.0, 0.0], [0.6, -0.8]]))
    ir = ClusterMemory(torch.tensor([[-1.0, 0.1], [0.8, -0.6]]))
    similarity = PrototypeSimilarity(rgb, ir).values
    kept = match_prototypes(similarity)             # the full matching is (0, 1), (1, 0) or (0, 0), (1, 1)
    assert len(kept.rgb) == 1 and kept.cosine[0] == similarity[kept.rgb[0], kept.ir[0]] >= 0
    assert len(match_prototypes(-torch.eye(3)[:1, :1]).rgb) == 0


@pytest.mark.parametrize("order", ["released", "simultaneous"])
def test_a_kept_similarity_swaps_as_one_computed_anew(order):
    kept, plain = memories(9, 6), memories(9, 6)
    similarity, generator = PrototypeSimilarity(*kept), torch.Generator().manual_seed(1)
    for _ in range(5):
        labels = [torch.randint(0, k, (8,), generator=generator) for k in (9, 6)]
        x = [torch.randn(8, 16, generator=generator) for _ in labels]
        for pair in (kept, plain):
            for memory, features, y in zip(pair, x, labels):
                memory.update(features, y)
        pairs, expected = swap(*kept, *labels, 0.1, order, similarity), swap(*plain, *labels, 0.1, order)
        assert pairs.rgb.tolist() == expected.rgb.tolist() and pairs.ir.tolist() == expected.ir.tolist()
        assert pairs.cosine == pytest.approx(expected.cosine, abs=1e-6)
        for a, b in zip(kept, plain):
            torch.testing.assert_close(a.prototypes, b.prototypes)
