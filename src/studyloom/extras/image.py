"""SVG drawn as PNG without a browser, by resvg.

Its fonts are those of the machine, and below them the one that comes with Pillow, so that text is
drawn on a machine without fonts too; that font has few characters beyond those of ASCII.
"""

import tempfile

from PIL import ImageFont

from studyloom.errors import ConfigError
from studyloom.installation import pip_install


def draw_png(svg: str) -> bytes:
    """Returns the PNG file of an SVG image.

    Raises:
        ConfigError: resvg is not installed.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ConfigError(f"report --png: {error}; {pip_install('image')}") from None
    font = ImageFont.load_default(size=16)  # pixels; with a size it is a TrueType font
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels have FreeType
    family, _ = font.getname()
    with tempfile.NamedTemporaryFile(suffix=".ttf") as file:
        file.write(font.font_bytes)
        file.flush()
        return bytes(svg_to_bytes(svg, font_files=[file.name], sans_serif_family=family))
