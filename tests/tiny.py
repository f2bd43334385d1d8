"""The shipped demonstration, shrunk until a step takes milliseconds."""

import pathlib

import ml_collections

from configs import demo

ROOT = pathlib.Path(__file__).resolve().parent.parent

OVERRIDES = {
    "data.num_classes": 20,
    "data.crop_size": (32, 32),
    "data.base_size": (0, 0),
    "data.train_examples": 24,
    "data.eval_examples": 6,
    "selection.k": 4,
    "model.backbone.embed_dim": 32,
    "model.backbone.depth": 1,
    "model.backbone.num_heads": 2,
    "model.backbone.mlp_dim": 64,
    "model.backbone.image_size": (32, 32),
    "model.decoder.depth": 1,
    # Constant, so that runs of different length are compiled to the same program.
    "optimizer.schedule": "constant",
    "optimizer.learning_rate": 3e-3,
    "optimizer.warmup_steps": 0,
    "train.steps": 4,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.eval_every": 1000,
    "train.checkpoint_every": 2,
    "eval.batch_size": 8,
    "eval.window": (32, 32),
    "eval.stride": (32, 32),
}


def tiny_config(overrides=None) -> ml_collections.ConfigDict:
    """configs/demo.py with `OVERRIDES` and then ``overrides``, by dotted key."""
    config = demo.get_config()
    config.update_from_flattened_dict({**OVERRIDES, **(overrides or {})})
    return config


def tiny_flags(overrides=None) -> list[str]:
    """The same as flags of the program."""
    values = {**OVERRIDES, **(overrides or {})}
    return [
        "--config=configs/demo.py",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]
