#!/usr/bin/env bash
# One run as a job of SLURM; what sbatch is to know stands before the script, what lowerbound-train is to know after it:
#
#   sbatch --partition=gpu --gpus=1 --time=8:00:00 scripts/slurm/submit.sh model=vae data=mnist trainer=gpu
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 scripts/slurm/submit.sh trainer=ddp trainer.devices=4 trainer.num_nodes=2
#   sbatch scripts/slurm/submit.sh resume=outputs/slurm/1234
#
# The run's folder is outputs/slurm/<job>: preempted, requeued or out of time, the job starts again under its number and goes on there.
#SBATCH --job-name=lowerbound
#SBATCH --output=lowerbound-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120
set -u
case " $*" in
  *" resume="* | *" hydra.run.dir="*) ;;
  *) set -- "$@" "hydra.run.dir=outputs/slurm/$SLURM_JOB_ID" ;;
esac
srun lowerbound-train "$@"
