"""What lies below a folder is a video, or is counted as left out."""

from __future__ import annotations

import pytest

from s2dlib.data import listing
from s2dlib.data.frames import split_flow
from s2dlib.data.listing import list_folder


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_videos_are_files_by_suffix_and_folders_that_hold_frames_alone(tmp_path):
    touch(tmp_path, "a.mp4", "b/c.MKV", "b/c.jpg", "b/notes.txt", "d e/00001.jpg", "d e/00002.jpg")
    touch(tmp_path, "f/1/img_1.png", "f/cover.jpg", "empty/x.part", ".hidden/a.mp4", "._a.mp4")
    assert list_folder(tmp_path).videos == ["a.mp4", "b/c.MKV", "d e", "f/1"]


def test_links_are_followed_and_a_loop_ends(tmp_path):
    touch(tmp_path, "disk/wave/a.mp4")
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "train").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "wave" / "up").symlink_to(tmp_path / "disk")
    found = list_folder(videos).videos
    assert found[-1] == "train/wave/a.mp4" and len(found) <= 2


def test_a_link_to_itself_is_a_file_that_cannot_be_read_and_ends_nothing(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "b.mp4")
    assert list_folder(tmp_path).videos == ["a.mp4", "b.mp4"]


def test_what_a_reader_opens_is_a_video_whatever_its_suffix_and_the_rest_is_counted(
    tmp_path, make_video
):
    touch(tmp_path, "walk/1.asf", "walk/2.nothing", "walk/song.mp3", "walk/2.mp4.part")
    (tmp_path / "run").mkdir()
    make_video(tmp_path / "run" / "1.mp4", 2)
    video = (tmp_path / "run" / "1.mp4").read_bytes()
    for name in ("2.xyz", "3", "4.XYZ", "5.mp3"):
        (tmp_path / "run" / name).write_bytes(video)
    for name in ("notes.txt", "sub.srt", "x.xyz", "data.npy"):
        (tmp_path / "run" / name).write_bytes(b"\0\1" if name[-1] in "yz" else b"text")
    videos, notes = list_folder(tmp_path)
    assert videos == ["run/1.mp4", "run/2.xyz", "run/3", "run/4.XYZ", "walk/1.asf"]
    assert notes == [
        "left out, being no videos: 2 files .mp3, 1 file .nothing, 1 file .npy, 1 file .part, "
        "1 file .srt, 1 file .txt, 1 file .xyz"
    ]


def test_many_files_of_a_suffix_without_a_video_are_not_all_opened(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(listing, "is_video", lambda path, timeout: opened.append(path))
    monkeypatch.setattr(listing, "N_OPENED", 3)
    touch(tmp_path, "w/a.mp4")
    for i in range(9):
        (tmp_path / "w" / f"{i}.npy").write_bytes(b"\0")
        (tmp_path / "w" / f"{i}.txt").write_text("text")  # is none by its first bytes
    videos, notes = list_folder(tmp_path)
    assert videos == ["w/a.mp4"] and len(opened) == 3
    assert "9 files .npy (3 of them opened), 9 files .txt (3 of them opened)" in notes[0]


def test_folders_without_a_video_are_named(tmp_path):
    touch(tmp_path, "run/1.mp4", "jump/1.json", "walk/day 1/notes.md", "walk/day 2/notes.md")
    assert list_folder(tmp_path).notes[1:] == ["without a video: 2 folders (jump, walk)"]


# Frames


@pytest.mark.parametrize(
    ("prefixes", "frames"),
    [
        (["img_", "flow_x_", "flow_y_"], ["img_"]),  # TSN, mmaction2, denseflow
        (["img_", "x_", "y_"], ["img_"]),
        (["image", "u", "v"], ["image"]),
        (["", "flow_"], [""]),
        (["v_"], ["v_"]),  # the only one
        (["overflow_"], ["overflow_"]),
        (["flow_i_", "flow_x_"], ["flow_i_"]),  # dense_flow's own frames
        (["flow_x_", "flow_y_"], []),
        (["x_", "y_"], []),
    ],
)
def test_optical_flow_beside_frames_is_no_frame(prefixes, frames):
    names = [f"{prefix}{i:05d}.jpg" for prefix in prefixes for i in (1, 2)]
    found, flow = split_flow([*names, "cover.jpg", "x.txt"])
    assert found == [name for name in names if name.split("0")[0] in frames]
    assert set(found) | set(flow) == set(names)


def test_flow_is_left_out_beside_frames_in_its_own_folders_and_alone(tmp_path):
    touch(tmp_path, *(f"w/v1/{x}_00001.jpg" for x in ("img", "flow_x", "flow_y")))
    touch(tmp_path, "w/v2/1.png", "w/v2/flow_x/1.png", "w/v2/flow_y/1.png")
    touch(tmp_path, "c/v3/x_1.jpg", "c/v3/y_1.jpg", "tvl1_flow/u/v1/frame1.jpg", "c/v4/1.jpg")
    videos, notes = list_folder(tmp_path)
    assert videos == ["c/v4", "w/v1", "w/v2"]
    assert notes[0] == "left out: 2 images of optical flow beside frames"
    flow = "(c/v3, tvl1_flow/u/v1, w/v2/flow_x, w/v2/flow_y)"
    assert notes[1] == f"left out, being optical flow: 4 folders {flow}"


def test_other_files_beside_frames_are_left_out_and_thumbnails_are_no_frames(tmp_path, make_video):
    touch(tmp_path, *(f"v1/{i:05d}.{suffix}" for i in range(3) for suffix in ("jpg", "json")))
    touch(tmp_path, *(f"v2/{i:05d}.png" for i in range(3)), "v2/preview.gif", "v2/sound.wav")
    touch(tmp_path, "films/1.jpg", "films/2.jpg", "posters/cover.jpg", "films/2.flv")
    make_video(tmp_path / "films" / "1.mp4", 2).rename(tmp_path / "films" / "1.xyz")
    videos, notes = list_folder(tmp_path)
    assert videos == ["films/1.xyz", "films/2.flv", "v1", "v2"]
    assert notes == [
        "left out, being no videos: 1 file .gif beside frames, 3 files .jpg, 3 files .json beside "
        "frames, 1 file .wav beside frames",
        "without a video: 1 folder (posters)",
    ]
