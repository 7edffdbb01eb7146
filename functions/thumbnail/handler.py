"""Scale an image down: ``{"image": "<base64 of a PNG or JPEG>", "size"?: 128}``.

Shows a function with ``requirements.txt``: Pillow is installed at deploy time for the interpreter it will run in.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

from PIL import Image, ImageOps

DEFAULT_SIZE_PX = 128
MAX_SIZE_PX = 1024
#: Decoded, a pixel takes up to 4 bytes; 16 million pixels fit into the pool's 256 MB.
MAX_PIXELS = 16_000_000


class BadEvent(ValueError):
    """The payload is wrong; no retry will help."""

    permanent = True


def handle(event: Any, context: Any) -> dict[str, Any]:
    """Return ``{"image": "<base64 PNG>", "width": px, "height": px}``, at most ``size`` pixels on each side."""
    if not isinstance(event, dict):
        raise BadEvent(f'the payload must be an object such as {{"image": …}}, got {type(event).__name__}')
    size_px = event.get("size", DEFAULT_SIZE_PX)
    if isinstance(size_px, bool) or not isinstance(size_px, int) or not 1 <= size_px <= MAX_SIZE_PX:
        raise BadEvent(f"size must be a whole number from 1 to {MAX_SIZE_PX} (pixels), got {size_px!r:.60}")
    image = load(event.get("image"))
    print(f"scaling {image.format} of {image.width}x{image.height} to at most {size_px} px")
    small = ImageOps.exif_transpose(image).convert("RGBA" if image.has_transparency_data else "RGB")
    small.thumbnail((size_px, size_px))
    out = io.BytesIO()
    small.save(out, "PNG")
    return {"image": base64.b64encode(out.getvalue()).decode(), "width": small.width, "height": small.height}


def load(encoded: Any) -> Image.Image:
    """The image in a base64 text, not decoded yet; raises BadEvent saying what is wrong with it."""
    if not isinstance(encoded, str) or not encoded:
        raise BadEvent(f"image must be the base64 text of a PNG or JPEG, got {encoded!r:.60}")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)), formats=("PNG", "JPEG"))
    except binascii.Error as e:
        raise BadEvent(f"image is not valid base64: {e}") from e
    except OSError as e:
        raise BadEvent("image is neither a PNG nor a JPEG") from e
    if image.width * image.height > MAX_PIXELS:
        raise BadEvent(f"image has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are allowed")
    return image
