"""Runs ``main.py`` as its users know it, in this process or in one of its own."""

import json
import subprocess
import sys

from absl import flags
from tiny import ROOT

from mlseg_jax.cli.program import run as run_program


class Result:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def error(self):
        """The one line that says what was wrong."""
        assert self.status == 1, self.err
        assert "Traceback" not in self.err, self.err
        lines = [x for x in self.err.splitlines() if x.startswith("error: ")]
        assert len(lines) == 1 and self.err.rstrip().endswith(lines[0]), self.err
        assert len(lines[0]) < 600
        return lines[0]


def run_here(capsys, monkeypatch, *arguments) -> Result:
    """``python main.py ...`` in this process."""
    monkeypatch.chdir(ROOT)
    capsys.readouterr()
    # Flags of the configuration before are forgotten.
    for name in list(flags.FLAGS):
        if name.startswith("config."):
            delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    names = (
        "config",
        "workdir",
        "images",
        "video",
        "output",
        "checkpoint",
        "json",
        "to",
    )
    for name in (*names, "frame_rate", "runtime", "batch"):
        flags.FLAGS[name].unparse()
    monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
    status = 0
    try:
        run_program()
    except SystemExit as stop:
        status = stop.code or 0
    captured = capsys.readouterr()
    return Result(status, captured.out, captured.err)


def as_process(*arguments):
    done = subprocess.run(
        [sys.executable, "main.py", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def read_metrics(workdir):
    return json.loads((workdir / "metrics.json").read_text())
