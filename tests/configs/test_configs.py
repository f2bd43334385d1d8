"""Every configuration builds and traces, and every key is read by somebody."""

import collections
import itertools
import sys

import jax
import ml_collections
import numpy as np
import pytest
from tiny import tiny_config

import mlseg_jax
from configs import demo, query2label, segmenter
from input_pipeline.augmentation.augment import make_augment
from input_pipeline.datasets.open import open_dataset
from input_pipeline.info import DataError, DatasetInfo
from mlseg_jax.distributed.sharding import AXES, check_batch_size, make_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import SELECTIONS
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.flops import count_macs
from mlseg_jax.runs.workdir import claim_workdir, load_config
from mlseg_jax.settings import backbones, saved
from mlseg_jax.settings.arguments import parse_arg
from mlseg_jax.settings.data_sets import DATA_SETS
from mlseg_jax.settings.resolve import resolve
from mlseg_jax.tasks import semantic
from mlseg_jax.tasks.engines import check_given
from mlseg_jax.training.loop import train
from mlseg_jax.training.optimizer import average_decay, make_optimizer
from mlseg_jax.training.schedule import make_schedule
from mlseg_jax.training.state import abstract_state
from mlseg_jax.training.step import example_shapes, make_train_step

ALL = list(itertools.product(DATA_SETS, backbones.VITS, SELECTIONS))

# Every data set, every backbone and every selection that can be trained.
TRACED = [
    ("pascal_context", "vit_b16", "top_k"),
    ("ade20k", "vit_l16", "complete"),
    ("coco_stuff", "vit_s16", "top_k"),
    ("ade20k_full", "vit_ti16", "oracle"),
    ("coco_lvis", "vit_ti16", "top_k"),
    ("folder", "vit_demo", "complete"),
    ("sign_scenes", "vit_demo", "top_k"),
    ("coco_stuff", "vit_b16", "given"),
]


def argument(dataset, backbone, selection):
    return f"dataset={dataset},backbone={backbone},selection={selection}"


def trace(config, mesh=None):
    """The real training step with the real shapes; no array is made."""
    num_classes = config.data.num_classes or 7
    mesh = mesh or make_mesh(config)
    check_batch_size(mesh, config.train.batch_size, config.train.accumulate)
    model = FunctionalModel.build(config, num_classes)
    has_head = config.model.get("multilabel_head", {"name": ""})["name"] != "none"
    for part, macs in count_macs(config, model).items():
        assert min(macs.exact, macs.paper) > 0 or not has_head, part
    step = make_train_step(config, model, mesh)
    batch = {
        name: jax.ShapeDtypeStruct((config.train.batch_size, *shape), dtype)
        for name, (shape, dtype) in example_shapes(config, num_classes).items()
    }
    state = abstract_state(config, num_classes, mesh)
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert all(x.shape == () for x in metrics.values())


def test_the_traced_combinations_cover_all_rows():
    datasets, names, selections = map(set, zip(*TRACED, strict=True))
    assert datasets == set(DATA_SETS)
    assert names == set(backbones.VITS)
    assert selections == set(SELECTIONS)


@pytest.mark.parametrize("combination", ALL, ids="-".join)
def test_every_combination_is_consistent(combination):
    config = segmenter.get_config(argument(*combination))
    assert config.is_locked
    backbone = config.model.backbone
    assert backbone.embed_dim % backbone.num_heads == 0
    assert config.eval.window == config.data.crop_size
    assert config.selection.k <= (config.data.num_classes or 10**6)
    has_head = config.model.multilabel_head.name != "none"
    assert has_head == (config.selection.name == "top_k")
    assert has_head == (config.loss.multilabel_weight != 0)


@pytest.mark.parametrize("combination", TRACED, ids="-".join)
def test_the_training_step_traces(combination):
    trace(segmenter.get_config(argument(*combination)))


@pytest.mark.parametrize("backbone", query2label.BACKBONES)
def test_classifiers_trace(backbone):
    config = query2label.get_config(f"dataset=ade20k,backbone={backbone}")
    config.train.batch_size = 8
    if config.model.backbone.name == "tresnet":
        # From the second of a stage on, blocks are equal: one of those is enough.
        depths = config.model.backbone.depths
        config.model.backbone.depths = tuple(min(depth, 2) for depth in depths)
    trace(config)
    assert config.optimizer.schedule == "one_cycle" and config.eval.weights == "better"


def test_every_data_set_has_a_classifier():
    assert query2label.NUM_EXAMPLES.keys() == DATA_SETS.keys()
    for dataset, count in query2label.NUM_EXAMPLES.items():
        config = query2label.get_config(f"dataset={dataset}")
        assert config.is_locked
        assert config.train.steps == 80 * (count // 64)


def devices(data, fsdp):
    types = (jax.sharding.AxisType.Auto,) * 2
    chosen = jax.devices()[: data * fsdp]
    return jax.make_mesh((data, fsdp), AXES, axis_types=types, devices=chosen)


def unread_of_model(config, mesh, monkeypatch):
    """Keys of the model that neither building nor a training step reads."""
    reads = Reads(config)
    with monkeypatch.context() as patch:
        patch.setattr(ml_collections.ConfigDict, "__getitem__", noting(reads))
        trace(config, mesh)
    return {key for key in reads.unread(config) if key.startswith("model.")}


def test_the_demonstration_traces():
    trace(demo.get_config())


@pytest.mark.parametrize(
    "arg, sentence",
    [
        ("datset=ade20k", "not 'datset=ade20k'; did you mean 'dataset'"),
        (
            "dataset",
            "takes dataset=..., backbone=..., selection=..., head=..., decoder=...",
        ),
        ("dataset=ade2k", "no data set 'ade2k'; did you mean 'ade20k'"),
        ("backbone=vit_b61", "no backbone 'vit_b61'; did you mean 'vit_b16'"),
        ("selection=topk", "no selection 'topk'; did you mean 'top_k'"),
        ("selection=xyz", "choose one of complete, top_k, oracle, given"),
        ("head=pool", "no head 'pool'"),
        ("decoder=enc", "no decoder 'enc'; did you mean 'encnet'"),
        ("decoder=essnet", "essnet classifies all labels: add selection=complete"),
    ],
)
def test_arguments_that_are_wrong(arg, sentence):
    with pytest.raises(ValueError, match=sentence):
        segmenter.get_config(arg)


def test_the_demonstration_takes_no_argument():
    with pytest.raises(ValueError, match="not 'k=5'"):
        demo.get_config("k=5")


def test_parse_arg_takes_the_types_of_its_defaults():
    values = parse_arg("b=7,", a="x", b=3)
    assert (values.a, values.b) == ("x", 7)
    with pytest.raises(ValueError):
        parse_arg("b=x", b=3)


def test_a_saved_configuration_is_the_one_that_was_saved(tmp_path):
    config = tiny_config()
    info = open_dataset(config.data, train=True).info
    claim_workdir(config, str(tmp_path), info)
    loaded = saved.get_config(str(tmp_path))
    assert loaded.is_locked
    # Tuples stay tuples, which flags can override.
    assert loaded.to_dict() == resolve(config, info.num_classes).to_dict()
    with pytest.raises(ValueError, match="is not a work directory"):
        saved.get_config(str(tmp_path / "nowhere"))


# Leaves that nobody has to read, each with its reason.
UNREAD = {
    "name": "says in a saved configuration which file it came from",
    "eval.track_score": "of videos of regions",
    "optimizer.falls_at": "of the schedule `steps` alone",
    "model.presence_prior.initial": "of a prior that there is",
    "model.presence_prior.detach": "of a prior that there is",
}


class Reads:
    """Which keys of which part of a configuration were read."""

    def __init__(self, config):
        self.parts = {
            path: set(part.keys())
            for path, part in [("", config), *self._parts(config)]
        }
        self.seen = collections.defaultdict(set)

    def _parts(self, config, path=""):
        for key, value in config.items():
            if isinstance(value, ml_collections.ConfigDict):
                yield f"{path}{key}.", value
                yield from self._parts(value, f"{path}{key}.")

    def note(self, part, key):
        # A part is known by its keys, for it may be a copy (or come from a file).
        keys = set(part._fields)
        for path, known in self.parts.items():
            if known <= keys:
                self.seen[path].add(key)

    def unread(self, config):
        leaves = {
            f"{path}{key}"
            for path, part in [("", config), *self._parts(config)]
            for key, value in part.items()
            if not isinstance(value, ml_collections.ConfigDict)
        }
        return leaves - {
            f"{path}{key}" for path in self.seen for key in self.seen[path]
        }


def noting(reads):
    """``ConfigDict.__getitem__`` that notes what is read."""
    get = ml_collections.ConfigDict.__getitem__

    def get_and_note(self, key):
        frame, names = sys._getframe(1), set()
        while frame.f_code.co_filename.endswith("config_dict.py"):
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        # Not where a whole part is copied or written.
        if names <= {"__getattr__"}:
            reads.note(self, key)
        return get(self, key)

    return get_and_note


def test_every_key_is_read(tmp_path, monkeypatch):
    long_tail = {
        "data.repeat_factor": 0.3,
        "loss.class_weighting": "inverse_sqrt",
        "loss.logit_adjustment": 0.5,
    }
    config = tiny_config({"train.steps": 2, **long_tail})
    reads = Reads(config)
    monkeypatch.setattr(ml_collections.ConfigDict, "__getitem__", noting(reads))
    metrics = train(config, str(tmp_path))
    assert {"mIoU_frequent", "mIoU_common", "mIoU_rare"} <= metrics.keys()
    assert load_config(str(tmp_path)).train.steps == 2
    segmenter, picture = mlseg_jax.load(str(tmp_path)), np.zeros((32, 32, 3), np.uint8)
    segmenter(picture)
    list(segmenter.video([picture] * 2, selection_scope="per_clip"))
    model = FunctionalModel.build(config, config.data.num_classes)
    # What only another optimiser, multi-label head, schedule or data set reads.
    sgd = tiny_config({"optimizer.name": "sgd", "optimizer.schedule": "poly"})
    make_optimizer(sgd)
    make_schedule(sgd)(0)
    average_decay(config, 0)
    whole = tiny_config({"data.augmentation": "whole", "data.crop_size": (9, 9)}).data
    empty = {"image": np.zeros((9, 9, 3), np.uint8)}
    empty["label_map"] = np.zeros((9, 9), np.int32)
    info = DatasetInfo("", ("",) * 20, (False,) * 20)
    make_augment(whole, None, info)(empty, np.random.default_rng(0))
    for part, name in (
        ("multilabel_head", "transformer_decoder"),
        *(("decoder", name) for name in ("encnet", "essnet")),
    ):
        FunctionalModel.build(tiny_config({f"model.{part}.name": name}), 20)
    batch = {
        "image": jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32),
        "label_map": jax.ShapeDtypeStruct((1, 8, 8), np.int32),
    }
    essnet = resolve(tiny_config({"loss.pixel": "nearest_classes"}), 20)
    jax.eval_shape(
        lambda p, b: semantic.loss(model.bind(p), b, essnet, None),
        model.shapes,
        batch,
    )
    with pytest.raises(UserError, match="needs labels"):
        check_given(tiny_config())
    with pytest.raises(DataError, match="no place"):
        open_dataset(tiny_config({"data.name": "folder"}).data, train=True)
    nowhere = {"data.path": str(tmp_path / "no"), "data.classes": str(tmp_path / "no")}
    for name in ("coco_json", "tfds:mine"):
        with pytest.raises(DataError):
            open_dataset(tiny_config(nowhere | {"data.name": name}).data, train=True)
    assert reads.unread(config) == set(UNREAD)
