"""The colors of the pages: told from each other and from the paper, whoever looks at them."""

import itertools
import re

import numpy as np

from studyloom.files import ASSETS

KINDS = ("complete", "pruned", "failed", "running", "paused", "best", "baseline")
WORDS = ("ink", "quiet", "bad")
# Machado, Oliveira and Fernandes 2009, IEEE Transactions on Visualization and Computer Graphics 15:
# what complete deficiencies leave of linear RGB.
SEEN = {
    "all": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# Ottosson 2020, https://bottosson.github.io/posts/oklab/
CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def palettes():
    """The colors of the style sheet by name, light and dark, as linear RGB."""
    style = (ASSETS / "report" / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    for text in (light, dark):
        variables = re.findall(r"--([\w-]+): #([0-9a-f]{6});", text)
        yield {
            name: linear([int(code[n : n + 2], 16) / 255 for n in (0, 2, 4)])
            for name, code in variables
        }


def linear(rgb):
    rgb = np.array(rgb)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The contrast of two colors by WCAG 2.2."""
    light, dark = sorted((c @ [0.2126, 0.7152, 0.0722] for c in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def difference(one, other, seen):
    """How far two colors are apart in OKLab, for whom a matrix leaves so much of them."""
    labs = (
        np.array(LAB) @ np.cbrt(np.array(CONES) @ np.clip(seen @ c, 0, 1)) for c in (one, other)
    )
    return float(np.linalg.norm(np.subtract(*labs)))


def test_colors_of_trials_can_be_distinguished_by_all_eyes():
    """A difference of 0.02 is just seen."""
    for palette, (eyes, seen) in itertools.product(palettes(), SEEN.items()):
        for one, other in itertools.combinations(KINDS, 2):
            apart = difference(palette[one], palette[other], np.array(seen))
            assert apart >= 0.1, (eyes, one, other)


def test_marks_and_texts_have_enough_contrast_with_the_background():
    for palette in palettes():
        for name in KINDS:
            assert contrast(palette[name], palette["paper"]) >= 3, name
        for name, paper in itertools.product(WORDS, ("paper", "card")):
            assert contrast(palette[name], palette[paper]) >= 4.5, name
