"""The prompt stage: learn one prompt per pseudo label from projections that do not change."""
import numpy as np
import torch
from tqdm import tqdm

from data.batches import PromptBatches
from loss.image_text import supervised_contrast
from model.prompt import PromptLearner
from model.replay import Replayed
from processor.features import embed
from processor.guidance import describe_scale
from processor.optim import warmup_cosine_lr
from processor.run.epoch import end_prompt_epoch
from utils.finite import RunningMeans, check_weights
from utils.modality import Modality
from utils.runtime import to_device
from utils.seeding import torch_rng


class PromptState:
    """What the stage has reached: prompts, optimiser, and the next epoch.

    Args: text: `TextTower`; labels: Modality -> (N,) int64 pseudo labels; settings: as `learn_prompts`.
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


def learn_prompts(model, text, images, labels, settings, run, logit_scale=100.0):
    """Train the epochs that are left of the prompts; nothing else learns.

    Several processes share the embedding of the images; then each takes all steps alike: the loss contrasts each image
    with every text of the batch, whose texts a share would have to compute too. The first process's prompts count.

    Args:
        model: the `CCLNet` before fine-tuning; text: `TextTower`; images: Modality -> `ImageBank`;
        labels: Modality -> (N,) int64 pseudo labels, images of label -1 are left out;
        settings: of `processor.setup.prompt_settings`; run: `Run`; logit_scale: that CLIP was trained with.
    Returns: Modality -> `PromptLearner`.
    Raises: NonFinite: a projection, the loss or a prompt is not finite.
    """
    s, state = settings, run.restore("prompt", PromptState(text, labels, settings))
    if state.epoch <= s.epochs:
        projections = {m: embed(model, images[m], m, ("projection",), batch_size=s.embed_batch_size,
                                precision=s.precision, processes=run.processes)["projection"] for m in Modality}
        texts = text_features(text, state.prompts)
        image_norm, text_norm = (sum(float(rows[m].norm(dim=1).mean()) for m in Modality) / 2
                                 for rows in (projections, texts))
        for line in describe_scale(image_norm, text_norm, max(len(texts[m]) for m in Modality), logit_scale):
            run.log.info(line)
    if s.cuda_graphs:
        text = Replayed(text)
    for epoch in run.epochs_left("prompt", state, s.epochs):
        batches, means = PromptBatches(images, labels, s, epoch), RunningMeans()
        for group in state.optimizer.param_groups:
            group["lr"] = warmup_cosine_lr(epoch, s.epochs, s.lr, s.lr_min, s.warmup_lr, s.warmup_epochs)
        for batch in tqdm(batches, f"prompt epoch {epoch}", leave=False, disable=run.processes.hides_bars):
            means.add({"loss": prompt_step(text, state.prompts, state.optimizer, {
                m: projections[m][batch[m]] for m in Modality}, {m: labels[m][batch[m]] for m in Modality},
                s.batch_size if s.cuda_graphs else 0)})
        means.check(f"prompt epoch {epoch}", batches.names)
        end_prompt_epoch(epoch, state, s.epochs, means, run)
    for parameter in (p for m in Modality for p in state.prompts[m].parameters()):
        run.processes.same(parameter.detach())      # GPUs may differ in the last bits
    return state.prompts


def prompt_step(text, prompts, optimizer, projections, labels, texts_at_least=0):
    """Take one step of the optimiser on the prompts; return the loss, a scalar tensor. Args: as `prompt_loss`."""
    loss = prompt_loss(text, prompts, projections, labels, texts_at_least)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def prompt_loss(text, prompts, projections, labels, texts_at_least=0):
    """Sum the supervised contrast image -> text and text -> image over both modalities.

    The text of a label that repeats in the batch is computed once, those of both modalities together.

    Args:
        prompts: Modality -> `PromptLearner`; projections: Modality -> (B, E); labels: Modality -> (B,) int64 arrays;
        texts_at_least: of each modality, filled up with repeats that nothing depends on, for passes of one shape.
    """
    loss, rows, tokens = 0, {}, []
    for m in Modality:
        distinct, which = np.unique(labels[m], return_inverse=True)
        wanted = np.resize(distinct, max(texts_at_least, len(distinct)))
        *rows[m], wanted = (to_device(values, projections[m].device) for values in (labels[m], which, wanted))
        tokens.append(prompts[m](wanted))
    for m, texts in zip(Modality, text(torch.cat(tokens)).split([len(of) for of in tokens])):
        of_batch, which = rows[m]
        texts = texts[which]
        loss = loss + supervised_contrast(projections[m], of_batch, texts, of_batch)
        loss = loss + supervised_contrast(texts, of_batch, projections[m], of_batch)
    return loss


@torch.no_grad()
def text_features(text, prompts):
    """Compute the text features of all clusters: Modality -> (K, E)."""
    return {m: text(prompts[m]()) for m in Modality}
