# Submit a job script of snakemake: job.sh THREADS MEGABYTES GPUS SCRIPT. Prints the Job's name.
set -eu
name="s2dnet-$(date +%s%N)"
kubectl create -f - > /dev/null << MANIFEST
apiVersion: batch/v1
kind: Job
metadata: {name: $name, labels: {app: s2dnet}}
spec:
  backoffLimit: 0  # snakemake retries
  template:
    spec:
      restartPolicy: Never
      volumes:
        - {name: work, persistentVolumeClaim: {claimName: s2dnet}}
        - {name: shm, emptyDir: {medium: Memory}}  # for the workers of the loader
      containers:
        - name: run
          image: ${S2D_IMAGE:?the image of the pods}
          command: [sh, "$4"]
          workingDir: $PWD
          volumeMounts:
            - {name: work, mountPath: /s2dnet}
            - {name: shm, mountPath: /dev/shm}
          resources:
            requests: {cpu: $1, memory: $2M}
            limits: {memory: $2M, nvidia.com/gpu: $3}
MANIFEST
echo "$name"
