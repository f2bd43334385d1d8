"""The files people launch with: they parse, and name flags and keys that exist."""

import re
import subprocess

import pytest
import yaml
from tiny import ROOT

from configs import segmenter

LAUNCH = sorted((ROOT / "launch").iterdir())


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.name)
def test_launch_files_parse(path):
    if path.suffix == ".sh":
        subprocess.run(["bash", "-n", path], check=True)
        assert path.stat().st_mode & 0o111
    else:
        jobs = yaml.safe_load(path.read_text())["spec"]["replicatedJobs"]
        spec = jobs[0]["template"]["spec"]
        assert spec["parallelism"] == spec["completions"]
    keys = segmenter.get_config().to_dict()
    for name in re.findall(r"--config\.([\w.]+)=", path.read_text()):
        value = keys
        for part in name.split("."):
            value = value[part]
