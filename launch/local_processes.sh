#!/usr/bin/env bash
# A trial of several processes on this computer's processor, before going to a pod:
#   launch/local_processes.sh 2 runs/trial --config=configs/demo.py
# Each process has 4 fake devices. Its output goes to runs/trial-0.log, -1.log, ...
set -euo pipefail

count=${1:?number of processes}
workdir=${2:?the work directory}
shift 2

export JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4
port=$((20000 + RANDOM % 20000))
mkdir -p "$(dirname "$workdir")"
processes=()
trap 'kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < count; i++)); do
  "${PYTHON:-.venv/bin/python}" main.py train --workdir="$workdir" "$@" \
    --coordinator="127.0.0.1:$port" --num_processes="$count" --process_id="$i" \
    >"$workdir-$i.log" 2>&1 &
  processes+=($!)
done
code=0
for process in "${processes[@]}"; do wait "$process" || code=$?; done
tail -n 3 "$workdir-0.log"
exit "$code"
