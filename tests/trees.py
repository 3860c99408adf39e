"""Miniature trees of each data set's layout, with tiny images; tests break them one way each."""
from itertools import chain, product

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (12, 24)                                          # width, height of an image
SYSU_IDS = {"train": (1, 2), "val": (3,), "test": (4, 5, 6)}
SYSU_CAMERAS = range(1, 7)


def save_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=100, subsampling=0)


def write_image(path, rng, mode="RGB"):
    """A file of random pixels that differ from every other file's."""
    save_image(path, rng.integers(0, 256, SIZE[::-1] + ((3,) if mode == "RGB" else ()), dtype=np.uint8))


def people_tree(root, images=2, ids=SYSU_IDS):
    """SYSU-MM01: everybody in every camera, `images` files each: a pattern per person with noise, grey in infrared."""
    rng = np.random.default_rng(0)
    (root / "exp").mkdir(parents=True)
    for split, persons in ids.items():
        (root / "exp" / f"{split}_id.txt").write_text(",".join(map(str, persons)) + "\n")
    for person in chain(*ids.values()):
        look = rng.integers(0, 256, (SIZE[1] // 4, SIZE[0] // 4, 3)).repeat(4, 0).repeat(4, 1)
        for camera, number in product(SYSU_CAMERAS, range(1, images + 1)):
            pixels = look.mean(2, keepdims=True).repeat(3, 2) if camera in (3, 6) else look
            noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
            save_image(root / f"cam{camera}" / f"{person:04d}" / f"{number:04d}.jpg", noisy)
    return root


def permutation_file(root, trials=3, persons=6, images=2):
    """exp/rand_perm_cam.mat for a tree with `images` files per person and camera; the cells as nested lists."""
    rng = np.random.default_rng(1)
    rows = [[[rng.permutation(images) + 1 for _ in range(trials)] for _ in range(persons)] for _ in SYSU_CAMERAS]
    cells = np.empty((len(SYSU_CAMERAS), 1), dtype=object)
    for camera, of_camera in enumerate(rows):
        cells[camera, 0] = np.empty((persons, 1), dtype=object)
        for person, of_person in enumerate(of_camera):
            cells[camera, 0][person, 0] = np.array(of_person, dtype=np.uint8)
    savemat(root / "exp" / "rand_perm_cam.mat", {"rand_perm_cam": cells})
    return rows


def regdb_tree(root, persons=2, images=2, trials=(1, 2)):
    """RegDB: 2 * persons people, `images` files per person and modality; thermal ones have one channel."""
    rng = np.random.default_rng(0)
    (root / "idx").mkdir(parents=True)
    for folder, mode in (("Visible", "RGB"), ("Thermal", "L")):
        for person in range(1, 2 * persons + 1):
            for number in range(images):
                write_image(root / folder / str(person) / f"{folder[0].lower()}_{number}.bmp", rng, mode)
    for trial in trials:
        people = rng.permutation(np.arange(1, 2 * persons + 1))
        for split, chosen in (("train", people[:persons]), ("test", people[persons:])):
            for sensor in ("visible", "thermal"):
                lines = [f"{sensor.title()}/{person}/{sensor[0]}_{number}.bmp {label}"
                         for label, person in enumerate(chosen) for number in range(images)]
                (root / "idx" / f"{split}_{sensor}_{trial}.txt").write_text("\n".join(lines) + "\n")
    return root


def llcm_tree(root, train=(1, 2, 3), test=(4, 5), images=2):
    """LLCM: test persons in every camera, training persons in cameras 1 and 2."""
    rng = np.random.default_rng(0)
    (root / "idx").mkdir(parents=True)
    for sensor, cameras in (("vis", range(1, 10)), ("nir", (1, 2, 4, 5, 6, 7, 8, 9))):
        lines = []
        for label, person in enumerate(train):
            for path in (f"train_{sensor}/cam{camera}/{person:04d}/{number}.jpg"
                         for camera in (1, 2) for number in range(images)):
                write_image(root / path, rng)
                lines.append(f"{path} {label}")
        (root / "idx" / f"train_{sensor}.txt").write_text("\n".join(lines) + "\n")
        for path in (f"test_{sensor}/cam{camera}/{person:04d}/{number}.jpg"
                     for person in test for camera in cameras for number in range(images)):
            write_image(root / path, rng)
    (root / "idx" / "test_id.txt").write_text(",".join(map(str, test)))
    return root


def edit(path, old, new):
    """Replace a part of a text file that is there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
