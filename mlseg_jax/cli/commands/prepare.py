"""``prepare``: the raw files of a published data set become one that is read fast."""

from input_pipeline.preparation import prepare
from mlseg_jax.cli.flags import required
from mlseg_jax.errors import UserError
from mlseg_jax.runs.progress import progress_bar


def run(flags) -> None:
    wanted = {
        key: required(flags, key) for key in ("dataset", "manual_dir", "data_dir")
    }
    if flags.num_workers is not None and flags.num_workers < 0:
        raise UserError("--num_workers counts processes; give 0 or more.")
    bars = {}

    def show(split: str, done: int, total: int) -> None:
        if split not in bars:
            bars[split] = progress_bar(total, done, f"preparing {split}")
        bars[split].update(done - bars[split].n)

    try:
        path = prepare.prepare(
            wanted["dataset"],
            wanted["manual_dir"],
            wanted["data_dir"],
            num_workers=flags.num_workers,
            allow_incomplete=flags.allow_incomplete,
            on_bad_example=flags.on_bad_example,
            progress=show,
        )
    finally:
        for bar in bars.values():
            bar.close()
    print(path)
