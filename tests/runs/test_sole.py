"""One training at a time in a work directory."""

import errno
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from configs import own_data
from mlseg_jax.errors import UserError
from mlseg_jax.fitting import fit
from mlseg_jax.runs.sole import NAME, SoleTraining

HOLDER = """
import sys, time
from mlseg_jax.runs.sole import SoleTraining
with SoleTraining(sys.argv[1]) as sole:
    sole.take()
    print("held", flush=True)
    time.sleep(600)
"""


def take(workdir):
    with SoleTraining(str(workdir)) as sole:
        sole.take()


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            sentence = f"Another process is training in {tmp_path / 'run'}; wait"
            with pytest.raises(UserError, match=re.escape(sentence)):
                take(tmp_path / "run")
            take(tmp_path / "another")
        finally:
            holder.send_signal(signal.SIGKILL)
    # What it left behind stops nobody.
    assert (tmp_path / "run" / NAME).exists()
    take(tmp_path / "run")
    take(tmp_path / "run")


def test_where_there_are_no_locks_nothing_is_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    take("gs://bucket/run")
    assert not os.listdir(tmp_path)
    (tmp_path / "file").write_text("")
    take(tmp_path / "file" / "run")  # `claim_workdir` says what is wrong.


def test_a_directory_that_cannot_be_opened_is_not_said_to_be_in_use(
    tmp_path, monkeypatch
):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    take(tmp_path / "run")


def test_fitting_has_the_lock_from_its_first_look_on(tmp_path, monkeypatch):
    """It chooses and measures for a minute before it trains."""
    refused = []

    def look(*_):
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50)
        refused.append("Another process is training" in done.stderr)
        raise UserError("enough")

    monkeypatch.setattr(fit, "_choose", look)
    with pytest.raises(UserError, match="enough"):
        fit.train(own_data.get_config(), str(tmp_path), minutes=1.0)
    assert refused == [True]
    take(tmp_path)


def test_fitting_touches_no_file_of_a_run_that_is_under_way(tmp_path, monkeypatch):
    class Held(SoleTraining):
        def take(self):
            raise UserError("Another process is training")

    monkeypatch.setattr(fit, "SoleTraining", Held)
    (tmp_path / "time.json").write_text("{}")
    config = own_data.get_config()
    with pytest.raises(UserError, match="Another process"):
        fit.train(config, str(tmp_path), minutes=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["time.json"]
