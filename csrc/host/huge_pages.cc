#include "host/huge_pages.h"

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace masked_lstm {

void AdviseHugePages(void* memory, size_t bytes) noexcept {
#if defined(__linux__)
  constexpr size_t kSmallest = 4 << 20, kPage = 2 << 20;
  if (bytes < kSmallest) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

}  // namespace masked_lstm
