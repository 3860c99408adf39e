"""What a stage has reached at the end of an epoch: all that the epochs left depend on, beside data and settings."""
import torch

from loss.links import LinkedClusters
from model.prompt import PromptLearner
from processor.optim import image_optimizer
from utils.finite import check_weights
from utils.modality import Modality
from utils.seeding import torch_rng


class TrainState:
    """Weights, optimiser, and the next epoch. Args: model: `CCLNet`; settings: `TrainSettings`."""

    def __init__(self, model, settings):
        self.model, self.settings, self.epoch = model, settings, 1
        self.labels = None      # of the last epoch, Modality -> (N,), for the pseudo labels and the page
        self.linked = None      # its `LinkedClusters`
        self.evaluation = None  # `Evaluation` of the test at its end, if there was one; not saved
        self.best = None        # weights that were best on test data, where the method's `best_epoch` is to come
        self.renew_optimizer()

    def renew_optimizer(self):
        """Begin with a new optimiser, without memory of earlier steps."""
        o = self.settings.optim
        self.optimizer = image_optimizer(self.model.named_parameters(), o.lr, o.weight_decay, o.bias_lr_factor,
                                         o.factors, o.name)

    def take_best(self):
        """Go on with the weights that were best on test data; the optimiser stays."""
        self.model.load_state_dict(self.best)
        self.best = None

    def state_dict(self):
        """Return it as tensors and numbers."""
        return {"epoch": self.epoch, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "labels": {m.value: torch.from_numpy(labels) for m, labels in self.labels.items()}, "best": self.best,
                "linked": self.linked and [torch.from_numpy(values) for values in self.linked]}

    def load_state_dict(self, state):
        """Take over a saved state."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state.get("best")
        self.labels = {m: state["labels"][m.value].numpy() for m in Modality}
        self.linked = state["linked"] and LinkedClusters(*(values.numpy() for values in state["linked"]))


class PromptState:
    """Prompts, optimiser, and the next epoch.

    Args: text: `TextTower`; labels: Modality -> (N,) int64 pseudo labels; settings: `PromptSettings`.
    """

    def __init__(self, text, labels, settings):
        s, device = settings, text.positional_embedding.device
        self.prompts = {m: PromptLearner(int(labels[m].max()) + 1, m, text, torch_rng(s.seed, "prompts", m.value)
                                         ).to(device) for m in Modality}
        self.optimizer = torch.optim.Adam([p for m in Modality for p in self.prompts[m].parameters()], lr=s.lr,
                                          weight_decay=s.weight_decay)
        self.epoch = 1

    def state_dict(self):
        """Return it as tensors and numbers. Raises: NonFinite: a prompt is not finite."""
        for m in Modality:
            check_weights(self.prompts[m].state_dict(), f"prompt epoch {self.epoch - 1}")
        return {"epoch": self.epoch, "optimizer": self.optimizer.state_dict(),
                "prompts": {m.value: self.prompts[m].state_dict() for m in Modality}}

    def load_state_dict(self, state):
        """Take over a saved state."""
        self.epoch = state["epoch"]
        self.optimizer.load_state_dict(state["optimizer"])
        for m in Modality:
            self.prompts[m].load_state_dict(state["prompts"][m.value])
