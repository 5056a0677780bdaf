#!/usr/bin/env bash
# Kubernetes with JobSet (https://jobset.sigs.k8s.io): one pod on each machine, which uses all its GPUs.
#
#   IMAGE=registry/lbdt:1 CLAIM=shared-disk [NAME=lbdt NODES=2 GPUS=8] \
#       launch/kubernetes.sh [--dry-run] --config=configs/a2d.py --workdir=/shared/DIR
#
# IMAGE holds this repository as its working directory, and jax[cuda13]; CLAIM is a volume that many nodes may write
# (ReadWriteMany), mounted as /shared: for WORKDIR, --config.data_dir and --config.word_vectors. Prepare the data
# before, in one pod. A pod that is evicted saves and ends with 143; the set is then made anew, which goes on from the
# newest checkpoint. So it is after other ends, but not after status 2, which says that there is something to mend.
# That needs a JobSet whose failurePolicy has rules. --dry-run prints what would be submitted.
#
# Not run on a cluster; only the dry run is tested.
set -euo pipefail
dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi
if [[ -z ${IMAGE:-} || -z ${CLAIM:-} || " $*" != *" --config="* || " $*" != *" --workdir="* ]]; then
  echo "usage: IMAGE=image CLAIM=volume launch/kubernetes.sh [--dry-run] --config=FILE --workdir=DIR [...]" >&2
  exit 2
fi
name=${NAME:-lbdt} nodes=${NODES:-2} gpus=${GPUS:-8}
quoted() { # as a YAML string
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}
command=""
for word in python -m lbdt_jax.main "$@"; do
  command+=$'\n'"              - $(quoted "$word")"
done
manifest=$(
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(quoted "$name")
spec:
  failurePolicy:
    maxRestarts: 100
    rules:
    - action: FailJobSet
      onJobFailureReasons:
      - PodFailurePolicy
  replicatedJobs:
  - name: workers
    replicas: 1
    template:
      spec:
        parallelism: $nodes
        completions: $nodes
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: worker
              operator: In
              values:
              - 2
        template:
          spec:
            restartPolicy: Never
            shareProcessNamespace: true # else Python were process 1, on which SIGTERM has no effect by itself
            terminationGracePeriodSeconds: 120
            containers:
            - name: worker
              image: $(quoted "$IMAGE")
              command:$command
              env:
              - name: JAX_COORDINATOR_ADDRESS
                value: "$name-workers-0-0.$name:12355"
              - name: JAX_NUM_PROCESSES
                value: "$nodes"
              - name: JAX_PROCESS_ID
                valueFrom:
                  fieldRef:
                    fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
              resources:
                limits:
                  nvidia.com/gpu: $gpus
              volumeMounts:
              - name: shared
                mountPath: /shared
              - name: memory
                mountPath: /dev/shm
            volumes:
            - name: shared
              persistentVolumeClaim:
                claimName: $(quoted "$CLAIM")
            - name: memory
              emptyDir:
                medium: Memory
YAML
)
if $dry_run; then
  echo "$manifest"
else
  kubectl create -f - <<<"$manifest"
fi
