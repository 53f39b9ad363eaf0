// Copies one checksum chunk and hashes it on the way, so that each byte is fetched from memory once.
//
// Small calls go through the caches, in steps that fit the first level, each hashed from its destination just after it was copied: 0.93 to
// 0.96 of the speed of memcpy alone for chunks out of 96 KiB pieces (0.85 when a whole chunk is copied and then hashed, 0.77 when the
// source is hashed first). Large calls are stored past the caches and hashed from the same registers: 1.3 to 1.4 of memcpy with
// AVX-512, 1.1 to 1.2 with AVX2, on one, two and four threads, since a line that is overwritten whole need not be fetched first. Either way
// the checksum is of what lies in the destination, whatever happens to the source meanwhile. Threads: any.
#pragma once

#include <cstdint>
#include <span>

#include "transfer/pieces.h"

namespace moonpool::transfer {

// How a destination is written: through the caches, for who reads it soon, or past them.
enum class Stores : std::uint8_t { kCached, kStreaming };
// Calls of so many bytes, all their objects together, go past them. Measured: below, what is still cached is worth more than what streaming
// saves; a get's bytes are read soon by who asked for them, a put's by somebody else, later.
inline constexpr std::uint64_t kStreamingWriteBytes = std::uint64_t{16} << 20;
inline constexpr std::uint64_t kStreamingReadBytes = std::uint64_t{32} << 20;
[[nodiscard]] Stores stores_for(std::span<const WriteOperation> operations);
[[nodiscard]] Stores stores_for(std::span<const ReadOperation> operations);

// The next chunk.size() bytes of `source` into `chunk`. Returns the checksum.
[[nodiscard]] std::uint64_t gather_chunk(PieceCursor<ConstBytes>& source, MutableBytes chunk, Stores stores);
// `chunk` into the next chunk.size() bytes of `destination`. Returns the checksum of what arrived.
[[nodiscard]] std::uint64_t scatter_chunk(ConstBytes chunk, PieceCursor<MutableBytes>& destination, Stores stores);

// An extent that cannot be reused while it is read, with the checksums of its chunks from the range's first one on.
struct PinnedRead {
  const char* path;  // as errors name it
  ConstBytes memory;
  std::span<const std::uint64_t> checksums;
  bool verify = true;
};
// The operation's range into its destination. kChecksumMismatch: it is not what the master describes, or memory changed; kRpcTimeout.
[[nodiscard]] Status read_pinned(const PinnedRead& read, const ReadOperation& operation, Stores stores, Deadline deadline);

// One pass of hashing over a pinned view; its status becomes kChecksumMismatch, or kRpcTimeout, and its pin is dropped, unless it holds.
void verify_view(ViewOperation& operation, Deadline deadline);

}  // namespace moonpool::transfer
