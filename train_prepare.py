"""Stage 1: cluster CLIP's image features per modality while training with a cluster memory; save pseudo labels.

    python train_prepare.py [--config_file configs/sysu.yml] [--fresh] [KEY VALUE ...]

The same command again goes on where a stopped run was.
"""
from configs.build import Parts, contrast_settings, parse_arguments
from configs.defaults import load_config
from model.cclnet import CCLNet
from model.clip import load_clip, weights_digest
from processor.stages import run_prepare
from utils.errors import exit_on_user_error
from utils.resume import StopRequest


def main():
    """Run the stage that the command line describes."""
    arguments = parse_arguments(__doc__, switches={"fresh": "start over; what the last run wrote is kept aside"})
    config = load_config(arguments.config_file, arguments.overrides)
    parts = Parts(config, "train_prepare")
    clip = load_clip(config.MODEL.CLIP_WEIGHTS)
    model = parts.place(CCLNet(clip.visual, config.INPUT.HEIGHT, config.INPUT.WIDTH))
    banks = parts.banks("train")
    with StopRequest() as stop:
        own_files = ("prepare_*", "pseudo_labels", "tensorboard/prepare")
        run = parts.start_training("prepare", stop, arguments.fresh, own_files, clip_weights=weights_digest(clip))
        run_prepare(model, banks, contrast_settings(config, config.PREPARE.EPOCHS), run)


if __name__ == "__main__":
    exit_on_user_error(main)
