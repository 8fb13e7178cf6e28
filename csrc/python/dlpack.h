// The structs of DLPack's ABI (https://dmlc.github.io/dlpack/latest/c_api.html), versions
// below 1.0: how PyTorch, CuPy and others hand over device memory.
#pragma once

#include <cstdint>

extern "C" {

constexpr int32_t kDLCUDA = 2, kDLCUDAManaged = 13;  // memory that CUDA's kernels reach

struct DLDevice {
  int32_t device_type;  // those above; 1: CPU
  int32_t device_id;
};

struct DLDataType {
  uint8_t code;  // 0: int, 1: unsigned, 2: float, 4: bfloat, 6: bool
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in values; null: dense, row-major
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor* self);
};

}  // extern "C"
