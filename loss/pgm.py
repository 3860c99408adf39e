"""PGM: a cross-modal loss that alternates between the modalities, over many-to-one links.

Wu and Ye, "Unsupervised Visible-Infrared Person Re-Identification via Progressive Graph Matching and Alternate
Learning" (CVPR 2023).
"""
from loss.cluster_memory import renewal
from loss.links import progressive
from loss.visits import VisitingMethod
from utils.settings import Setting


class PGM(VisitingMethod):
    """Cluster memories of both modalities, and the alternating visits of `VisitingMethod`."""

    SETTINGS = (renewal("hard"),
                Setting("MIRRORED", False, (True, False), "make clusters of means over an image and its mirror image"))
    rule = staticmethod(progressive)

    @property
    def mirrored(self):
        """Whether an epoch's features are means over an image and its mirror image."""
        return self.settings.mirrored
