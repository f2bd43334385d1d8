"""Every key of a configuration with its kind and range: the one table that checks them.

`check` is called before anything is opened. A kind `ROW` is a name in a table of code
above the settings (parts, rank norms, tasks); whoever checks hands that table over, so
that a new part is one row in one place.
"""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

import ml_collections

from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import SELECTIONS
from mlseg_jax.settings import kinds
from mlseg_jax.settings.arguments import did_you_mean
from mlseg_jax.settings.kinds import (
    ABOVE_0,
    AXIS,
    COUNT,
    COUNT_OR_NONE,
    COUNTS,
    FACTORS,
    FLAG,
    FROM_0,
    NAME,
    PATTERNS,
    PIXEL,
    PROBABILITY,
    RATE,
    ROW,
    SHARE,
    SIDES,
    SPREAD,
    TEXT,
    WEIGHT,
    Kind,
    also,
    choice,
    number,
    ordered,
    tuple_of,
    whole,
)
from mlseg_jax.settings.model_keys import MODEL_KEYS, MODEL_KEYS_OF_PARTS
from mlseg_jax.typing import MAX_CLASSES

KEYS = {
    "name": TEXT,
    "task": ROW,
    "seed": whole(0, 2**31 - 1),
    "choose_settings": FLAG,
    "init": TEXT,
    "init_part": TEXT,
    # ------------------------------------------------------------------------- data
    "data.name": NAME,
    "data.path": TEXT,
    "data.classes": TEXT,
    "data.image_key": NAME,
    "data.label_key": NAME,
    "data.paint_order": choice("area", "file"),
    "data.background": TEXT,
    "data.image_folder": NAME,
    "data.mask_folder": NAME,
    "data.image_ending": TEXT,
    "data.mask_ending": NAME,
    "data.max_pixels": COUNT,
    "data.exif": FLAG,
    "data.white_value": whole(255, 65535),
    "data.num_classes": whole(0, MAX_CLASSES),
    "data.train_split": NAME,
    "data.eval_split": NAME,
    "data.validation_split": TEXT,
    "data.touching": SHARE,
    "data.train_examples": COUNT_OR_NONE,
    "data.eval_examples": COUNT_OR_NONE,
    "data.crop_size": SIDES,
    "data.base_size": also(
        SIDES, (0, 0), "two whole numbers from 1, such as (2048, 512), or (0, 0)"
    ),
    "data.augmentation": choice(
        "crop", "whole", "short_side", "large_scale_jitter", "detr", "clip"
    ),
    "data.short_sides": COUNTS,
    "data.max_side": COUNT,
    "data.scale_range": ordered(
        tuple_of(
            ABOVE_0,
            "two numbers above 0, the smaller one first, such as (0.5, 2.0)",
            length=2,
        )
    ),
    "data.max_class_share": Kind("a share, above 0 to 1", number(above=0, most=1).fits),
    "data.flip_rate": PROBABILITY,
    "data.photometric": FLAG,
    "data.rand_augment": FLAG,
    "data.cutout": SHARE,
    "data.pixel_mean": PIXEL,
    "data.pixel_std": SPREAD,
    "data.segments": choice("none", "classes", "panoptic", "instances"),
    "data.max_segments": COUNT,
    "data.num_frames": COUNT,
    "data.frame_window": COUNT_OR_NONE,
    "data.video_length": COUNT,
    "data.repeat_factor": SHARE,
    "data.rare_crop_rate": PROBABILITY,
    "data.on_bad_example": choice("fail", "skip"),
    "data.num_threads": COUNT_OR_NONE,
    "data.num_workers": COUNT_OR_NONE,
    "data.feature_variants": COUNT_OR_NONE,
    "data.cache": FLAG,
    # -------------------------------------------------------------------- selection
    "selection.name": choice(*SELECTIONS),
    "selection.k": COUNT,
    "selection.minimum_score": PROBABILITY,
    "selection.cumulative": PROBABILITY,
    "selection.with_present": FLAG,
    "selection.scatter_present": FLAG,
    "selection.noise": FROM_0,
    "selection.last_prediction_only": FLAG,
    "selection.eval_name": choice(*SELECTIONS, ""),
    "selection.eval_k": COUNT_OR_NONE,
    "selection.classifier": TEXT,
    "selection.scores": TEXT,
    # ------------------------------------------------------------------------- loss
    "loss.pixel": choice("cross_entropy", "nearest_classes"),
    "loss.num_nearest": COUNT,
    "loss.pixel_mean": choice("all", "valid"),
    "loss.class_weighting": choice("none", "inverse_sqrt"),
    "loss.logit_adjustment": FROM_0,
    "loss.multilabel": choice("asymmetric", "binary_cross_entropy"),
    "loss.multilabel_weight": WEIGHT,
    "loss.missed_weight": FROM_0,
    "loss.regions.class_weight": FROM_0,
    "loss.regions.dice_weight": FROM_0,
    "loss.regions.ignore_void": FLAG,
    "loss.regions.importance": SHARE,
    "loss.regions.mask": choice("points", "focal"),
    "loss.regions.mask_weight": FROM_0,
    "loss.regions.no_object_weight": FROM_0,
    "loss.regions.num_points": COUNT,
    "loss.regions.oversample": number(least=1),
    "loss.gamma_negative": FROM_0,
    "loss.gamma_positive": FROM_0,
    "loss.clip": RATE,
    "loss.detach_focus": FLAG,
    # -------------------------------------------------------------------- optimizer
    "optimizer.name": choice("sgd", "adamw"),
    "optimizer.learning_rate": ABOVE_0,
    "optimizer.end_learning_rate": FROM_0,
    "optimizer.schedule": choice("poly", "cosine", "one_cycle", "steps", "constant"),
    "optimizer.poly_power": FROM_0,
    "optimizer.falls_at": ordered(
        tuple_of(SHARE, "shares of the steps, smaller ones first, such as (0.89, 0.96)")
    ),
    "optimizer.warmup_steps": COUNT_OR_NONE,
    "optimizer.backbone_warmup_steps": COUNT_OR_NONE,
    "optimizer.momentum": number(0, below=1),
    "optimizer.weight_decay": FROM_0,
    "optimizer.weight_decay_factors": FACTORS,
    "optimizer.learning_rate_factors": FACTORS,
    "optimizer.layer_decay": number(above=0, most=1),
    "optimizer.layer_decay_rule": choice("beit", "last", "joint"),
    "optimizer.frozen": PATTERNS,
    "optimizer.clip_norm": FROM_0,
    "optimizer.ema_decay": number(0, below=1),
    "optimizer.ema_warmup": FLAG,
    # ------------------------------------------------------------------------ train
    "train.steps": COUNT_OR_NONE,
    "train.batch_size": COUNT,
    "train.accumulate": COUNT,
    "train.log_every": COUNT_OR_NONE,
    "train.eval_every": COUNT_OR_NONE,
    "train.checkpoint_every": COUNT_OR_NONE,
    "train.keep_best": COUNT_OR_NONE,
    "train.logger": choice("tensorboard", "wandb", "mlflow"),
    "train.patience": COUNT_OR_NONE,
    "train.stop_after": COUNT_OR_NONE,
    "train.hang_minutes": FROM_0,
    "train.max_hours": FROM_0,
    "train.profile_start": COUNT_OR_NONE,
    "train.profile_steps": COUNT_OR_NONE,
    # ------------------------------------------------------------------------- eval
    "eval.mode": choice("whole", "slide"),
    "eval.window": SIDES,
    "eval.stride": SIDES,
    "eval.scales": tuple_of(
        ABOVE_0, "a tuple of numbers above 0, such as (0.75, 1.0, 1.25)", least=1
    ),
    "eval.flip": FLAG,
    "eval.selection_scope": choice("per_window", "per_image", "per_clip"),
    "eval.clip_length": COUNT,
    "eval.clip_scores": choice("maximum", "mean", "running"),
    "eval.clip_change": SHARE,
    "eval.track_score": SHARE,
    "eval.batch_size": COUNT,
    "eval.checkpoint": choice("latest", "best"),
    "eval.weights": choice("average", "latest", "better"),
    "eval.oracle_k": COUNT,
    "eval.oracle_labels": choice("resized", "original"),
    "eval.object_threshold": SHARE,
    "eval.overlap_threshold": SHARE,
    "eval.inside_mask": FLAG,
    "eval.max_instances": COUNT,
    "eval.num_frames": COUNT_OR_NONE,
    "eval.font": TEXT,
    # ------------------------------------------------------------------------- mesh
    "mesh.data": AXIS,
    "mesh.fsdp": AXIS,
    # ------------------------------------------------------------------------ model
    **MODEL_KEYS,
}


def check(
    config: ml_collections.ConfigDict,
    tables: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> None:
    """Checks every key there is; one that is missing stops who needs it.

    Args:
      config: a whole configuration.
      tables: the names that keys of the kind `ROW` may be, where they are at hand.

    Raises:
      UserError: a key is unknown, of another kind or out of its range, or two keys do
        not go together.
    """
    for path, value, part in _leaves(config):
        check_value(path, value, part)
        names = tables.get(path, (value,))
        if KEYS[path].table and value not in names:
            raise UserError(
                f"Unknown {path} {value!r}; choose one of {', '.join(names)}."
            )
    _check_windows(config)


def check_value(path: str, value: object, part: str = "") -> None:
    """Checks one value as that of a key; ``part``: what its section has as ``name``."""
    if path not in KEYS:
        raise UserError(
            f"Nothing knows the key {path!r} of this configuration"
            f"{did_you_mean(path, KEYS, of_all=False)}"
        )
    kinds.check(path, value, MODEL_KEYS_OF_PARTS.get((path, part), KEYS[path]))


def _leaves(
    section: ml_collections.ConfigDict, path: str = ""
) -> Iterator[tuple[str, object, str]]:
    """Path and value of every key, and the name of the section's part."""
    for key, value in section.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value, str(section.get("name", ""))


def _check_windows(config: ml_collections.ConfigDict) -> None:
    """Windows must not leave pixels between them."""
    window, stride = config.eval.window, config.eval.stride
    gaps = any(step > side for step, side in zip(stride, window, strict=True))
    if config.eval.mode == "slide" and gaps:
        raise UserError(
            f"eval.stride is {tuple(stride)}, but eval.window only {tuple(window)}: "
            f"there would be gaps between the windows; give a stride up to the window."
        )
