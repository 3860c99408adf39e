"""Test a checkpoint: Rank-k, mAP and mINP, printed and written to OUTPUT_DIR/metrics.json.

    python test.py --resume_path runs/sysu/model_last.pth [--config_file ...] [KEY VALUE ...]

Settings are those of the checkpoint unless a file or KEY VALUE pairs change them. Without --resume_path CLIP is
tested as it is.
"""
from pathlib import Path

from configs.build import Parts, parse_arguments
from configs.defaults import load_config
from model.cclnet import CCLNet
from model.checkpoint import model_from_checkpoint
from model.clip import load_clip
from processor.evaluate import format_table, metrics_record
from utils.checkpoint import load_checkpoint, save_json
from utils.errors import exit_on_user_error
from utils.runtime import precision


def main():
    """Run the test that the command line describes."""
    arguments = parse_arguments(__doc__, resume_path="checkpoint of train_prepare.py or train_clip.py")
    path = arguments.resume_path
    content = load_checkpoint(path) if path else {}
    config = load_config(arguments.config_file, arguments.overrides, base=content.get("config"))
    size = config.INPUT.HEIGHT, config.INPUT.WIDTH
    parts = Parts(config, "test")
    if path:
        model, what = model_from_checkpoint(content, path, *size), path
    else:
        model, what = CCLNet(load_clip(config.MODEL.CLIP_WEIGHTS).visual, *size).eval(), "CLIP as it is"
    parts.start()
    with precision(config.PRECISION, parts.device):
        evaluation = parts.tester()(model.to(parts.device))
    parts.log.info(f"{what}: {evaluation.protocol}, mean of {len(evaluation.trials)} trials\n"
                   + format_table([{"what": Path(what).name, **evaluation.mean()}]))
    output = Path(config.OUTPUT_DIR) / "metrics.json"
    selection = content.get("selected", "last epoch" if path else "no training")
    save_json(output, metrics_record(evaluation, parts.data, checkpoint=what, epoch=content.get("epoch", 0),
                                     selection=selection))
    parts.log.info(f"written to {output}")


if __name__ == "__main__":
    exit_on_user_error(main)
