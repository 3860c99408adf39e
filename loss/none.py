"""No links: each modality is trained alone, to the end."""
from loss.cluster_memory import MEMORIES, MOMENTUM, TEMPERATURE, cluster_means, renewal
from loss.method import Method
from utils.modality import Modality


class NoLinks(Method):
    """Cluster memories of both modalities that never meet."""

    SETTINGS = (TEMPERATURE, MOMENTUM, renewal("plain"))

    def start(self, start, epoch):
        """Begin an epoch with prototypes that are the clusters' mean features."""
        s = self.settings
        self.memories = {m: MEMORIES[s.renewal](cluster_means(start.features["feature"][m], start.labels[m]),
                                                s.temperature, s.momentum) for m in Modality}
        return start.labels

    def losses(self, features, batch):
        """Compute each modality's contrastive loss: {"rgb", "ir"}."""
        return {m.value: memory.loss(features[m], batch.labels[m]) for m, memory in self.memories.items()}

    def update(self, features, batch):
        """Move the prototypes to the batch."""
        memories = list(self.memories.values())
        memories[0].update_all(memories, [features[m] for m in self.memories], [batch.labels[m] for m in self.memories])
        return {}

    def prototypes(self):
        """Return the prototypes: {"rgb": (K_rgb, D), "ir": (K_ir, D)}."""
        return {m.value: memory.prototypes for m, memory in self.memories.items()}
