"""Folders of numbered frames: by number, in any mode, or an error that names the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from corpus import write_folder
from PIL import Image
from torch.testing import assert_close

from s2dlib.data.frames import SUFFIXES
from s2dlib.data.readers import probe, read_frames
from s2dlib.data.sources import ClipError


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (["img_00001.jpg", "img_00002.jpg", "notes.txt"], None),
        (["8.png", "9.png", "10.png", *(f"{i}.png" for i in range(8))], None),
        (["00001.jpg", "00003.jpg"], r"frame 2 is missing \(the last is 3\)"),
        (["1.jpg", "00001.jpg"], "two frames 1: 00001.jpg and 1.jpg"),
        (["notes.txt"], "without numbered frames"),
    ],
)
def test_frames_of_a_folder_come_by_number(tmp_path, names, cause):
    frames = {}
    for shade, name in enumerate(names):
        path = tmp_path / name
        path.touch()
        if path.suffix != ".txt":
            Image.new("RGB", (30, 20), (shade * 20, 0, 0)).save(path)
            frames[int("".join(filter(str.isdigit, name)))] = shade * 20
    if cause is not None:
        with pytest.raises(ClipError, match=cause):
            read_frames(tmp_path)
        return
    shades = [frames[number] for number in sorted(frames)]
    assert_close(read_frames(tmp_path)[:, 0, 10, 10].int().tolist(), shades, atol=2, rtol=0)
    assert probe(tmp_path).n_frames == len(shades) and np.isnan(probe(tmp_path).fps)


def ramp(mode):
    """An image of a mode that shows a horizontal ramp of 256 grays, and those grays. (8, 256)"""
    gray = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    image = Image.fromarray(gray)
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "RGBA":  # half covered white
        image = Image.merge("RGBA", [Image.new("L", image.size, 255)] * 3 + [image])
    elif mode == "LA":
        image = Image.merge("LA", [image, Image.new("L", image.size, 128)])
        gray = gray * (128 / 255)
    elif mode == "P, one transparent":
        image = image.convert("P")
        image.info["transparency"] = 200
        gray = np.where(gray == 200, 0, gray)
    elif mode == "P":
        image = image.convert("P")
    elif mode == "1":
        image, gray = image.point(lambda x: 255 * (x > 99), "1"), 255.0 * (gray > 99)
    elif mode == "LAB":
        image = Image.merge("LAB", [image, *[Image.new("L", image.size, 128)] * 2])
        gray = None  # L* is not the gray
    elif mode != "L":
        image = image.convert("RGB").convert(mode)
    return image, gray


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("L", suffix) for suffix in SUFFIXES if suffix != "ppm"),
        *(("RGB", suffix) for suffix in SUFFIXES if suffix != "pgm"),
        *(("I;16", suffix) for suffix in ("png", "tif", "pgm")),
        *((mode, "png") for mode in ("P", "P, one transparent", "1", "LA", "RGBA")),
        *((mode, "tif") for mode in ("CMYK", "YCbCr", "LAB", "LA", "RGBA", "1")),
        *(("CMYK", "jpg"), ("RGBA", "webp")),
    ],
)
def test_images_of_any_mode_look_as_a_player_shows_them(tmp_path, mode, suffix):
    image, gray = ramp(mode)
    image.save(tmp_path / f"1.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    (frame,) = read_frames(tmp_path).permute(0, 2, 3, 1).float().numpy()  # (8, 256, 3)
    if gray is None:
        assert frame[:, 0].max() < 3 and frame[:, 255].min() > 252
        assert (np.diff(frame[0, :, 1]) >= 0).all() and np.ptp(frame, -1).max() <= 3
    else:
        assert np.abs(frame - gray[..., None]).max() <= 3


@pytest.mark.parametrize(("kind", "what"), [(np.float32, "floats"), (np.int32, "32-bit integers")])
def test_images_without_a_black_and_a_white_are_refused_by_name(tmp_path, kind, what):
    Image.fromarray(np.ones((8, 9), kind)).save(tmp_path / "1.tif")
    with pytest.raises(ClipError, match=rf"1\.tif cannot be read \({what}, .*write 8 or 16 bits"):
        read_frames(tmp_path)


def test_a_photo_of_a_camera_held_upright_is_turned(tmp_path):
    image = Image.fromarray(np.arange(0, 240, 4, np.uint8).reshape(6, 10) // 4 * 4)
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter clockwise
    image.save(tmp_path / "1.png", exif=exif)
    expected = torch.from_numpy(np.rot90(np.asarray(image), -1).copy())
    assert read_frames(tmp_path)[0, 0].equal(expected)


def test_only_the_wanted_images_of_a_folder_are_opened(tmp_path, read_barcodes):
    path = write_folder(tmp_path / "clip", range(1, 31))
    (path / "00007.jpg").write_bytes(b"")
    assert read_barcodes(read_frames(path, [29, 3, 11])) == [29, 3, 11]
    with pytest.raises(ClipError, match=r"00007\.jpg cannot be read"):
        read_frames(path, [6])
