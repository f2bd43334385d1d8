"""Videos of a few small frames, as cameras and other programs write them."""

from fractions import Fraction

import av
import numpy as np

HEIGHT, WIDTH = 40, 48
TICK = Fraction(1, 12800)


def frames(count=8, negative=False):
    """Smooth colours that move, so that what a codec makes of them is near them."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for i in range(count):
        red = 3 * x + 5 * i
        picture = np.stack([red % 200, 4 * y % 220, 2 * (x + y)], -1).astype(np.uint8)
        yield 255 - picture if negative else picture


def ticks(count):
    """Times of a camera that does not keep the beat."""
    steps = [512 * (1 + i % 3) for i in range(count)]
    return [0, *np.cumsum(steps[:-1]).tolist()]


def write_clip(path, pictures, times=None, codec="libx264", rotation=None):
    """A file of the kind that its ending says; ``times`` in `TICK`."""
    pixels = {"gif": "rgb8"}.get(codec, "yuv420p")
    options = {"movflags": "+faststart"} if str(path).endswith("mp4") else {}
    with av.open(str(path), "w", container_options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixels
        stream.options = {"crf": "4", "g": "4"} if codec == "libx264" else {}
        if times is not None:
            stream.codec_context.time_base = TICK
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            if times is not None:
                frame.pts, frame.time_base = times[i], TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut_off(path, share=0.6):
    """The first part of a file, as a copy that was interrupted."""
    data = path.read_bytes()
    short = path.with_name(f"cut_{path.name}")
    short.write_bytes(data[: int(len(data) * share)])
    return short
