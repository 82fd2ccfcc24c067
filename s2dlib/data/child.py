"""Decode videos in a process of its own, which can be killed: run as a module by readers.py.

Decoders hang and crash on some files: a bad file costs its own error and never the run.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np

from s2dlib.data import decoding
from s2dlib.data.decoding import Folder, Video
from s2dlib.data.sources import BUFFER, ClipError, first_line, progress


def _main() -> None:
    """Answer requests until the caller goes."""
    descriptor, memory, parent = map(int, sys.argv[1:])
    connection = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    connection.send(True)
    progress.connection = connection
    source: Folder | Video | None = None
    gc.freeze()
    with suppress(EOFError, BrokenPipeError):
        while True:
            verb, argument = connection.recv()
            try:
                if verb == "frames" and source is not None:
                    _send_frames(source, argument, connection, memory)
                elif verb != "next":  # that was said before it was known that decoding fails
                    source = None
                    gc.collect()  # PyAV's frames hold themselves, and Python does not see how much
                    source, shape = decoding.open_video(argument), (0, 0)
                    if verb == "probe":  # decode all frames, one in memory at a time
                        for frame in source.frames(range(source.n_frames)):
                            shape = frame.shape[:2]
                    connection.send(decoding.info_of(source, *shape))
            except ClipError as error:
                connection.send(error.cause)
            except (EOFError, BrokenPipeError):  # the caller has gone
                raise
            except Exception as error:  # noqa: BLE001 (of this file, whatever it is)
                connection.send(f"cannot be read ({type(error).__name__}: {first_line(error)})")


def _exit_with(parent: int) -> None:
    """End this process when its parent is gone, even while a file hangs in the decoder."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _send_frames(
    source: Folder | Video, order: list[int], connection: Connection, memory: int
) -> None:
    """Write frames to the two halves of the memory in turn, and say so when one is full.

    Where the video ends before the last one, what is known of it now is said instead.
    """
    halves: np.ndarray = np.empty(0)  # (2, m, H, W, 3)
    m, number = 1, -1  # frames in a half
    for number, frame in enumerate(source.frames(order)):
        if number == 0:
            m = max(1, min(len(order), BUFFER // frame.nbytes))
            size = 2 * m * frame.nbytes
            if size > os.fstat(memory).st_size:
                os.truncate(memory, size)
            buffer = mmap.mmap(memory, os.fstat(memory).st_size)
            halves = np.frombuffer(buffer, np.uint8, size).reshape(2, m, *frame.shape)
        k, n = divmod(number, m)  # the n-th frame in half k % 2
        if n == 0 and k >= 2:
            connection.recv()  # the caller is done with this half
        halves[k % 2, n] = frame
        if n + 1 == m or number + 1 == len(order):
            waits = k + 2 < -(-len(order) // m)
            connection.send((k % 2 * m * frame.nbytes, (n + 1, *frame.shape), waits))
    if number + 1 < len(order):
        connection.send(decoding.info_of(source))


if __name__ == "__main__":
    _main()
