// Results and working memory of the CPU's ops from the block pool. From TensorFlow's allocator,
// malloc, the results of one call after another stood in eight or nine places before one was used
// again.
#pragma once

#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "host/block_pool.h"
#include "tensorflow/core/framework/allocator.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace masked_lstm {

class PooledAllocator : public tensorflow::Allocator {
 public:
  // Never destroyed: tensors may outlive everything else.
  static PooledAllocator* Get() {
    static auto* const allocator = new PooledAllocator;
    return allocator;
  }

  std::string Name() override { return "masked_lstm"; }

  tensorflow::AllocatorMemoryType GetMemoryType() const override {
    return tensorflow::AllocatorMemoryType::kHostPageable;
  }

  void* AllocateRaw(size_t alignment, size_t bytes) override {
    if (alignment > kHeader) return nullptr;
    try {
      const Block block = TakeBlock(bytes + kHeader);
      std::memcpy(block.memory, &block, sizeof(block));
      return static_cast<char*>(block.memory) + kHeader;
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }

  void DeallocateRaw(void* memory) override {
    Block block;
    std::memcpy(&block, static_cast<char*>(memory) - kHeader, sizeof(block));
    ReturnBlock(block);
  }

 private:
  // In front of a tensor: its block. As long as tensors are aligned.
  static constexpr size_t kHeader = 64;
  static_assert(kHeader >= sizeof(Block) && kHeader >= tensorflow::Allocator::kAllocatorAlignment,
                "");
};

inline absl::Status AllocatePooled(tensorflow::DataType dtype, const tensorflow::TensorShape& shape,
                                   tensorflow::Tensor* tensor) {
  *tensor = tensorflow::Tensor(PooledAllocator::Get(), dtype, shape);
  if (tensor->IsInitialized()) return absl::OkStatus();
  return absl::ResourceExhaustedError("out of memory when the LSTM allocated " +
                                      tensorflow::DataTypeString(dtype) + shape.DebugString());
}

// As OpKernelContext::allocate_output. A small result is malloc's; so is one that has to stand in
// memory of a device's or a collective's choice.
inline absl::Status AllocatePooledOutput(tensorflow::OpKernelContext* context, int index,
                                         const tensorflow::TensorShape& shape,
                                         tensorflow::Tensor** output) {
  const tensorflow::DataType dtype = context->expected_output_dtype(index);
  const auto attributes = context->output_alloc_attr(index);
  const int64_t bytes = shape.num_elements() * tensorflow::DataTypeSize(dtype);
  const bool elsewhere =
      attributes.gpu_compatible() || attributes.nic_compatible() || attributes.scope_id > 0;
  if (elsewhere || bytes < static_cast<int64_t>(kSmallestPooled)) {
    return context->allocate_output(index, shape, output);
  }
  tensorflow::Tensor tensor;
  TF_RETURN_IF_ERROR(AllocatePooled(dtype, shape, &tensor));
  context->set_output(index, std::move(tensor));
  *output = context->mutable_output(index);
  return absl::OkStatus();
}

}  // namespace masked_lstm
