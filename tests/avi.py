"""AVI files as old programs wrote them: counts that are too high, empty chunks, packed B-frames."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av

# An MPEG-4 P-frame that is not coded: type 01, no full second, marker, tick 0 of 25, marker, 0
EMPTY_FRAME = b"\0\0\1\xb6" + int("0101000001001111", 2).to_bytes(2, "big")
PACKED = b"\0\0\1\xb2DivX503b1393p"  # user data by which a decoder knows packed B-frames


def claim(path: Path, n: int) -> Path:
    """Write another number of frames into both headers."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, n)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, n)
    path.write_bytes(data)
    return path


def append_empty_chunks(path: Path, n: int) -> Path:
    """Frames without a byte at the end, as programs write them that fill up with nothing."""
    data = bytearray(path.read_bytes())
    n_frames = struct.unpack_from("<I", data, data.index(b"avih") + 8 + 16)[0]
    movi, index = data.index(b"movi"), data.rindex(b"idx1")
    size, entries = movi - 4, index + 8 + struct.unpack_from("<I", data, index + 4)[0]
    empty = [struct.pack("<4sIII", b"00dc", 0, index - movi + 8 * i, 0) for i in range(n)]
    data[entries:entries] = b"".join(empty)
    struct.pack_into("<I", data, index + 4, entries - index - 8 + 16 * n)
    data[index:index] = (b"00dc" + bytes(4)) * n
    struct.pack_into("<I", data, size, struct.unpack_from("<I", data, size)[0] + 8 * n)
    struct.pack_into("<I", data, 4, len(data) - 8)
    path.write_bytes(data)
    return claim(path, n_frames + n)


def pack_b_frames(source: Path, path: Path) -> Path:
    """Write an MPEG-4 video as DivX and XviD do: a P-frame and the first B-frame before it share.

    A frame that is not coded follows the last B-frame, so that there is a chunk a frame; one more
    stands at the end.
    """
    with av.open(str(source)) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    vop = packets[0].index(b"\0\0\1\xb6")
    chunks, packed = [packets[0][:vop] + PACKED + packets[0][vop:]], False
    for packet in packets[1:]:
        if packet[packet.index(b"\0\0\1\xb6") + 4] >> 6 != 2:  # I or P
            chunks += [EMPTY_FRAME] * packed + [packet]
            packed = False
        elif packed:
            chunks.append(packet)
        else:
            chunks[-1] += packet
            packed = True
    chunks += [EMPTY_FRAME] * packed
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 80, "yuv420p"
        for number, chunk in enumerate([*chunks, EMPTY_FRAME]):
            packet = av.Packet(chunk)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            file.mux(packet)
    return path
