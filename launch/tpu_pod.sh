#!/usr/bin/env bash
# Trains on a TPU VM pod from your own computer, where `gcloud` is set up.
#
#   export NAME=mlseg ZONE=us-west4-a TYPE=v5litepod-64 VERSION=v2-alpha-tpuv5-lite
#   export WORKDIR=gs://my-bucket/runs/coco_lvis REPOSITORY=https://github.com/me/mlseg.git
#   launch/tpu_pod.sh create      # asks for the machines; returns at once
#   launch/tpu_pod.sh status      # ACTIVE when they are there
#   launch/tpu_pod.sh install     # the same code on every host
#   launch/tpu_pod.sh train --config=configs/segmenter.py:dataset=coco_lvis ...
#   launch/tpu_pod.sh stop        # saves a checkpoint, then ends; `train` takes it up
#   launch/tpu_pod.sh delete
#
# `train` starts the same command on all hosts; JAX finds them by itself. What it says is
# shown, and kept on each host in mlseg/train.log; it goes on where the connection breaks.
# Where it ends by no fault of its own, each host starts it again (launch/again.sh). Run
# it again after a preemption: it goes on at the last checkpoint. SPOT=1 asks for machines
# that may be taken away. Compiled programs are kept beside WORKDIR, in `compiled`.
set -euo pipefail

: "${NAME:?name of the pod}" "${ZONE:?zone of Google Cloud}"
QUEUED="$NAME-queued"

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

case "${1:-}" in
  create)
    : "${TYPE:?such as v5litepod-64}" "${VERSION:?such as v2-alpha-tpuv5-lite}"
    gcloud compute tpus queued-resources create "$QUEUED" --zone="$ZONE" \
      --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$VERSION" \
      ${SPOT:+--spot}
    ;;
  status)
    gcloud compute tpus queued-resources describe "$QUEUED" --zone="$ZONE" \
      --format="value(state.state)"
    ;;
  install)
    : "${REPOSITORY:?URL of your copy of this repository}"
    on_all_hosts "set -e
      [ -d mlseg ] || git clone '$REPOSITORY' mlseg
      cd mlseg && git fetch -q && git checkout -q '${REVISION:-origin/HEAD}'
      [ -d .venv ] || python3 -m venv .venv
      .venv/bin/pip install -q '.[tpu,gcs]'"
    ;;
  train)
    : "${WORKDIR:?a directory that all hosts see, such as gs://bucket/runs/name}"
    WORKDIR=${WORKDIR%/}
    shift
    # To a file, which is shown: a broken connection to a host does not break its training.
    on_all_hosts "set -e
      cd mlseg
      export JAX_COMPILATION_CACHE_DIR='${JAX_COMPILATION_CACHE_DIR:-${WORKDIR%/*}/compiled}'
      trap : TERM
      : >>train.log
      nohup launch/again.sh launch/tpu.sh .venv/bin/python main.py train \
        --start_seconds=1800 --workdir='$WORKDIR' ${1+$(printf '%q ' "$@")} \
        >>train.log 2>&1 </dev/null &
      tail -n 0 -f --pid=\$! train.log
      wait \$!"
    ;;
  stop)
    # It tells the training, once. In brackets, so that this shell is not meant.
    on_all_hosts "pkill -TERM -f '[l]aunch/again.sh' || true"
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$QUEUED" --zone="$ZONE" --force
    ;;
  *)
    sed -n '2,20s/^# \{0,1\}//p' "$0"
    exit 1
    ;;
esac
