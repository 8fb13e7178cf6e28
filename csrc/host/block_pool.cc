#include "host/block_pool.h"

#include <cstdlib>
#include <iterator>
#include <list>
#include <mutex>
#include <new>

#include "host/huge_pages.h"

namespace masked_lstm {
namespace {

constexpr size_t kMostKept = size_t{512} << 20;  // bytes; older blocks are freed first
constexpr size_t kPage = 4096;

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

}  // namespace

Block TakeBlock(size_t bytes) {
  const size_t size = bytes == 0 ? kPage : (bytes + kPage - 1) / kPage * kPage;
  if (size >= kSmallestPooled) {
    Pool& pool = ThePool();
    std::lock_guard<std::mutex> lock(pool.mutex);
    for (auto block = pool.blocks.begin(); block != pool.blocks.end(); ++block) {
      // Batches of one kind differ a little in their number of steps.
      if (block->bytes < size || block->bytes > size + size / 4) continue;
      const Block taken = *block;
      pool.bytes -= taken.bytes;
      pool.blocks.erase(block);
      return taken;
    }
  }
  void* memory = std::aligned_alloc(64, size);
  if (memory == nullptr) throw std::bad_alloc();
  AdviseHugePages(memory, size);
  return {memory, size};
}

void ReturnBlock(Block block) noexcept {
  std::list<Block> dropped;
  if (block.bytes >= kSmallestPooled && block.bytes <= kMostKept) {
    Pool& pool = ThePool();
    std::lock_guard<std::mutex> lock(pool.mutex);
    try {
      pool.blocks.push_front(block);
      pool.bytes += block.bytes;
      block.memory = nullptr;
    } catch (const std::bad_alloc&) {
    }
    while (pool.bytes > kMostKept) {
      pool.bytes -= pool.blocks.back().bytes;
      dropped.splice(dropped.begin(), pool.blocks, std::prev(pool.blocks.end()));
    }
  }
  std::free(block.memory);
  for (const Block& old : dropped) std::free(old.memory);
}

}  // namespace masked_lstm
