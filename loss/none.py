"""No links: each modality is trained alone, to the end."""
from loss.cluster_memory import MOMENTUM, RENEWAL, TEMPERATURE, cluster_memories, update_memories
from loss.method import Method
from utils.modality import Modality


class NoLinks(Method):
    """Cluster memories of both modalities that never meet."""

    SETTINGS = (TEMPERATURE, MOMENTUM, RENEWAL)

    def start(self, start, epoch):
        """Begin an epoch with prototypes that are the clusters' mean features."""
        self.memories = cluster_memories(start, self.settings)
        return start.labels

    def losses(self, features, batch):
        """Compute each modality's contrastive loss: {"rgb", "ir"}."""
        return {m.value: self.memories[m.value].loss(features[m], batch.labels[m]) for m in Modality}

    def update(self, features, batch):
        """Move the prototypes to the batch."""
        update_memories(self.memories, features, batch.labels)
        return {}
