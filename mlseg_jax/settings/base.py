"""Every key of a configuration and its default, said once.

A configuration is code: ``get_config(arg)`` of a recipe returns a locked
``ConfigDict``. Every key of it can be overridden on the command line
(``--config.train.steps=1000``).
"""

from ml_collections import ConfigDict

from mlseg_jax.settings.arguments import choose
from mlseg_jax.settings.data_sets import NORMALISATIONS


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
            # folder: where images and masks lie ({split} is the name of the split), and
            # how their names end ("" is any ending of a picture); docs/datasets.md.
            "image_folder": "images",
            "mask_folder": "masks",
            "image_ending": "",
            "mask_ending": ".png",
            # Height times width of the largest picture that is read.
            "max_pixels": 2**28,
            # Turn pictures as their EXIF says; False where masks are of the pixels as
            # they are stored.
            "exif": True,
            # Value of 16-bit pictures that is white, 255 to 65535: 4095 for 12 bits.
            "white_value": 65535,
            # Labels C; for the real data sets a check, for SignScenes a choice.
            # 0: what the data set says.
            "num_classes": 0,
            "train_split": "train",
            "eval_split": "val",
            # Part of the training pictures that evaluations during training look at in
            # place of eval_split, such as train[90%:] where train_split is
            # train[:90%]; "" is eval_split.
            "validation_split": "",
            # SignScenes: share of signs that are to get a twin that touches them.
            "touching": 0.0,
            # Examples to use (SignScenes: to make); 0 is all there are.
            "train_examples": 0,
            "eval_examples": 0,
            # Height and width of training crops.
            "crop_size": crop_size,
            # Longest and shortest side after resizing, times a random factor in
            # training; (0, 0) keeps pictures at their size.
            "base_size": base_size,
            # crop: pieces of pictures at random scales; whole: all of a picture, for a
            # classifier; short_side, large_scale_jitter, detr: as MaskFormer and
            # Mask2Former do for ADE20K and COCO (augment.py).
            "augmentation": "crop",
            # short_side, detr: shorter sides to choose from, longest side after it.
            "short_sides": tuple(range(320, 1281, 64)),
            "max_side": 2560,
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
            # What regions are trained to find (input_pipeline/segments.py): none,
            # classes, panoptic, instances; and how many of a crop, the largest first.
            "segments": "none",
            "max_segments": 100,
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
            # Crops of each training picture whose features are computed once and kept,
            # where the backbone is frozen (training/frozen_features.py); 0 keeps none.
            "feature_variants": 0,
            # Keep decoded training examples in memory, in each process that reads; for
            # data sets that are small or procedural.
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
            # Settings that are not given are chosen before training, from the data, the
            # machine and the minutes there are (fitting/choices.py).
            "choose_settings": False,
            # Weights to start training from: a work directory, a weight file of others
            # or a name of weights.py (docs/weights.md); "" starts from random ones.
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
                # In training alone: top_k always has the labels that are present; those
                # that it missed get random ranks, and not the last; and scores have
                # noise of this deviation when labels are selected.
                "with_present": False,
                "scatter_present": False,
                "noise": 0.0,
                # Regions: of the predictions that are trained on only the last is kept
                # to the labels that are valid, as the release trains the oracle.
                "last_prediction_only": False,
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
                # A number, or auto: in proportion to the classes (resolve.py).
                "multilabel_weight": 10.0,
                "gamma_negative": 2.0,
                "gamma_positive": 0.0,
                "clip": 0.05,
                # Weight of the loss on present labels that were not selected
                # (losses/multilabel.py); 0 is the paper's.
                "missed_weight": 0.0,
                # No gradient through the focusing factors of the asymmetric loss.
                "detach_focus": False,
            },
            "optimizer": {
                "name": "sgd",
                "learning_rate": 1e-3,
                # Where the schedule ends.
                "end_learning_rate": 1e-5,
                # poly, cosine, one_cycle (which also turns Adam's first decay and
                # needs neither warm-up nor end), steps, constant.
                "schedule": "poly",
                "poly_power": 0.9,
                # steps: shares of the training after which the rate falls to a tenth.
                "falls_at": (),
                "warmup_steps": 0,
                # Steps in which the backbone's rate rises, after those of the others;
                # 0: with the others.
                "backbone_warmup_steps": 0,
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
                # beit: the last block has the factor once. last: it alone has none.
                # joint: nor have those that the decoder runs (EoMT).
                "layer_decay_rule": "beit",
                # Regular expressions: parameters whose path has one are not trained.
                "frozen": (),
                # Largest norm of the whole gradient; 0 is no limit.
                "clip_norm": 0.0,
                # Decay of the averaged weights that are evaluated; 0 is no average.
                "ema_decay": 0.0,
                # At most (1 + t) / (10 + t) in step t, so that the random start does
                # not stay in the average for thousands of steps.
                "ema_warmup": True,
            },
            "train": {
                "steps": 1000,
                "batch_size": 8,
                # Equal parts a batch is worked through in, one after the other.
                "accumulate": 1,
                "log_every": 50,
                # Who is told of the curves beside the run's own files: tensorboard
                # alone, or wandb, mlflow as well (runs/trackers.py).
                "logger": "tensorboard",
                "eval_every": 1000,
                "checkpoint_every": 1000,
                # Checkpoints with the highest mIoU to keep, beside the two newest.
                "keep_best": 1,
                # Evaluations without a better score after which training ends; 0 never.
                "patience": 0,
                # A training that would take longer on processors does not begin; 0: any
                # does (training/forecast.py).
                "max_hours": 24.0,
                # Stop when this many steps have run in this process; 0 never.
                "stop_after": 0,
                # End all processes, to be started again, when nothing moves for so
                # long (watchdog.py); 0 never.
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
                # per_window as in the paper, per_image: one selection for all views, or
                # per_clip: one for the frames of a clip of a video (clips.py).
                "selection_scope": "per_window",
                # Most frames of a clip, also those that are held at a time.
                "clip_length": 16,
                # By which scores: the maximum or mean of the clip's, or the running
                # mean of those so far.
                "clip_scores": "mean",
                # Share of the best labels' probability, from 0 to 1, whose change
                # begins a new clip.
                "clip_change": 0.4,
                # Segments of a video with at least this score are followed (tracks.py).
                "track_score": 0.5,
                "batch_size": 8,
                # Whose weights the run ends with: those of the latest step, or of the
                # best checkpoint by the evaluations during training.
                "checkpoint": "latest",
                # average (of the steps, where there is one), latest, or better: both
                # are evaluated and the better one is kept.
                "weights": "average",
                # Largest number of present labels the oracle can select.
                "oracle_k": 64,
                # Which labels it takes as present: those of the label map resized as
                # the pictures are for each view, as the release, or original.
                "oracle_labels": "resized",
                # Letters for names in pictures of predictions, a file; "" are our own
                # and, for other scripts, those that are installed.
                "font": "",
            },
            # Devices along each axis; -1 is all that are left.
            "mesh": {"data": -1, "fsdp": 1},
        }
    )
