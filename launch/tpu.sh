#!/usr/bin/env bash
# What TPU hosts want of their compiler, then the command:
#   launch/tpu.sh python main.py train ...
# The flags are those that MaxText collects (benchmarks/xla_flags_library.py there). They
# are known to libtpu 0.0.42 (a test); what each of them gains nobody has measured with
# this project, so compare step_seconds: flags of your own in LIBTPU_INIT_ARGS come last
# and win, and FLAGS=none leaves these out.
set -euo pipefail

flags=(
  # Weights of a block are gathered, and gradients summed, while others are computed
  # (mesh.fsdp). On by default, they say, but let it be sure.
  --xla_tpu_enable_async_collective_fusion=true
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  --xla_tpu_overlap_compute_collective_tc=true
  --xla_enable_async_all_gather=true
  # Between slices: sums of gradients are spread over the backward pass (mesh.data).
  --xla_tpu_enable_data_parallel_all_reduce_opt=true
  --xla_tpu_data_parallel_opt_different_sized_ops=true
)
if [ "${FLAGS:-}" != none ]; then
  export LIBTPU_INIT_ARGS="${flags[*]} ${LIBTPU_INIT_ARGS:-}"
fi
exec "$@"
