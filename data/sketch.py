"""Draw the shape of a synthetic person: which material each pixel shows, whatever the light."""
from enum import IntEnum

import numpy as np
from PIL import Image, ImageDraw

OVERSAMPLING = 2        # people are drawn this much larger, which smooths their edges
SLEEVES = {"shirt": 0.42, "jacket": 1.0, "coat": 1.0, "dress": 0.0}     # share of the arm that is covered
Material = IntEnum("Material", "SCENE SKIN HAIR UPPER TRIM LOWER SHOES BAG HAT OBSTACLE", start=0)


class Sketch:
    """An image of materials in body coordinates: y from 0 (head) to 1 (feet), x from the body's axis, same unit."""

    def __init__(self, rng, height, width):
        self.size = (width * OVERSAMPLING, height * OVERSAMPLING)
        self.scale = self.size[1] * rng.uniform(0.84, 0.96)
        self.left = self.size[0] * rng.uniform(0.44, 0.56)
        self.top = (self.size[1] - self.scale) * rng.uniform(0.1, 0.9) + self.size[1] * rng.normal(0, 0.01)
        self.lean = rng.normal(0, 0.025)
        self.side = rng.choice((-1, 1))
        self.image = Image.new("L", self.size, Material.SCENE)
        self.draw = ImageDraw.Draw(self.image)

    def pixels(self, points):
        """Convert body coordinates (x, y) of several points to pixels."""
        return [(self.left + (self.side * x + self.lean * (0.5 - y)) * self.scale, self.top + y * self.scale)
                for x, y in points]

    def polygon(self, material, *points):
        """Fill a polygon of body coordinates."""
        self.draw.polygon(self.pixels(points), fill=material)

    def ellipse(self, material, x, y, rx, ry):
        """Fill an ellipse with its centre and radii."""
        ((cx, cy),) = self.pixels([(x, y)])
        rx, ry = rx * self.scale, ry * self.scale
        self.draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=material)

    def box(self, material, x, y, rx, ry):
        """Fill a rectangle with its centre and half sides."""
        self.polygon(material, (x - rx, y - ry), (x + rx, y - ry), (x + rx, y + ry), (x - rx, y + ry))

    def limb(self, material, start, end, thickness):
        """Draw a thick line between two points."""
        self.draw.line(self.pixels([start, end]), fill=material, width=max(1, round(thickness * self.scale)))


def _draw_legs(sketch, person, rng):
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


def _draw_arm(sketch, person, side, rng):
    """Draw an arm and return where its hand is: (x, y)."""
    angle = rng.uniform(0, 0.28)
    start = np.array((side * person.shoulder * 0.93, 0.185))
    hand = start + 0.32 * np.array((side * np.sin(angle), np.cos(angle)))
    sketch.limb(Material.SKIN, start, hand, 0.042)
    if share := SLEEVES[person.upper]:
        sketch.limb(Material.UPPER, start, start + (hand - start) * share * 0.92, 0.058)
    return hand


def _draw_torso(sketch, person, back):
    shoulder, hem = person.shoulder, person.hem
    bottom = shoulder * {"shirt": 0.85, "jacket": 0.95, "coat": 1.12, "dress": 1.35}[person.upper]
    sketch.limb(Material.SKIN, (0, 0.1), (0, 0.18), 0.045)
    sketch.polygon(Material.UPPER, (-shoulder * 0.5, 0.15), (shoulder * 0.5, 0.15), (shoulder, 0.185),
                   (shoulder * 0.82, 0.4), (bottom, hem), (-bottom, hem), (-shoulder * 0.82, 0.4), (-shoulder, 0.185))
    if person.upper in ("jacket", "coat") and not back:
        sketch.limb(Material.HAIR, (0, 0.16), (0, hem), 0.008)
    if person.upper == "shirt" and not back:
        sketch.polygon(Material.SKIN, (-0.03, 0.15), (0.03, 0.15), (0, 0.19))


def _draw_head(sketch, person, back):
    if person.hair == "long":
        sketch.box(Material.HAIR, 0, 0.13, 0.062, 0.075)
    sketch.ellipse(Material.SKIN, 0, 0.078, 0.046, 0.062)
    if person.hair != "bald" and back:
        sketch.ellipse(Material.HAIR, 0, 0.072, 0.05, 0.06)
    elif person.hair != "bald":
        sketch.polygon(Material.HAIR, (-0.05, 0.075), (-0.042, 0.025), (0, 0.008), (0.042, 0.025), (0.05, 0.075),
                       (0.03, 0.05), (-0.03, 0.05))
    if person.hair == "bun" and person.hat != "sunhat":
        sketch.ellipse(Material.HAIR, 0, 0.0 if person.hat == "none" else 0.11, 0.03, 0.028)
    for draw, *place in {"cap": ((sketch.ellipse, 0, 0.036, 0.052, 0.034), (sketch.box, 0.03, 0.052, 0.055, 0.01)),
                         "beanie": ((sketch.ellipse, 0, 0.032, 0.054, 0.05), (sketch.ellipse, 0, -0.022, 0.018, 0.016)),
                         "sunhat": ((sketch.ellipse, 0, 0.022, 0.046, 0.04), (sketch.ellipse, 0, 0.047, 0.1, 0.016)),
                         "none": ()}[person.hat]:
        draw(Material.HAT, *place)


def _draw_bag(sketch, person, hand, back):
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


def _weave(sketch, person, materials):
    """Turn the pattern's part of the upper garment into trim, in place; materials (H, W)."""
    width, height = sketch.size     # x (1, W) and y (H, 1) in body coordinates, without the lean
    x = (np.arange(width)[None] - sketch.left) / sketch.scale * sketch.side
    y = (np.arange(height)[:, None] - sketch.top) / sketch.scale
    period = person.period
    masks = {"striped": lambda: y % period < period * 0.5,
             "pinstriped": lambda: x % (period * 0.8) < period * 0.36,
             "checked": lambda: (x // period + y // period) % 2 < 1,
             "dotted": lambda: ((x % period) / period - 0.5) ** 2 + ((y % period) / period - 0.5) ** 2 < 0.1,
             "logo": lambda: (np.abs(x) / 0.075 + np.abs(y - 0.28) / 0.085) < 1}
    if person.pattern in masks:
        materials[(materials == Material.UPPER) & masks[person.pattern]()] = Material.TRIM


def _draw_obstacle(sketch, rng):
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


def draw_materials(person, rng, height, width):
    """Draw what every pixel of an image of a person shows: (OVERSAMPLING * height, OVERSAMPLING * width) uint8."""
    sketch = Sketch(rng, height, width)
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
