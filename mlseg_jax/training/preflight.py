"""What must be true of several processes before they train together.

Checked in a minute and said in a sentence, where a run would hang or go wrong silently.
"""

import hashlib
import json
import logging
import pathlib
import time
import uuid

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

import input_pipeline
from mlseg_jax.distributed import heartbeat, processes
from mlseg_jax.distributed.processes import ANSWER_SECONDS, tell_all
from mlseg_jax.errors import UserError
from mlseg_jax.settings import recipes

logger = logging.getLogger(__name__)

MAX_SKEW = 30.0
"""Seconds that clocks may differ: logs and object stores want them close."""


def check(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Raises `UserError`, naming the process, where the processes do not fit together.

    Same devices, same program, same configuration, clocks, a work directory that all
    write and see, and one sum over all devices.
    """
    if jax.process_count() == 1:
        return
    sentence = (
        f"Process {jax.process_index()} of {jax.process_count()} got no further in its "
        f"checks before training within {ANSWER_SECONDS:.0f} s; see what others say."
    )
    with heartbeat.Deadline(ANSWER_SECONDS, sentence):
        processes.barrier("preflight", ANSWER_SECONDS)
        facts = _exchange(config)
        _compare(facts)
        _share_directory(epath.Path(workdir))
        _sum_over_devices()
    logger.info(
        "%d processes with %d devices each work together",
        jax.process_count(),
        jax.local_device_count(),
    )


def _exchange(config) -> list[dict]:
    own = {
        "clock": time.time(),
        "devices": jax.local_device_count(),
        "kind": jax.local_devices()[0].device_kind,
        "jax": jax.__version__,
        "configuration": _digest(config.to_json_best_effort(sort_keys=True)),
        "program": code_hash(),
    }
    return [json.loads(words) for words in tell_all("preflight facts", json.dumps(own))]


def _compare(facts: list[dict]) -> None:
    names = {
        "devices": "devices",
        "kind": "kind of device",
        "jax": "version of JAX",
        "configuration": "configuration (its hash)",
        "program": "source code (its hash)",
    }
    for process, own in enumerate(facts):
        for key, what in names.items():
            if own[key] != facts[0][key]:
                raise UserError(
                    f"Process {process} has another {what} than process 0: {own[key]} "
                    f"and not {facts[0][key]}; start all processes alike."
                )
        skew = own["clock"] - facts[0]["clock"]
        if abs(skew) > MAX_SKEW:
            raise UserError(
                f"The clock of process {process} is {skew:+.0f} s off that of process "
                f"0; synchronise the clocks (NTP)."
            )


def _share_directory(workdir: epath.Path) -> None:
    """Each process writes a file, and each must see all of them."""
    index, count = jax.process_index(), jax.process_count()
    run = tell_all("preflight run", uuid.uuid4().hex)[0]
    problem = ""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / f".preflight-{run}-{index}").write_text("here")
    except OSError as error:
        problem = f"cannot write to it ({error.strerror or error})"
    problems = tell_all("preflight written", problem)
    if not any(problems):
        unseen = [p for p in range(count) if not _appears(workdir, run, p)]
        if unseen:
            problem = f"does not see there what process {unseen[0]} wrote"
        problems = tell_all("preflight seen", problem)
        (workdir / f".preflight-{run}-{index}").unlink(missing_ok=True)
    for process, problem in enumerate(problems):
        if problem:
            raise UserError(
                f"The work directory {workdir} is not shared by all processes: process "
                f"{process} {problem}; choose a directory that all machines mount, or "
                f"one on an object store."
            )


def _appears(workdir: epath.Path, run: str, process: int) -> bool:
    """Network file systems may show a new file some seconds late."""
    for _ in range(20):
        if (workdir / f".preflight-{run}-{process}").exists():
            return True
        time.sleep(0.5)
    return False


def _sum_over_devices() -> None:
    sums = multihost_utils.process_allgather(np.float32(jax.local_device_count()))
    if int(sums.sum()) != jax.device_count():
        raise UserError(
            f"A sum over all devices is {int(sums.sum())} and not the "
            f"{jax.device_count()} there are; the network between the machines is at "
            f"fault."
        )


def code_hash() -> str:
    """Of the source of this package and of what it comes with. A recipe of the user's
    own shows in the hash of the configuration.
    """
    digest = hashlib.sha256()
    pipeline = pathlib.Path(input_pipeline.__file__).parent
    for root in (recipes.folder(), pipeline, recipes.PACKAGE):
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
