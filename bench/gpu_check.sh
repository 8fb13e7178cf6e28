#!/bin/sh
# Everything to know about the CUDA kernels on this machine's GPU, in one command and under 8 minutes:
# builds them, compares them with the specification, PyTorch's cuDNN and (where TensorFlow is
# installed) Keras' cuDNN, looks for memory errors and races, measures. Needs nvcc, CMake, ninja,
# pybind11, NumPy and PyTorch for CUDA; TensorFlow, Matplotlib and flashrnn are used where they are.
#
#   bench/gpu_check.sh [FOLDER]      results go to FOLDER (bench/results)
#
# The log's last two lines tell what may be added to QUALIFIED and to QUALIFIED_XLA in
# python/masked_lstm/gpus.py. A step that hangs is ended, and counts as failed.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/bench/results}
python=${PYTHON:-python3}
# A toolkit's and PyPI's nvcc and compute-sanitizer, where they are not on PATH.
wheels=$("$python" -c "import glob, nvidia
print(':'.join(f for p in nvidia.__path__ for f in glob.glob(p + '/cu*/bin')))" 2> /dev/null || true)
export PATH="$PATH:/usr/local/cuda/bin:$wheels"
for tool in nvidia-smi nvcc cmake ninja; do
  command -v $tool > /dev/null || { echo "error: expected $tool, found none" >&2; exit 1; }
done
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader) || { echo "error: $gpu" >&2; exit 1; }
name=$(echo "$gpu" | head -n 1 | tr ' /' '--' | tr 'A-Z' 'a-z')
stem=$out/cuda-$name-$(date +%F)
mkdir -p "$out"
began=$(date +%s)
# What is qualified is what runs where nobody asks for anything else.
unset MASKED_LSTM_CUDA_KERNEL MASKED_LSTM_CHECK_LENGTHS MASKED_LSTM_GPU

build=$root/build/gpu_check
tensorflow() {  # $1: of TensorFlow, an expression of Python; nothing without it
  TF_CPP_MIN_LOG_LEVEL=3 "$python" -c "import tensorflow as tf; print($1)" 2> /dev/null || true
}
version=$(tensorflow tf.__version__)
# Of an earlier run, perhaps with another Python.
rm -rf "$build/CMakeCache.txt" "$build/masked_lstm"
cmake -S "$root" -B "$build" -G Ninja -DMASKED_LSTM_CUDA=ON \
  -DMASKED_LSTM_CUDA_ARCHITECTURES="${MASKED_LSTM_CUDA_ARCHITECTURES:-native}" \
  -DMASKED_LSTM_OUTPUT_DIR="$build/masked_lstm" -DPython_EXECUTABLE="$(command -v "$python")" \
  -DMASKED_LSTM_TF_VERSION="$version" \
  -DMASKED_LSTM_TF_COMPILE_FLAGS="$(tensorflow "';'.join(tf.sysconfig.get_compile_flags())")" \
  -DMASKED_LSTM_TF_LINK_FLAGS="$(tensorflow "';'.join(tf.sysconfig.get_link_flags())")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" > "$stem.build.log" 2>&1 &&
  cmake --build "$build" >> "$stem.build.log" 2>&1 || { tail -n 40 "$stem.build.log"; exit 1; }
cp "$root"/python/masked_lstm/*.py "$build/masked_lstm/"
{
  echo "TENSORFLOW_VERSION = \"$version\""
  echo "CUDA_ARCHITECTURES = \"$(cat "$build/cuda_architectures.txt")\""
  echo "NO_XLA = \"$(cat "$build/no_xla.txt")\""
} > "$build/masked_lstm/_build_info.py"
export PYTHONPATH=$build

status=0
step() {  # $1: seconds it may take, then the command
  limit=$1
  shift
  timeout -k 5 "$limit" "$@" >> "$stem.log" 2>&1 || {
    code=$?
    echo "FAILED, $([ $code = 124 ] && echo "ended after $limit s" || echo "exit status $code"): $*" \
      >> "$stem.log"
    status=1
  }
}
{
  date
  git -C "$root" rev-parse HEAD || true
  nvidia-smi || true
  nvcc --version | tail -n 1
  echo "built in $(($(date +%s) - began)) s"
} > "$stem.log" 2>&1
step 150 "$python" "$root/bench/gpu_check.py" parity
grep -q "^parity: passed" "$stem.log" || status=1
xla="not checked"
if [ -n "$version" ]; then
  step 75 "$python" "$root/bench/gpu_keras.py"
  step 100 "$python" "$root/bench/gpu_check_xla.py"
  case $(grep "^The op compiled by XLA against itself outside:" "$stem.log") in
    *": passed") xla=passed ;;
    *": not checked"*) ;;
    *) xla=FAILED ;;  # also where it ended before it could say so
  esac
fi
tail -n 15 "$stem.log"
"$root/bench/sanitize.sh" "$stem.log" "$python" "$root/bench/gpu_check.py" short || status=1
# What is left of 8 minutes, with room for peaks, the last point and charts.
seconds=$((420 - $(date +%s) + began))
[ "$seconds" -gt 240 ] && seconds=240
[ "$seconds" -lt 30 ] && seconds=30
step $((seconds + 90)) "$python" "$root/bench/run.py" --device cuda --seconds "$seconds" \
  --out "$stem.csv"
tail -n 8 "$stem.log"
capability=$("$python" "$root/bench/gpu_check.py" capability || echo unknown)
result=$([ $status = 0 ] && echo passed || echo FAILED)
[ "$xla" != passed ] || xla=$result
echo "qualification: compute capability $capability: $result" | tee -a "$stem.log"
echo "qualification inside XLA: compute capability $capability: $xla" | tee -a "$stem.log"
exit $status
