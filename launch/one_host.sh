#!/usr/bin/env bash
# One host with several GPUs, or with the TPUs of one VM: a single process drives all.
#   launch/one_host.sh runs/coco_lvis --config=configs/segmenter.py:dataset=coco_lvis
# If it dies (not if a setting is wrong: that ends with 1), it is taken up again, at
# most five times. Ctrl-C ends it; `kill` saves first.
set -euo pipefail

workdir=${1:?the work directory}
shift

child=
trap '[ -z "$child" ] || kill -TERM "$child"; stopped=1' TERM
stopped=
for _ in 1 2 3 4 5; do
  code=0
  "${PYTHON:-.venv/bin/python}" main.py train --workdir="$workdir" "$@" &
  child=$!
  wait "$child" || code=$?
  # A signal to this script ends the wait early, while the process still saves.
  while kill -0 "$child" 2>/dev/null; do wait "$child" || code=$?; done
  if [ -n "$stopped" ] || [ "$code" -eq 0 ] || [ "$code" -eq 1 ]; then exit "$code"; fi
  echo "ended with code $code; taking the run up again" >&2
done
exit "$code"
