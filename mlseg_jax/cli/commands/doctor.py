"""``doctor``: finds what is wrong with a data set before one trains on it."""

import json
import pathlib
import sys

from mlseg_jax.cli.flags import required
from mlseg_jax.doctor import doctor
from mlseg_jax.errors import UserError
from mlseg_jax.prediction import fonts


def run(flags) -> None:
    config = required(flags, "config")
    if flags.sample < 0:
        raise UserError("--sample counts examples; give 0 for all, or more.")
    fonts.check(config.eval.font)
    report = doctor.examine(config, sample=flags.sample)
    print(json.dumps(report.as_json()) if flags.json else report.as_text())
    if flags.output:
        doctor.write_sheet(report, pathlib.Path(flags.output), config.eval.font)
    if report.training_would_go_wrong:
        sys.exit(1)
