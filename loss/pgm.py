"""PGM: a cross-modal loss that alternates between the modalities, over many-to-one links.

Wu and Ye, "Unsupervised Visible-Infrared Person Re-Identification via Progressive Graph Matching and Alternate
Learning" (CVPR 2023).
"""
from loss.cluster_memory import MEMORIES, MOMENTUM, TEMPERATURE, cluster_means, renewal
from loss.links import heads_for, link_by, links_of_epoch, listed, progressive, similarity
from loss.method import Method
from loss.visits import CROSS_WEIGHT, GRADIENTS, cross_visits, crossing, own_visits, renew, visit_losses
from utils.modality import Modality


class PGM(Method):
    """Cluster memories of both modalities, which from METHOD.CROSS_EPOCH on the other modality's batch meets too.

    Each image counts there as one of the cluster that its own is linked with. A batch holds two views of each visible
    image.
    """

    SETTINGS = (TEMPERATURE, MOMENTUM, renewal("hard"), link_by("centroid"), CROSS_WEIGHT, GRADIENTS)
    views = 2

    @property
    def needs(self):
        """Heads that are embedded at an epoch's start."""
        return heads_for(self.settings.link_by)

    def start(self, start, epoch):
        """Begin an epoch with prototypes that are the clusters' mean features; train on the clusters as they are."""
        s, self.epoch = self.settings, epoch
        self.memories = {m.value: MEMORIES[s.renewal](cluster_means(start.features["feature"][m], start.labels[m]),
                                                      s.temperature, s.momentum) for m in Modality}
        self.epoch_links = self.link(start)
        return start.labels

    def link(self, start):
        """Link an epoch's clusters: `Links`, None where the prototypes of each step are linked."""
        return links_of_epoch(progressive, start, self.settings.link_by)

    def losses(self, features, batch):
        """Compute {"rgb", "ir"} and, where the modalities meet, "cross"."""
        s, self.visits = self.settings, own_visits(batch)
        if self.epoch >= s.cross_epoch:
            modality, partner = crossing(self._links(), self.epoch, s.cross_epoch)
            self.visits = [*cross_visits(batch, modality, partner, s.cross_weight), *self.visits]
        return visit_losses(self.visits, self.memories, features, s.gradients)

    def update(self, features, batch):
        """Move the prototypes by all visits of `losses`."""
        renew(self.visits, self.memories, features)
        return {}

    def links(self):
        """Return the epoch's `LinkedClusters`, or those of the prototypes now."""
        rows = self.prototypes()
        return listed(self._links(), similarity(rows["rgb"], rows["ir"]).cpu().numpy())

    def prototypes(self):
        """Return the prototypes: {"rgb": (K_rgb, D), "ir": (K_ir, D)}."""
        return {name: memory.prototypes for name, memory in self.memories.items()}

    def _links(self):
        return self.epoch_links or progressive(*self.prototypes().values())
