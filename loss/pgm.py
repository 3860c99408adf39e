"""PGM: a cross-modal loss that alternates between the modalities, over many-to-one links.

Wu and Ye, "Unsupervised Visible-Infrared Person Re-Identification via Progressive Graph Matching and Alternate
Learning" (CVPR 2023).
"""
from loss.cluster_memory import MOMENTUM, RENEWAL, TEMPERATURE, cluster_memories
from loss.links import LINK_BY, LinkingMethod, progressive
from loss.visits import GRADIENTS, Visit, visit_losses, with_partner
from utils.modality import Modality
from utils.settings import Range, Setting

CROSS_WEIGHT = Setting("CROSS_WEIGHT", 0.25, Range(0), "of the cross-modal loss; with 0 its images still renew the "
                       "memory")


class Alternating(LinkingMethod):
    """A method whose batches also meet the other modality's memory, as the clusters that their own are linked with.

    They do so from METHOD.CROSS_EPOCH on, in turns: the visible batch, in the next epoch the infrared one, and so on. A
    batch holds two views of each visible image.
    """

    SETTINGS = (TEMPERATURE, MOMENTUM, LINK_BY._replace(default="centroid"), CROSS_WEIGHT, GRADIENTS)
    views = 2
    kind = None         # of memories; None: METHOD.RENEWAL says it

    def start(self, start, epoch):
        """Begin an epoch with prototypes that are the clusters' mean features; train on the clusters as they are."""
        self.epoch, self.epoch_links = epoch, self.link(start)
        self.memories = cluster_memories(start, self.settings, self.kind)
        return start.labels

    def losses(self, features, batch):
        """Compute {"rgb", "ir"} and, where the modalities meet, "cross"."""
        self.visits = self.visits_of(batch)
        return visit_losses(self.visits, self.memories, features, self.settings.gradients)

    def visits_of(self, batch):
        """List the visits of a batch, in the order in which the released code's backward pass makes them."""
        own = [Visit(m.value, m.value, m, batch.labels[m], 1.0) for m in Modality]
        turn = self.epoch - self.settings.cross_epoch
        if turn < 0:
            return own
        links = self.links()
        m, partner = (Modality.IR, links.ir_to_rgb) if turn % 2 else (Modality.RGB, links.rgb_to_ir)
        return [*self.crossing(m, batch.labels[m], partner), *own]

    def crossing(self, modality, labels, partner):
        """List the visits across: one to the other memory; none where no cluster has a partner.

        Args: modality: whose batch crosses; labels: (B,) its clusters; partner: (K,) of each cluster, -1 for none.
        """
        cross = Visit("cross", modality.other.value, modality, partner[labels], self.settings.cross_weight)
        return [cross] if (partner >= 0).any() else []

    def update(self, features, batch):
        """Move the prototypes by all visits of `losses`, one after the other."""
        for visit in self.visits:
            self.memories[visit.memory].update(*with_partner(features[visit.batch], visit.labels))
        return {}


class PGM(Alternating):
    """The alternating loss with progressive links, by default with hard prototypes."""

    SETTINGS = (RENEWAL._replace(default="hard"),
                Setting("MIRRORED", False, (True, False), "make clusters of means over an image and its mirror image"))
    rule = staticmethod(progressive)

    @property
    def mirrored(self):
        """Whether an epoch's features are means over an image and its mirror image."""
        return self.settings.mirrored
