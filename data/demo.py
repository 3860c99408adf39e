"""Draw synthetic people in the SYSU-MM01 folder layout, so that the whole pipeline runs without a download.

A person is drawn once as a map of materials; the modality then decides how bright each material is: a colour
in the visible image, a reflectance that knows nothing of that colour in the infrared one. What the two images
of a person share is therefore shape: build, garments, pattern, bag, hat and hair.
"""

from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

HEIGHT, WIDTH = 128, 64  # pixels of a saved image
OVERSAMPLING = 2  # people are drawn this much larger, which smooths their edges
SEED_FILE = "exp/drawn_with_seed.txt"
SPLITS = {"train": 52, "val": 12, "test": 32}  # identities
IMAGES = {1: 4, 2: 4, 3: 7, 4: 3, 5: 3, 6: 7}  # camera id -> images of each identity
INFRARED_CAMERAS = (3, 6)
CAMERA_VARIATION = 0.5  # see draw_camera

COLOURS = {
    "red": (186, 38, 44), "orange": (226, 124, 36), "yellow": (222, 200, 62), "green": (52, 130, 62),
    "blue": (42, 78, 172), "purple": (112, 54, 142), "pink": (222, 132, 170), "brown": (104, 68, 42),
    "white": (226, 226, 222), "gray": (128, 130, 132), "black": (34, 34, 38),
}  # fmt: skip
BRIGHTNESS = {name: float(np.dot(rgb, (0.299, 0.587, 0.114))) / 255 for name, rgb in COLOURS.items()}  # 0 to 1
BUILDS = {"slim": 0.088, "medium": 0.118, "broad": 0.150}  # half the shoulder width, in body heights
UPPERS = {"shirt": 0.50, "jacket": 0.54, "coat": 0.74, "dress": 0.66}  # where it ends, 0 head to 1 feet
SLEEVES = {"shirt": 0.42, "jacket": 1.0, "coat": 1.0, "dress": 0.0}  # share of the arm that is covered
LOWERS = {"trousers": 0.94, "shorts": 0.66, "skirt": 0.68, "gown": 0.90}
PATTERNS = ("plain", "striped", "pinstriped", "checked", "dotted", "logo")
BAGS = ("none", "backpack", "shoulder bag", "handbag")
HATS = ("none", "cap", "beanie", "sunhat")
HAIRS = ("short", "long", "bun", "bald")
# What a pixel of the drawing shows.
Material = IntEnum("Material", "SCENE SKIN HAIR UPPER TRIM LOWER SHOES BAG HAT OBSTACLE", start=0)
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
    colours: dict[Material, str]
    shades: np.ndarray  # (materials, 3) in [0, 1], visible light
    reflectance: np.ndarray  # (materials,) in [0, 1], infrared
    shoulder: float  # half the shoulder width, in body heights
    hem: float  # where the upper garment ends, 0 head to 1 feet
    cuff: float  # where the lower garment ends
    period: float  # of the pattern, in body heights

    @property
    def form(self) -> tuple[str, ...]:
        """List the attributes that both modalities show."""
        return (self.build, self.upper, self.lower, self.pattern, self.bag, self.hat, self.hair)


@dataclass(frozen=True)
class Camera:
    """A synthetic camera: its background and its light."""

    infrared: bool
    scene: np.ndarray  # (H, W, 3) float32 in [0, 1], larger than an image
    gain: np.ndarray  # (3,) light on everything
    person_gain: float  # further light on the person alone
    gamma: float
    noise: float  # standard deviation of a pixel
    blur: float  # largest radius, in pixels of the saved image


def draw_person(rng: np.random.Generator) -> Person:
    """Draw an identity."""
    build, upper, lower = (str(rng.choice(list(table))) for table in (BUILDS, UPPERS, LOWERS))
    pattern, hair = str(rng.choice(PATTERNS)), str(rng.choice(HAIRS))
    bag = str(rng.choice(BAGS))
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
        cuff=LOWERS[lower] + rng.uniform(-0.03, 0.03), period=rng.uniform(0.08, 0.12),
    )  # fmt: skip


def draw_people(rng: np.random.Generator, count: int) -> list[Person]:
    """Draw identities of which no two agree in all but one attribute of their form."""
    people: list[Person] = []
    while len(people) < count:
        person = draw_person(rng)
        if all(sum(a != b for a, b in zip(person.form, other.form)) >= 2 for other in people):
            people.append(person)
    return people


def draw_camera(rng: np.random.Generator, infrared: bool, variation: float = 1.0) -> Camera:
    """Draw a camera: a place with a wall, a floor and things standing there.

    variation: how far light, tint and contrast of cameras may lie apart; 1 is what the small CLIP was trained on.
    """

    def within(low: float, high: float, *size: int):
        """Draw from the range (low, high), narrowed to the share `variation` around its middle."""
        return (low + high) / 2 + (rng.uniform(low, high, size or None) - (low + high) / 2) * variation

    height, width = int(HEIGHT * 1.25), int(WIDTH * 1.5)
    wall, floor = within(50, 205, 2, 1) + rng.normal(0, 28, (2, 3))
    wall, floor = wall.clip(0, 255), floor.clip(0, 255)
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
    return Camera(
        infrared, scene.clip(0, 1), gain.astype(np.float32), person_gain=within(0.85, 1.15),
        gamma=within(0.8, 1.3), noise=rng.uniform(0.01, 0.035), blur=rng.uniform(0.2, 0.7),
    )  # fmt: skip


class _Sketch:
    """A material map in body coordinates: y from 0 (head) to 1 (feet), x from the body's axis, same unit."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.size = (width * OVERSAMPLING, height * OVERSAMPLING)
        self.scale = self.size[1] * rng.uniform(0.84, 0.96)
        self.left = self.size[0] * rng.uniform(0.44, 0.56)
        self.top = (self.size[1] - self.scale) * rng.uniform(0.1, 0.9) + self.size[1] * rng.normal(0, 0.01)
        self.lean = rng.normal(0, 0.025)
        self.side = rng.choice((-1, 1))
        self.image = Image.new("L", self.size, Material.SCENE)
        self.draw = ImageDraw.Draw(self.image)

    def pixels(self, points) -> list[tuple[float, float]]:
        """Convert body coordinates (x, y) of several points to pixels."""
        return [
            (self.left + (self.side * x + self.lean * (0.5 - y)) * self.scale, self.top + y * self.scale)
            for x, y in points
        ]

    def polygon(self, material: Material, *points: tuple[float, float]) -> None:
        """Fill a polygon of body coordinates."""
        self.draw.polygon(self.pixels(points), fill=material)

    def ellipse(self, material: Material, x: float, y: float, rx: float, ry: float) -> None:
        """Fill an ellipse with its centre and radii."""
        ((cx, cy),) = self.pixels([(x, y)])
        rx, ry = rx * self.scale, ry * self.scale
        self.draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=material)

    def box(self, material: Material, x: float, y: float, rx: float, ry: float) -> None:
        """Fill a rectangle with its centre and half sides."""
        self.polygon(material, (x - rx, y - ry), (x + rx, y - ry), (x + rx, y + ry), (x - rx, y + ry))

    def limb(self, material: Material, start, end, thickness: float) -> None:
        """Draw a thick line between two points."""
        self.draw.line(self.pixels([start, end]), fill=material, width=max(1, round(thickness * self.scale)))


def _draw_legs(sketch: _Sketch, person: Person, rng: np.random.Generator) -> None:
    stride, hip = rng.uniform(-0.02, 0.05), person.shoulder * 0.42
    for side in (-1, 1):
        start = np.array((side * hip, 0.48))
        foot = np.array((side * (hip + stride), 0.97 - rng.uniform(0, 0.03)))
        end = start + (foot - start) * min(1.0, (person.cuff - 0.48) / 0.49)
        thickness = 0.045 + person.shoulder * 0.22
        sketch.limb(Material.SKIN, start, foot, thickness * 0.7)
        if person.lower in ("trousers", "shorts"):
            sketch.limb(Material.LOWER, start, end, thickness * 1.1)
        sketch.ellipse(Material.SHOES, foot[0] + side * 0.008, foot[1] + 0.01, 0.04, 0.02)
    if person.lower in ("skirt", "gown"):
        waist, flare = person.shoulder * 0.75, person.shoulder * (1.15 if person.lower == "gown" else 1.3)
        sketch.polygon(Material.LOWER, (-waist, 0.45), (waist, 0.45), (flare, person.cuff), (-flare, person.cuff))


def _draw_arm(sketch: _Sketch, person: Person, side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw an arm and return where its hand is: (x, y)."""
    angle = rng.uniform(0, 0.28)
    start = np.array((side * person.shoulder * 0.93, 0.185))
    hand = start + 0.32 * np.array((side * np.sin(angle), np.cos(angle)))
    sketch.limb(Material.SKIN, start, hand, 0.042)
    share = SLEEVES[person.upper]
    if share:
        end = start + (hand - start) * share * 0.92
        sketch.limb(Material.UPPER, start, end, 0.058)
    return hand


def _draw_torso(sketch: _Sketch, person: Person, back: bool) -> None:
    shoulder, hem = person.shoulder, person.hem
    bottom = shoulder * {"shirt": 0.85, "jacket": 0.95, "coat": 1.12, "dress": 1.35}[person.upper]
    sketch.limb(Material.SKIN, (0, 0.1), (0, 0.18), 0.045)
    sketch.polygon(
        Material.UPPER, (-shoulder * 0.5, 0.15), (shoulder * 0.5, 0.15), (shoulder, 0.185),
        (shoulder * 0.82, 0.4), (bottom, hem), (-bottom, hem), (-shoulder * 0.82, 0.4), (-shoulder, 0.185),
    )  # fmt: skip
    if person.upper in ("jacket", "coat") and not back:
        sketch.limb(Material.HAIR, (0, 0.16), (0, hem), 0.008)
    if person.upper == "shirt" and not back:
        sketch.polygon(Material.SKIN, (-0.03, 0.15), (0.03, 0.15), (0, 0.19))


def _draw_head(sketch: _Sketch, person: Person, back: bool) -> None:
    if person.hair == "long":
        sketch.box(Material.HAIR, 0, 0.13, 0.062, 0.075)
    sketch.ellipse(Material.SKIN, 0, 0.078, 0.046, 0.062)
    if person.hair != "bald":
        if back:
            sketch.ellipse(Material.HAIR, 0, 0.072, 0.05, 0.06)
        else:
            sketch.polygon(
                Material.HAIR, (-0.05, 0.075), (-0.042, 0.025), (0, 0.008),
                (0.042, 0.025), (0.05, 0.075), (0.03, 0.05), (-0.03, 0.05),
            )  # fmt: skip
    if person.hair == "bun" and person.hat != "sunhat":
        sketch.ellipse(Material.HAIR, 0, 0.0 if person.hat == "none" else 0.11, 0.03, 0.028)
    if person.hat == "cap":
        sketch.ellipse(Material.HAT, 0, 0.036, 0.052, 0.034)
        sketch.box(Material.HAT, 0.03, 0.052, 0.055, 0.01)
    elif person.hat == "beanie":
        sketch.ellipse(Material.HAT, 0, 0.032, 0.054, 0.05)
        sketch.ellipse(Material.HAT, 0, -0.022, 0.018, 0.016)
    elif person.hat == "sunhat":
        sketch.ellipse(Material.HAT, 0, 0.022, 0.046, 0.04)
        sketch.ellipse(Material.HAT, 0, 0.047, 0.1, 0.016)


def _draw_bag(sketch: _Sketch, person: Person, hand: np.ndarray, back: bool) -> None:
    shoulder = person.shoulder
    if person.bag == "backpack" and back:
        sketch.box(Material.BAG, 0, 0.3, shoulder * 0.72, 0.12)
    elif person.bag == "backpack":
        for side in (-1, 1):
            sketch.limb(Material.BAG, (side * shoulder * 0.55, 0.155), (side * shoulder * 0.66, 0.36), 0.026)
    elif person.bag == "shoulder bag":
        sketch.limb(Material.BAG, (-shoulder * 0.7, 0.16), (shoulder * 0.95, 0.43), 0.02)
        sketch.box(Material.BAG, shoulder * 1.0, 0.47, 0.055, 0.055)
    elif person.bag == "handbag":
        sketch.limb(Material.BAG, hand, (hand[0], hand[1] + 0.07), 0.012)
        sketch.box(Material.BAG, hand[0], hand[1] + 0.11, 0.06, 0.05)


def _weave(sketch: _Sketch, person: Person, materials: np.ndarray) -> None:
    """Turn the pattern's part of the upper garment into trim, in place; materials (H, W)."""
    width, height = sketch.size     # x (1, W) and y (H, 1) in body coordinates, without the lean
    x = (np.arange(width)[None] - sketch.left) / sketch.scale * sketch.side
    y = (np.arange(height)[:, None] - sketch.top) / sketch.scale
    period = person.period
    if person.pattern == "striped":
        mask = y % period < period * 0.5
    elif person.pattern == "pinstriped":
        mask = x % (period * 0.8) < period * 0.36
    elif person.pattern == "checked":
        mask = (x // period + y // period) % 2 < 1
    elif person.pattern == "dotted":
        mask = ((x % period) / period - 0.5) ** 2 + ((y % period) / period - 0.5) ** 2 < 0.1
    elif person.pattern == "logo":
        mask = (np.abs(x) / 0.075 + np.abs(y - 0.28) / 0.085) < 1
    else:
        return
    materials[(materials == Material.UPPER) & mask] = Material.TRIM


def _draw_obstacle(sketch: _Sketch, rng: np.random.Generator) -> None:
    """Hide a side or the lower end of the image in some of the images."""
    width, height = sketch.size
    kind = rng.random()
    if kind < 0.08:
        x = rng.uniform(0, width)
        sketch.draw.rectangle((x, 0, x + width * rng.uniform(0.05, 0.16), height), fill=Material.OBSTACLE)
    elif kind < 0.16:
        y = height * rng.uniform(0.72, 0.95)
        left = width * rng.uniform(-0.5, 0.5)
        sketch.draw.rectangle((left, y, left + width, height), fill=Material.OBSTACLE)


def _materials(person: Person, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw the material of every pixel: (OVERSAMPLING * height, OVERSAMPLING * width) uint8."""
    sketch = _Sketch(rng, height, width)
    back = rng.random() < 0.5
    if person.bag == "backpack" and not back:
        sketch.box(Material.BAG, 0, 0.27, person.shoulder * 1.12, 0.09)
    _draw_legs(sketch, person, rng)
    _draw_torso(sketch, person, back)
    hand = [_draw_arm(sketch, person, side, rng) for side in (-1, 1)][1]
    _draw_head(sketch, person, back)
    _draw_bag(sketch, person, hand, back)
    _draw_obstacle(sketch, rng)
    materials = np.array(sketch.image)
    _weave(sketch, person, materials)
    return materials


def render(person: Person, camera: Camera, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Photograph a person: pose, framing, obstacle and noise are new each time; (height, width, 3) uint8."""
    materials = _materials(person, rng, height, width)
    palette = np.zeros((len(Material), 4), np.float32)  # the last channel is the share of the background
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


def caption(person: Person, infrared: bool, coloured: bool = True, brief: bool = False) -> str:
    """Describe a photo of a person in a sentence or (brief) a row of words; infrared ones show no colour."""

    def words(material: Material, *names: str) -> str:
        colour = [person.colours[material]] if coloured and not infrared else []
        return " ".join(colour + [name for name in names if name != "plain"])

    kind = "an infrared" if infrared else "a visible"
    upper = words(Material.UPPER, person.pattern, person.upper)
    lower = words(Material.LOWER, person.lower)
    extras = [words(Material.BAG, person.bag)] if person.bag != "none" else []
    extras += [words(Material.HAT, person.hat)] if person.hat != "none" else []
    if brief:
        row = " ".join([person.build, f"{person.hair} hair", upper, lower, *extras])
        return f"{kind} photo of a {row} person."
    with_extras = " with " + " and ".join(f"a {extra}" for extra in extras) if extras else ""
    who = f"{person.build} person with {person.hair} hair"
    return f"{kind} photo of a {who} in a {upper} and {lower}{with_extras}."


def draw_dataset(root: str | Path, seed: int = 0) -> None:
    """Draw the demo's people into the folder `root`, which must not exist; it appears only when complete.

    Raises FileExistsError where `root` exists, be it since before or drawn meanwhile by another process; it is kept.
    """
    root = Path(root)
    exists = f"{root} exists already; remove it to draw the demo's people again"
    if root.exists():
        raise FileExistsError(exists)
    root.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{root.name}.", suffix=".partial", dir=root.parent) as partial:
        _write_dataset(Path(partial) / root.name, seed)
        try:
            (Path(partial) / root.name).rename(root)
        except OSError as error:
            if root.exists():
                raise FileExistsError(exists) from error
            raise


def drawn_seed(root: str | Path) -> int | None:
    """Return the seed that a folder was drawn with; None where it does not say so."""
    file = Path(root) / SEED_FILE
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None


def _write_dataset(root: Path, seed: int) -> None:
    people = draw_people(np.random.default_rng([seed, 0]), sum(SPLITS.values()))
    cameras = {cam: draw_camera(np.random.default_rng([seed, 1, cam]), cam in INFRARED_CAMERAS, CAMERA_VARIATION)
               for cam in IMAGES}
    (root / "exp").mkdir(parents=True)
    (root / SEED_FILE).write_text(f"{seed}\n")
    identities = iter(range(1, len(people) + 1))
    for split, count in SPLITS.items():
        (root / "exp" / f"{split}_id.txt").write_text(",".join(map(str, islice(identities, count))) + "\n")
    for identity, person in enumerate(people, start=1):
        for cam, camera in cameras.items():
            folder = root / f"cam{cam}" / f"{identity:04d}"
            folder.mkdir(parents=True)
            rng = np.random.default_rng([seed, 2, identity, cam])
            for number in range(1, IMAGES[cam] + 1):
                image = Image.fromarray(render(person, camera, rng, HEIGHT, WIDTH))
                image.save(folder / f"{number:04d}.jpg", quality=92)
