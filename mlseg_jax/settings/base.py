"""Tables and defaults that the configurations are put together from.

A configuration is code: ``get_config(arg)`` returns a locked ``ConfigDict``. ``arg`` is
what stands after the colon of ``--config=configs/segmenter.py:dataset=ade20k,...`` and
picks rows of these tables; every key of the result can be overridden on the command
line (``--config.train.steps=1000``).
"""

import difflib

from ml_collections import ConfigDict

NORMALISATIONS = {
    "half": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "unit": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
}
"""Mean and standard deviation of uint8 pixels, by name (method.md section 3.1)."""

SELECTIONS = ("complete", "top_k", "oracle", "given")

DATA_SETS = {
    # name: labels C, selected labels K, weight of the multi-label loss
    "pascal_context": (60, 25, 5.0),
    "ade20k": (150, 50, 10.0),
    "coco_stuff": (171, 50, 10.0),
    "ade20k_full": (847, 100, 100.0),
    "coco_lvis": (1284, 100, 300.0),
    # Not in the paper: anyone's own data (it says its labels), and the embedded scenes.
    "folder": (0, 50, 10.0),
    "sign_scenes": (120, 20, 10.0),
}
"""What the paper chose for each data set whatever the framework (method.md 4.4, 9.1);
what depends on both stands in the framework's file.
"""


def parse_arg(arg: str | None, **defaults: str | int) -> ConfigDict:
    """``"a=1,b=x"`` over ``defaults``, with their types; unknown keys are an error."""
    values = ConfigDict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, separator, text = item.partition("=")
        if not separator or key not in defaults:
            raise ValueError(
                f"The configuration takes {', '.join(f'{k}=...' for k in defaults)} "
                f"after the colon, not {item!r}{did_you_mean(key, defaults)}"
            )
        values[key] = type(defaults[key])(text)
    return values


def choose(table, what: str, name: str):
    """The row of a table, or a sentence that names the nearest one."""
    if name not in table:
        raise ValueError(f"There is no {what} {name!r}{did_you_mean(name, table)}")
    return table[name] if isinstance(table, dict) else name


def did_you_mean(name: str, known) -> str:
    """The end of an error sentence: the nearest known name, else all of them."""
    near = difflib.get_close_matches(name, list(known), n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; choose one of {', '.join(known)}."


def data(
    *,
    name: str,
    crop_size: tuple[int, int],
    base_size: tuple[int, int],
    normalisation: str,
) -> ConfigDict:
    mean, std = choose(NORMALISATIONS, "normalisation", normalisation)
    return ConfigDict(
        {
            # folder, sign_scenes, coco_json, lvis_json, coco_panoptic_json, tfds:NAME,
            # or a prepared data set, perhaps with a variant: coco_stuff/164k.
            "name": name,
            "path": "",
            # tfds:NAME and coco_json: JSON file raw value -> class | ignore.
            "classes": "",
            # tfds:NAME: features of the pictures and of their masks.
            "image_key": "image",
            "label_key": "label",
            # coco_json: order of masks (area, file), class of what has none ("" none).
            "paint_order": "area",
            "background": "",
            # Labels C; for the real data sets a check, for SignScenes a choice.
            # 0: what the data set says.
            "num_classes": 0,
            "train_split": "train",
            "eval_split": "val",
            # Examples to use (SignScenes: to make); 0 is all there are.
            "train_examples": 0,
            "eval_examples": 0,
            # Height and width of training crops.
            "crop_size": crop_size,
            # Longest and shortest side after resizing, times a random factor in
            # training; (0, 0) keeps pictures at their size.
            "base_size": base_size,
            # crop: pieces of pictures at random scales; whole: all of a picture, for a
            # classifier (augment.py).
            "augmentation": "crop",
            "scale_range": (0.5, 2.0),
            "max_class_share": 0.75,
            "flip_rate": 0.5,
            "photometric": True,
            # whole: two random operations of Pillow's, and a square of this share of
            # the side that is painted over (0: none, as Query2Label's release does).
            "rand_augment": True,
            "cutout": 0.5,
            "pixel_mean": mean,
            "pixel_std": std,
            # Share of images under which a class is rare, and images with it are
            # repeated (resample.py), such as 0.001; 0 repeats none.
            "repeat_factor": 0.0,
            # Share of training crops that hold a pixel of a class drawn from those of
            # the picture, rare ones more often (augment.py); 0 is the paper's recipe.
            "rare_crop_rate": 0.0,
            # An example that cannot be read: fail, or skip (bad_examples.py).
            "on_bad_example": "fail",
            # Threads that read pictures, in this process or in each worker; about the
            # cores there are, up to 4.
            "num_threads": 2,
            # Processes that make training batches; 0 is this one. Over 4 cores, take
            # a worker for every 3 or 4 of them. The order of the data stays the same.
            "num_workers": 0,
            # Keep decoded examples in memory; for data sets that are small or
            # procedural.
            "cache": False,
        }
    )


def base(name: str) -> ConfigDict:
    """Everything that does not depend on the framework or the data."""
    return ConfigDict(
        {
            "name": name,
            # What is trained: semantic, multilabel (tasks/table.py).
            "task": "semantic",
            "seed": 0,
            # Weights to start training from: a work directory, or a weight file of
            # others (docs/weights.md); "" starts from random ones.
            "init": "",
            # Beginning of the parameters' paths to take from there, such as backbone;
            # "" takes all that it has.
            "init_part": "",
            "selection": {
                # How labels are selected in training: complete, top_k, oracle, given.
                "name": "top_k",
                "k": 50,
                # Fewer than k, as many as the scores say (label_selection.py): least
                # probability of a label; share of all probability that is enough.
                "minimum_score": 0.0,
                "cumulative": 1.0,
                # The same in evaluation; "" and 0 repeat the training's.
                "eval_name": "",
                "eval_k": 0,
                # given: the work directory of a trained classifier (query2label.py), or
                # a folder of scores that `predict --scores` wrote.
                "classifier": "",
                "scores": "",
            },
            "loss": {
                # cross_entropy, or nearest_classes: of each pixel's class and the
                # `num_nearest` that score best there (ESSNet).
                "pixel": "cross_entropy",
                "num_nearest": 50,
                # Pixels that the mean divides by: all, valid (method.md section 16.8).
                "pixel_mean": "all",
                # Weights of classes in the pixel loss by their pixels in training:
                # none, inverse_sqrt; and the factor of log(share of pixels) that is
                # added to logits in training (losses/class_priors.py).
                "class_weighting": "none",
                "logit_adjustment": 0.0,
                # asymmetric or binary_cross_entropy.
                "multilabel": "asymmetric",
                "multilabel_weight": 10.0,
                "gamma_negative": 2.0,
                "gamma_positive": 0.0,
                "clip": 0.05,
                # No gradient through the focusing factors of the asymmetric loss.
                "detach_focus": False,
            },
            "optimizer": {
                "name": "sgd",
                "learning_rate": 1e-3,
                # Where the schedule ends.
                "end_learning_rate": 1e-5,
                # poly, cosine, one_cycle (which also turns Adam's first decay and
                # needs neither warm-up nor end), constant.
                "schedule": "poly",
                "poly_power": 0.9,
                "warmup_steps": 0,
                "momentum": 0.9,
                "weight_decay": 0.0,
                # (regular expression on the parameter's path, factor); the first match
                # counts, no match is 1.
                "weight_decay_factors": (),
                # The same for learning rates.
                "learning_rate_factors": (),
                # Factor of the learning rate from each block of the backbone to the one
                # before it (optimizer.depth_factors); 1 is none.
                "layer_decay": 1.0,
                # Regular expressions: parameters whose path has one are not trained.
                "frozen": (),
                # Largest norm of the whole gradient; 0 is no limit.
                "clip_norm": 0.0,
                # Decay of the averaged weights that are evaluated; 0 is no average.
                "ema_decay": 0.0,
            },
            "train": {
                "steps": 1000,
                "batch_size": 8,
                # Equal parts a batch is worked through in, one after the other.
                "accumulate": 1,
                "log_every": 50,
                "eval_every": 1000,
                "checkpoint_every": 1000,
                # Checkpoints with the highest mIoU to keep, beside the two newest.
                "keep_best": 1,
                # Evaluations without a better score after which training ends; 0 never.
                "patience": 0,
                # Stop when this many steps have run in this process; 0 never.
                "stop_after": 0,
                # Write all threads' stacks when no step ends for so long; 0 never.
                "hang_minutes": 15.0,
                # A profile of so many steps from this one on, in workdir/profile.
                "profile_start": 10,
                "profile_steps": 0,
            },
            "eval": {
                # whole, or slide: windows of `window` every `stride` pixels.
                "mode": "slide",
                "window": (512, 512),
                "stride": (512, 512),
                # Factors on data.base_size, each also mirrored with `flip`.
                "scales": (1.0,),
                "flip": False,
                # per_window as in the paper, or per_image: one selection for all views.
                "selection_scope": "per_window",
                "batch_size": 8,
                # average (of the steps, where there is one), latest, or better: both
                # are evaluated and the better one is kept.
                "weights": "average",
                # Largest number of present labels the oracle can select.
                "oracle_k": 64,
            },
            # Devices along each axis; -1 is all that are left.
            "mesh": {"data": -1, "fsdp": 1},
        }
    )


def use_labels(config: ConfigDict, dataset: str, selection: str) -> None:
    """How many labels, how they are selected, what the multi-label loss weighs."""
    num_classes, k, weight = choose(DATA_SETS, "data set", dataset)
    config.data.num_classes = num_classes
    config.selection.name = choose(SELECTIONS, "selection", selection)
    config.selection.k = k
    config.loss.multilabel_weight = weight if selection == "top_k" else 0.0


def use_schedule(config: ConfigDict, steps: int) -> None:
    config.train.steps = steps
    config.train.eval_every = max(1000, steps // 10)
    config.train.checkpoint_every = 2000


def use_sign_scenes(config: ConfigDict) -> None:
    """Turns a recipe to the embedded data: no resizing, nothing that spoils glyphs."""
    config.data.update(
        train_examples=4000,
        eval_examples=200,
        base_size=(960, 96),
        scale_range=(1.0, 1.0),
        max_class_share=1.0,
        flip_rate=0.0,
        photometric=False,
        cache=True,
    )
    config.optimizer.update(
        name="adamw",
        schedule="cosine",
        learning_rate=1e-3,
        end_learning_rate=1e-5,
        warmup_steps=100,
        weight_decay=0.02,
        clip_norm=1.0,
        # Those of published weights, which these models do not start from.
        learning_rate_factors=(),
        layer_decay=1.0,
    )
    config.train.batch_size = 16
    config.eval.batch_size = 20
