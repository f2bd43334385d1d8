"""Models of regions that are small enough to be trained in tests."""

import ml_collections

from configs import mask2former, maskformer
from mlseg_jax.settings.arguments import choose

RECIPES = {"mask2former": mask2former, "maskformer": maskformer}
SIDE = 32
CLASSES = 20


def region_config(
    decoder: str = "mask2former",
    task: str = "panoptic",
    selection: str = "top_k",
    overrides: dict | None = None,
) -> ml_collections.ConfigDict:
    """A recipe for pictures of 32 pixels, K = 6 of C = 20, without dropout."""
    recipe = choose(RECIPES, "decoder", decoder)
    config = recipe.get_config(
        f"dataset=sign_scenes,task={task},selection={selection},pixel_decoder=fpn"
    )
    sizes = dict(embed_dim=16, num_heads=2, mlp_dim=16, depth=1, dropout_rate=0.0)
    with config.unlocked():
        config.data.update(
            num_classes=CLASSES,
            crop_size=(SIDE, SIDE),
            base_size=(0, 0),
            train_examples=24,
            eval_examples=5,
            max_segments=9,
            cache=False,
        )
        config.selection.k = CLASSES if selection == "complete" else 6
        config.model.backbone.update(
            embed_dim=8, depths=(2, 2, 2), num_heads=(1, 1, 2), window_size=4
        )
        config.model.pixel_decoder.update(
            {k: v for k, v in sizes.items() if k in config.model.pixel_decoder}
            | {"num_groups": 4}
        )
        config.model.decoder.update(
            {k: v for k, v in sizes.items() if k in config.model.decoder}
            | {"num_queries": 8, "image_layer": 1}
        )
        if selection == "top_k":
            config.model.multilabel_head.update(
                embed_dim=16, num_heads=2, dropout_rate=0.0
            )
        config.loss.regions.num_points = 48
        config.optimizer.update(
            schedule="constant", learning_rate=3e-3, warmup_steps=0, clip_norm=1.0
        )
        config.train.update(
            steps=4, batch_size=8, log_every=1, eval_every=1000, checkpoint_every=1000
        )
        config.eval.batch_size = 8
        config.update_from_flattened_dict(overrides or {})
    return config
