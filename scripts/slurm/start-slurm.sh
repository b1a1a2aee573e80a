#!/usr/bin/env bash
# A real SLURM on this machine, to try things on and for the tests: munge, slurmctld and some slurmd on loopback, all files in DIR.
#
#   eval "$(scripts/slurm/start-slurm.sh DIR)"     start it, or find it running; sets SLURM_CONF
#   scripts/slurm/stop-slurm.sh DIR                end its jobs and stop it
#
# Needs root, and: apt-get install -y slurmd slurmctld slurm-client munge
# Partition "main" is the default; jobs in "high" take its nodes, and what ran there is requeued.
#   SLURM_TEST_NODES=2  SLURM_TEST_CPUS=4 (of each node, which need not be there)  SLURM_TEST_GPUS=0 (pretended ones)
#   SLURM_TEST_KILLWAIT=5 (seconds from SIGTERM to SIGKILL, and of grace at a preemption)
#   SLURM_TEST_REQUEUE_DELAY=5 (seconds before a requeued job may start again)  SLURM_TEST_PORT=26817 (the first that is tried)
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
nodes=${SLURM_TEST_NODES:-2} cpus=${SLURM_TEST_CPUS:-4} gpus=${SLURM_TEST_GPUS:-0} port=${SLURM_TEST_PORT:-26817}
kill_wait=${SLURM_TEST_KILLWAIT:-5} delay=${SLURM_TEST_REQUEUE_DELAY:-5} name=slurmnode
PATH=$PATH:/usr/sbin:/sbin here=$(cd "$(dirname "$0")" && pwd)
umask 022
mkdir -p "$1"; dir=$(cd "$1" && pwd -P); conf=$dir/etc/slurm.conf
say() { echo "start-slurm: $*" >&2; }
fail() {
  say "$*"
  for log in "$dir"/log/*; do [ ! -s "$log" ] || { say "-- $log"; tail -n 15 "$log" >&2; }; done
  [ -z "${started:-}" ] || "$here/stop-slurm.sh" "$dir" >&2 || true
  exit 1
}
for command in munged slurmctld slurmd sinfo srun sbatch scontrol; do
  command -v $command >/dev/null || { say "there is no $command: apt-get install -y slurmd slurmctld slurm-client munge"; exit 1; }
done
[ "$(id -u)" = 0 ] || { say "needs root, because the jobs run as root"; exit 1; }
[ ${#dir} -le 70 ] || { say "$dir is too long for a socket's path: 70 characters at most"; exit 1; }
host=$(hostname -s)
case "$(getent ahostsv4 "$host" | awk 'NR==1{print $1}')" in
  127.*) ;;
  *) say "$host must be an address of loopback, else the daemons would listen to the network: add '127.0.0.1 $host' to /etc/hosts"; exit 1 ;;
esac
idle() { SLURM_CONF=$conf timeout 5 sinfo -h -N -p main -t idle -o %N 2>/dev/null | wc -l; }
# What a job leaves in the environment would be taken for this cluster's; gloo would take an interface that the nodes do not share.
settings() {
  env | sed -n 's/^\(SLURM_[A-Z_]*\|SBATCH_[A-Z_]*\)=.*/unset \1/p' | grep -vE ' SLURM_(TEST_.*|CONF)$' || true
  echo "export SLURM_CONF=$conf GLOO_SOCKET_IFNAME=lo"
}
if [ -f "$conf" ] && SLURM_CONF=$conf timeout 5 scontrol ping 2>/dev/null | grep -q UP; then settings; exit 0; fi
mkdir -p "$dir"/{etc,state,spool,log,run,munge}; chmod 700 "$dir/munge"
started=1

[ -s "$dir/munge/key" ] || (umask 077; head -c 1024 /dev/urandom >"$dir/munge/key")
rm -f "$dir"/run/munge.sock*
munged --force --socket="$dir/run/munge.sock" --key-file="$dir/munge/key" --pid-file="$dir/run/munged.pid" --seed-file="$dir/munge/seed" \
  --log-file="$dir/log/munged.log" --origin=127.0.0.1 >"$dir/log/munged.out" 2>&1 || fail "munged does not start"

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
while :; do
  taken=0
  for ((i = 0; i <= nodes; i++)); do is_free $((port + i)) || taken=1; done
  [ $taken = 1 ] || break
  port=$((port + nodes + 10))
done
# The nodes of a job find each other by name.
for ((i = 1; i <= nodes; i++)); do
  grep -qF "$name$i # start-slurm.sh $dir" /etc/hosts || echo "127.0.0.1 $name$i # start-slurm.sh $dir" >>/etc/hosts
done

cat >"$conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.sock,cred_expire=$delay
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
KillWait=$kill_wait
MinJobAge=600
InactiveLimit=0
PropagateResourceLimits=NONE
END
resources=
if [ "$gpus" -gt 0 ]; then
  echo "GresTypes=gpu" >>"$conf"; resources="Gres=gpu:$gpus"; mkdir -p "$dir/gpu"
  for ((i = 0; i < gpus; i++)); do : >"$dir/gpu/$i"; echo "Name=gpu File=$dir/gpu/$i"; done >"$dir/etc/gres.conf"
fi
for ((i = 1; i <= nodes; i++)); do
  echo "NodeName=$name$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=$cpus RealMemory=64000 $resources State=UNKNOWN"
done >>"$conf"
cat >>"$conf" <<END
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=$kill_wait State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF State=UP
END
echo "CgroupAutomount=no" >"$dir/etc/cgroup.conf"
export SLURM_CONF=$conf
slurmctld -f "$conf" </dev/null >"$dir/log/slurmctld.out" 2>&1 || fail "slurmctld does not start"
for ((i = 1; i <= nodes; i++)); do
  mkdir -p "$dir/spool/$name$i"
  slurmd -f "$conf" -N $name$i </dev/null >"$dir/log/slurmd.$name$i.out" 2>&1 || fail "slurmd $name$i does not start"
done
for ((i = 0; i < 300; i++)); do
  [ "$(idle)" -lt "$nodes" ] || { settings; exit 0; }
  sleep 0.1
done
fail "the nodes are not idle after 30 seconds"
