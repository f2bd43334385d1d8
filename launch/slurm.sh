#!/usr/bin/env bash
# Several hosts of 8 GPUs under SLURM, one process for each GPU:
#   sbatch launch/slurm.sh runs/coco_lvis --config=configs/segmenter.py:dataset=coco_lvis
# The first argument is the work directory, on a file system that all hosts mount. Two
# minutes before its time is over the job saves, and queues again until it is done. It
# also queues again when it ends by no fault of its own (docs/scaling.md: code 75, or
# killed), RESTARTS times in a row at most, a little later each time.
#SBATCH --job-name=mlseg
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

workdir=${1:?the work directory}
workdir=${workdir%/}
shift

# Process 0 alone writes it, and all read it after a restart.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$(dirname "$workdir")/compiled}"

# Signals are for the processes, which save; this script waits for them.
trap '' TERM

code=0
# Whoever is left two minutes after the first has ended hangs, and is killed; until then
# each ends with its own code, of which srun tells the highest.
srun --kill-on-bad-exit=0 --wait=120 launch/gpu.sh "${PYTHON:-.venv/bin/python}" \
  main.py train --workdir="$workdir" --start_seconds=1800 \
  --config.data.num_threads="${SLURM_CPUS_PER_TASK:-8}" "$@" || code=$?

failures="$workdir.failures"
if [ "$code" -eq 0 ]; then
  rm -f "$failures"
  # Ended in peace, but not at the end; scores may be of `evaluate`, meanwhile.
  if [ ! -e "$workdir/metrics.json" ] || [ -e "$workdir/training.unfinished" ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
elif [ "$code" -gt 1 ] && [ "$code" -ne 126 ] && [ "$code" -ne 127 ]; then
  # One that has run for an hour counts from the beginning.
  if [ "$SECONDS" -ge 3600 ]; then rm -f "$failures" || true; fi
  # Where it cannot be written (the disk hangs or is full) it queues again all the same.
  mkdir -p "$(dirname "$failures")" || true
  echo "job $SLURM_JOB_ID ended with code $code" >>"$failures" || true
  count=$(wc -l <"$failures" || echo 1)
  if [ "$count" -le "${RESTARTS:-20}" ]; then
    sleep $((count < 10 ? ${BACKOFF:-30} * count : 300))
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
