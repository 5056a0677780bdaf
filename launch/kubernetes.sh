#!/usr/bin/env bash
# Kubernetes with JobSet (https://jobset.sigs.k8s.io): one pod per node, which uses all of the node's GPUs.
#
#   IMAGE=registry/lbdt:1 CLAIM=shared-disk [NAME=lbdt NODES=2 GPUS=8] \
#       launch/kubernetes.sh [--dry-run] --config=configs/a2d.py --workdir=/shared/DIR
#
# IMAGE contains requirements.txt, requirements-torch.txt, jax[cuda13] and this repository as its working directory. CLAIM
# is a ReadWriteMany volume claim; it is mounted at /shared, for WORKDIR, --config.data_dir, --config.word_vectors and
# --config.initial_weights. For --config.batch_size see docs/clusters.md. Prepare the data first, in a single pod.
#
# An evicted pod saves a checkpoint and exits with status 143; JobSet then restarts all pods, which resume from the
# newest checkpoint. It does so after any failure except status 2, a user error. This needs a JobSet version whose
# failurePolicy supports rules. --dry-run prints the manifest without submitting it.
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
quoted() { # a YAML string
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
            shareProcessNamespace: true # otherwise Python is PID 1, which by default ignores SIGTERM
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
