"""The videos below a folder, and what lies there besides.

A video is a file with a suffix of one, any other file that a reader can open, or a folder of
numbered frames (frames.py). What is left out is counted: a class must not vanish without a word.
"""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from s2dlib.data.frames import IMAGES, is_flow_folder, split_flow
from s2dlib.data.readers import is_video

SUFFIXES = (
    "3g2 3gp asf avi divx f4v flv m1v m2ts m2v m4v mkv mov mp4 mpe mpeg mpg mts mxf ogv rm rmvb ts "
    "vob webm wmv"
).split()
VIDEOS = {f".{suffix}" for suffix in SUFFIXES}
# FFmpeg opens pictures, and covers of sound files, as videos of one frame. The last are unfinished.
NEVER = (
    "avif dng dpx exr heic heif ico jp2 jxl pbm psd svg tga "
    "aac ac3 aif aiff amr flac m4a mka mp3 oga opus wav wma "
    "aria2 crdownload download part tmp ytdl"
).split()
NOT_OPENED = IMAGES | {f".{suffix}" for suffix in NEVER}
N_OPENED = 100  # files of a suffix that are opened; if none is a video, the others are not
TIMEOUT = 10.0  # seconds to open one
TEXT = frozenset(range(32, 256)) | frozenset(b"\t\n\r\f\x1b")


class Listing(NamedTuple):
    """Videos below a folder by their paths from there, sorted; notes, a sentence each."""

    videos: list[str]
    notes: list[str]


def list_folder(folder: str | Path) -> Listing:
    """List a folder once; links are followed, each once; hidden names are passed over.

    No file with a suffix of a video is opened. Other files are, the first N_OPENED of a suffix, and
    all of them where one is a video.
    """
    found = _Found()
    linked: set[str] = set()  # what links point to
    todo = [""]
    bar = tqdm(desc=f"listing {folder}", unit=" folders", delay=1, leave=False, disable=None)
    while todo:
        bar.update()
        below = todo.pop()
        inner: list[str] = []
        names: list[str] = []
        with os.scandir(os.path.join(folder, below)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    names.append(entry.name)
                    continue
                target = os.path.realpath(entry.path) if entry.is_symlink() else ""
                inner += [entry.name] * (target not in linked)
                linked |= {target} - {""}
        found.add(folder, below, sorted(names), inner)
        todo += [os.path.join(below, name) for name in inner]
    bar.close()
    return Listing(sorted(found.videos), found.notes())


class _Found:
    """The videos of a folder so far, and the files that are none, by suffix."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.videos: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.opened: Counter[str] = Counter()
        self.with_videos: set[str] = set()  # suffixes besides VIDEOS
        self.n_flow = 0
        self.flow_folders: list[str] = []

    def add(self, folder: str | Path, below: str, names: Sequence[str], inner: list[str]) -> None:
        """Take in the names of a folder's files, and of the folders within it."""
        self.folders.append(below)
        videos = [name for name in names if _suffix(name) in VIDEOS]
        images = [name for name in names if _suffix(name) in IMAGES]
        others = sorted(set(names).difference(videos, images))
        frames, flow = split_flow(images)
        alone = below and not videos and all(map(is_flow_folder, inner))
        if not (alone and len(frames) + len(flow) > len(others)):  # else images are thumbnails
            videos += [name for name in others if self._opens(os.path.join(folder, below, name))]
        self.videos += [os.path.join(below, name) for name in videos]
        beside = ""
        if alone and not videos and (frames or flow):
            if not frames or any(map(is_flow_folder, below.split(os.sep))):
                self.flow_folders.append(below)
            else:
                self.videos.append(below)
                self.n_flow += len(flow)
            images = sorted(set(images).difference(frames, flow))
            beside = " beside frames"
        rest = [*set(others).difference(videos), *images]
        self.left_out.update(_suffix(name) + beside for name in rest)

    def _opens(self, path: str) -> bool:
        suffix = _suffix(path)
        if suffix in NOT_OPENED:
            return False
        if self.opened[suffix] >= N_OPENED and suffix not in self.with_videos:
            return False
        is_one = _is_video(os.path.abspath(path))
        self.opened[suffix] += 1
        self.with_videos |= {suffix} if is_one else set()
        return is_one

    def notes(self) -> list[str]:
        """What was left out, and where no video is, a sentence each."""
        notes, words = [], []
        for suffix, n in sorted(self.left_out.items()):
            kind = suffix if suffix.startswith(".") else f"without suffix{suffix}"
            some = 0 < self.opened[suffix] < n and suffix not in self.with_videos
            opened = f" ({self.opened[suffix]} of them opened)" if some else ""
            words.append(f"{_count(n, 'file')} {kind}{opened}")
        if words:
            more = f" and files of {len(words) - 12} more suffixes" * (len(words) > 12)
            notes.append(f"left out, being no videos: {', '.join(words[:12])}{more}")
        if self.n_flow:
            notes.append(f"left out: {self.n_flow} images of optical flow beside frames")
        if self.flow_folders:
            notes.append(f"left out, being optical flow: {_folders(self.flow_folders)}")
        if (empty := self._empty()) and self.videos:
            notes.append(f"without a video: {_folders(empty)}")
        return notes

    def _empty(self) -> list[str]:
        """The uppermost folders without a video, besides those of flow."""
        full = {""}
        for path in self.videos:
            while path not in full:
                full.add(path)
                path = os.path.dirname(path)
        return [
            path
            for path in set(self.folders) - full - set(self.flow_folders)
            if os.path.dirname(path) in full and not is_flow_folder(os.path.basename(path))
        ]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, without asking for each file by itself; a loop of links is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


@cache  # a folder is listed by its reader and again for the look-up
def _is_video(path: str) -> bool:
    """Whether a reader can open a file; text, often many small files, is told by its head."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        codecs.getincrementaldecoder("utf-8")().decode(head)
        is_text = TEXT.issuperset(head)
    except UnicodeDecodeError:
        is_text = False
    except OSError:
        return False
    return not is_text and is_video(path, TIMEOUT)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _folders(paths: Sequence[str]) -> str:
    more = ", ..." if len(paths) > 5 else ""
    return f"{_count(len(paths), 'folder')} ({', '.join(sorted(paths)[:5])}{more})"
