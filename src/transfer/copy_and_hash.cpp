#include "transfer/copy_and_hash.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "base/sync_point.h"
#include "transfer/checksum.h"

namespace moonpool::transfer {

namespace {

constexpr std::size_t kStep = std::size_t{8} * 1024;

// Hashes parts of a chunk; a chunk of one small part, the common small object, needs no state.
class Hash {
 public:
  Hash(std::size_t chunk, Stores stores) : chunk_(chunk), left_(chunk), stores_(stores) {}
  void copy(std::byte* to, const std::byte* from, std::size_t size) {
    if (size == chunk_ && size <= kStep) {
      std::memcpy(to, from, size);
      whole_ = checksum({to, size});
      return;
    }
    if (!started_) state_.reset();
    started_ = true;
    std::size_t at = 0;
    if (stores_ == Stores::kStreaming && left_ > ChunkState::kStreamingTail) {
      at = state_.stream(to, {from, std::min(size, left_ - ChunkState::kStreamingTail)});
    }
    while (at < size) {
      const std::size_t step = std::min(kStep, size - at);
      std::memcpy(to + at, from + at, step);
      state_.update({to + at, step});
      at += step;
    }
    left_ -= size;
  }
  [[nodiscard]] std::uint64_t result() const { return started_ ? state_.digest() : whole_; }

 private:
  const std::size_t chunk_;
  std::size_t left_;
  const Stores stores_;
  bool started_ = false;
  std::uint64_t whole_ = 0;
  ChunkState state_;
};

}  // namespace

Stores stores_for(std::span<const WriteOperation> operations) {
  std::uint64_t bytes = 0;
  for (const auto& operation : operations) bytes += operation.extent.length;
  return bytes >= kStreamingWriteBytes ? Stores::kStreaming : Stores::kCached;
}

Stores stores_for(std::span<const ReadOperation> operations) {
  std::uint64_t bytes = 0;
  for (const auto& operation : operations) bytes += operation.length;
  return bytes >= kStreamingReadBytes ? Stores::kStreaming : Stores::kCached;
}

std::uint64_t gather_chunk(PieceCursor<ConstBytes>& source, MutableBytes chunk, Stores stores) {
  Hash hash(chunk.size(), stores);
  std::byte* target = chunk.data();
  source.take(chunk.size(), [&](ConstBytes part) {
    hash.copy(target, part.data(), part.size());
    target += part.size();
  });
  return hash.result();
}

std::uint64_t scatter_chunk(ConstBytes chunk, PieceCursor<MutableBytes>& destination, Stores stores) {
  Hash hash(chunk.size(), stores);
  const std::byte* from = chunk.data();
  destination.take(chunk.size(), [&](MutableBytes part) {
    hash.copy(part.data(), from, part.size());
    from += part.size();
  });
  return hash.result();
}

Status read_pinned(const PinnedRead& read, const ReadOperation& operation, Stores stores, Deadline deadline) {
  const auto failed = [&read](ErrorCode code, const std::string& what) { return Status(code, std::string(read.path) + " read: " + what); };
  const ConstBytes memory = read.memory;
  if (read.verify && operation.length == memory.size() && root_of(read.checksums) != operation.checksum) {
    return failed(ErrorCode::kChecksumMismatch, "the extent is not the one that the master describes (root checksum)");
  }
  const std::uint64_t first = operation.start / kChecksumChunk;
  const std::uint64_t end = operation.start + operation.length;
  PieceCursor<MutableBytes> destination(operation.destination);
  for (std::uint64_t at = operation.start; at < end;) {
    if (deadline.expired()) return failed(ErrorCode::kRpcTimeout, "the deadline passed before all bytes were copied");
    const std::uint64_t index = at / kChecksumChunk;
    const std::uint64_t start = index * kChecksumChunk;
    const auto chunk = memory.subspan(start, std::min<std::uint64_t>(kChecksumChunk, memory.size() - start));
    const std::uint64_t stop = std::min<std::uint64_t>(end, start + chunk.size());
    const bool whole = at == start && stop == start + chunk.size();
    if (read.verify) {
      const std::uint64_t found = whole ? scatter_chunk(chunk, destination, stores) : checksum(chunk);
      if (found != read.checksums[index - first]) {
        return failed(ErrorCode::kChecksumMismatch,
                      "the segment's memory changed since it was written (chunk " + std::to_string(index) + ")");
      }
    }
    if (!read.verify || !whole) {
      const std::byte* from = memory.data() + at;
      destination.take(stop - at, [&](MutableBytes part) {
        std::memcpy(part.data(), from, part.size());
        from += part.size();
      });
    }
    at = stop;
    MOONPOOL_SYNC_POINT("read_pinned.chunk_copied");
  }
  return {};
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
  operation.region = {};
  operation.bytes = {};
  operation.pin.reset();
}

}  // namespace moonpool::transfer
