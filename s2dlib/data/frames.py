"""A video as a folder of numbered images, which TSN and denseflow write beside optical flow.

    img_00001.jpg flow_x_00001.jpg flow_y_00001.jpg     or  img_00001.jpg x_00001.jpg y_00001.jpg

Names alone are looked at, and nothing is imported: the process that decodes starts in no time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SUFFIXES = ("bmp", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp")
IMAGES = {f".{suffix}" for suffix in SUFFIXES}
NUMBERED = re.compile(rf"(?P<prefix>.*?)\d+\.(?:{'|'.join(SUFFIXES)})", re.IGNORECASE | re.DOTALL)
_FLOW = re.compile(
    r"(?:.*[\W\d_]|optical|tvl1)?flow(?:[_-]?[xyuv])?[_-]?", re.IGNORECASE | re.DOTALL
)
_FLOW_AXIS = re.compile(r"[xyuv][_-]?", re.IGNORECASE)  # if there are images without it
_FLOW_FOLDER = re.compile(r"(?:tvl1|optical)?_?flows?(?:_?[xyuv])?|flow_?images", re.IGNORECASE)


def split_flow(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The files of a folder that are a video's frames, and those that are optical flow.

    Both are numbered images, in the order given; what is neither is in neither list.
    """
    prefixes = {name: match["prefix"] for name in names if (match := NUMBERED.fullmatch(name))}
    alone = all(map(_FLOW_AXIS.fullmatch, prefixes.values())) and len(set(prefixes.values())) == 1
    frames: list[str] = []
    flow: list[str] = []
    for name, prefix in prefixes.items():
        is_flow = _FLOW.fullmatch(prefix) or (_FLOW_AXIS.fullmatch(prefix) and not alone)
        (flow if is_flow else frames).append(name)
    return frames, flow


def is_flow_folder(name: str) -> bool:
    """Whether a folder of images of this name holds optical flow: flow, flow_x, tvl1_flow, ..."""
    return _FLOW_FOLDER.fullmatch(name) is not None
