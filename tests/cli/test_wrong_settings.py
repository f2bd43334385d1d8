"""Settings as a user types them: what is wrong is one sentence, before anything."""

import pytest
from main_program import as_process
from tiny import tiny_flags

from mlseg_jax.cli.overrides import last_of_each

# How the flags of configurations load their file (ml_collections).
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

COMMANDS = (
    *("train", "evaluate", "predict", "summary", "plan", "doctor", "statistics"),
    *("export_dataset", "convert"),
)


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["eval.selection_scope=nonsense"], "give per_window, per_image or per_clip"),
        (["optimizer.ema_decay=1.5"], "optimizer.ema_decay is 1.5; give a number"),
        (["optimizer.learning_rate=-1"], "optimizer.learning_rate is -1.0; give"),
        (["optimizer.clip_norm=-1"], "optimizer.clip_norm is -1.0; give"),
        (["eval.scales=0"], "eval.scales is (0,); give"),
        (["eval.scales=()"], "eval.scales is (); give"),
        (["optimizer.schedule=cosine", "optimizer.learning_rate=0"], "is 0.0; give"),
        (["eval.batch_size=0"], "eval.batch_size is 0; give"),
        (["data.crop_size=64"], "data.crop_size is (64,); give height and width"),
        (["eval.oracle_k=0"], "eval.oracle_k is 0; give"),
        (["eval.stride=(33,32)"], "eval.stride is (33, 32), but eval.window only"),
        (["eval.stride=32"], "eval.stride is (32,); give height and width"),
        (["eval.window=(0,32)"], "eval.window is (0, 32); give height and width"),
        (["eval.window=(32,-32)"], "eval.window is (32, -32); give height and"),
        (["eval.window=(32.5,32)"], "eval.window is (32.5, 32); give height and"),
        (["eval.window=(32,32,32)"], "eval.window is (32, 32, 32); give height"),
        (["eval.window=a"], "eval.window is ('a',); give height and width"),
        (["eval.window=(32,"], "config.eval.window"),
        (["train.steps=1.5"], "config.train.steps=1.5: '1.5' is no whole number."),
        (["train.steps=many"], "config.train.steps=many: 'many' is no whole"),
        (["optimizer.clip_norm=big"], "config.optimizer.clip_norm=big: 'big' is no"),
        (["eval.flip=maybe"], "config.eval.flip=maybe: 'maybe' is neither true nor"),
        (["train.steps.more=1"], "no key 'train.steps.more': what has a value has no"),
        (["eval.window.more=1"], "What has a value has no keys; leave out what stands"),
        (["mesh=1"], "config.mesh=1: that is a section; set keys of it."),
        (["task=multilabel"], "task 'multilabel' needs model.transformer, which this"),
        (["seed=-1"], "seed is -1; give"),
        (["model.decoder.name=segmentor"], "Unknown model.decoder.name 'segmentor'"),
        (["model.dtype=float16"], "Unknown model.dtype 'float16'; choose one of"),
        (["task=panoptik"], "Unknown task 'panoptik'"),
        (["optimizer.frozen=('(',)"], "optimizer.frozen is ('(',); give a tuple of"),
        (["eval.windw=(3,3)"], "no key 'windw'; did you mean 'window'?"),
        # The last of two counts.
        (["eval.window=(64,64)", "eval.window=(40,40)", "eval.stride=(48,48)"],
         "eval.stride is (48, 48), but eval.window only (40, 40)"),
    ],
)  # fmt: skip
def test_wrong_settings(program, tmp_path, flags, sentence):
    changes = [f"--config.{flag}" for flag in flags]
    workdir = tmp_path / "run"
    result = program("train", *tiny_flags(), *changes, "--workdir", workdir)
    assert sentence in result.error
    assert not workdir.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_checks_first(program, tmp_path, command):
    # None of the other flags that a command needs is missed before.
    result = program(command, *tiny_flags({"eval.batch_size": 0}))
    assert "eval.batch_size is 0; give a whole number from 1." in result.error


def test_as_a_process(tmp_path):
    """With values that stand by themselves, as in a shell, before the configuration."""
    overrides = ["--config.eval.window", "(64, 64)", "--config.eval.window", "(8, 8)"]
    configuration, *keys = tiny_flags()
    result = as_process("summary", *keys, *overrides, configuration)
    assert "eval.stride is (32, 32), but eval.window only (8, 8)" in result.error


@pytest.mark.parametrize(
    "given, kept",
    [
        ("--config=a.py --config.x=1 --config.x=2", "--config=a.py --config.x=2"),
        ("--config.x 1 --config.y.z 5 -config.x 2", "--config.y.z 5 -config.x 2"),
        ("--config.x=1 --config.x 2 --workdir w", "--workdir w --config.x 2"),
        ("--config.f --noconfig.f --config.x=-1", "--noconfig.f --config.x=-1"),
        ("--config.m -1 --config.m -2", "--config.m -2"),
        ("--config.xy=1 --config.x=2", "--config.xy=1 --config.x=2"),
        ("--config.x", "--config.x"),
        ("--config.x=1 --config=a.py", "--config=a.py --config.x=1"),
    ],
)
def test_the_last_of_each_flag(given, kept):
    assert last_of_each(["main.py", "train", *given.split()]) == [
        *("main.py", "train"),
        *kept.split(),
    ]
