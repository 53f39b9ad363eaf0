// Checksums of a batch's scattered extents. The bytes of an RDMA batch pass no processor on their way, so hashing is all that its caller's
// core does for them, and slower than a NIC of 100 Gbit/s: a large batch is hashed by several threads on a machine that has the cores, cut
// at chunks. A small one, and all on up to seven cores, by the caller's alone.
//
// Threads: the caller's and up to kMaxHashingThreads - 1 more, until it returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "transfer/transport.h"

namespace moonpool::transfer::rdma {

inline constexpr std::uint64_t kBytesPerHashingThread = std::uint64_t{8} << 20;
inline constexpr unsigned kCoresPerHashingThread = 4;
inline constexpr std::size_t kMaxHashingThreads = 4;
// Of one batch, at most.
[[nodiscard]] std::size_t hashing_threads_of_this_machine();

template <typename Bytes>  // ConstBytes, MutableBytes
struct Hashing {
  std::span<const Bytes> pieces;
  std::uint64_t length = 0;            // of the pieces together
  std::span<std::uint64_t> checksums;  // of its chunks: the outcome
};

void hash_together(std::span<const Hashing<ConstBytes>> extents, std::size_t most_threads = hashing_threads_of_this_machine());
void hash_together(std::span<const Hashing<MutableBytes>> extents, std::size_t most_threads = hashing_threads_of_this_machine());

}  // namespace moonpool::transfer::rdma
