// Checksums of extents: an XXH3-64 per started chunk of kChecksumChunk bytes, and one root over them.
//
// The root of a one-chunk extent is that chunk's checksum; of a longer one, the XXH3-64 of its chunk checksums (little endian, in
// order). The owner keeps the chunks' (so that ranges can be verified), the master the root (so that owner and object are held together).
// A chunk fits the second-level cache, so hashing it just before it is sent or just after it arrived costs no memory traffic.
// The instruction set is chosen once, at run time. Threads: functions from any; a ChunkHasher belongs to one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace moonpool::transfer {

inline constexpr std::size_t kChecksumChunk = 256 * 1024;

[[nodiscard]] constexpr std::size_t chunks_of(std::uint64_t length) {
  return static_cast<std::size_t>(length / kChecksumChunk + (length % kChecksumChunk != 0 ? 1 : 0));
}
[[nodiscard]] std::uint64_t checksum(std::span<const std::byte> chunk);
// Of one chunk that is scattered over pieces.
[[nodiscard]] std::uint64_t checksum_of_pieces(std::span<const std::span<const std::byte>> pieces);
[[nodiscard]] std::uint64_t root_of(std::span<const std::uint64_t> chunk_checksums);

// One chunk's checksum, fed part by part; no allocation.
class ChunkState {
 public:
  void reset();
  void update(std::span<const std::byte> bytes);
  // Copies from the front of `bytes` to `to` past the caches, as far as it can (whole stripes of 64 bytes, to aligned memory, on a machine
  // with AVX2 or AVX-512, before the first update()), feeds exactly what it stored, and returns how much that was. The chunk's last
  // kStreamingTail bytes have to come through update().
  [[nodiscard]] std::size_t stream(std::byte* to, std::span<const std::byte> bytes);
  static constexpr std::size_t kStreamingTail = 256;
  [[nodiscard]] std::uint64_t digest() const;

 private:
  alignas(64) std::array<std::byte, 576> state_;  // not initialised before reset()
};

// Feeds pieces of any size; a checksum falls out at every chunk boundary. Allocates nothing per piece.
class ChunkHasher {
 public:
  ChunkHasher();
  ~ChunkHasher();
  void update(std::span<const std::byte> bytes);
  // The checksums of all chunks so far, the last one possibly partial; the hasher starts anew.
  [[nodiscard]] std::vector<std::uint64_t> finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moonpool::transfer
