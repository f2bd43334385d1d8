#!/usr/bin/env bash
# Several hosts of 8 GPUs under SLURM, one process for each GPU:
#   sbatch launch/slurm.sh runs/coco_lvis --config=configs/segmenter.py:dataset=coco_lvis
# The first argument is the work directory, on a file system that all hosts mount. Two
# minutes before its time is over the job saves, and queues again until it is done.
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
shift

# Signals are for the processes, which save; this script waits for them.
trap '' TERM

code=0
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" main.py train \
  --workdir="$workdir" --config.data.num_threads="${SLURM_CPUS_PER_TASK:-8}" \
  "$@" || code=$?

# Ended in peace, but not at the end: there are no scores yet.
if [ "$code" -eq 0 ] && [ ! -e "$workdir/metrics.json" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
