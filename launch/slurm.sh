#!/usr/bin/env bash
#SBATCH --job-name=lbdt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
# SLURM, several nodes: one process per node, which feeds all of the node's GPUs from one input pipeline.
#
#   sbatch [--nodes=N --gpus-per-node=N ...] launch/slurm.sh --config=configs/a2d.py --workdir=/shared/DIR
#   launch/slurm.sh --dry-run --config=... --workdir=...      prints the command of the nodes
#
# Submit from the repository with its environment activated. The repository, WORKDIR, data, word vectors and initial
# weights must be on file systems that all nodes share; for --config.batch_size see docs/clusters.md. Prepare the data
# first, on one machine: python -m input_pipeline.prepare. A job that is preempted or near its time limit saves a
# checkpoint and is requeued, and resumes from there until training is finished. The #SBATCH options above are examples;
# options on the command line override them.
#
# Not run on a cluster; only the dry run is tested.
set -euo pipefail
dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi
if [[ " $*" != *" --config="* || " $*" != *" --workdir="* ]]; then
  echo "usage: sbatch launch/slurm.sh [--dry-run] --config=FILE --workdir=DIR [--config.FIELD=VALUE ...]" >&2
  exit 2
fi
# By default JAX would give each task only the GPU of its local rank.
export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:-8} - 1)))
# srun does not inherit --cpus-per-task from sbatch.
command=(srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"})
command+=(python -m lbdt_jax.main "$@")
if $dry_run; then
  printf "JAX_LOCAL_DEVICE_IDS=%s " "$JAX_LOCAL_DEVICE_IDS"
  printf "%q " "${command[@]}" && echo
  exit
fi
# --signal=B: sends SIGTERM to this script only. scancel forwards it to every task but not to this script; sent to srun,
# it would kill the tasks.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM
"${command[@]}" &
srun_pid=$!
while :; do
  status=0
  wait "$srun_pid" || status=$?
  kill -0 "$srun_pid" 2>/dev/null || break # still running: SIGTERM interrupted the wait
done
if ((status == 143)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
