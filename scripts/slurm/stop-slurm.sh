#!/usr/bin/env bash
# End the jobs of the SLURM that start-slurm.sh keeps in DIR, and stop it. A process is ended only if its command line names DIR.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
dir=$(cd "$1" 2>/dev/null && pwd -P) || exit 0
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$dir/etc/slurm.conf
is_ours() { [ -n "$1" ] && tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF -- "$dir/"; }
end() { # PIDFILE
  local pid; pid=$(cat "$1" 2>/dev/null)
  is_ours "$pid" && kill -TERM "$pid"
  for ((i = 0; i < 100; i++)); do is_ours "$pid" || break; sleep 0.05; done
  is_ours "$pid" && kill -KILL "$pid"
  rm -f "$1"
}
if timeout 5 scontrol ping 2>/dev/null | grep -q UP; then
  jobs=$(timeout 5 squeue -h -o %A | sort -u)
  [ -z "$jobs" ] || { timeout 5 scancel --full --signal=KILL $jobs; timeout 5 scancel $jobs; } 2>/dev/null
  for ((i = 0; i < 100; i++)); do [ -n "$(timeout 5 squeue -h -o %A)" ] || break; sleep 0.1; done
fi
for file in "$dir"/run/slurmd.*.pid; do end "$file" & done
wait
end "$dir/run/slurmctld.pid"
for process in /proc/[0-9]*; do # the daemons of steps whose slurmd has died
  [[ $(readlink "$process/exe") == */slurmstepd ]] && tr '\0' '\n' <"$process/environ" | grep -qxF "SLURM_CONF=$SLURM_CONF" && kill -KILL "${process#/proc/}"
done 2>/dev/null
end "$dir/run/munged.pid"
if grep -qF "# start-slurm.sh $dir" /etc/hosts; then # written in place, because it may be a mount
  others=$(grep -vF "# start-slurm.sh $dir" /etc/hosts); echo "$others" >/etc/hosts
fi
