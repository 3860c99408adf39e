"""Writes the model card of published weights: what they are, how good and where not, how to use and cite them."""
import html
import inspect
import re
from pathlib import Path

import jinja2
import yaml

from loss.methods import METHODS
from model.published import FILE_NAME, METADATA, checkpoint_normalisation
from model.towers.registry import TOWERS
from report.run_files import NUMBERS
from utils.errors import one_line
from utils.settings import flat

MARKUP = re.compile(r"([\\`*_\[\]|#])")        # what Markdown would not show as it stands
NORMALISED_WITH = {"imagenet": "ImageNet's mean and deviation", "clip": "CLIP's mean and deviation",
                   "half": "mean and deviation 0.5"}
BASES = {"openai": "OpenAI's CLIP {}", "imagenet": "torchvision's ResNet-50 of ImageNet", "": "unknown weights"}
TEMPLATE = Path(__file__).with_suffix(".md")
CITATION = Path(__file__).resolve().parents[2] / "CITATION.cff"


def said(value):
    """Write a value of a checkpoint as Markdown that shows it as text."""
    text = "unknown" if isinstance(value, jinja2.Undefined) else one_line(value)[:200]
    return MARKUP.sub(r"\\\1", html.escape(text, quote=False))


def model_card(description, records, licence, title="", repository="", picture=""):
    """Write a model card in Markdown.

    Args: description: the content of a checkpoint without its weights, whose texts are shown as text; records: of
        metrics.json, one of every test; licence: of the weights, as the Hub names it; title: "": by method and data
        set; repository: address of the code; picture: file of ranked lists beside the card.
    """
    config, network = (flat(of) if isinstance(of := description.get(key), dict) else {} for key in ("config", "model"))
    name, kind, weights = (str(value or "") for value in (config.get("METHOD.NAME"), network.get("kind"),
                                                          config.get("MODEL.CLIP_WEIGHTS")))
    method = METHODS.get(name)
    about = said(name or "unknown")
    if method:      # what its file says first: what it does, and the paper
        about = " ".join((inspect.getmodule(method).__doc__ or method.__doc__ or name).split("\n\n")[:2])
    identities = "-true-" in name or name == "supervised"       # of tools/bounds.py
    data = said(description.get("dataset", "unknown data"))
    title = title or f"{method.__name__ if method else 'A network'} on {data}"
    tags = ["person-re-identification", "visible-infrared", *["unsupervised"] * (not identities)]
    tags += [*[name] * (name in METHODS), *([kind, *["clip"] * TOWERS[kind].has_text] if kind in TOWERS else [])]
    paper = yaml.safe_load(CITATION.read_text(encoding="utf-8"))["preferred-citation"]
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    environment.filters["said"] = said
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        head=_head(title, tags, records, licence), title=title, method=" ".join(about.split()),
        told="It was told identities in training: a bound." if identities else "Trained without identities.",
        base=BASES.get(weights, said(Path(weights).name)).format(said(config.get("MODEL.NAME", "unknown"))),
        of=description, network=network, records=records, numbers=NUMBERS, licence=licence, repository=repository,
        normalised=NORMALISED_WITH[checkpoint_normalisation(description)], picture=picture, file=FILE_NAME,
        metadata=METADATA, paper={**paper, "collection": paper["collection-title"]},
        authors=" and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]))


def _head(title, tags, records, licence):
    """Write what the Hub reads of a card, as YAML."""
    results = [{"task": {"type": "image-retrieval", "name": "visible-infrared person re-identification"},
                "dataset": {"type": str(record.get("dataset")), "name": str(record.get("protocol"))},
                "metrics": [{"type": key, "name": name, "value": round(100 * record[key], 2)}
                            for key, name in NUMBERS.items()]} for record in records]
    index = {"model-index": [{"name": title, "results": results}]} if results else {}
    return yaml.safe_dump({"license": licence, "pipeline_tag": "image-feature-extraction", "tags": tags, **index},
                          sort_keys=False, allow_unicode=True)
