"""Video files, written a frame at a time, each frame at its own time."""

import importlib.util
import os
from fractions import Fraction

import numpy as np

from input_pipeline.files.video import INSTALL
from mlseg_jax.errors import UserError
from mlseg_jax.typing import UInt8

ENCODERS = {
    "libx264": {"crf": "20", "preset": "veryfast"},
    # Of FFmpeg builds without x264; every browser has a decoder.
    "libvpx-vp9": {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "6"},
}
"""Encoders by preference, and how well they are to do it; both make mp4."""


def check_can_write(name: str) -> None:
    """Raises UserError where there is nothing to write the overlay of a video with."""
    if importlib.util.find_spec("av") is None:
        raise UserError(
            f"Writing the overlay of {name} needs PyAV, which is not installed; run "
            f"{INSTALL}."
        )


class VideoWriter:
    """Writes an mp4 that browsers play.

    H.264 with one chroma value for four pixels, so that both sides are even: a missing
    row or column is the one before it. The index is at the start, so that the video
    plays while it is loaded.

    Args:
      path: the file, which is complete when the writer was closed.
      size: height and width of all frames.
      frame_rate: frames a second, on average.
      time_base: seconds that times are multiples of.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: tuple[int, int],
        frame_rate: Fraction,
        time_base: Fraction,
    ):
        import av

        self._av = av
        options = {"movflags": "+faststart"}
        self._container = av.open(
            os.fspath(path), "w", format="mp4", container_options=options
        )
        name = next(name for name in ENCODERS if name in av.codecs_available)
        rate = frame_rate.limit_denominator(10**6)
        stream = self._container.add_stream(name, rate=rate)
        stream.height, stream.width = (side + side % 2 for side in size)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = time_base
        stream.options = ENCODERS[name]
        self._stream, self._time_base, self._last = stream, time_base, None
        self._step = max(1, round(1 / (frame_rate * time_base)))

    def add(self, image: UInt8[np.ndarray, "H W 3"], time: Fraction) -> None:
        """The next frame and the second it is shown at; not before the last one's."""
        padding = [(0, side % 2) for side in image.shape[:2]]
        if any(after for _, after in padding):
            image = np.pad(image, [*padding, (0, 0)], mode="edge")
        frame = self._av.VideoFrame.from_ndarray(image, format="rgb24")
        stamp = round(time / self._time_base)
        if self._last is not None:
            stamp = max(stamp, self._last + 1)
        self._last = stamp
        frame.pts, frame.time_base = stamp, self._time_base
        frame.duration = self._step
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.close()
        else:
            self._container.close()
