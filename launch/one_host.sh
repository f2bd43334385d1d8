#!/usr/bin/env bash
# One host with several GPUs, or with the TPUs of one VM: a single process drives all.
#   launch/one_host.sh runs/coco_lvis --config=configs/segmenter.py:dataset=coco_lvis
# If it dies or hangs it is taken up again (launch/again.sh). Ctrl-C and `kill` save
# first. Compiled programs are kept in the user's cache, as always.
set -euo pipefail

workdir=${1:?the work directory}
shift

here=$(dirname "$0")
machine=gpu
if ! command -v nvidia-smi >/dev/null; then machine=tpu; fi
exec "$here/again.sh" "$here/$machine.sh" "${PYTHON:-.venv/bin/python}" main.py train \
  --workdir="$workdir" "$@"
