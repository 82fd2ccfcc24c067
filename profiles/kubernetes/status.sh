# What became of a Job, in snakemake's words: status.sh NAME.
set -eu
counts=$(kubectl get job "$1" -o 'jsonpath={.status.succeeded},{.status.failed}')
case "$counts" in
1,*) echo success ;;
,[1-9]*) echo failed ;;
*) echo running ;;
esac
