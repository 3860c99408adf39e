"""Stage 2: learn a text prompt per pseudo label, then fine-tune a fresh CLIP's image side with it.

    python train_clip.py [--config_file configs/sysu.yml] [--fresh] [KEY VALUE ...]

The pseudo labels come from PSEUDO_LABEL_DIR if set, else from OUTPUT_DIR, else from ROOT/pseudo_labels.
The same command again resumes a stopped run.
"""
from configs.command_line import parse_arguments
from configs.defaults import load_config
from utils.errors import UserError, exit_on_user_error


def main():
    """Run the two stages that the command line describes."""
    arguments = parse_arguments(__doc__, switches={"fresh": "start over; what the last run wrote is kept aside"})
    config = load_config(arguments.config_file, arguments.overrides)
    from data.pseudo_labels import labels_digest
    from model.clip import TextTower  # slow: after the settings were read and checked
    from processor.guidance import TextGuidance, scale_lines
    from processor.prompt import learn_prompts, text_features
    from processor.run.epoch import on_host
    from processor.setup import Setup, prompt_settings, train_settings
    from processor.train import train
    from utils.modality import Modality

    setup = Setup(config, "train_clip")
    folder, labels, known = setup.pseudo_labels()
    model = setup.model_to_train()
    if not model.tower.has_text:
        raise UserError(f"MODEL.TOWER {model.tower.kind} has no texts, which train_clip.py learns and compares with; "
                        "train it with train_prepare.py alone, or choose a tower of CLIP")
    text = TextTower(setup.clip).to(setup.device)
    images, tester = setup.banks("train"), setup.tester()
    with setup.training("clip", arguments.fresh, pseudo_labels=labels_digest(labels)) as run:
        run.log.info(f"pseudo labels from {folder}, " + ("made on these training images" if known else
                     "as many as training images; no manifest says which images they were made on"))
        clusters = max(int(of_modality.max()) + 1 for of_modality in labels.values())
        for line in scale_lines(model, text, images, clusters, setup.clip.logit_scale.exp().item(),
                                batch_size=config.TEST.BATCH_SIZE, precision=config.PRECISION,
                                processes=run.processes):
            run.log.info(line)
        prompts = learn_prompts(model, text, images, labels, prompt_settings(config), run)
        guidance = TextGuidance(text_features(text, prompts), labels, config.FINETUNE.LABEL_SMOOTHING)
        settings = train_settings(config, config.FINETUNE.EPOCHS, config.FINETUNE.RESTART_AT_SWAP)
        train("finetune", model, images, settings, run, tester, guidance,
              {"prompts": {m.value: on_host(prompts[m].state_dict()) for m in Modality}})


if __name__ == "__main__":
    exit_on_user_error(main)
