"""Stage 1: cluster CLIP's image features per modality while training with a cluster memory; save pseudo labels.

    python train_prepare.py [--config_file configs/sysu.yml] [--fresh] [KEY VALUE ...]

The same command again resumes a stopped run.
"""
from configs.command_line import parse_arguments
from configs.defaults import load_config
from utils.errors import exit_on_user_error


def main():
    """Run the stage that the command line describes."""
    arguments = parse_arguments(__doc__, switches={"fresh": "start over; what the last run wrote is kept aside"})
    config = load_config(arguments.config_file, arguments.overrides)
    from processor.setup import Setup, train_settings  # slow: after the settings were read and checked
    from processor.train import train

    settings = train_settings(config, config.PREPARE.EPOCHS, config.PREPARE.RESTART_AT_SWAP,
                              allow_collapse=config.PREPARE.ALLOW_COLLAPSE, texts=False)
    setup = Setup(config, "train_prepare")
    model, images, tester = setup.model_to_train(), setup.banks("train"), setup.tester()
    with setup.training("prepare", arguments.fresh) as run:
        train("prepare", model, images, settings, run, tester)


if __name__ == "__main__":
    exit_on_user_error(main)
