"""Stage 2: learn a text prompt per pseudo label, then fine-tune a fresh CLIP's image side with it.

    python train_clip.py [--config_file configs/sysu.yml] [--fresh] [KEY VALUE ...]

The pseudo labels come from PSEUDO_LABEL_DIR if set, else from OUTPUT_DIR, else from ROOT/pseudo_labels.
The same command again goes on where a stopped run was.
"""
from configs.build import Parts, contrast_settings, parse_arguments, prompt_settings
from configs.defaults import load_config
from model.cclnet import CCLNet
from model.clip import TextTower, load_clip, weights_digest
from processor.pseudo_labels import find_pseudo_labels, labels_digest, load_pseudo_labels
from processor.stages import run_clip
from utils.errors import exit_on_user_error
from utils.resume import StopRequest


def main():
    """Run the stage that the command line describes."""
    arguments = parse_arguments(__doc__, switches={"fresh": "start over; what the last run wrote is kept aside"})
    config = load_config(arguments.config_file, arguments.overrides)
    parts = Parts(config, "train_clip")
    folder = find_pseudo_labels(config.PSEUDO_LABEL_DIR, config.OUTPUT_DIR, parts.data.label_dirs())
    labels, known = load_pseudo_labels(folder, {m: len(images) for m, images in parts.data.train.items()},
                                       parts.manifest)
    clip = load_clip(config.MODEL.CLIP_WEIGHTS)
    model = parts.place(CCLNet(clip.visual, config.INPUT.HEIGHT, config.INPUT.WIDTH))
    text = TextTower(clip).to(parts.device)
    banks = parts.banks("train")
    with StopRequest() as stop:
        own_files = ("model_*", "clip_state*", "tensorboard/prompt", "tensorboard/model")
        run = parts.start_training("clip", stop, arguments.fresh, own_files, pseudo_labels=labels_digest(labels),
                                   clip_weights=weights_digest(clip))
        run.log.info(f"pseudo labels from {folder}, " + ("made on these training images" if known else
                     "as many as training images; no manifest says which images they were made on"))
        run_clip(model, text, banks, labels, prompt_settings(config),
                 contrast_settings(config, config.FINETUNE.EPOCHS, config.FINETUNE.RESTART_AT_SWAP),
                 config.FINETUNE.LABEL_SMOOTHING, run)


if __name__ == "__main__":
    exit_on_user_error(main)
