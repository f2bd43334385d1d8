#!/usr/bin/env bash
# A trial of several processes on this computer's processor, before going to a pod:
#   launch/local_processes.sh 2 runs/trial --config=configs/demo.py
# Each process has 4 fake devices. Its output goes to runs/trial-0.log, -1.log, ... As a
# launcher of a cluster does, it kills what is left GRACE seconds after the first process
# has failed, and ends with the highest code of those that ended by themselves. With
# launch/again.sh before it, it starts the run again.
set -euo pipefail

count=${1:?number of processes}
workdir=${2:?the work directory}
workdir=${workdir%/}
shift 2

export JAX_PLATFORMS=cpu
export XLA_FLAGS="--xla_force_host_platform_device_count=${DEVICES:-4}"
port=$((20000 + RANDOM % 20000))
mkdir -p "$(dirname "$workdir")"
processes=()
trap 'kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < count; i++)); do
  "${PYTHON:-.venv/bin/python}" main.py train --workdir="$workdir" "$@" \
    --coordinator="127.0.0.1:$port" --num_processes="$count" --process_id="$i" \
    >>"$workdir-$i.log" 2>&1 &
  processes+=($!)
done

code=0
deadline=
while [ "${#processes[@]}" -gt 0 ]; do
  left=()
  for process in "${processes[@]}"; do
    if kill -0 "$process" 2>/dev/null; then
      left+=("$process")
      continue
    fi
    own=0
    wait "$process" || own=$?
    if [ "$own" -gt "$code" ]; then code=$own; fi
    if [ "$own" -ne 0 ]; then deadline=${deadline:-$((SECONDS + ${GRACE:-120}))}; fi
  done
  processes=("${left[@]}")
  if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
    kill -KILL "${processes[@]}" 2>/dev/null || true
    wait "${processes[@]}" 2>/dev/null || true
    break
  fi
  sleep 0.2
done
tail -n 3 "$workdir-0.log"
exit "$code"
