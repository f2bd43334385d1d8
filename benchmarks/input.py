"""Images a second of the input pipeline: by stage, by worker, and against others.

    python benchmarks/input.py --json=FILE
    python benchmarks/input.py --config=configs/segmenter.py:dataset=ade20k \
        --config.data.path=data --batch_size=32 --threads=1,2,4,8

Without a data set (``data.path``), 64 pictures are made: JPEG of 640x480 and about 137
KB, masks of 150 classes, in crops of 512x512 with the whole augmentation of method.md
section 12.2. *Stages* are timed one after the other in one thread; the slowest of them
binds. *Rates* are those of `train_batches` with so many threads, or, as ``0x4``,
processes; ``scaling`` is the rate over that many times the rate of one.

Where mmsegmentation can be imported (mmcv-lite is enough), its pipeline of the same
augmentation reads the same files in the same turns, with a PyTorch DataLoader of as
many worker processes; ``ratio`` is ours over theirs. It stops before normalising, as
ours does, and neither copies to a device. Figures are medians over turns.
"""

import pathlib
import sys
import tempfile
import time

import cv2
import numpy as np
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402
from mmsegmentation_side import MmsegmentationSide  # noqa: E402

measure.use_repository()

from input_pipeline.augmentation.augment import make_augment  # noqa: E402
from input_pipeline.datasets.open import open_dataset  # noqa: E402
from input_pipeline.files import images  # noqa: E402
from input_pipeline.pipeline import set_up_process, train_batches  # noqa: E402
from mlseg_jax.doctor.label_statistics import count_presence  # noqa: E402
from mlseg_jax.training.long_tail import class_examples  # noqa: E402

config_flags.DEFINE_config_file(
    "config", "configs/segmenter.py:dataset=folder", "Configuration; only its data."
)
flags.DEFINE_list("threads", ["1", "2"], "Numbers of threads; 0xN is N processes.")
flags.DEFINE_integer("batch_size", 8, "Images in a batch.")
flags.DEFINE_integer("batches", 30, "Batches in a turn.")
flags.DEFINE_integer("repetitions", 3, "Turns; a figure is the median over them.")
flags.DEFINE_string("json", None, "File to write.")

NUM_PICTURES, NUM_CLASSES, HEIGHT, WIDTH = 64, 150, 480, 640


def write_pictures(root: pathlib.Path) -> None:
    """Writes a folder of noise that compresses like photographs, with regions."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
    size = (WIDTH, HEIGHT)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for i in range(NUM_PICTURES + 1):
        rng = np.random.default_rng(i)
        picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for octave in range(1, 8):
            shape = (min(HEIGHT, 3 << octave), min(WIDTH, 4 << octave), 3)
            noise = rng.standard_normal(shape, np.float32) * 2 ** (-0.55 * octave)
            picture += cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
        picture = np.clip(picture / picture.std() * 55 + 120, 0, 255).astype(np.uint8)
        centres = rng.random((rng.integers(5, 25), 2)) * (HEIGHT, WIDTH)
        wave = cv2.resize(rng.standard_normal((24, 32)) * 15, size)
        distance = (y + wave)[..., None] - centres[:, 0], x[..., None] - centres[:, 1]
        nearest = (distance[0] ** 2 + distance[1] ** 2).argmin(-1)
        ids = rng.integers(NUM_CLASSES, size=len(centres))[nearest].astype(np.uint8)
        split = "train" if i < NUM_PICTURES else "val"
        cv2.imwrite(
            str(root / f"images/{split}/{i:03d}.jpg"),
            picture,
            [cv2.IMWRITE_JPEG_QUALITY, 95],
        )
        cv2.imwrite(str(root / f"masks/{split}/{i:03d}.png"), ids)
    names = "".join(f"class {i}\n" for i in range(NUM_CLASSES))
    (root / "classes.txt").write_text(names)


def time_stages(source, data, counts, batch_size: int) -> dict[str, float]:
    """Milliseconds an image of each stage, in this thread."""
    count = min(len(source), 64)
    seconds = dict.fromkeys(("read", "decode", "resize, crop, flip"), 0.0)
    seconds |= {"photometric": 0.0, "batch": 0.0}
    augment = make_augment(data, counts, source.info)
    without = data.copy_and_resolve_references()
    without.photometric = False
    geometry = make_augment(without, counts, source.info)
    read_bytes, reading = images.read_bytes, [0.0]

    def timed_read(path):
        begin = time.perf_counter()
        result = read_bytes(path)
        reading[0] += time.perf_counter() - begin
        return result

    images.read_bytes = timed_read  # Of sources of files; others read while decoding.
    batch = []
    try:
        for i in range(count):
            begin, reading[0] = time.perf_counter(), 0.0
            example = source[i]
            decoded = time.perf_counter()
            geometry(example, np.random.default_rng(i))
            cropped = time.perf_counter()
            batch.append(augment(example, np.random.default_rng(i)))
            augmented = time.perf_counter()
            if len(batch) == batch_size:
                for key in ("image", "label_map"):
                    np.stack([example[key] for example in batch])
                batch.clear()
            seconds["read"] += reading[0]
            seconds["decode"] += decoded - begin - reading[0]
            seconds["resize, crop, flip"] += cropped - decoded
            seconds["photometric"] += augmented - cropped - (cropped - decoded)
            seconds["batch"] += time.perf_counter() - augmented
    finally:
        images.read_bytes = read_bytes
    return {stage: 1e3 * total / count for stage, total in seconds.items()}


class OurSide:
    """`train_batches` that never end, timed a number of batches at a time."""

    def __init__(self, source, data, counts, batch_size: int, threads: str, batches):
        num_threads, _, workers = threads.partition("x")
        self._batches = train_batches(
            source,
            seed=0,
            batch_size=batch_size,
            augment=make_augment(data, counts, source.info),
            num_threads=int(num_threads) or 1,
            num_workers=int(workers or 0),
        )
        self._count = batches

    def __call__(self) -> float:
        def fetch():
            for _ in range(self._count):
                next(self._batches)

        return measure.seconds_of(fetch)

    def close(self) -> None:
        self._batches.close()


def compare(source, data, counts, root) -> list[dict[str, object]]:
    """Rates of each number of threads, and of mmsegmentation beside it."""
    values = flags.FLAGS
    size, count = values.batch_size, values.batches
    rows, alone = [], {}
    for threads in values.threads:
        number = max(int(part or 0) for part in threads.split("x"))
        sides = {"ours": OurSide(source, data, counts, size, threads, count)}
        if root is not None:
            try:
                sides["mmsegmentation"] = MmsegmentationSide(
                    root, data, NUM_CLASSES, size, number, count
                )
            except ImportError as error:
                print(f"not compared: mmsegmentation cannot be imported ({error})")
                root = None
        measure.alternate(sides, 1)  # Fills queues, starts processes.
        middle = measure.medians(measure.alternate(sides, values.repetitions))
        for side in sides.values():
            side.close()
        rates = {name: size * count / seconds for name, seconds in middle.items()}
        row = {"workers": threads}
        for name, rate in rates.items():
            alone.setdefault(name, rate / number)
            row[f"{name} images/s"] = rate
            row[f"{name} a worker"] = rate / number
            row[f"{name} scaling"] = rate / (number * alone[name])
        if len(rates) == 2:
            row["ratio"] = rates["ours"] / rates["mmsegmentation"]
        rows.append(row)
    return rows


def run(config, root: pathlib.Path | None) -> dict[str, object]:
    source = open_dataset(config.data, train=True)
    counts = None
    if config.data.rare_crop_rate > 0:
        presence = getattr(source, "presence", None)
        presence = presence or count_presence(source, config.data.num_threads)
        counts = class_examples(presence, source.info.num_classes)
    set_up_process()
    batch_size = flags.FLAGS.batch_size
    time_stages(source, config.data, counts, batch_size)  # Fills caches.
    stages = time_stages(source, config.data, counts, batch_size)
    total = sum(stages.values())
    measure.print_table(
        [
            {"stage": stage, "ms": ms, "images/s": 1e3 / ms, "share": ms / total}
            for stage, ms in (*stages.items(), ("all", total))
            if ms > 0
        ]
    )
    binds = max(stages, key=stages.get)
    print(f"The stage that binds is: {binds}")
    rows = compare(source, config.data, counts, root)
    measure.print_table(rows)
    return {"stages_ms": stages, "binds": binds, "rates": rows}


def main(_) -> None:
    config = flags.FLAGS.config
    facts = measure.machine()
    measure.print_machine(facts)
    if config.data.path:
        result = run(config, None)
    else:
        config.data.update(crop_size=(512, 512), base_size=(2048, 512))
        with tempfile.TemporaryDirectory() as directory:
            root = pathlib.Path(directory)
            write_pictures(root)
            config.data.path = directory
            result = run(config, root)
    measure.write_json(flags.FLAGS.json, {**result, "machine": facts})


if __name__ == "__main__":
    app.run(main)
