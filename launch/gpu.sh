#!/usr/bin/env bash
# What hosts with NVIDIA GPUs want of XLA, then the command:
#   launch/gpu.sh python main.py train ...
# The flags are those of docs.jax.dev (GPU performance tips) and of NVIDIA's JAX-Toolbox.
# They are known to jaxlib 0.10.2 (a test); what each of them gains nobody has measured
# with this project, so compare step_seconds: flags of your own in XLA_FLAGS come last
# and win, and FLAGS=none leaves these out.
set -euo pipefail

flags=(
  # Collectives run beside the computation instead of between.
  --xla_gpu_enable_latency_hiding_scheduler=true
  # In the loop over blocks (model.backbone.scan), the weights of the next block come
  # and the gradients of the last one leave while this one is computed (mesh.fsdp).
  --xla_gpu_enable_pipelined_all_gather=true
  --xla_gpu_enable_pipelined_reduce_scatter=true
  --xla_gpu_enable_pipelined_all_reduce=true
  --xla_gpu_enable_while_loop_double_buffering=true
  # Collectives are joined up to so many bytes: all weights of a block of ViT-L (50 MB)
  # are one message, of a ViT-B two blocks. The default is 30 MB.
  --xla_gpu_all_gather_combine_threshold_bytes=67108864
  --xla_gpu_reduce_scatter_combine_threshold_bytes=67108864
  --xla_gpu_all_reduce_combine_threshold_bytes=67108864
)
if [ "${FLAGS:-}" != none ]; then
  export XLA_FLAGS="${flags[*]} ${XLA_FLAGS:-}"
fi
exec "$@"
