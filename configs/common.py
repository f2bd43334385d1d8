"""What several recipes do alike."""

from ml_collections import ConfigDict

from mlseg_jax.label_selection import SELECTIONS
from mlseg_jax.settings.arguments import choose
from mlseg_jax.settings.data_sets import DATA_SETS


def use_labels(config: ConfigDict, dataset: str, selection: str) -> None:
    """How many labels, how they are selected, what the multi-label loss weighs."""
    num_classes, k, weight = choose(DATA_SETS, "data set", dataset)
    config.data.num_classes = num_classes
    config.selection.name = choose(SELECTIONS, "selection", selection)
    config.selection.k = k
    set_label_weight(config, weight if selection == "top_k" else 0.0)


def set_label_weight(config: ConfigDict, weight: float | str) -> None:
    """A number, or ``auto``, which flags can replace by a number as text."""
    with config.loss.ignore_type():
        config.loss.multilabel_weight = weight


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
