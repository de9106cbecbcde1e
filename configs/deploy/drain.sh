#!/bin/sh
# Before a machine goes away: Ray puts nothing new on it, and pdray's workers there drain.
#   sh drain.sh [SECONDS]   on that machine; it may be stopped once this returns, after SECONDS at most
# KubeRay's pods run it before they are stopped (preStop).
seconds=${1:-300}
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the machine goes away' \
  --deadline-remaining-seconds "$seconds"
# In brackets, so that the pattern is not found in the command line that looks for it.
while [ "$seconds" -gt 0 ] && pgrep -f '[r]ay::WorkerActor' > /dev/null; do
  sleep 1
  seconds=$((seconds - 1))
done
