#include "transfer/checksum.h"

#define XXH_STATIC_LINKING_ONLY  // the size of its state
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "transfer/checksum_kernel.h"

namespace moonpool::transfer {

static_assert(std::endian::native == std::endian::little, "checksums are hashed and sent as they lie in memory");

namespace {

const ChecksumKernel& chosen_kernel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return kAvx512Kernel;
  if (__builtin_cpu_supports("avx2")) return kAvx2Kernel;
#endif
  return kPortableKernel;
}

const ChecksumKernel& kernel() {
  static const ChecksumKernel& chosen = chosen_kernel();
  return chosen;
}

}  // namespace

std::uint64_t checksum(std::span<const std::byte> chunk) { return kernel().hash(chunk.data(), chunk.size()); }

std::uint64_t checksum_of_pieces(std::span<const std::span<const std::byte>> pieces) {
  if (pieces.size() == 1) return checksum(pieces.front());
  static thread_local XXH3_state_t state;
  kernel().reset(&state);
  for (const auto& piece : pieces) kernel().update(&state, piece.data(), piece.size());
  return kernel().digest(&state);
}

std::uint64_t root_of(std::span<const std::uint64_t> chunk_checksums) {
  if (chunk_checksums.size() == 1) return chunk_checksums.front();
  return checksum(std::as_bytes(chunk_checksums));
}

static_assert(sizeof(ChunkState) == sizeof(XXH3_state_t) && alignof(ChunkState) >= alignof(XXH3_state_t));

void ChunkState::reset() { kernel().reset(state_.data()); }
void ChunkState::update(std::span<const std::byte> bytes) { kernel().update(state_.data(), bytes.data(), bytes.size()); }
std::size_t ChunkState::stream(std::byte* to, std::span<const std::byte> bytes) {
  constexpr std::size_t kStripe = 64;
  const std::size_t size = bytes.size() / kStripe * kStripe;
  // An update() always leaves something in the library's buffer.
  const bool only_stripes = reinterpret_cast<const XXH3_state_t*>(state_.data())->bufferedSize == 0;
  if (kernel().stream == nullptr || !only_stripes || size == 0 || reinterpret_cast<std::uintptr_t>(to) % kStripe != 0) return 0;
  kernel().stream(state_.data(), to, bytes.data(), size);
  return size;
}
std::uint64_t ChunkState::digest() const { return kernel().digest(state_.data()); }

struct ChunkHasher::State {
  XXH3_state_t hash;
  std::size_t filled = 0;  // bytes of the unfinished chunk
  std::vector<std::uint64_t> done;
};

ChunkHasher::ChunkHasher() : state_(std::make_unique<State>()) { kernel().reset(&state_->hash); }
ChunkHasher::~ChunkHasher() = default;

void ChunkHasher::update(std::span<const std::byte> bytes) {
  auto& state = *state_;
  while (!bytes.empty()) {
    const std::size_t step = std::min(bytes.size(), kChecksumChunk - state.filled);
    if (step == kChecksumChunk) {  // a whole chunk in one piece needs no state
      state.done.push_back(checksum(bytes.first(step)));
    } else {
      kernel().update(&state.hash, bytes.data(), step);
      state.filled += step;
      if (state.filled == kChecksumChunk) {
        state.done.push_back(kernel().digest(&state.hash));
        kernel().reset(&state.hash);
        state.filled = 0;
      }
    }
    bytes = bytes.subspan(step);
  }
}

std::vector<std::uint64_t> ChunkHasher::finish() {
  auto& state = *state_;
  if (state.filled > 0) {
    state.done.push_back(kernel().digest(&state.hash));
    kernel().reset(&state.hash);
    state.filled = 0;
  }
  return std::exchange(state.done, {});
}

}  // namespace moonpool::transfer
