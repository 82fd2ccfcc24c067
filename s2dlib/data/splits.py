"""The splits of a data set, train, val and test, by the words that owners have for them."""

from __future__ import annotations

import re
from pathlib import Path

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Words beside the split in a folder's name, as in rawframes_train, train_256, val set.
BESIDE_SPLIT = {"", "set", "split", "part", "data", "videos", "clips", "frames", "rawframes"}


def words(name: str) -> list[str]:
    """The words in a name, in small letters, without list or set at their end (trainlist01)."""
    found = re.findall(r"[A-Z]?[^\WA-Z\d_]+|[A-Z]+", name)  # also of miniTrain
    return [re.sub(r"(?<=.)(?:list|set|split)$", "", word.lower()) for word in found]


def split_of_folder(name: str) -> str:
    """The split that a folder's name says and nothing else (train, train_256, val set), or ""."""
    rest = [word for word in words(name) if word not in BESIDE_SPLIT]
    return SPLITS.get(rest[0], "") if len(rest) == 1 else ""


def file_and_split(text: str) -> tuple[Path, str]:
    """`SPLIT=FILE`, or a file whose name tells its split, or one that does not ("").

    Hugging Face's metadata.csv lies in the folder of its split.
    """
    word, _, rest = text.partition("=")
    if rest and word.lower() in SPLITS:
        return Path(rest), SPLITS[word.lower()]
    path = Path(text)
    found = {SPLITS[word] for word in words(path.stem) if word in SPLITS}
    if not found and path.stem == "metadata":
        found = {split_of_folder(path.absolute().parent.name)} - {""}
    return path, found.pop() if len(found) == 1 else ""


def parse_split(word: str, path: Path, where: str) -> str:
    """The split that a word of a column or a file's name means; ValueError where it means none."""
    if not word:
        raise ValueError(f"{path}: its name tells no split; give it as SPLIT=FILE, train={path}")
    if word.lower() not in SPLITS:
        raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, got {word!r}")
    return SPLITS[word.lower()]
