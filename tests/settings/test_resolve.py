"""What follows from the data: the weight of the label loss."""

import pytest

from configs import paper, segmenter
from mlseg_jax.errors import UserError
from mlseg_jax.settings.keys import check
from mlseg_jax.settings.resolve import AUTO, resolve


@pytest.mark.parametrize(
    "num_classes, weight", [(2, 0.14), (11, 0.77), (40, 2.8), (120, 8.4), (480, 33.6)]
)
def test_the_label_loss_weighs_in_proportion_to_the_classes(num_classes, weight):
    config = segmenter.get_config("dataset=folder")
    assert config.loss.multilabel_weight == AUTO
    resolved = resolve(config, num_classes)
    assert resolved.loss.multilabel_weight == pytest.approx(weight)
    assert resolved.is_locked and config.loss.multilabel_weight == AUTO
    assert resolve(resolved, 7) == resolved


def test_the_paper_keeps_its_numbers():
    for row, weight in (("ade20k_mlseg", 10.0), ("coco_lvis_mlseg", 300.0)):
        config = paper.get_config(row)
        assert resolve(config, 1000).loss.multilabel_weight == weight


@pytest.mark.parametrize("text, weight", [("auto", 0.7), ("3.5", 3.5), ("0", 0.0)])
def test_a_flag_is_a_number_or_auto(text, weight):
    config = segmenter.get_config("dataset=folder")
    config.loss.multilabel_weight = text  # as flags set it
    check(config)
    assert resolve(config, 10).loss.multilabel_weight == pytest.approx(weight)


@pytest.mark.parametrize("wrong", ["", "heavy", "-1", "nan"])
def test_other_texts_are_refused(wrong):
    config = segmenter.get_config("dataset=folder")
    config.loss.multilabel_weight = wrong
    with pytest.raises(UserError, match="loss.multilabel_weight"):
        check(config)
