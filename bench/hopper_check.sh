#!/bin/sh
# Everything to know about csrc/cuda/hopper on a Hopper GPU, in one command and under 8 minutes: what
# its design rests on, parity with the specification, memory errors and races, times. Needs what
# gpu_check.sh needs, which checks the other kernels and qualifies a GPU; this qualifies nothing.
#
#   bench/hopper_check.sh [FOLDER]      results go to FOLDER (bench/results)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/bench/results}
python=${PYTHON:-python3}
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' /' '--' | tr 'A-Z' 'a-z')
stem=$out/hopper-$name-$(date +%F)
mkdir -p "$out"

build=$root/build/hopper_check
cmake -S "$root" -B "$build" -G Ninja -DMASKED_LSTM_CUDA=ON -DMASKED_LSTM_CUDA_ARCHITECTURES=90a \
  -DMASKED_LSTM_OUTPUT_DIR="$build/masked_lstm" -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" > "$stem.build.log"
cmake --build "$build" >> "$stem.build.log" 2>&1 || { tail -n 40 "$stem.build.log"; exit 1; }
for file in "$root"/python/masked_lstm/*.py; do cp "$file" "$build/masked_lstm/"; done
export PYTHONPATH=$build

status=0
{
  date
  git -C "$root" rev-parse HEAD || true
  nvidia-smi || true
} > "$stem.log" 2>&1
nvcc -std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 -I"$root/csrc" \
  "$root/bench/hopper_primitives.cu" -o "$build/hopper_primitives" >> "$stem.build.log" 2>&1 &&
  timeout 40 "$build/hopper_primitives" > "$stem.primitives.csv" 2>> "$stem.log" || status=1
cat "$stem.primitives.csv"
timeout 130 "$python" "$root/bench/hopper_check.py" parity >> "$stem.log" 2>&1 || status=1
tail -n 8 "$stem.log"
"$root/bench/sanitize.sh" "$stem.log" "$python" "$root/bench/hopper_check.py" short || status=1
timeout 140 "$python" "$root/bench/hopper_check.py" bench --out "$stem.csv" >> "$stem.log" 2>&1 ||
  status=$?  # 3: ran out of time, and says so
tail -n 40 "$stem.log"
exit $status
