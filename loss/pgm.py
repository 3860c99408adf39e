"""PGM: a cross-modal loss that alternates between the modalities, over many-to-one links.

Wu and Ye, "Unsupervised Visible-Infrared Person Re-Identification via Progressive Graph Matching and Alternate
Learning" (CVPR 2023).
"""
from loss.cluster_memory import MEMORIES, cluster_means, renewal
from loss.links import progressive
from loss.visits import VisitingMethod, cross_visits, crossing, own_visits, visit_losses
from utils.modality import Modality
from utils.settings import Setting


class PGM(VisitingMethod):
    """Cluster memories of both modalities, which from METHOD.CROSS_EPOCH on the other modality's batch meets too.

    Each image counts there as one of the cluster that its own is linked with. A batch holds two views of each visible
    image.
    """

    SETTINGS = (renewal("hard"),
                Setting("MIRRORED", False, (True, False), "make clusters of means over an image and its mirror image"))
    rule = staticmethod(progressive)

    @property
    def mirrored(self):
        """Whether an epoch's features are means over an image and its mirror image."""
        return self.settings.mirrored

    def start(self, start, epoch):
        """Begin an epoch with prototypes that are the clusters' mean features; train on the clusters as they are."""
        s, self.epoch = self.settings, epoch
        self.memories = {m.value: MEMORIES[s.renewal](cluster_means(start.features["feature"][m], start.labels[m]),
                                                      s.temperature, s.momentum) for m in Modality}
        self.epoch_links = self.link(start)
        return start.labels

    def losses(self, features, batch):
        """Compute {"rgb", "ir"} and, where the modalities meet, "cross"."""
        s, self.visits = self.settings, own_visits(batch)
        if self.epoch >= s.cross_epoch:
            modality, partner = crossing(self.links_now(), self.epoch, s.cross_epoch)
            self.visits = [*cross_visits(batch, modality, partner, s.cross_weight), *self.visits]
        return visit_losses(self.visits, self.memories, features, s.gradients)
