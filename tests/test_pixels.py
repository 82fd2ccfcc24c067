"""Resizing and graying, against torchvision's functions."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as theirs

from s2dlib.data import pixels

# Without these, torchvision resizes by way of floats
EXACT = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def noise(n, H, W):
    """As a reader gives frames: channels last in memory. (n, 3, H, W)"""
    frames = torch.randint(256, (n, H, W, 3), dtype=torch.uint8)
    return frames.permute(0, 3, 1, 2)


def assert_same(found, expected, atol=0):
    assert found.dtype == torch.uint8
    assert_close(found.int(), expected.int(), rtol=0, atol=atol)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("size", [(64, 80), (80, 50), (33, 33), (3, 200), (240, 320)])
@pytest.mark.parametrize("short_side", [2, 33, 64, 150])
def test_the_short_side_is_resized_as_torchvision_does(n, size, short_side):
    frames = noise(n, *size)
    expected = theirs.resize(frames, [short_side], antialias=True)
    assert_same(pixels.resize_short_side(frames, short_side), expected, atol=1 - EXACT)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [20, 48, 61])
def test_a_square_is_resized_as_torchvision_does(channels, side):
    clip = noise(3, 48, 48)[:, :channels].contiguous(memory_format=torch.channels_last)
    expected = theirs.resize(clip, [side, side], antialias=True)
    assert_same(pixels.resize(clip, (side, side)), expected, atol=1 - EXACT)


def test_frames_are_made_gray_as_torchvision_does():
    values = torch.randint(256, (5, 3, 64, 640), dtype=torch.uint8)
    assert_same(pixels.rgb_to_grayscale(values), theirs.rgb_to_grayscale(values))
