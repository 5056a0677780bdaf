#!/usr/bin/env bash
# A Cloud TPU VM or a multi-host pod slice: one process per host.
#
#   TPU=name ZONE=us-central2-b [PROJECT=... PYTHON=python3] \
#       launch/tpu_vm.sh [--dry-run] --config=configs/a2d.py --workdir=/mnt/DIR
#
# Copies the committed files to every host, installs them there with jax[tpu], and runs; JAX discovers the hosts itself.
# WORKDIR and the data must be on storage that all hosts mount at the same path (Filestore, or a bucket with gcsfuse):
# pass --config.data_dir, --config.word_vectors and --config.initial_weights, and --config.batch_size (docs/clusters.md).
# --config.model.dtype=bfloat16 is the fast type on TPUs. When a spot TPU was preempted, create it again and run the same
# command: it resumes from the newest checkpoint. The run ends with the connection: use tmux. --dry-run prints the
# commands.
#
# Not run on a TPU; only the dry run is tested.
set -euo pipefail
dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi
if [[ -z ${TPU:-} || -z ${ZONE:-} || " $*" != *" --config="* || " $*" != *" --workdir="* ]]; then
  echo "usage: TPU=name ZONE=zone launch/tpu_vm.sh [--dry-run] --config=FILE --workdir=DIR [...]" >&2
  exit 2
fi
location=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --worker=all)
run() {
  if $dry_run; then
    printf "%q " "$@" && echo
  else
    "$@"
  fi
}
printf -v command "%q " python -m lbdt_jax.main "$@"
archive=lbdt_jax.tar.gz
run git archive --format=tar.gz --output="/tmp/$archive" HEAD
run gcloud compute tpus tpu-vm scp "/tmp/$archive" "$TPU:/tmp/$archive" "${location[@]}"
run gcloud compute tpus tpu-vm ssh "$TPU" "${location[@]}" --command="
  set -e
  mkdir -p ~/lbdt_jax && cd ~/lbdt_jax && tar -xzf /tmp/$archive
  python=${PYTHON:-python3}
  if ! \$python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo \"\$(hostname): no \$python of 3.11 or later. Install one and set, for example, PYTHON=python3.12.\" >&2
    exit 2
  fi
  \$python -m venv ~/.venv-lbdt && . ~/.venv-lbdt/bin/activate
  pip install --quiet -r requirements.txt 'jax[tpu]>=0.10.2'
  pip install --quiet -r requirements-torch.txt --extra-index-url https://download.pytorch.org/whl/cpu
  exec $command"
