#!/bin/sh
# Everything to know about the CUDA kernels on this machine's GPU, in one command and under 8 minutes:
# builds them, compares them with the specification, PyTorch's cuDNN and (where TensorFlow is
# installed) Keras' cuDNN, looks for memory errors and races, measures. Needs nvcc, CMake, ninja,
# pybind11, NumPy and PyTorch for CUDA; TensorFlow, Matplotlib and flashrnn are used where they are.
#
#   bench/gpu_check.sh [FOLDER]      results go to FOLDER (bench/results)
#
# The log's last line tells what may be added to QUALIFIED in python/masked_lstm/gpus.py.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/bench/results}
python=${PYTHON:-python3}
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' /' '--' | tr 'A-Z' 'a-z')
stem=$out/cuda-$name-$(date +%F)
mkdir -p "$out"
began=$(date +%s)

build=$root/build/gpu_check
tensorflow() {  # $1: compile or link: TensorFlow's flags, ;-separated, or nothing without it
  TF_CPP_MIN_LOG_LEVEL=3 "$python" -c "import tensorflow as tf
print(';'.join(tf.sysconfig.get_$1_flags()))" 2> /dev/null || true
}
version=$(TF_CPP_MIN_LOG_LEVEL=3 "$python" -c "import tensorflow as tf; print(tf.__version__)" \
  2> /dev/null || true)
cmake -S "$root" -B "$build" -G Ninja -DMASKED_LSTM_CUDA=ON \
  -DMASKED_LSTM_CUDA_ARCHITECTURES="${MASKED_LSTM_CUDA_ARCHITECTURES:-native}" \
  -DMASKED_LSTM_OUTPUT_DIR="$build/masked_lstm" -DPython_EXECUTABLE="$(command -v "$python")" \
  -DMASKED_LSTM_TF_COMPILE_FLAGS="$(tensorflow compile)" \
  -DMASKED_LSTM_TF_LINK_FLAGS="$(tensorflow link)" -DMASKED_LSTM_TF_VERSION="$version" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" > "$stem.build.log"
cmake --build "$build" >> "$stem.build.log" 2>&1 || { tail -n 40 "$stem.build.log"; exit 1; }
for file in "$root"/python/masked_lstm/*.py; do cp "$file" "$build/masked_lstm/"; done
{
  echo "TENSORFLOW_VERSION = \"$version\""
  echo "CUDA_ARCHITECTURES = \"$(cat "$build/cuda_architectures.txt")\""
  echo "NO_XLA = \"$(cat "$build/no_xla.txt")\""
} > "$build/masked_lstm/_build_info.py"
export PYTHONPATH=$build

status=0
{
  date
  git -C "$root" rev-parse HEAD || true
  nvidia-smi || true
} > "$stem.log" 2>&1
"$python" "$root/bench/gpu_check.py" parity >> "$stem.log" 2>&1 || status=1
grep -q "^parity: passed" "$stem.log" || status=1
"$python" "$root/bench/gpu_check_xla.py" >> "$stem.log" 2>&1 || status=1
tail -n 13 "$stem.log"
"$root/bench/sanitize.sh" "$stem.log" "$python" "$root/bench/gpu_check.py" short || status=1
# What is left of 8 minutes, with room for peaks and charts.
seconds=$((420 - $(date +%s) + began))
[ "$seconds" -gt 240 ] && seconds=240
[ "$seconds" -lt 30 ] && seconds=30
"$python" "$root/bench/run.py" --device cuda --seconds "$seconds" --out "$stem.csv" \
  >> "$stem.log" 2>&1 || status=1
tail -n 8 "$stem.log"
capability=$("$python" "$root/bench/gpu_check.py" capability)
result=$([ $status = 0 ] && echo passed || echo FAILED)
echo "qualification: compute capability $capability: $result" | tee -a "$stem.log"
exit $status
