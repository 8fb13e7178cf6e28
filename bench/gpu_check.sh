#!/bin/sh
# Everything to know about the CUDA kernels on this machine's GPU, in one command and some 8 minutes:
# builds them, compares them with the specification, PyTorch's cuDNN and (where TensorFlow is
# installed) Keras' cuDNN, looks for memory errors and races, measures. Needs nvcc, CMake, ninja,
# pybind11, NumPy and PyTorch for CUDA; TensorFlow, Matplotlib and flashrnn are used where they are.
#
#   bench/gpu_check.sh [FOLDER]      results go to FOLDER (bench/results)
#
# MASKED_LSTM_BUILT=FOLDER: that package is checked, nothing is built; SECONDS_TO_MEASURE=30: for each
# of the two tables of times (as many as 8 minutes leave). The log's last lines tell what may be added
# to QUALIFIED and to QUALIFIED_XLA in python/masked_lstm/gpus.py. A step that hangs is ended, and
# counts as failed.
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
mkdir -p "$build"
tensorflow() {  # $1: of TensorFlow, an expression of Python; nothing without it
  TF_CPP_MIN_LOG_LEVEL=3 "$python" -c "import tensorflow as tf; print($1)" 2> /dev/null || true
}
version=$(tensorflow tf.__version__)
if [ -n "${MASKED_LSTM_BUILT:-}" ]; then
  export PYTHONPATH="$(cd "$MASKED_LSTM_BUILT/.." && pwd)"
else
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
fi
{
  date
  git -C "$root" rev-parse HEAD || true
  nvidia-smi || true
  nvcc --version | tail -n 1
  echo "built in $(($(date +%s) - began)) s"
} > "$stem.log" 2>&1
capability=$("$python" "$root/bench/gpu_check.py" capability || echo unknown)
hopper=$([ "$capability" = 9.0 ] && echo yes || echo no)

step() {  # $1: name, $2: seconds it may take, then the command; what it says: to a file of its own
  log=$build/$1.log
  limit=$2
  shift 2
  timeout -k 5 "$limit" "$@" > "$log" 2>&1 || {
    code=$?
    echo "FAILED, $([ $code = 124 ] && echo "ended after $limit s" || echo "exit status $code"): $*" \
      >> "$log"
  }
}
told() {  # $1...: names of steps, whose words go to the log, the last of them to the terminal too
  for step; do
    { echo "== $step"; cat "$build/$step.log"; } >> "$stem.log"
    tail -n 8 "$build/$step.log"
  done
}
# These do not disturb each other, but for their times.
step parity 150 "$python" "$root/bench/gpu_check.py" parity &
step sanitizers 180 "$root/bench/sanitize.sh" "$python" "$root/bench/gpu_check.py" short &
steps="parity sanitizers"
if [ $hopper = yes ]; then
  step hopper-parity 150 "$python" "$root/bench/hopper_check.py" parity &
  step hopper-sanitizers 180 "$root/bench/sanitize.sh" "$python" "$root/bench/hopper_check.py" short &
  steps="$steps hopper-parity hopper-sanitizers"
fi
wait
# shellcheck disable=SC2086
told $steps
if [ -n "$version" ]; then
  step keras 75 "$python" "$root/bench/gpu_keras.py"
  step xla 100 "$python" "$root/bench/gpu_check_xla.py"
  told keras xla
fi
echo "checked in $(($(date +%s) - began)) s" | tee -a "$stem.log"
seconds=${SECONDS_TO_MEASURE:-$(((400 - $(date +%s) + began) / 2))}
[ "$seconds" -ge 20 ] || seconds=20
step times $((seconds + 90)) "$python" "$root/bench/run.py" --device cuda --seconds "$seconds" \
  --out "$stem.csv"
told times
if [ $hopper = yes ]; then
  step primitives 60 nvcc -std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 -I"$root/csrc" \
    "$root/bench/hopper_primitives.cu" -o "$build/hopper_primitives"
  told primitives
  step primitives 40 "$build/hopper_primitives"
  cp "$build/primitives.log" "$stem.primitives.csv"
  step hopper-times $((seconds + 60)) "$python" "$root/bench/hopper_check.py" bench \
    --seconds "$seconds" --out "$stem.hopper.csv"
  told hopper-times
fi
xla="not checked"
case $(grep "^The op compiled by XLA against itself outside:" "$stem.log") in
  *": passed") xla=passed ;;
  *": FAILED"*) xla=FAILED ;;
esac
result=passed
grep -q "^parity: passed" "$build/parity.log" || result=FAILED
! grep -q "FAILED" "$stem.log" || result=FAILED
echo "kernels: compute capability $capability: $result" | tee -a "$stem.log"
[ -n "$version" ] || result="not checked, TensorFlow is not installed"
[ "$xla" != passed ] || xla=$result
echo "qualification: compute capability $capability: $result" | tee -a "$stem.log"
echo "qualification inside XLA: compute capability $capability: $xla" | tee -a "$stem.log"
! grep -q "FAILED" "$stem.log"
