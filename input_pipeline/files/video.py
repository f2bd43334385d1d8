"""Frames of videos with their times: files that PyAV reads, and folders of pictures.

Films are decoded one frame after another and never held. What of a file cannot be read
is passed over and said: a damaged tail costs the tail alone.
"""

import abc
import contextlib
import dataclasses
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from etils import epath

from input_pipeline.files.images import (
    IMAGE_SUFFIXES,
    USUAL,
    ReadOptions,
    read_image,
)
from input_pipeline.files.text import natural
from input_pipeline.info import DataError
from mlseg_jax.errors import UserError, pip_install
from mlseg_jax.typing import UInt8

FRAME_RATE = Fraction(25)
"""Frames a second of folders, unless told otherwise."""

_TEXT_FORMATS = {"tty", "ansi", "bin", "adf", "idf", "xbin", "rl2", "sdp", "concat"}
"""Text files as FFmpeg would film them, and lists of other files."""

INSTALL = f"{pip_install('mlseg-jax[video]')} (or 'av>=18' alone)"
"""How PyAV comes along."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
      index: its place in the video, from 0; frames that cannot be read count, too.
      time: seconds since the first frame.
      image: the picture, turned as the video says; None for frames passed over.
      name: of its file, where the video is a folder.
    """

    index: int
    time: Fraction
    image: UInt8[np.ndarray, "H W 3"] | None
    name: str = ""


class AbstractVideo(abc.ABC):
    """Frames that come one after another.

    Attributes:
      name: the path, as it was given.
      frame_rate: frames a second, on average.
      time_base: seconds that the times of all frames are multiples of.
      num_frames: how many there should be; None where that is not known.
      problems: a sentence for each thing that could not be read, filled by `frames`.
    """

    name: str
    frame_rate: Fraction
    time_base: Fraction
    num_frames: int | None
    problems: list[str]

    @abc.abstractmethod
    def frames(self, start: int = 0) -> Iterator[Frame]:
        """All frames that can be read, in order.

        Those before ``start`` come without a picture where that is quicker.
        """

    @abc.abstractmethod
    def identity(self) -> dict:
        """What tells this video from another at the same path: names, sizes, times of
        files.
        """


def open_video(
    path: str | os.PathLike,
    options: ReadOptions = USUAL,
    frame_rate: Fraction = FRAME_RATE,
) -> AbstractVideo:
    """A video file (mp4, mov, mkv, webm, avi, gif, ...), or a folder of its frames.

    Args:
      path: file or folder.
      options: how pictures are read; of files the largest number of pixels counts.
      frame_rate: frames a second, of a folder alone.

    Raises:
      DataError: there is nothing, it is no video, or has no frame.
      UserError: PyAV, which reads video files, is not installed.
    """
    place = epath.Path(path).expanduser()
    if place.is_dir():
        return FrameFolder(place, os.fspath(path), options, frame_rate)
    if not place.exists():
        raise DataError(f"There is no video {os.fspath(path)}; correct the path.")
    return VideoFile(os.fspath(place), os.fspath(path), options)


class FrameFolder(AbstractVideo):
    """The pictures directly in a folder, by name, numbers in names as numbers."""

    def __init__(
        self,
        folder: epath.Path,
        name: str,
        options: ReadOptions,
        frame_rate: Fraction,
    ):
        self.name, self.frame_rate, self._options = name, frame_rate, options
        self.time_base, self.problems = 1 / frame_rate, []
        inside = [p for p in folder.iterdir() if not p.name.startswith(".")]
        pictures = [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES]
        self._paths = sorted(pictures, key=lambda path: natural(path.name))
        self.num_frames = len(self._paths)
        if not self._paths:
            raise DataError(
                f"The folder {name} holds no pictures directly in it; give the folder "
                f"of a video's frames, or a video file."
            )

    def frames(self, start: int = 0) -> Iterator[Frame]:
        self.problems.clear()
        for index, path in enumerate(self._paths):
            image = None
            try:
                if index >= start:
                    image = read_image(path, self._options)
            except DataError as error:
                self.problems.append(str(error))
                continue
            yield Frame(index, index * self.time_base, image, path.name)

    def identity(self) -> dict:
        files = hashlib.sha256()
        for path in self._paths:
            stat = path.stat()
            files.update(f"{path.name}/{stat.length}/{stat.mtime}/".encode())
        return {"frames": len(self._paths), "files": files.hexdigest()[:16]}


class VideoFile(AbstractVideo):
    """A video file, read by FFmpeg's libraries through PyAV."""

    def __init__(self, path: str, name: str, options: ReadOptions):
        self._path, self.name, self._options = path, name, options
        self.problems: list[str] = []
        with self._opened() as (container, stream):
            rate = stream.average_rate or stream.guessed_rate or FRAME_RATE
            self.frame_rate = Fraction(rate)
            self.time_base = Fraction(stream.time_base or 1 / self.frame_rate)
            self._duration = _duration(container, stream)
            # Matroska's duration begins at 0, whenever the first frame comes.
            self._is_from_zero = container.format.name.startswith("matroska")
            self._declared = stream.frames
            if container.format.name.startswith("mov") and stream.frames:
                # What edit lists leave of them.
                self._declared = len(stream.index_entries) or stream.frames
            self._cut_off = container.format.name == "gif" and _lacks_end(path)
            self._has_sound = len(container.streams.audio) > 0
            self.num_frames = self._declared or None
            if self.num_frames is None and self._duration:
                self.num_frames = max(1, round(self._duration * self.frame_rate))

    @contextlib.contextmanager
    def _opened(self):
        """The container and its first video stream; raises DataError."""
        if importlib.util.find_spec("av") is None:
            raise UserError(
                f"Reading the video {self.name} needs PyAV, which is not installed; "
                f"run {INSTALL}, or give a folder of its frames."
            )
        import av

        if os.path.getsize(self._path) == 0:
            raise DataError(f"Video {self.name} is empty; copy it again.")
        try:
            # Playlists are not to open what lies elsewhere.
            options = {"protocol_whitelist": "file"}
            container = av.open(self._path, container_options=options)
        except (av.FFmpegError, ValueError, UnicodeError) as error:
            raise DataError(
                f"{self.name} is no video that can be read ({_reason(error)}); copy it "
                f"again, or convert it to mp4."
            ) from error
        with container:
            streams = container.streams.video
            if not streams or container.format.name in _TEXT_FORMATS:
                raise DataError(
                    f"{self.name} holds no video ({container.format.name}); give a "
                    f"video file or a folder of frames."
                )
            yield container, streams[0]

    def frames(self, start: int = 0) -> Iterator[Frame]:
        self.problems.clear()
        count = _Count()
        with self._opened() as (container, stream):
            first = last = None
            for decoded in _decoded(container, stream, count):
                index, time = count.frames - 1, decoded.pts
                if time is None:
                    time = index / self.frame_rate
                else:
                    time = time * Fraction(decoded.time_base)
                first = time if first is None else first
                last = time - first
                if decoded.is_corrupt:
                    count.faults += 1
                    continue
                image = self._picture(decoded) if index >= start else None
                yield Frame(index, last, image)
        self._add_problems(count, first, last)

    def _picture(self, decoded) -> np.ndarray:
        pixels = decoded.width * decoded.height
        if pixels > self._options.max_pixels or min(decoded.width, decoded.height) < 2:
            raise DataError(
                f"Video {self.name} has frames of {decoded.width}x{decoded.height} "
                f"pixels, but they may have 2x2 to data.max_pixels="
                f"{self._options.max_pixels:,}; scale it."
            )
        image = decoded.to_ndarray(format="rgb24")
        # Phones film on their side and say so; the angle is counter-clockwise.
        return np.ascontiguousarray(np.rot90(image, decoded.rotation // 90))

    def _add_problems(
        self, count: "_Count", first: Fraction | None, last: Fraction | None
    ) -> None:
        missing = max(self._declared - count.packets, 0)
        read = count.frames - count.faults
        if not self._declared and self._duration and last is not None:
            # Sound may go on a little after the last frame.
            spare = max(3 / self.frame_rate, Fraction(int(self._has_sound)))
            before = max(first, Fraction(0)) if self._is_from_zero else 0
            left = self._duration - before - last - spare
            missing = max(0, int(left * self.frame_rate) + 1 if left > 0 else 0)
        if not (missing or count.faults or count.errors or self._cut_off):
            if not read:
                raise DataError(f"Video {self.name} has no frame; give another.")
            return
        total = self.num_frames
        of = f"of about {total:,} frames" if total and total > read else "frames"
        until = "" if last is None else f", the last at {float(last):.2f} s"
        self.problems.append(
            f"Video {self.name} is damaged: {read:,} {of} can be read{until}; copy it "
            f"again for the rest."
        )

    def identity(self) -> dict:
        stat = os.stat(self._path)
        return {"bytes": stat.st_size, "modified": int(stat.st_mtime)}


@dataclasses.dataclass
class _Count:
    """What came out of a file so far, and what did not."""

    packets: int = 0
    frames: int = 0
    errors: int = 0
    faults: int = 0


def _decoded(container, stream, count: _Count) -> Iterator:
    """All frames that the decoder gives, past what it cannot decode."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # the file ends within a packet
            count.errors += 1
            packet = None
        try:
            if packet is None:
                found = stream.decode(None)
            else:
                count.packets += packet.size > 0
                count.errors += bool(packet.is_corrupt)
                found = packet.decode()
        except av.EOFError:
            found = []
        except av.FFmpegError:
            count.errors += 1
            found = []
        for frame in found:
            count.frames += 1
            yield frame
        if packet is None:
            return


def _duration(container, stream) -> Fraction | None:
    """Seconds, as the file says."""
    if stream.duration and stream.time_base:
        return stream.duration * Fraction(stream.time_base)
    return Fraction(container.duration, 10**6) if container.duration else None


def _lacks_end(path: str) -> bool:
    """Whether the last byte of a GIF is not the one that ends it."""
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() not in (b"\x3b", b"\x00")


def _reason(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")
