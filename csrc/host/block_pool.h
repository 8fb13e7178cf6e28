// Memory of the results that a binding returns. Blocks of results that were dropped are used again,
// the latest first (up to 512 MiB are kept): fresh pages from the system cost more than the
// arithmetic of a small call, and what was used last may still be in a cache.
#pragma once

#include <cstddef>

namespace masked_lstm {

// Bytes from which on a block is kept; below, malloc is as good.
constexpr size_t kSmallestPooled = 64 << 10;

struct Block {
  void* memory;
  size_t bytes;
};

// At least `bytes` bytes, aligned to a cache line; contents undefined. Throws std::bad_alloc.
Block TakeBlock(size_t bytes);

// Gives back what TakeBlock gave. Thread-safe.
void ReturnBlock(Block block) noexcept;

class ScopedBlock {
 public:
  explicit ScopedBlock(size_t bytes) : block_(TakeBlock(bytes)) {}
  ~ScopedBlock() { ReturnBlock(block_); }
  ScopedBlock(const ScopedBlock&) = delete;
  ScopedBlock& operator=(const ScopedBlock&) = delete;
  void* memory() const { return block_.memory; }

 private:
  const Block block_;
};

}  // namespace masked_lstm
