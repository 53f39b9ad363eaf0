#include "transfer/copy_and_hash.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "transfer/checksum.h"

namespace moonpool::transfer {

namespace {

constexpr std::size_t kStep = std::size_t{8} * 1024;

// Hashes parts of a chunk; a chunk of one small part, the common small object, needs no state.
class Hash {
 public:
  explicit Hash(std::size_t chunk) : chunk_(chunk) {}
  void copy(std::byte* to, const std::byte* from, std::size_t size) {
    if (size == chunk_ && size <= kStep) {
      std::memcpy(to, from, size);
      whole_ = checksum({to, size});
      return;
    }
    if (!started_) state_.reset();
    started_ = true;
    for (std::size_t at = 0; at < size; at += kStep) {
      const std::size_t step = std::min(kStep, size - at);
      std::memcpy(to + at, from + at, step);
      state_.update({to + at, step});
    }
  }
  [[nodiscard]] std::uint64_t result() const { return started_ ? state_.digest() : whole_; }

 private:
  const std::size_t chunk_;
  bool started_ = false;
  std::uint64_t whole_ = 0;
  ChunkState state_;
};

}  // namespace

std::uint64_t gather_chunk(PieceCursor<ConstBytes>& source, MutableBytes chunk) {
  Hash hash(chunk.size());
  std::byte* target = chunk.data();
  source.take(chunk.size(), [&](ConstBytes part) {
    hash.copy(target, part.data(), part.size());
    target += part.size();
  });
  return hash.result();
}

std::uint64_t scatter_chunk(ConstBytes chunk, PieceCursor<MutableBytes>& destination) {
  Hash hash(chunk.size());
  const std::byte* from = chunk.data();
  destination.take(chunk.size(), [&](MutableBytes part) {
    hash.copy(part.data(), from, part.size());
    from += part.size();
  });
  return hash.result();
}

void verify_view(ViewOperation& operation, Deadline deadline) {
  std::vector<std::uint64_t> checksums;
  checksums.reserve(chunks_of(operation.bytes.size()));
  for (std::size_t at = 0; at < operation.bytes.size() && operation.status.ok(); at += kChecksumChunk) {
    if (deadline.expired()) operation.status = Status(ErrorCode::kRpcTimeout, "view: the deadline passed before all bytes were verified");
    checksums.push_back(checksum(operation.bytes.subspan(at, std::min(kChecksumChunk, operation.bytes.size() - at))));
  }
  if (operation.status.ok() && root_of(checksums) != operation.checksum) {
    operation.status = Status(ErrorCode::kChecksumMismatch, "view: the bytes of the extent are not those that the master describes");
  }
  if (operation.status.ok()) return;
  operation.bytes = {};
  operation.pin.reset();
}

}  // namespace moonpool::transfer
