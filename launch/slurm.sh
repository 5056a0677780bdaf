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
# SLURM, several nodes: one process on each, which uses all its GPUs and shares its input pipeline among them.
#
#   sbatch [--nodes=N --gpus-per-node=N ...] launch/slurm.sh --config=configs/a2d.py --workdir=/shared/DIR
#   launch/slurm.sh --dry-run --config=... --workdir=...      prints what would be run on the nodes
#
# Submit from the repository, with its environment active; repository, WORKDIR, data and word vectors lie on file
# systems that all nodes share. Prepare the data before, on one machine: python -m input_pipeline.prepare. A job that is
# preempted or about to reach its time limit saves, and is queued again: it goes on from there until it is done. Options
# above are examples; those of the command line replace them.
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
# Else JAX would give each task the one GPU of its own number.
export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:-8} - 1)))
# srun does not take it from sbatch.
command=(srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"})
command+=(python -m lbdt_jax.main "$@")
if $dry_run; then
  printf "JAX_LOCAL_DEVICE_IDS=%s " "$JAX_LOCAL_DEVICE_IDS"
  printf "%q " "${command[@]}" && echo
  exit
fi
# --signal sends it to this script alone. scancel passes it on to every task, and not to this script; srun, if it were
# told, would end them.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM
"${command[@]}" &
steps=$!
while :; do
  status=0
  wait "$steps" || status=$?
  kill -0 "$steps" 2>/dev/null || break # else that was SIGTERM's arrival
done
if ((status == 143)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
