#!/usr/bin/env bash
# A Cloud TPU VM, or a pod slice of several: one process on each of its machines.
#
#   TPU=name ZONE=us-central2-b [PROJECT=... PYTHON=python3] \
#       launch/tpu_vm.sh [--dry-run] --config=configs/a2d.py --workdir=/mnt/DIR
#
# It copies what is committed here to every machine, installs it there with jax[tpu], and runs; JAX finds the machines
# by itself. WORKDIR lies on storage that all machines mount at the same place (Filestore, or a bucket with gcsfuse),
# and so do the data: pass --config.data_dir and --config.word_vectors. --config.model.dtype=bfloat16 is what TPUs are
# made for. When a spot TPU was taken back, make it anew and run the same command: it goes on from the newest
# checkpoint. --dry-run prints the commands.
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
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --worker=all)
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
run gcloud compute tpus tpu-vm scp "/tmp/$archive" "$TPU:/tmp/$archive" "${where[@]}"
run gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --command="
  set -e
  mkdir -p ~/lbdt_jax && cd ~/lbdt_jax && tar -xzf /tmp/$archive
  python=${PYTHON:-python3}
  if ! \$python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo \"\$(hostname) has no \$python of 3.11 or later. Install one, and name it: PYTHON=python3.12 launch/tpu_vm.sh\" >&2
    exit 2
  fi
  \$python -m venv ~/.venv-lbdt && . ~/.venv-lbdt/bin/activate
  pip install --quiet -r requirements.txt 'jax[tpu]>=0.10.2'
  exec $command"
