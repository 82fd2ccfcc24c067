"""The picture and the film of a prediction: drawn, named, and told from people's videos."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from s2dlib.data.files import FPS, MADE, atomic_path, check_output, contains, write_video
from s2dlib.data.frames import IMAGES
from s2dlib.model import Output, S2DNet

PICTURE, FILM = ".s2d.png", ".s2d."  # ends of their names, after the video's own; mp4 or gif


def is_drawn(path: Path) -> bool:
    """Whether draw has written a film, or all pictures of a folder."""
    if path.is_dir():
        return not holds_frames(path)
    with suppress(OSError):  # what cannot be read here is a video, whose row will say so
        return FILM in path.name and path.is_file() and contains(path, MADE)
    return False


def holds_frames(folder: Path) -> bool:
    """Whether a folder has images other than pictures by draw."""
    images = (p for p in folder.iterdir() if p.suffix.lower() in IMAGES)
    return any(not p.name.endswith(PICTURE) for p in images)


def draw(
    model: S2DNet, views: Tensor, out: Output, stem: Path, film: str, inputs: Sequence[Path]
) -> list[Path]:
    """Write the picture of Fig. 4 and the film, of the centre view. Returns their paths.

    Args:
        stem: of the files' names, with their folder: the video's own name.
        film: mp4 or gif.
        inputs: videos that neither may replace.

    Raises:
        ValueError: the model has no theta to draw, since one of its networks is missing, or a file
            in the way is not an earlier picture or film (files.check_output).
    """
    # Matplotlib, seaborn and torchvision: three times what a prediction without pictures needs
    import matplotlib.pyplot as plt

    from s2dlib.report.figures import figure4
    from s2dlib.report.film import film as make_film

    if model.snet is None or model.dnet is None:
        raise ValueError("no picture of a single network: it looks nowhere by itself")
    paths = drawn_files(stem, film)
    for path in paths:
        check_output(path, inputs)
    i = len(views) // 2
    figure = figure4(views[i], out, model.classes, None, i=i)
    try:
        with atomic_path(paths[0]) as partial:
            figure.savefig(partial, dpi=90, metadata={"Comment": MADE.decode()})
    finally:
        plt.close(figure)
    height = 144 if film == "gif" else 224  # noise makes a large gif
    shots = make_film(views[i], out, i=i, height=height).numpy()
    write_video(paths[1], shots, FPS / model.data.frame_stride, MADE)
    return paths


def drawn_files(stem: Path, film: str) -> list[Path]:
    """The picture's and the film's path."""
    return [stem.with_name(f"{stem.name}{end}") for end in (PICTURE, f"{FILM}{film}")]
