#include "python/array_pool.h"

#include <cstdlib>
#include <list>
#include <mutex>
#include <new>

#include "host/huge_pages.h"

namespace masked_lstm {
namespace {

constexpr size_t kMostKept = size_t{512} << 20;  // bytes; older blocks are freed first

struct Block {
  void* memory;
  size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::list<Block> blocks;  // the latest first
  size_t bytes = 0;
};

// Never destroyed: arrays may outlive everything else.
Pool& ThePool() {
  static Pool* const pool = new Pool;
  return *pool;
}

size_t SizeClass(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

}  // namespace

void* TakeBlock(size_t bytes) {
  const size_t size = SizeClass(bytes > 0 ? bytes : 1);
  Pool& pool = ThePool();
  {
    std::lock_guard<std::mutex> lock(pool.mutex);
    for (auto block = pool.blocks.begin(); block != pool.blocks.end(); ++block) {
      if (block->bytes != size) continue;
      void* memory = block->memory;
      pool.bytes -= size;
      pool.blocks.erase(block);
      return memory;
    }
  }
  void* memory = std::aligned_alloc(64, size);
  if (memory == nullptr) throw std::bad_alloc();
  AdviseHugePages(memory, size);
  return memory;
}

void ReturnBlock(void* block, size_t bytes) noexcept {
  const size_t size = SizeClass(bytes > 0 ? bytes : 1);
  Pool& pool = ThePool();
  std::lock_guard<std::mutex> lock(pool.mutex);
  try {
    pool.blocks.push_front({block, size});
  } catch (const std::bad_alloc&) {
    std::free(block);
    return;
  }
  pool.bytes += size;
  while (pool.bytes > kMostKept) {
    pool.bytes -= pool.blocks.back().bytes;
    std::free(pool.blocks.back().memory);
    pool.blocks.pop_back();
  }
}

}  // namespace masked_lstm
