#!/bin/bash
#SBATCH --job-name="my study"
#SBATCH --array=0-2
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --partition=long
#SBATCH --time=2:30:00
#SBATCH --mem=16G
#SBATCH --output="/scratch/100%% mine/logs/slurm-%A_%a.log"
#SBATCH --signal=B:USR2@120
#SBATCH --open-mode=append
#SBATCH --export=ALL
#SBATCH --requeue
#SBATCH --account=mine
module load cuda

cd '/projects/my study' || exit
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# On USR2 the worker releases its trial at the end of the epoch, and the task is queued again.
# A worker that another signal ends is started again, 3 times; one that a trial has left
# unable to use its GPU (exit code 75) whenever that happens, since the trial has ended.
again=
lives=4
trap 'again=yes; [ "$!" ] && kill -TERM "$!"' USR2
while [ "$lives" -gt 0 ]; do
    /venv/bin/python -m studies.mnist 'storage.url=${oc.env:STUDYLOOM_STORAGE}' launcher=join launcher.begins=false &
    worker=$!
    [ "$again" ] && kill -TERM "$worker" # the signal came before there was this worker
    wait "$worker"
    code=$?
    if [ "$again" ]; then # the signal has ended the wait
        wait "$worker"
        code=$?
        # The index is needed: the job id of the last task is that of the whole array too.
        [ "$code" = 143 ] && exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    fi
    case $code in
        129 | 130 | 143) break ;; # a stop was requested
        75) continue ;;
    esac
    [ "$code" -gt 128 ] || break
    lives=$((lives - 1))
    echo "the worker ended with signal $((code - 128))"
done
exit "$code"
