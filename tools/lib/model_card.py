"""Writes the model card of published weights: what they are, how good and where not, how to use and cite them."""
import html
import inspect
import re
from pathlib import Path

import yaml

from loss.methods import METHODS
from model.published import FILE_NAME, METADATA, checkpoint_normalisation
from model.towers.registry import TOWERS
from utils.errors import one_line
from utils.settings import flat

MARKUP = re.compile(r"([\\`*_\[\]|#])")        # what Markdown would not show as it stands
NORMALISED_WITH = {"imagenet": "ImageNet's mean and deviation", "clip": "CLIP's mean and deviation",
                   "half": "mean and deviation 0.5"}
NUMBERS = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "rank20": "Rank-20", "mAP": "mAP", "mINP": "mINP"}
BASES = {"openai": "OpenAI's CLIP {}", "imagenet": "torchvision's ResNet-50 of ImageNet", "": "unknown weights"}
CITATION = Path(__file__).resolve().parents[2] / "CITATION.cff"
CARD = """---
{head}---

# {title}

Embeds visible and infrared images of persons so that those of the same person are close together. {told}

- **Method**: {method}
- **Base model**: {base}; network {kind}.
- **Training**: stage {stage}, epoch {epoch} ({selected}).
- **Code**: {code}; the authors' own of CCLNet is https://github.com/CzAngus/CCLNet.
- **Data**: {data}; its own terms of use hold for what was learned from it.
- **Input**: RGB images, {height} x {width} pixels, scaled to 0-1, normalised with {normalised}.
- **Licence**: {licence}; the code is MIT.

{results}
## Use

In Python, with the code's folder on the path:

```python
import torch

from tools.search import Searcher
from utils.modality import Modality

searcher = Searcher("{file}", torch.device("cpu"))       # or "hf://OWNER/NAME"
visible = searcher.embed_files(["visible.jpg"], Modality.RGB)
infrared = searcher.embed_files(["infrared.jpg"], Modality.IR)
print(float(1 - visible[0] @ infrared[0]))      # cosine distance
```

`python test.py --resume_path {file}` tests the weights, and
`python tools/search.py --checkpoint {file} --gallery FOLDER --query IMAGE` finds a person in a folder. The
weights are plain tensors; the file's metadata hold, under `{metadata}`, the configuration as JSON.

## Limits

- Numbers are those of the test persons of one data set; with other cameras, places and seasons they are lower.
- A nearest image is no proof that it shows the same person. Searching for persons in camera images is surveillance;
  whether you may is for you to find out.
{limits}
## Citation

```
{citation}
```
"""
CHOSEN = "- The epoch was chosen on test data: its numbers are higher than a fair choice would give.\n"
DRAWN = "- It was trained on drawn people, and is of no use for photographs.\n"


def model_card(description, records, licence, title="", repository="", picture=""):
    """Write a model card in Markdown.

    Args: description: the content of a checkpoint without its weights, whose texts are shown as text; records: of
        metrics.json, one of every test; licence: of the weights, as the Hub names it; title: "": by method and data
        set; repository: address of the code; picture: file of ranked lists beside the card.
    """
    def said(key, unknown="unknown", of=description):
        return MARKUP.sub(r"\\\1", html.escape(one_line(of.get(key, unknown))[:200], quote=False))

    config, network = (flat(of) if isinstance(of := description.get(key), dict) else {} for key in ("config", "model"))
    name, kind, weights = (str(value or "") for value in (config.get("METHOD.NAME"), network.get("kind"),
                                                          config.get("MODEL.CLIP_WEIGHTS")))
    method = METHODS.get(name)
    # What its file says first: what it does, and the paper.
    about = inspect.getmodule(method).__doc__.strip().split("\n\n")[:2] if method else [said("METHOD.NAME", of=config)]
    identities = "-true-" in name       # of tools/bounds.py
    title = title or f"{method.__name__ if method else 'A network'} on {said('dataset', 'unknown data')}"
    tags = ["person-re-identification", "visible-infrared", *["unsupervised"] * (not identities)]
    tags += [*[name] * (name in METHODS), *([kind, *["clip"] * TOWERS[kind].has_text] if kind in TOWERS else [])]
    return CARD.format(
        head=_head(title, tags, records, licence), title=title, method=" ".join(" ".join(about).split()),
        told="It was told identities in training: a bound." if identities else "Trained without identities.",
        stage=said("stage"), epoch=said("epoch"), selected=said("selected", "last epoch"),
        code=f"[{repository}]({repository})" if repository else "the project that wrote this card",
        base=BASES.get(weights, said("", of={"": Path(weights).name})).format(said("MODEL.NAME", of=config)),
        kind=said("kind", of=network), height=network.get("height"), width=network.get("width"), licence=licence,
        data=said("dataset") + f", trial {said('trial')}" * (description.get("dataset") == "regdb"),
        normalised=NORMALISED_WITH[checkpoint_normalisation(description)], results=_results(records, picture, said),
        file=FILE_NAME, metadata=METADATA, citation=bibtex(),
        limits=CHOSEN * ("best" in said("selected")) + DRAWN * (description.get("dataset") == "demo"))


def _results(records, picture, said):
    """Write a table of all tests, and show the picture."""
    table = ["## Results", "", f"| protocol | {' | '.join(NUMBERS.values())} | trials |",
             "| --- " * (len(NUMBERS) + 2) + "|",
             *(f"| {said('protocol', of=record)} | " + " | ".join(f"{100 * record[key]:.2f}" for key in NUMBERS)
               + f" | {said('trials', 1, record)} |" for record in records), "",
             "Percent, means over the trials, tested by the code that trained it.", ""]
    shown = [f"![Ranked lists]({picture})", "", "*Queries at the left and their nearest images of the other modality, "
             "green where it is the same person; with each query's average precision.*", ""]
    return "\n".join([*(table if records else []), *(shown if picture else [])])


def _head(title, tags, records, licence):
    """Write what the Hub reads of a card, as YAML."""
    results = [{"task": {"type": "image-retrieval", "name": "visible-infrared person re-identification"},
                "dataset": {"type": str(record.get("dataset")), "name": str(record.get("protocol"))},
                "metrics": [{"type": key, "name": name, "value": round(100 * record[key], 2)}
                            for key, name in NUMBERS.items()]} for record in records]
    index = {"model-index": [{"name": title, "results": results}]} if results else {}
    return yaml.safe_dump({"license": licence, "pipeline_tag": "image-feature-extraction", "tags": tags, **index},
                          sort_keys=False, allow_unicode=True)


def bibtex():
    """Write the paper that CITATION.cff asks to cite, as BibTeX."""
    paper = yaml.safe_load(CITATION.read_text(encoding="utf-8"))["preferred-citation"]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    fields = {"title": paper["title"], "author": authors, "booktitle": paper["collection-title"],
              "pages": f"{paper['start']}--{paper['end']}", "year": paper["year"], "doi": paper["doi"]}
    lines = (f"  {key} = {{{value}}}," for key, value in fields.items())
    return "\n".join(["@inproceedings{chen2023unveiling,", *lines, "}"])
