"""The demonstration: MLSeg on SignScenes, C = 40 labels, K = 10 selected.

    make demo        or        python main.py train --config=configs/demo.py \
                                   --workdir=runs/demo

Three to four minutes on two CPU cores; mIoU 0.480, measured there (the oracle 0.622).
"""

from ml_collections import ConfigDict

from configs import segmenter
from mlseg_jax.settings.arguments import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    parse_arg(arg)
    config = segmenter.get_config("dataset=sign_scenes,backbone=vit_demo")
    config.name = "demo"
    config.data.num_classes = 40
    config.selection.k = 10
    config.model.backbone.drop_path_rate = 0.0
    config.model.decoder.dropout_rate = 0.0
    config.optimizer.learning_rate = 1.5e-3
    config.train.steps = 1200
    config.train.eval_every = 400
    config.train.checkpoint_every = 400
    return config
