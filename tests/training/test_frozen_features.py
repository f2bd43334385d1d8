"""Features of a frozen backbone that are kept on disk."""

import json
import os
import shutil

import numpy as np
import pytest
from flax import nnx

from configs import linear
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.training import frozen_features, loop

SIDE = 42


def config(**data):
    """DINOv2's parts, tiny; pictures are neither scaled, cropped nor changed."""
    made = linear.get_config("dataset=sign_scenes,backbone=dinov2_demo").unlock()
    made.model.backbone.update(
        embed_dim=64, depth=1, num_heads=1, mlp_dim=64, image_size=(SIDE, SIDE)
    )
    made.model.multilabel_head.update(num_heads=1, dropout_rate=0.0)
    made.data.update(
        num_classes=20,
        train_examples=16,
        eval_examples=4,
        crop_size=(SIDE, SIDE),
        base_size=(0, 0),
        num_threads=1,
        **data,
    )
    made.selection.k = 5
    made.train.update(steps=6, batch_size=8, eval_every=0, log_every=2)
    made.eval.update(batch_size=4, window=(SIDE, SIDE), stride=(SIDE, SIDE))
    return made


def losses_of(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss/total"] for line in lines if "loss/total" in line]


@pytest.mark.usefixtures("quick_compiles")
def test_kept_features_train_the_same_and_are_computed_once(tmp_path, monkeypatch):
    seen = []
    crop = frozen_features._crop

    def counted(*args):
        seen.append(args[-1])
        return crop(*args)

    monkeypatch.setattr(frozen_features, "_crop", counted)
    plain = loop.train(config(), str(tmp_path / "plain"))
    assert not seen
    kept = loop.train(config(feature_variants=1), str(tmp_path / "kept"))
    assert seen == list(range(16))
    # 16 bits of the features are all that differs.
    losses = [losses_of(tmp_path / run) for run in ("plain", "kept")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    assert len(losses[0]) == 3
    for key in ("mIoU", "mAP", "pixel_accuracy"):
        assert kept[key] == pytest.approx(plain[key], abs=0.02)
    # A second run over the same folder computes what is missing, and no more.
    folder = tmp_path / "kept" / frozen_features.FOLDER
    done = np.load(folder / "done.npy", mmap_mode="r+")
    done[5] = False
    done.flush()
    del seen[:]
    again = tmp_path / "again"
    (again / frozen_features.FOLDER).parent.mkdir()
    folder.rename(again / frozen_features.FOLDER)
    # Other evaluations are no reason to compute it again.
    only_features = config(feature_variants=1, validation_split="train[14:16]")
    only_features.train.steps = 0
    loop.train(only_features, str(again))
    assert seen == [5]


def test_features_are_of_the_data_as_it_is_now(tmp_path, monkeypatch):
    folder, run = tmp_path / "data", tmp_path / "data" / "run"
    folder.mkdir()
    picture = folder / "a.png"
    picture.write_bytes(b"1")

    def digest(dtype="float32", **data):
        made = config(path=str(folder), **data)
        made.model.dtype = dtype
        return frozen_features._digest(made, {}, [0] * 16, run)

    first = digest()
    run.mkdir()
    (run / "metrics.jsonl").write_text("{}")
    assert digest() == first != digest("bfloat16")
    os.utime(picture, ns=(1, 1))
    assert digest() != first
    # Links are followed, also into themselves; those to nowhere are passed over.
    linked, elsewhere = tmp_path / "linked", tmp_path / "elsewhere"
    for place in (linked, elsewhere):
        place.mkdir()
    (folder / "images").symlink_to(linked)
    (linked / "up").symlink_to(folder)
    (linked / "self").symlink_to("self")
    (folder / ".#classes.txt").symlink_to("nobody@host")
    classes = tmp_path / "classes.json"
    classes.write_text("1")
    mine = {"classes": str(classes), "mask_folder": str(elsewhere)}
    found = [digest(**mine)]
    for changed in (linked / "b.png", elsewhere / "b.png", classes):
        changed.write_bytes(b"2")
        found.append(digest(**mine))
    assert len({*found}) == 4 and digest(**mine) == found[-1]
    # A stop between two steps leaves no note that speaks of other arrays.
    arrays = {"done": ((4,), np.bool_)}
    kept = run / "features"
    for _ in range(2):
        (done,) = frozen_features._open(kept, "one", arrays)
    done[:] = True
    full = shutil._ntuple_diskusage(10, 10, 0)
    monkeypatch.setattr(frozen_features.shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match="--workdir on a larger one"):
        frozen_features._open(kept, "two", arrays)
    assert not (kept / "digest").exists()


def test_a_backbone_that_is_trained_has_no_features_to_keep(tmp_path):
    made = config(feature_variants=1)
    made.optimizer.frozen = ()
    with pytest.raises(UserError, match="set optimizer.frozen"):
        loop.train(made, str(tmp_path / "run"))


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"task": "multilabel"}, "set task to semantic"),
        ({"model.decoder.name": "maskformer"}, "a decoder of pixels"),
        ({"model.decoder.name": "encoder_only"}, "its last blocks"),
        ({"model.backbone.name": "resnet"}, "features of a ViT"),
        ({"model.backbone.pyramid": True}, "pyramid to False"),
        ({"model.backbone.drop_path_rate": 0.1}, "drop_path_rate to 0"),
        (
            {
                "model.backbone.positions": "rotary",
                "model.backbone.position_rescale": 2.0,
            },
            "by chance; set that to 1, or data.feature_variants to 0.",
        ),
        ({"selection.name": "given"}, "set that to top_k"),
        ({"model.class_embeddings.in_backbone": True}, "do not pass the backbone"),
    ],
)
def test_models_whose_features_cannot_be_kept(wrong, sentence):
    made = config(feature_variants=1)
    made.model.decoder.depth = 1
    made.optimizer.frozen = ()
    assert not frozen_features.hindrance(made)
    made.update_from_flattened_dict(wrong)
    with pytest.raises(UserError, match=sentence):
        frozen_features._check(made, FunctionalModel(None, nnx.State({}), 20))
