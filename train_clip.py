"""Stage 2: learn a text prompt per pseudo label, then fine-tune a fresh CLIP's image side with it.

    python train_clip.py [--config_file configs/sysu.yml] [--fresh] [KEY VALUE ...]

The pseudo labels come from PSEUDO_LABEL_DIR if set, else from OUTPUT_DIR, else from ROOT/pseudo_labels.
The same command again resumes a stopped run.
"""
from configs.command_line import parse_arguments
from utils.errors import exit_on_user_error


def main():
    """Run the two stages that the command line describes."""
    arguments = parse_arguments(__doc__, switches={"fresh": "start over; what the last run wrote is kept aside"})
    from configs.defaults import load_config  # slow: after the command line was read
    from data.pseudo_labels import labels_digest
    from model.clip import TextTower
    from model.state_dict import weights_digest
    from processor.guidance import TextGuidance
    from processor.prompt import learn_prompts, text_features
    from processor.run.epoch import finish_stage
    from processor.setup import Setup, prompt_settings, train_settings
    from processor.train import train
    from report.write import save_stage_page

    config = load_config(arguments.config_file, arguments.overrides)
    setup, settings = Setup(config, "train_clip"), train_settings(config, "finetune")
    labels, origin = setup.pseudo_labels()
    model, clip = setup.model_to_train("finetune"), setup.clip()
    text = TextTower(clip).to(setup.device)
    images, tester = setup.banks("train"), setup.tester()
    made_from = {"pseudo_labels": labels_digest(labels), "texts": weights_digest(text)}
    with setup.training("clip", arguments.fresh, **made_from) as run:
        run.log.info(origin)
        scale = clip.logit_scale.exp().item()
        prompts = learn_prompts(model, text, images, labels, prompt_settings(config), run, scale)
        run.more["prompts"] = {m.value: learner.state_dict() for m, learner in prompts.items()}
        guidance = TextGuidance(text_features(text, prompts), labels, config.FINETUNE.LABEL_SMOOTHING)
        state = train("finetune", model, images, settings, run, tester, guidance)
        finish_stage("finetune", state, run, tester)
        save_stage_page("finetune", state, run, tester, images)


if __name__ == "__main__":
    exit_on_user_error(main)
