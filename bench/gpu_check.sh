#!/bin/sh
# Everything to know about the CUDA kernels on this machine's GPU, in one command and under 8 minutes:
# builds them, compares them with the specification and with PyTorch's cuDNN, looks for memory errors
# and races, measures. Needs nvcc, CMake, ninja, pybind11, NumPy and PyTorch for CUDA; no TensorFlow.
#
#   bench/gpu_check.sh [FOLDER]      results go to FOLDER (bench/results)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/bench/results}
python=${PYTHON:-python3}
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' /' '--' | tr 'A-Z' 'a-z')
stem=$out/cuda-$name-$(date +%F)
mkdir -p "$out"

build=$root/build/gpu_check
cmake -S "$root" -B "$build" -G Ninja -DMASKED_LSTM_CUDA=ON \
  -DMASKED_LSTM_CUDA_ARCHITECTURES="${MASKED_LSTM_CUDA_ARCHITECTURES:-native}" \
  -DMASKED_LSTM_OUTPUT_DIR="$build/masked_lstm" -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" > "$stem.build.log"
cmake --build "$build" >> "$stem.build.log" 2>&1 || { tail -n 40 "$stem.build.log"; exit 1; }
for file in "$root"/python/masked_lstm/*.py; do cp "$file" "$build/masked_lstm/"; done
export PYTHONPATH=$build

status=0
"$python" "$root/bench/gpu_check.py" parity 2>&1 | tee "$stem.log" || status=1
grep -q "^parity: passed" "$stem.log" || status=1
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    echo "compute-sanitizer $tool" | tee -a "$stem.log"
    timeout 120 compute-sanitizer --tool $tool --error-exitcode 9 \
      "$python" "$root/bench/gpu_check.py" short >> "$stem.log" 2>&1 ||
      { echo "$tool failed" | tee -a "$stem.log"; status=1; }
  done
fi
"$python" "$root/bench/gpu_check.py" bench --out "$stem.csv" 2>&1 | tee -a "$stem.log" || status=1
exit $status
