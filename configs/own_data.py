"""Your own pictures, on the machine and in the minutes that you have.

    python main.py train --config=configs/own_data.py --config.data.path=my_data \
        --minutes=30 --workdir=runs/mine

What is not given as a flag is chosen before training: model, sizes, batch, steps,
augmentation, selection, K (``mlseg_jax/fitting/choices.py`` says how, and why). With
``--config.init=FILE_OR_NAME`` the model is the one that the weights fit.

Argument: ``dataset`` (rows of ``DATA_SETS``). Scores and times: docs/own_data.md.
"""

from ml_collections import ConfigDict

from configs import common, pixel_classifier
from mlseg_jax.settings import backbones
from mlseg_jax.settings.arguments import parse_arg

WIDTH = 64
"""Of the decoder's maps, pixel embeddings and class queries."""


def get_config(arg: str | None = None) -> ConfigDict:
    args = parse_arg(arg, dataset="folder")
    args.selection = "top_k"  # Its head; the choice may be to do without.
    side = 128
    config = pixel_classifier.recipe(
        "own_data",
        args,
        side=side,
        base_size=(0, 0),
        steps=1000,
        backbone=backbones.resnet("resnet18_half"),
        decoder={"name": "upernet", "embed_dim": WIDTH, "dropout_rate": 0.0},
        multilabel_head=pixel_classifier.projected_encoder(0, num_heads=1),
        auxiliary_head={"name": "none"},
    )
    config.choose_settings = True
    if args.dataset == "sign_scenes":
        common.use_sign_scenes(config)
        config.data.crop_size, config.data.base_size = (96, 96), (0, 0)
    config.optimizer.update(
        name="adamw",
        schedule="cosine",
        learning_rate=3e-3,
        end_learning_rate=3e-5,
        weight_decay=0.02,
        clip_norm=1.0,
    )
    config.eval.checkpoint = "best"
    config.lock()
    return config
