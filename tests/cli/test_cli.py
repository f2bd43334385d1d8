# ruff: noqa: E501 (a wrong line and its sentence stand on one line)
"""Commands, flags and what is said about wrong ones."""

import json
import os

import pytest
from main_program import as_process
from tiny import ROOT

import mlseg_jax
from mlseg_jax.cli.commands import report
from mlseg_jax.cli.program import COMMANDS
from mlseg_jax.distributed import heartbeat, processes
from mlseg_jax.errors import TransientError, UserError

# ml_collections loads configuration files in a way that Python wants to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_usage_as_a_process_and_without_jax():
    result = as_process()
    assert result.status == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.out
        assert f"main.py {command} --" in result.out
    modules = (ROOT / "mlseg_jax/cli/commands").glob("[!_]*.py")
    assert {path.stem for path in modules} == set(COMMANDS)


def test_help(program):
    usage = program().out
    for arguments in (["--help"], ["train", "--help"], ["-h"]):
        result = program(*arguments)
        assert (result.status, result.out) == (0, usage)


def test_a_misspelt_command_as_a_process():
    assert as_process("trian").error.endswith("'trian'; did you mean 'train'?")


@pytest.mark.parametrize(
    "line, words",
    [
        ("eval", "no command 'eval'; did you mean 'evaluate'"),
        ("train --config=configs/demo.py --workdri=x", "'workdri'. Did you mean: workdir"),
        ("train --config=configs/demo.py --config.train.stpes=3", "'stpes'; did you mean 'steps'"),
        ("train --config=configs/demo.py --config.trian.steps=3", "'trian'; did you mean 'train'"),
        ("train --config=configs/demo.py --config.zzz=3", "no key 'zzz'"),
        ("train --config=configs/demo.py --config.zzz.yyy=3", "no key 'zzz'"),
        ("train --config=configs/demo.py --config.train.steps=many", "--config.train.steps=many"),
        ("train --config=configs/demo.py --workdir=/tmp/x --config.data.crop_size=64", "data.crop_size is (64,)"),
        ("train --config=configs/dmeo.py", "did you mean 'demo.py'"),
        ("train --config=nowhere/at/all", "no configuration nowhere/at/all"),
        ("train --config=qqq.py", "choose one of common.py, deeplabv3.py"),
        ("train --config=README.md", "README.md is no configuration; give the path of"),
        ("train --config=configs", "configs is no configuration; give the path of"),
        ("train --config=configs/demo.py:a=b", "takes nothing after the colon, not 'a=b'"),
        ("train --config=configs/segmenter.py:dataset=ade2k", "did you mean 'ade20k'"),
        ("train --config=configs/segmenter.py:backbone=vit_b61", "did you mean 'vit_b16'"),
        ("train --config=configs/segmenter.py:datset=ade20k", "did you mean 'dataset'"),
        ("train --config=configs/demo.py:k=5", "not 'k=5'"),
        ("train --config=configs/segmenter.py:dataset", "not 'dataset'; write dataset=VALUE."),
        ("train --config=configs/segmenter.py:oce=x", "a whole number after the colon as oce, not 'x'"),
        ("train --config=", "--config needs a file, such as configs/demo.py."),
        ("train --config=configs/query2label.py --config.task=semantic", "needs model.decoder, which this configuration has not"),
        ("train --config=configs/demo.py", "needs --workdir"),
        ("train --workdir=/nowhere/run", "/nowhere/run is not a work directory"),
        ("evaluate --workdir", "--workdir needs a directory"),
        ("evaluate --workdir= --json", "--workdir needs a directory"),
        ("evaluate", "needs --workdir"),
        ("predict --config=configs/demo.py --workdir=/nowhere --output=/tmp/x", "No pictures are given"),
        ("evaluate --config=configs/demo.py --workdir=/nowhere", "is not a work directory"),
        ("report --workdir=/nowhere", "/nowhere"),
        ("export_dataset --config=configs/demo.py", "needs --output"),
        ("summary", "needs --config"),
        ("summary extra --config=configs/demo.py", "takes flags only, not 'extra'"),
        ("train --workdir=/tmp/x --config=configs/segmenter.py:dataset=folder", "config.data.path"),
        ("train --workdir=/tmp/x --config=configs/segmenter.py:dataset=folder --config.data.path=/nowhere", "no data folder /nowhere"),
        ("train --workdir=/tmp/x --config=configs/segmenter.py:dataset=ade20k", "has no place"),
    ],
)  # fmt: skip
def test_a_wrong_line_gets_one_sentence(program, line, words):
    assert words in program(*line.split()).error


def test_the_home_of_paths_is_written_out(program, monkeypatch):
    """Shells do so only for a word that begins with it."""
    monkeypatch.setenv("HOME", "/nowhere")
    wrong = "/nowhere/run is not a work directory"
    assert wrong in program("evaluate", "--workdir=~/run").error
    assert wrong in program("evaluate", "--workdir", "~/run").error
    with pytest.raises(UserError, match=wrong):
        mlseg_jax.evaluate("~/run")
    config, seen = "configs/demo.py", []
    monkeypatch.setattr(report, "run", seen.append)
    program("report", f"--config={config}", "--output=~/x", "--config.init=~/y",
            "--images=a,~/z")  # fmt: skip
    (given,) = seen
    assert (given.output, given.config.init) == ("/nowhere/x", "/nowhere/y")
    assert given.images == ["a", "/nowhere/z"]


def test_summary(program):
    arguments = ("summary", "--config=configs/segmenter.py:dataset=coco_stuff")
    told = json.loads(program(*arguments, "--json").out)
    assert told["parameters"] == 109_734_415 == sum(told["parameters_by_part"].values())
    assert isinstance(told["macs"], int) and told["macs"] > 10**10
    text = program(*arguments).out
    assert "109,734,415" in text and f"{told['macs']:,}" in text


def test_a_full_disk_is_one_sentence(program, monkeypatch):
    def fill(flags):
        raise OSError(28, "No space left on device", "/disk/run")

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(report, "run", fill)
    monkeypatch.setattr(os, "_exit", leave)
    result = program("report", "--config=configs/demo.py", "--workdir=/disk/run")
    assert "The disk is full (/disk/run); free some space" in result.err
    assert result.status == 1


@pytest.mark.parametrize(
    "error, code, words",
    [
        (OSError(5, "Input/output error", "/disk/x"), 75, "error: Input/output error"),
        (OSError(116, "Stale file handle"), 75, "Stale file handle; the lines above"),
        (OSError(2, "No such file", "/disk/x"), 1, "correct the path"),
        (OSError("no errno"), 1, "error: no errno; the lines above"),
        (TransientError("Process 1 did not answer."), 75, "did not answer"),
        (RuntimeError("UNKNOWN: Gloo AllGather failed"), 75, "error: UNKNOWN: Gloo"),
        (RuntimeError("Worker process was terminated ..."), 75, "start the same"),
    ],
)
def test_what_passes_is_tried_again(program, monkeypatch, error, code, words):
    def run(flags):
        raise error

    monkeypatch.setattr(report, "run", run)
    result = program("report", "--config=configs/demo.py", "--workdir=/disk/run")
    assert result.status == code and words in result.err


def test_the_same_internal_error_is_not_tried_for_ever(program, monkeypatch, tmp_path):
    """Three times in a row at the same step; numbers but that of the step may differ."""
    ends = [(7, "INTERNAL"), (7, "INTERNAL"), (8, "INTERNAL"), (8, "UNAVAILABLE")]
    ends += 4 * [(9, "INTERNAL")]
    statuses = []
    for number, (step, status) in enumerate(ends):

        def run(flags, number=number, step=step, status=status):
            error = RuntimeError(f"{status}: no kernel {number} at 0xab{number}")
            error.add_note(f"This process computes step {step}.")
            raise error

        monkeypatch.setattr(report, "run", run)
        result = program("report", "--config=configs/demo.py", f"--workdir={tmp_path}")
        statuses.append(result.status)
    assert statuses == [75] * 6 + [1] * 2
    assert "at the same place 4 times in a row" in result.err


def test_a_process_of_several_tells_the_code_and_needs_no_message(program, monkeypatch):
    def run(flags):
        raise ValueError

    def fail(sentence, code):
        told.append((sentence, code))
        raise SystemExit(code)

    told = []
    monkeypatch.setattr(report, "run", run)
    monkeypatch.setattr(processes, "are_connected", lambda: True)
    monkeypatch.setattr(heartbeat, "fail", fail)
    program("report", "--config=configs/demo.py", "--workdir=/disk/run")
    assert told[0][0].startswith("Process 0 cannot go on (ValueError())")
    assert told[0][1] == 1
