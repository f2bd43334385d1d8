"""Images a second of training and prediction, and where the time goes.

    python benchmarks/throughput.py --config=configs/demo.py --json=FILE
    python benchmarks/throughput.py --json=FILE \
        --config=configs/segmenter.py:dataset=ade20k --config.train.batch_size=2

*train*: the jitted step with the configuration's batch size on one batch that stays on
the device, and again fed by the real input pipeline (SignScenes or a folder; without
its data, the second is left out). ``input_wait`` is the share of the time that the loop
stood waiting. *predict*: batches of ``eval.batch_size`` random pictures of the crop
size to label maps in NumPy. MFU is the achieved 2 x multiply-accumulates a second
(`flops.count_macs`; a train step is three forward passes) over those of a large float32
matrix product measured in the same turns. All figures are medians over turns.
"""

import pathlib
import sys

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import measure  # noqa: E402

measure.use_repository()

from input_pipeline.augmentation.augment import make_augment  # noqa: E402
from input_pipeline.datasets.open import open_dataset  # noqa: E402
from input_pipeline.info import DataError  # noqa: E402
from input_pipeline.pipeline import train_batches  # noqa: E402
from mlseg_jax.distributed.sharding import make_mesh, put_batch  # noqa: E402
from mlseg_jax.models.build import FunctionalModel  # noqa: E402
from mlseg_jax.models.flops import count_macs  # noqa: E402
from mlseg_jax.runs.progress import Stopwatch  # noqa: E402
from mlseg_jax.tasks.engines import evaluation_policy, make_engine  # noqa: E402
from mlseg_jax.training.state import initialise  # noqa: E402
from mlseg_jax.training.step import make_train_step  # noqa: E402


class Training:
    """A state that steps forward, on a fixed batch or on what the pipeline brings."""

    def __init__(self, config, model, source, steps: int):
        self.steps = steps
        self.mesh = make_mesh(config)
        self.state = initialise(config, model.num_classes, self.mesh)
        self.step = make_train_step(config, model, self.mesh)
        self.batch = put_batch(self.mesh, _random_batch(config, model.num_classes))
        self.watch, self.waits, self.batches = Stopwatch(), [], None
        if source is not None:
            batches = train_batches(
                source,
                seed=config.seed,
                batch_size=config.train.batch_size,
                augment=make_augment(config.data, None, source.info),
                num_threads=config.data.num_threads,
            )
            self.batches = self.watch.timed(batches)
            next(self.batches)

    def fixed(self) -> float:
        """Seconds a step when there is nothing to wait for."""
        return measure.seconds_of(lambda: self._run(lambda: self.batch)) / self.steps

    def fed(self) -> float:
        """Seconds a step with the pipeline; notes the share of waiting."""
        self.watch.read()
        self._run(lambda: put_batch(self.mesh, next(self.batches)))
        _, seconds, waiting, *_ = self.watch.read()
        self.waits.append(waiting)
        return seconds / self.steps

    def _run(self, next_batch) -> None:
        for _ in range(self.steps):
            self.state, metrics = self.step(self.state, next_batch())
            # As in training/loop.py, nothing waits for a step but the last.
        jax.block_until_ready((self.state, metrics))


def _random_batch(config, num_classes: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shape = (config.train.batch_size, *config.data.crop_size)
    return {
        "image": random.integers(0, 256, (*shape, 3), np.uint8),
        "label_map": random.integers(0, num_classes, shape).astype(np.int32),
    }


def make_predict(config, model, parameters, steps: int):
    """Seconds a batch, from pictures to label maps."""
    engine = make_engine(config, model, parameters, make_mesh(config))
    policy = evaluation_policy(config, model.num_classes)
    shape = (config.eval.batch_size, *config.data.crop_size, 3)
    images = list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def predict():
        for _ in range(steps):
            (results,) = engine.segment(images, [(policy, None)])
            for segmented in results:
                segmented.label_maps()

    return lambda: measure.seconds_of(predict) / steps


def run(config, repetitions: int, steps: int) -> dict[str, object]:
    try:
        source = open_dataset(config.data, train=True)
    except DataError as error:
        print(f"no data, so no input wait: {error}")
        source = None
    num_classes = source.info.num_classes if source else config.data.num_classes
    model = FunctionalModel.build(config, num_classes)
    training = Training(config, model, source, steps)
    copy = jax.tree.map(jax.numpy.copy, training.state["params"])
    turns = {
        "predict": make_predict(config, model, copy, steps),
        "train": training.fixed,
        "matmul": measure.jax_matmul(),
    }
    if source is not None:
        turns["train_fed"] = training.fed
    measure.alternate(turns, 1)  # Compiles.
    training.waits.clear()
    middle = measure.medians(measure.alternate(turns, repetitions))

    peak = 1e9 * measure.matmul_gflops(middle["matmul"])
    flops = 2 * sum(part.exact for part in count_macs(config, model).values())
    sizes = {"predict": config.eval.batch_size, "train": config.train.batch_size}
    result = {"config": config.name, "C": num_classes, "matmul_gflops": peak / 1e9}
    for name, size in sizes.items():
        rate = size / middle[name]
        passes = 3 if name == "train" else 1
        result[f"{name}_batch_size"] = size
        result[f"{name}_images_per_second"] = rate
        result[f"{name}_mfu"] = rate * flops * passes / peak
    if source is not None:
        rate = sizes["train"] / middle["train_fed"]
        result["train_with_input_images_per_second"] = rate
        result["input_wait"] = float(np.median(training.waits))
    return {**result, "peak_rss_bytes": measure.peak_rss_bytes()}


def main(_) -> None:
    values = flags.FLAGS
    facts = measure.machine()
    measure.print_machine(facts)
    result = run(values.config, values.repetitions, values.steps)
    measure.print_table([{"figure": k, "value": v} for k, v in result.items()])
    measure.write_json(values.json, {**result, "machine": facts})


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/demo.py", "Configuration.")
    flags.DEFINE_string("json", None, "File to write.")
    flags.DEFINE_integer("repetitions", 5, "Turns; a figure is the median over them.")
    flags.DEFINE_integer("steps", 5, "Steps, and batches predicted, in a turn.")
    app.run(main)
