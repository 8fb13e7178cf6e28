#!/bin/sh
# Memory errors and races of a command on the GPU: bench/sanitize.sh COMMAND... Fails if there are
# any, or if compute-sanitizer is not there to tell.
if ! command -v compute-sanitizer > /dev/null; then
  echo "compute-sanitizer: not found, not checked"
  exit 1
fi
# PyTorch's pools would hide what is read or written past the end of an array.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
status=0
for tool in memcheck racecheck; do
  # Libraries try calls that fail; ours come back as errors of the command.
  options=$([ $tool = memcheck ] && echo "--report-api-errors no" || true)
  # shellcheck disable=SC2086
  if timeout -k 5 75 compute-sanitizer --tool $tool $options --error-exitcode 9 "$@" 2>&1; then
    echo "compute-sanitizer $tool: passed"
  else
    echo "compute-sanitizer $tool: FAILED, exit status $? (124: it took more than 75 s)"
    status=1
  fi
done
exit $status
