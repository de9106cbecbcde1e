#!/bin/sh
# Before a machine goes away: Ray puts nothing new on it, and pdray's workers there drain.
#   sh drain.sh [SECONDS]   on that machine; it may be stopped once this returns, or after SECONDS
# KubeRay's pods run it before they are stopped (preStop).
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the machine goes away' \
  --deadline-remaining-seconds "${1:-300}"
# In brackets, so that the pattern is not found in the command line that looks for it.
pkill -TERM -f '[r]ay::WorkerActor'
while pgrep -f '[r]ay::WorkerActor' > /dev/null; do
  sleep 1
done
