"""GRID (Cooke et al. 2006): a sentence of six words a video, which the file's name spells.

    s2d index grid --videos DIR [--alignments DIR] --word digit

`bbaf2n.mpg` is "bin blue at f two now": a letter a word. Any of the six is the class. Alignments,
where they are given, tell when it is spoken: the truth of these videos, in time alone.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s2dlib.data.annotations import hash_split
from s2dlib.data.classes import Row
from s2dlib.data.listing import list_folder
from s2dlib.data.table import text_lines

if TYPE_CHECKING:
    import pandas as pd

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# The words at each place of the sentence, by their letter in the file's name.
WORDS: dict[str, dict[str, str]] = {
    "command": {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    "colour": {"b": "blue", "g": "green", "r": "red", "w": "white"},
    "preposition": {"a": "at", "b": "by", "i": "in", "w": "with"},
    "letter": {letter: letter for letter in string.ascii_lowercase if letter != "w"},
    "digit": dict(zip("z123456789", _DIGITS, strict=True)),
    "adverb": {"a": "again", "n": "now", "p": "please", "s": "soon"},
}
SENTENCE = re.compile("".join(f"[{''.join(letters)}]" for letters in WORDS.values()))
FRAME = 1000  # units of an alignment: a frame of 40 ms
SILENCE = ("sil", "sp")


def read_grid(
    videos: str | Path,
    word: str = "digit",
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> list[Row]:
    """GRID's own videos, `<talker>/bbaf2n.mpg`: one of the six words is the class.

    Splits by a hash of each talker and sentence: all talkers are in all of them.

    Args:
        videos: a folder above all of them.
        word: a key of WORDS.
        fractions: of train, val and test; they sum to 1.
    """
    names, place = WORDS[word], list(WORDS).index(word)
    rows = []
    for path in map(Path, list_folder(videos).videos):
        sentence, where = path.stem, str(Path(videos, path))
        if not SENTENCE.fullmatch(sentence):
            raise ValueError(
                f"{where}: expected a name that spells GRID's six words by a letter each, as "
                f"bbaf2n, got {sentence!r}"
            )
        split = hash_split(f"{seed}/{path.parent.name}/{sentence}", fractions)
        rows.append(Row((str(path),), names[sentence[place]], split, where))
    return rows


def add_moments(table: pd.DataFrame, alignments: str | Path, word: str) -> pd.DataFrame:
    """Columns of an index of GRID, in frames: t, duration of the word; onset, end of speech.

    Args:
        table: of make_index, of rows of read_grid.
        alignments: a folder above `bbaf2n.align` of all videos. A sentence of several talkers has
            one for each, in a folder named as the video's.
        word: as in read_grid.

    Raises:
        ValueError: a video has no alignment, or several, or one that is not six words.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(Path(alignments).rglob("*.align")):
        files.setdefault(path.stem, []).append(path)
    place, moments = list(WORDS).index(word), []
    for video in map(Path, table["name"]):
        found = files.get(video.stem, [])
        if len(found) > 1:
            found = [path for path in found if video.parent.name in path.parts]
        if len(found) != 1:
            raise ValueError(f"{video}: {len(found)} files {video.stem}.align below {alignments}")
        spans = read_alignment(found[0])
        start, end = spans[place]
        # Frame r spans r to r + 1 of an alignment; its middle is r in an index.
        t, duration = (start + end) / 2 / FRAME - 0.5, (end - start) / FRAME
        speech = (spans[0][0] // FRAME, -(-spans[-1][1] // FRAME))
        moments.append([f"{number:g}" for number in (t, duration, *speech)])
    columns = zip(["t", "duration", "onset", "end"], zip(*moments, strict=True), strict=True)
    return table.assign(**dict(columns))


def read_alignment(path: Path) -> list[tuple[int, int]]:
    """Start and end of each of the six words, 1,000 units a frame: lines `start end word`."""
    spans = []
    for where, line in text_lines(path):
        fields = line.split()
        if len(fields) != 3 or not (fields[0].isdecimal() and fields[1].isdecimal()):
            raise ValueError(f"{where}: expected `start end word`, got {line!r}")
        if fields[2] not in SILENCE:
            spans.append((int(fields[0]), int(fields[1])))
    if len(spans) != len(WORDS):
        raise ValueError(f"{path}: expected {len(WORDS)} words, got {len(spans)}")
    return spans
