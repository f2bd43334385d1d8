"""``export_dataset``: writes a data set as a folder of images and masks."""

from input_pipeline.datasets.open import open_dataset
from input_pipeline.preparation.export import export_folder
from mlseg_jax.cli.flags import required


def run(flags) -> None:
    config, output = required(flags, "config"), required(flags, "output")
    sources = {
        config.data.train_split: open_dataset(config.data, train=True),
        config.data.eval_split: open_dataset(config.data, train=False),
    }
    export_folder(sources, output)
    print(output)
