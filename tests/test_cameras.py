"""Camera proxies beside any method: losses and renewal worked out by hand, and in the loop."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from loss.cameras import CameraProxies, with_cameras
from loss.method import EpochStart, Method
from processor.train import train
from tests.tiny import EACH, IMAGES, TinyRun, tiny_settings, tiny_tester
from utils.errors import UserError
from utils.modality import Modality

X = torch.tensor([[5.0, 0.0]])      # an image; its length does not count


def odds(*values):
    """Unit rows whose logits with X are the logarithms of values. Returns: (N, 2)."""
    cosines = 0.07 * torch.tensor(values).log()
    return torch.stack([cosines, (1 - cosines ** 2).sqrt()], dim=1)


# Five images, each alone in its camera of its cluster, and an outlier: proxies with the odds 3, 2, 1, 4, 5.
ROWS, CLUSTERS, CAMERAS = odds(3, 2, 1, 4, 5, 6), np.array([0, 0, 1, 1, 2, -1]), np.array([1, 4, 1, 2, 2, 4])


def test_losses_and_renewal_by_hand():
    proxies = CameraProxies(torch.cat([ROWS, ROWS]), np.tile(CLUSTERS, 2), np.tile(CAMERAS, 2))      # means of two
    intra, inter = proxies.losses(X, [0])
    assert float(intra) == pytest.approx(np.log(4 / 3), rel=1e-4)         # camera 1: 3 of 3 + 1
    assert float(inter) == pytest.approx(-(np.log(3 / 15) + np.log(2 / 15)) / 2, rel=1e-4)      # cluster 0 of all
    both = proxies.losses(X.repeat(2, 1), [0, 3])                         # camera 2: 4 of 4 + 5; cluster 1: 1 and 4
    assert float(both[0]) == pytest.approx((np.log(4 / 3) + np.log(9 / 4)) / 2, rel=1e-4)
    assert float(both[1]) == pytest.approx(-np.log([3 / 15, 2 / 15, 1 / 15, 4 / 15]).sum() / 4, rel=1e-4)
    before = proxies.memory.prototypes.clone()
    proxies.update(X, [1])
    moved = 0.2 * ROWS[1] + 0.8 * X[0] / 5
    torch.testing.assert_close(proxies.memory.prototypes[1], moved / moved.norm())
    assert torch.equal(proxies.memory.prototypes[[0, 2, 3, 4]], before[[0, 2, 3, 4]])


def test_only_the_fifty_most_similar_proxies_of_other_clusters_count():
    rows, clusters = odds(3, 2, *[2] * 49, *[1] * 10, 4), np.array([0, 0, *range(1, 61)])
    _, inter = CameraProxies(rows, clusters, np.arange(62) % 2).losses(X, [0])
    assert float(inter) == pytest.approx(-(np.log(3) + np.log(2)) / 2 + np.log(3 + 2 + 49 * 2 + 4), rel=1e-4)


class Still(Method):
    """A method of another project that knows nothing of cameras."""

    views = 2

    def start(self, start, epoch):
        return start.labels

    def losses(self, features, batch):
        return {"still": 0 * features[Modality.RGB].sum()}

    def update(self, features, batch):
        return {"seen": 1}


def test_any_method_gets_them_by_its_weight():
    assert isinstance(with_cameras(Still()), Still)
    method = with_cameras(Still(camera_weight=3.0))
    start = EpochStart({"feature": dict.fromkeys(Modality, ROWS)}, dict.fromkeys(Modality, CLUSTERS),
                       dict.fromkeys(Modality, CAMERAS))
    assert method.start(start, 1) is start.labels and method.views == 2 and method.links() is None
    x, batch = dict.fromkeys(Modality, X), SimpleNamespace(positions=dict.fromkeys(Modality, np.array([0])))
    losses = {name: float(loss) for name, loss in method.losses(x, batch).items()}
    assert losses == pytest.approx({"still": 0, "camera_intra": 3 * 2 * np.log(4 / 3), "camera_inter": 3 * 0.5 * 2 * -(
        np.log(3 / 15) + np.log(2 / 15)) / 2}, rel=1e-4)
    method.method.losses = lambda *_: {"camera_intra": X.sum()}
    with pytest.raises(UserError, match="loss camera_intra has the name"):
        method.losses(x, batch)
    assert method.update(x, batch) == {"seen": 1} and not torch.equal(method.prototypes()["cameras_ir"], ROWS[:5])


def test_in_the_loop(model, banks, tmp_path, monkeypatch):
    """SDCL splits a tower's features in two; proxies are of whole ones."""
    for bank in banks.values():
        monkeypatch.setattr(bank, "cameras", np.arange(IMAGES) % EACH // 2)
    settings = tiny_settings(1, METHOD__NAME="sdcl", METHOD__CAMERA_WEIGHT=0.5, METHOD__CROSS_EPOCH=1)
    run = TinyRun(tmp_path)
    train("prepare", model, banks, settings, run, tiny_tester(banks))
    row, = run.rows("prepare")
    assert row["loss_camera_intra"] > 0 and row["loss_camera_inter"] > 0 and row["loss_rgb"] > 0
