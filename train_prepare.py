"""Stage 1: cluster image features per modality while training with the clusters; save the clusters as pseudo labels.

    python train_prepare.py [--config_file configs/sysu.yml] [--fresh] [KEY VALUE ...]

The same command again resumes a stopped run.
"""
from configs.command_line import parse_arguments
from utils.errors import exit_on_user_error


def main():
    """Run the stage that the command line describes."""
    arguments = parse_arguments(__doc__, switches={"fresh": "start over; what the last run wrote is kept aside"})
    from configs.defaults import load_config  # slow: after the command line was read
    from processor.run.epoch import finish_stage
    from processor.setup import Setup, train_settings
    from processor.train import train
    from report.write import save_stage_page

    config = load_config(arguments.config_file, arguments.overrides)
    setup, settings = Setup(config, "train_prepare"), train_settings(config, "prepare")
    model, images, tester = setup.model_to_train("prepare"), setup.banks("train"), setup.tester()
    with setup.training("prepare", arguments.fresh) as run:
        state = train("prepare", model, images, settings, run, tester)
        finish_stage("prepare", state, run, tester)
        save_stage_page("prepare", state, run, tester, images)


if __name__ == "__main__":
    exit_on_user_error(main)
