"""Every kind of video file that PyAV's FFmpeg writes: container, codec, pixels."""

from __future__ import annotations

from typing import NamedTuple

HEVC = {"x265-params": "log-level=none:keyint=8"}  # with its default, an open GOP
VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "10", "g": "12"}
VP8 = {"deadline": "realtime", "crf": "10", "b": "2M"}
ALTREF = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "300k"}  # hidden frames
AV1 = {"preset": "12", "svtav1-params": "keyint=16"}
FINE = {"qscale": "2"}
GROUPS = {"g": "12", "bf": "2"} | FINE
OPEN_GOP = {"x264-params": "open-gop=1:keyint=8:min-keyint=4:bframes=3:scenecut=0"}
CLOSED_GOP = {"x264-params": "keyint=12:bframes=3"}
INTERLACED = {"x264-params": "tff=1:keyint=12"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}
FIELDS = {"flags": "+ildct+ilme"} | GROUPS


class Kind(NamedTuple):
    """A file: its suffix names the container, the rest of the name what is special."""

    name: str
    codec: str
    options: dict[str, str] | None = None
    pixels: str = "yuv420p"
    size: tuple[int, int] = (64, 80)
    decord: bool = False  # whether decord reads every frame rightly, so that it can be a witness


def _kinds(
    codec: str,
    suffixes: str,
    options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    size: tuple[int, int] = (64, 80),
    note: str = "",
) -> list[Kind]:
    """One kind a suffix; decord reads those that end in "+"."""
    kinds = []
    for suffix in suffixes.split():
        name = f"{' '.join(filter(None, (codec, pixels, note)))}.{suffix.rstrip('+')}"
        kinds.append(Kind(name, codec, options, pixels, size, decord=suffix.endswith("+")))
    return kinds


KINDS = [
    *_kinds("libx264", "mp4+ mov+ m4v+ mkv+ avi+ 3gp+ f4v+ ismv+", CLOSED_GOP),
    *_kinds("libx264", "flv ts m2ts mts mpg vob nut 264 mxf asf m3u8", CLOSED_GOP),
    *_kinds("libx264", "mp4+ mkv+ ts m2ts flv", OPEN_GOP, note="open groups"),
    *_kinds("libx264", "mp4 mkv ts", INTERLACED, note="interlaced"),  # decord mixes its colours
    *_kinds("libx264", "mp4+ ts", REFRESH, note="intra refresh"),
    *_kinds("libx264", "mkv", pixels="yuv420p10le"),
    *_kinds("libx264", "mp4", pixels="yuv444p", size=(33, 57), note="odd size"),
    *_kinds("libx264", "mp4 mkv", pixels="yuvj422p"),
    *_kinds("libx264", "mp4+", pixels="yuvj420p"),
    *_kinds("libx264", "mp4", size=(64, 48), note="narrow"),
    *_kinds("libx264rgb", "mp4 mkv", pixels="rgb24"),
    *_kinds("libx265", "mp4+ mkv+ mov+ ts hevc flv", HEVC),
    *_kinds("libx265", "mp4", HEVC, "yuv420p10le"),
    *_kinds("libx265", "mp4", HEVC, "yuv422p12le"),
    *_kinds("libvpx", "webm+ mkv+ avi+ ogv ivf", VP8),
    *_kinds("libvpx", "webm+", ALTREF, note="altref"),
    *_kinds("libvpx-vp9", "webm+ mp4+ mkv+ ivf", VP9),
    *_kinds("libvpx-vp9", "webm+", VP9, "yuva420p"),
    *_kinds("libsvtav1", "mp4 webm mkv ivf obu", AV1),
    *_kinds("mpeg4", "avi+ mp4+ mkv+ mov+ m4v+ 3gp+ ts nut", FINE),
    *_kinds("mpeg4", "avi+ mp4+ mkv+ ts", GROUPS, note="with B-frames"),
    *_kinds("mpeg1video", "mpg m1v ts mkv", FINE),
    *_kinds("mpeg1video", "mpg ts", GROUPS, note="with B-frames"),
    *_kinds("mpeg2video", "mpg vob ts m2v mkv mxf wtv mov dvd", FINE),
    *_kinds("mpeg2video", "mpg ts m2ts mkv mp4", GROUPS, note="with B-frames"),
    *_kinds("mpeg2video", "mpg ts mkv", FIELDS, note="interlaced"),
    *_kinds("mjpeg", "avi+ mov+ mkv+ mp4+ mjpeg swf", FINE, "yuvj420p"),
    *_kinds("mjpeg", "avi mov", FINE, "yuvj444p"),
    *_kinds("ljpeg", "avi+", None, "yuvj420p"),
    *_kinds("flv", "flv avi swf", FINE),
    *_kinds("h263", "3gp", FINE, size=(96, 128)),
    *_kinds("h263p", "avi", FINE),
    *_kinds("h261", "h261 avi", FINE, size=(144, 176)),
    *_kinds("wmv1", "wmv", FINE),
    *_kinds("wmv2", "wmv avi", FINE),
    *_kinds("msmpeg4", "avi", FINE),
    *_kinds("msmpeg4v2", "avi", FINE),
    *_kinds("gif", "gif", None, "rgb8"),
    *_kinds("apng", "apng", None, "rgb24"),
    *_kinds("png", "mov avi", None, "rgb24"),
    *_kinds("png", "mov", None, "gray16be"),
    *_kinds("png", "mov", None, "rgba"),
    *_kinds("prores_ks", "mov mxf", None, "yuv422p10le"),
    *_kinds("prores_ks", "mov", None, "yuva444p10le"),
    *_kinds("dnxhd", "mov", {"profile": "dnxhr_lb"}, "yuv422p", (144, 256)),
    *_kinds("ffv1", "mkv avi", None, "yuv420p"),
    *_kinds("ffv1", "mkv", None, "gray"),
    *_kinds("ffv1", "mkv", None, "gray16le"),
    *_kinds("ffv1", "mkv", None, "yuva420p"),
    *_kinds("ffv1", "mkv", None, "gbrp16le"),
    *_kinds("huffyuv", "avi", None, "yuv422p"),
    *_kinds("ffvhuff", "avi", None, "yuv420p"),
    *_kinds("utvideo", "avi", None, "yuv420p"),
    *_kinds("magicyuv", "avi", None, "gbrp"),
    *_kinds("rawvideo", "avi y4m nut", None, "yuv420p"),
    *_kinds("rawvideo", "avi nut", None, "bgr24"),
    *_kinds("qtrle", "mov", None, "rgb24"),
    *_kinds("qtrle", "mov", None, "argb"),
    *_kinds("svq1", "mov", FINE, "yuv410p"),
    *_kinds("rpza", "mov", None, "rgb555le"),
    *_kinds("msvideo1", "avi", None, "rgb555le"),
    *_kinds("rv10", "rm", FINE),
    *_kinds("rv20", "rm", FINE),
    *_kinds("snow", "avi", FINE),
    *_kinds("asv1", "avi", FINE),
    *_kinds("asv2", "avi", FINE),
    *_kinds("flashsv", "flv", None, "bgr24"),
    *_kinds("zlib", "avi", None, "bgr24"),
    *_kinds("jpeg2000", "mov", None, "yuv420p"),
    *_kinds("jpegls", "avi", None, "bgr24"),
    *_kinds("cfhd", "mov", None, "yuv422p10le", (144, 176)),
    *_kinds("v210", "mov", None, "yuv422p10le"),
    *_kinds("r210", "mov", None, "gbrp10le"),
    *_kinds("dxv", "mov", None, "rgba"),
    *_kinds("dpx", "mov", None, "rgb24"),
    *_kinds("tiff", "mov", None, "rgb24"),
    *_kinds("targa", "mov", None, "bgr24"),
]
