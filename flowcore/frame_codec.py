"""How do frames travel and lie beside each other? As images of one codec, of which the reader knows the size.

Whoever sends them may be a stranger: the header is compared with the size before memory is asked for, and
what is decoded with the header.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import UInt8

from flowcore.image_size import image_size, require_decoded

# A frame is what its pixels are, not what a camera noted of how it was held.
_FRAME = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


@dataclass(frozen=True)
class FrameCodec:
    """How frames are compressed."""

    kind: Literal["jpeg", "png", "raw"] = "jpeg"
    """`png` is lossless and several times larger; `raw`, the pixels themselves, is for processes that pass
    frames on."""
    quality: int = 95
    """JPEG quality, 1 to 100."""

    def __post_init__(self) -> None:
        if self.kind not in ("jpeg", "png", "raw"):
            raise ValueError(f"frame codec {self.kind!r} must be 'jpeg', 'png' or 'raw'")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"JPEG quality {self.quality} must be in [1, 100]")

    def encode(self, image: UInt8[np.ndarray, "height width 3"]) -> bytes:
        """The image, RGB, as a file's content."""
        if self.kind == "raw":
            return image.tobytes()
        extension, flags = {
            "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, self.quality]),
            "png": (".png", []),
        }[self.kind]
        written, data = cv2.imencode(extension, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)
        assert written, "OpenCV refused to encode"
        return data.tobytes()

    def decode(self, data: bytes, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """The RGB image that `data` holds; ValueError if it holds none.

        size: the (height, width) that it must have, of data from others, and of raw pixels, which don't tell
        it. It is compared with the header before memory is asked for, and the header with what was decoded.
        """
        if self.kind == "raw":
            if size is None or not self.holds(data, size):
                raise ValueError(
                    f"{len(data)} bytes aren't the pixels of a frame of {size} px (height, width)"
                )
            return np.frombuffer(data, np.uint8).reshape(*size, 3)
        problem = "aren't an image"
        image: np.ndarray | None = None
        try:
            found = image_size(data)
            if size is None or found == size:
                decoded = cv2.imdecode(np.frombuffer(data, np.uint8), _FRAME)
                if decoded is not None:
                    require_decoded(decoded.shape, data)
                image = decoded
            else:
                problem = f"are an image of {found} px (height, width) where {size} px belong"
        except (ValueError, cv2.error) as error:
            problem += f" ({error})"
        if image is None:
            raise ValueError(f"{len(data)} bytes {problem}: the frame's row is damaged, write it again")
        return image

    def holds(self, data: bytes, size: tuple[int, int]) -> bool:
        """Whether `data` is a frame of this codec and (height, width) in px by its header, without decoding
        it. To be asked of data from others: an image of kilobytes may take gigabytes."""
        if self.kind == "raw":
            return len(data) == 3 * size[0] * size[1]
        is_ours = data.startswith(b"\x89PNG" if self.kind == "png" else b"\xff\xd8")
        try:
            return is_ours and image_size(data) == size
        except ValueError:
            return False
