"""Time of a training step of the rows of configs/selection_study.py, interleaved.

    python benchmarks/study_steps.py --size=c120 [--rows=baseline,mlseg,apart]

One step of each row after the other, again and again, so that whatever else the machine
does meets all rows alike; printed are medians, and each over the first row's: what goes
into ``STEP_TIMES``, once. The data is made beforehand and does not count.
"""

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


class Row:
    """A row's compiled step, its state, and one batch of noise."""

    def __init__(self, name: str, size: str):
        from benchmarks.measure import noise_batch
        from configs import selection_study
        from mlseg_jax.distributed.sharding import make_mesh, put_batch
        from mlseg_jax.models.build import FunctionalModel
        from mlseg_jax.settings.resolve import resolve
        from mlseg_jax.training.state import initialise
        from mlseg_jax.training.step import make_train_step

        self.name = name
        config = selection_study.get_config(f"row={name},size={size}")
        num_classes = config.data.num_classes
        config = resolve(config, num_classes)
        mesh = make_mesh(config)
        model = FunctionalModel.build(config, num_classes)
        self.step = make_train_step(config, model, mesh)
        self.state = initialise(config, num_classes, mesh)
        batch = noise_batch(config, config.train.batch_size, num_classes)
        self.batch = put_batch(mesh, batch)
        self.seconds = []
        self.run()  # compiles
        self.seconds.clear()

    def run(self) -> None:
        import jax

        begin = time.perf_counter()
        self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        self.seconds.append(time.perf_counter() - begin)


def measure(names: list[str], size: str, repetitions: int) -> dict[str, float]:
    """Median seconds of a step of each row."""
    rows = [Row(name, size) for name in names]
    for _ in range(repetitions):
        for row in rows:
            row.run()
    return {row.name: statistics.median(row.seconds) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="c120")
    parser.add_argument("--rows", default="baseline,mlseg,apart")
    parser.add_argument("--repetitions", type=int, default=21)
    args = parser.parse_args()
    seconds = measure(args.rows.split(","), args.size, args.repetitions)
    first = next(iter(seconds.values()))
    for name, value in seconds.items():
        print(f"{name:20} {1000 * value:8.1f} ms {value / first:6.3f}")


if __name__ == "__main__":
    main()
