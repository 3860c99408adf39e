# %% [markdown]
# # From Python
#
# Load a checkpoint, embed folders of images, cluster them, plot them and search. Run it as a script from the
# repository's folder, or open it in an editor that knows cells (VS Code, PyCharm, Jupyter with jupytext):
#
#     python docs/tutorial.py runs/demo/seed1/model_last.pth dataset/demo/cam1 dataset/demo/cam3
#
# The words are a checkpoint, a folder of visible images and one of infrared images. `make demo` makes these.

# %% The repository's folder goes first on the path
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")           # in a notebook leave this line out
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.decomposition import PCA

from clustering.labels import cluster
from loss.cluster_memory import cluster_means
from loss.links import hungarian
from tools.search import Searcher, image_files, nearest

checkpoint, *folders = sys.argv[1:]
folders = dict(zip(("rgb", "ir"), folders))

# %% Load a checkpoint: ours, a released one, or hf://OWNER/NAME
searcher = Searcher(checkpoint, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
print(searcher.model.describe())

# %% Embed both folders: an array (N, D) for each, rows of unit length
paths = {m: image_files(folder) for m, folder in folders.items()}
features = {m: searcher.embed_files(paths[m], m) for m in folders}
print({m: rows.shape for m, rows in features.items()})

# %% Cluster each modality: k1 near the number of images of a person; -1 is an outlier
labels = {m: cluster(features[m], k1=10, k2=3, eps=0.6, min_samples=2) for m in folders}
for m, of in labels.items():
    print(f"{m}: {of.max() + 1} clusters, {(of < 0).sum()} outliers of {len(of)} images")

# %% Link the clusters of both modalities by their mean features
means = {m: torch.nn.functional.normalize(cluster_means(torch.from_numpy(features[m]), labels[m])) for m in folders}
links = hungarian((means["rgb"] @ means["ir"].T).numpy())
print(f"{(links.rgb_to_ir >= 0).sum()} visible clusters are linked with an infrared one")

# %% Plot both modalities on one map
plane = PCA(2).fit(np.concatenate(list(features.values())))
figure, axes = plt.subplots(figsize=(7, 5))
for m, marker in (("rgb", "o"), ("ir", "^")):
    x, y = plane.transform(features[m]).T
    axes.scatter(x, y, c=labels[m], cmap="tab20", marker=marker, label=m, s=18)
axes.set(title="Features; colours are clusters of each modality", xlabel="component 1", ylabel="component 2")
axes.legend()
figure.savefig("tutorial-map.png", dpi=120)
print("tutorial-map.png")

# %% Search: the visible images that are nearest to an infrared one, by cosine distance
order, distance = nearest(features["ir"][:1], features["rgb"], 5)
print(paths["ir"][0])
for place, d in zip(order[0], distance[0]):
    print(f"  {d:.3f}  {paths['rgb'][place]}")
