"""Draw synthetic people in the SYSU-MM01 folder layout, so that the whole pipeline runs without a download.

A person is drawn once as a map of materials; the modality then decides how bright each material is: a colour
in the visible image, a reflectance that knows nothing of that colour in the infrared one. What the two images
of a person share is therefore shape: build, garments, pattern, bag, hat and hair.
"""
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data import sysu
from data.sketch import OVERSAMPLING, Material, draw_materials
from utils.errors import explained, quoted

HEIGHT, WIDTH = 128, 64     # pixels of a saved image
SEED = 0
SPLITS = {"train": 52, "val": 12, "test": 32}       # identities
IMAGES = {1: 4, 2: 4, 3: 7, 4: 3, 5: 3, 6: 7}       # camera id -> images of each identity
INFRARED_CAMERAS = (3, 6)
CAMERA_VARIATION = 0.5      # see draw_camera

COLOURS = {"red": (186, 38, 44), "orange": (226, 124, 36), "yellow": (222, 200, 62), "green": (52, 130, 62),
           "blue": (42, 78, 172), "purple": (112, 54, 142), "pink": (222, 132, 170), "brown": (104, 68, 42),
           "white": (226, 226, 222), "gray": (128, 130, 132), "black": (34, 34, 38)}
BRIGHTNESS = {name: float(np.dot(rgb, (0.299, 0.587, 0.114))) / 255 for name, rgb in COLOURS.items()}   # 0 to 1
BUILDS = {"slim": 0.088, "medium": 0.118, "broad": 0.150}        # half the shoulder width, in body heights
UPPERS = {"shirt": 0.50, "jacket": 0.54, "coat": 0.74, "dress": 0.66}     # where it ends, 0 head to 1 feet
LOWERS = {"trousers": 0.94, "shorts": 0.66, "skirt": 0.68, "gown": 0.90}
PATTERNS = ("plain", "striped", "pinstriped", "checked", "dotted", "logo")
BAGS = ("none", "backpack", "shoulder bag", "handbag")
HATS = ("none", "cap", "beanie", "sunhat")
HAIRS = ("short", "long", "bun", "bald")
COLOURED = (Material.UPPER, Material.TRIM, Material.LOWER, Material.SHOES, Material.BAG, Material.HAT)


@dataclass(frozen=True)
class Person:
    """A synthetic person: what every image of it has in common."""

    build: str
    upper: str
    lower: str
    pattern: str
    bag: str
    hat: str
    hair: str
    colours: dict               # Material -> name of a colour
    shades: np.ndarray          # (materials, 3) in [0, 1], visible light
    reflectance: np.ndarray     # (materials,) in [0, 1], infrared
    shoulder: float             # half the shoulder width, in body heights
    hem: float                  # where the upper garment ends, 0 head to 1 feet
    cuff: float                 # where the lower garment ends
    period: float               # of the pattern, in body heights

    @property
    def form(self):
        """List the attributes that both modalities show."""
        return (self.build, self.upper, self.lower, self.pattern, self.bag, self.hat, self.hair)


@dataclass(frozen=True)
class Camera:
    """A synthetic camera: its background and its light."""

    infrared: bool
    scene: np.ndarray       # (H, W, 3) float32 in [0, 1], larger than an image
    gain: np.ndarray        # (3,) light on everything
    person_gain: float      # further light on the person alone
    gamma: float
    noise: float            # standard deviation of a pixel
    blur: float             # largest radius, in pixels of the saved image


def draw_person(rng):
    """Draw a `Person` with a numpy Generator."""
    build, upper, lower = (str(rng.choice(list(table))) for table in (BUILDS, UPPERS, LOWERS))
    pattern, hair, bag = (str(rng.choice(names)) for names in (PATTERNS, HAIRS, BAGS))
    hat = str(rng.choice(HATS, p=(0.4, 0.2, 0.2, 0.2)))
    colours = {material: str(rng.choice(list(COLOURS))) for material in COLOURED}
    while BRIGHTNESS[colours[Material.TRIM]] < BRIGHTNESS[colours[Material.UPPER]] + 0.2:  # trim is the lighter one
        colours[Material.UPPER], colours[Material.TRIM] = (str(rng.choice(list(COLOURS))) for _ in range(2))
    shades = np.zeros((len(Material), 3), np.float32)
    for material, name in colours.items():
        shades[material] = np.array(COLOURS[name]) / 255 + rng.normal(0, 0.03, 3)
    shades[Material.SKIN] = np.array((0.86, 0.66, 0.54)) * rng.uniform(0.65, 1.05)
    shades[Material.HAIR] = np.array((0.42, 0.30, 0.20)) * rng.uniform(0.2, 1.2)
    reflectance = rng.uniform(0.15, 0.85, len(Material)).astype(np.float32)
    reflectance[Material.SKIN] = rng.uniform(0.65, 0.8)
    reflectance[Material.HAIR] = rng.uniform(0.1, 0.4)
    reflectance[Material.UPPER] = rng.uniform(0.1, 0.55)
    reflectance[Material.TRIM] = reflectance[Material.UPPER] + rng.uniform(0.3, 0.4)
    return Person(
        build, upper, lower, pattern, bag, hat, hair, colours, shades.clip(0.05, 0.95), reflectance,
        shoulder=BUILDS[build] + rng.uniform(-0.007, 0.007), hem=UPPERS[upper] + rng.uniform(-0.025, 0.025),
        cuff=LOWERS[lower] + rng.uniform(-0.03, 0.03), period=rng.uniform(0.08, 0.12))


def draw_people(rng, count):
    """Draw identities of which no two agree in all but one attribute of their form."""
    people = []
    while len(people) < count:
        person = draw_person(rng)
        if all(sum(a != b for a, b in zip(person.form, other.form)) >= 2 for other in people):
            people.append(person)
    return people


def draw_camera(rng, infrared, variation=1.0):
    """Draw a `Camera`: a place with a wall, a floor and things standing there.

    Args: variation: how far light, tint and contrast of cameras may lie apart; 1 is what the small CLIP was trained on.
    """
    def within(low, high, *size):
        """Draw from the range (low, high), narrowed to the share `variation` around its middle."""
        return (low + high) / 2 + (rng.uniform(low, high, size or None) - (low + high) / 2) * variation

    height, width = int(HEIGHT * 1.25), int(WIDTH * 1.5)
    wall, floor = (within(50, 205, 2, 1) + rng.normal(0, 28, (2, 3))).clip(0, 255)
    canvas = Image.new("RGB", (width, height), tuple(wall.astype(int)))
    draw = ImageDraw.Draw(canvas)
    horizon = int(height * rng.uniform(0.55, 0.85))
    draw.rectangle((0, horizon, width, height), fill=tuple(floor.astype(int)))
    for _ in range(rng.integers(3, 9)):
        x, w = rng.integers(0, width), rng.integers(3, width // 4)
        top = rng.integers(0, horizon)
        colour = tuple((wall + rng.normal(0, 45, 3)).clip(0, 255).astype(int))
        draw.rectangle((x, top, x + w, rng.integers(top, height)), fill=colour)
    scene = np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.7)), np.float32) / 255
    if infrared:
        scene = np.repeat(scene.mean(2, keepdims=True), 3, 2)
        scene = (scene - scene.mean()) * 0.8 + within(0.15, 0.75)
    gain = within(0.6, 1.0) * (np.ones(3) if infrared else within(0.8, 1.15, 3))
    return Camera(infrared, scene.clip(0, 1), gain.astype(np.float32), person_gain=within(0.85, 1.15),
                  gamma=within(0.8, 1.3), noise=rng.uniform(0.01, 0.035), blur=rng.uniform(0.2, 0.7))


def render(person, camera, rng, height, width):
    """Photograph a person: pose, framing, obstacle and noise are new each time; (height, width, 3) uint8."""
    materials = draw_materials(person, rng, height, width)
    palette = np.zeros((len(Material), 4), np.float32)      # the last channel is the share of the background
    palette[:, :3] = person.reflectance[:, None] if camera.infrared else person.shades
    palette *= camera.person_gain
    obstacle = rng.uniform(0.1, 0.8, 3)
    palette[Material.OBSTACLE, :3] = obstacle.mean() if camera.infrared else obstacle
    palette[Material.SCENE] = (0, 0, 0, 1)
    steps = range(OVERSAMPLING)     # every OVERSAMPLING x OVERSAMPLING square becomes its mean
    layers = sum(palette[materials[i::OVERSAMPLING, j::OVERSAMPLING]] for i in steps for j in steps)
    layers /= np.float32(OVERSAMPLING**2)
    slope = rng.uniform(-0.2, 0.2) * np.linspace(-1, 1, width, dtype=np.float32)
    light = 1 + slope[:, None] + np.float32(rng.normal(0, 0.08))
    top, left = (rng.integers(0, whole - part + 1) for whole, part in zip(camera.scene.shape, (height, width)))
    background = camera.scene[top:top + height, left:left + width]
    image = layers[..., :3] * light + layers[..., 3:] * background
    image = (image * camera.gain).clip(0, 1) ** (camera.gamma * rng.uniform(0.9, 1.1))
    noise = rng.standard_normal((height, width, 1 if camera.infrared else 3), np.float32) * camera.noise
    pixels = ((image + noise).clip(0, 1) * 255).astype(np.uint8)
    radius = rng.uniform(0, camera.blur)
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def caption(person, infrared, coloured=True, brief=False):
    """Describe a photo of a person in a sentence or (brief) a row of words; infrared ones show no colour."""
    def words(material, *names):
        colour = [person.colours[material]] if coloured and not infrared else []
        return " ".join(colour + [name for name in names if name != "plain"])

    kind = "an infrared" if infrared else "a visible"
    upper, lower = words(Material.UPPER, person.pattern, person.upper), words(Material.LOWER, person.lower)
    extras = [words(material, name) for material, name in ((Material.BAG, person.bag), (Material.HAT, person.hat))
              if name != "none"]
    if brief:
        return f"{kind} photo of a {' '.join([person.build, f'{person.hair} hair', upper, lower, *extras])} person."
    with_extras = " with " + " and ".join(f"a {extra}" for extra in extras) if extras else ""
    return f"{kind} photo of a {person.build} person with {person.hair} hair in a {upper} and {lower}{with_extras}."


class DemoDataSet(sysu.SysuDataSet):
    """Synthetic people, tested as SYSU-MM01; no counts are published of them."""

    published = {}


def load(root, trial=1, check_counts=True):
    """Draw the demo's people unless they are there, and read them. Args: trial, check_counts: without effect."""
    draw_dataset(root)
    return sysu.load(root, name="demo", kind=DemoDataSet)


def draw_dataset(root):
    """Draw the demo's people into the folder `root` unless it is there; it appears only when complete."""
    root = Path(root)
    if root.exists():
        return
    with explained(f"the demo's people cannot be drawn into {quoted(root)}", "set DATASET.ROOT to another folder"):
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{root.name}.", suffix=".partial", dir=root.parent) as partial:
            _write_dataset(Path(partial) / root.name)
            with suppress(OSError):     # drawn meanwhile by another run
                (Path(partial) / root.name).rename(root)


def _write_dataset(root):
    people = draw_people(np.random.default_rng([SEED, 0]), sum(SPLITS.values()))
    cameras = {cam: draw_camera(np.random.default_rng([SEED, 1, cam]), cam in INFRARED_CAMERAS, CAMERA_VARIATION)
               for cam in IMAGES}
    (root / "exp").mkdir(parents=True)
    identities = iter(range(1, len(people) + 1))
    for split, count in SPLITS.items():
        (root / "exp" / f"{split}_id.txt").write_text(",".join(map(str, islice(identities, count))) + "\n")
    for identity, person in enumerate(people, start=1):
        for cam, camera in cameras.items():
            folder = root / f"cam{cam}" / f"{identity:04d}"
            folder.mkdir(parents=True)
            rng = np.random.default_rng([SEED, 2, identity, cam])
            for number in range(1, IMAGES[cam] + 1):
                image = Image.fromarray(render(person, camera, rng, HEIGHT, WIDTH))
                image.save(folder / f"{number:04d}.jpg", quality=92)
