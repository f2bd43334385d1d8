"""What is found on the machine, in the pictures and in a configuration."""

import threading

import numpy as np

from configs import own_data
from input_pipeline.survey import survey
from mlseg_jax.fitting.choices import changed
from mlseg_jax.fitting.facts import free_memory


def test_memory_is_what_system_and_container_leave(tmp_path):
    own, meminfo = tmp_path / "own", tmp_path / "meminfo"
    paths = str(meminfo), str(tmp_path), str(own)
    meminfo.write_text("MemTotal: 900 kB\nMemFree: 10 kB\nMemAvailable: 800 kB\n")
    assert free_memory(*paths) == 800 * 1024
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(*paths) == 800 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_memory(*paths) == 2000
    # A job's group is below; the least of all that are around it counts.
    job = tmp_path / "slurm/job_7"
    job.mkdir(parents=True)
    own.write_text("0::/slurm/job_7/step_0\n")
    (job / "memory.max").write_text("1500\n")
    (job / "memory.current").write_text("900\n")
    assert free_memory(*paths) == 600
    own.write_text("4:cpu,cpuacct:/slurm/job_7\n3:memory:/job/a:b\n0::/\n")
    assert free_memory(*paths) == 2000
    job = tmp_path / "memory/job"
    (job / "a:b").mkdir(parents=True)
    for folder, limit in ((job / "a:b", 2**63 - 4096), (job, 500)):
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text("400\n")
    assert free_memory(*paths) == 100
    # Other systems have no such file.
    assert free_memory(*[str(tmp_path / "none")] * 3) > 0


def test_who_stops_looking_waits_for_no_picture_in_the_queue():
    read, go_on = [], threading.Event()

    class Pictures:
        def __getitem__(self, index):
            read.append(index)
            if index > 0:
                go_on.wait(5)
            return {"label_map": np.zeros((1, 1), np.int32), "name": str(index)}

    readings = survey(Pictures(), range(100), 1, with_hashes=False)
    assert next(readings).index == 0
    threading.Timer(0.05, go_on.set).start()
    readings.close()
    assert len(read) <= 2


def test_what_somebody_has_changed_in_a_recipe_is_given():
    config = own_data.get_config("dataset=sign_scenes").unlock()
    assert changed(config) <= {"data.path"}
    config.train.batch_size, config.model.decoder.dropout_rate = 3, 0.2
    assert {"train.batch_size", "model.decoder.dropout_rate"} <= changed(config)
    assert "train.steps" not in changed(config)
