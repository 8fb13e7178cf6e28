// Memory of the arrays the module returns. Blocks of arrays that were dropped are used again: fresh
// pages from the system cost more than the arithmetic of a small call.
#pragma once

#include <cstddef>

namespace masked_lstm {

// At least `bytes` bytes, aligned to a cache line; contents undefined. Throws std::bad_alloc.
void* TakeBlock(size_t bytes);

// Gives back what TakeBlock gave for as many bytes. Thread-safe.
void ReturnBlock(void* block, size_t bytes) noexcept;

}  // namespace masked_lstm
