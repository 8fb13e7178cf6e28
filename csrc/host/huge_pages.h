// Large buffers in large pages: a fresh page of 4 KiB costs as much as some thousand multiply-adds.
#pragma once

#include <cstddef>

namespace masked_lstm {

// Asks the system to back the inside of [memory, memory + bytes) with huge pages where it has not
// been touched yet. A hint: nothing changes where the system knows none, or the buffer is small.
void AdviseHugePages(void* memory, size_t bytes) noexcept;

}  // namespace masked_lstm
