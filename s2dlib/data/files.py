"""Frames -> a video file."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

FPS = 25


def write_video(path: Path, frames: np.ndarray, fps: float = FPS) -> None:
    """Write frames as H.264 or, where the path ends in .gif, as an animation; whole or not at all.

    Args:
        frames: uint8, gray or colour; odd sizes lose a row or column in H.264. (T, H, W, 1 or 3)
        fps: frames a second.
    """
    partial = path.with_name(f"{path.stem}.part{path.suffix}")
    if path.suffix == ".gif":
        images = [
            Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame)
            for frame in frames
        ]
        images[0].save(
            partial, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0
        )
    else:
        _write_h264(partial, frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2], fps)
    os.replace(partial, path)


def _write_h264(path: Path, frames: np.ndarray, fps: float) -> None:
    gray = frames.shape[3] == 1
    with av.open(path, "w") as container:
        stream = container.add_stream(
            "libx264",
            rate=Fraction(fps).limit_denominator(1001),
            options={"preset": "ultrafast", "crf": "26"},
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for frame in frames:
            image = frame[..., 0] if gray else frame
            image = av.VideoFrame.from_ndarray(image, format="gray" if gray else "rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
