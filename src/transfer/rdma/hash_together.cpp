#include "transfer/rdma/hash_together.h"

#include <algorithm>
#include <functional>
#include <thread>
#include <vector>

#include "base/run_together.h"
#include "transfer/checksum.h"
#include "transfer/pieces.h"

namespace moonpool::transfer::rdma {

namespace {

// Consecutive chunks of one extent.
template <typename Bytes>
struct Part {
  const Hashing<Bytes>* extent = nullptr;
  std::size_t first = 0;
  std::size_t count = 0;
};

template <typename Bytes>
void hash(const Part<Bytes>& part) {
  PieceCursor<Bytes> cursor(part.extent->pieces);
  cursor.take(part.first * kChecksumChunk, [](Bytes) {});
  std::vector<ConstBytes> chunk;
  for (std::size_t i = part.first; i < part.first + part.count; ++i) {
    chunk.clear();
    cursor.take(std::min<std::uint64_t>(kChecksumChunk, part.extent->length - i * kChecksumChunk),
                [&](Bytes bytes) { chunk.push_back(bytes); });
    part.extent->checksums[i] = checksum_of_pieces(chunk);
  }
}

template <typename Bytes>
void run(std::span<const Hashing<Bytes>> extents, std::size_t most_threads) {
  std::uint64_t bytes = 0;
  std::size_t chunks = 0;
  for (const auto& extent : extents) {
    bytes += extent.length;
    chunks += extent.checksums.size();
  }
  const auto threads = std::clamp<std::size_t>(bytes / kBytesPerHashingThread, 1, std::max<std::size_t>(most_threads, 1));
  if (threads == 1) {
    for (const auto& extent : extents) hash(Part<Bytes>{&extent, 0, extent.checksums.size()});
    return;
  }
  std::vector<std::vector<Part<Bytes>>> shares(1);
  const std::size_t share = (chunks + threads - 1) / threads;
  std::size_t room = share;
  for (const auto& extent : extents) {
    for (std::size_t first = 0; first < extent.checksums.size();) {
      if (room == 0) {
        shares.emplace_back();
        room = share;
      }
      const std::size_t count = std::min(room, extent.checksums.size() - first);
      shares.back().push_back({&extent, first, count});
      first += count;
      room -= count;
    }
  }
  std::vector<std::function<void()>> jobs;
  for (const auto& parts : shares) {
    jobs.emplace_back([&parts] {
      for (const auto& part : parts) hash(part);
    });
  }
  run_together(jobs);
}

}  // namespace

std::size_t hashing_threads_of_this_machine() {
  return std::clamp<std::size_t>(std::thread::hardware_concurrency() / kCoresPerHashingThread, 1, kMaxHashingThreads);
}

void hash_together(std::span<const Hashing<ConstBytes>> extents, std::size_t most_threads) { run(extents, most_threads); }
void hash_together(std::span<const Hashing<MutableBytes>> extents, std::size_t most_threads) { run(extents, most_threads); }

}  // namespace moonpool::transfer::rdma
