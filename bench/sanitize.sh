#!/bin/sh
# Memory errors and races of a command on the GPU: bench/sanitize.sh LOG COMMAND... Fails if there
# are any, or if compute-sanitizer is not there to tell.
log=$1
shift
if ! command -v compute-sanitizer > /dev/null; then
  echo "compute-sanitizer: not found, not checked" | tee -a "$log"
  exit 1
fi
status=0
for tool in memcheck racecheck; do
  if timeout 60 compute-sanitizer --tool $tool --error-exitcode 9 "$@" >> "$log" 2>&1; then
    echo "compute-sanitizer $tool: passed" | tee -a "$log"
  else
    echo "compute-sanitizer $tool: FAILED" | tee -a "$log"
    status=1
  fi
done
exit $status
