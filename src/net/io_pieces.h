// The two small buffers of a connection's hot path, shared by the blocking lane and the asynchronous server. No system calls here.
//
// Threads: none of their own; each belongs to one connection. Both keep their memory for the next frame.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>
#include <vector>

#include "base/result.h"

namespace moonpool::net {

// What is left of a scatter/gather transfer: built once a call, then trimmed in place after each partial transfer.
class IovecCursor {
 public:
  void clear();
  void add(std::span<const std::byte> piece);
  template <typename Pieces>
  void add_all(const Pieces& pieces) {
    for (const auto& piece : pieces) add(piece);
  }

  [[nodiscard]] std::size_t left() const { return left_; }
  // What one system call should be given: at most IOV_MAX pieces, and no more of them than one call can move.
  [[nodiscard]] std::span<iovec> next();
  void advance(std::size_t bytes);

 private:
  std::vector<iovec> pieces_;
  std::size_t first_ = 0;  // everything before it has been transferred
  std::size_t left_ = 0;
};

// Bytes received ahead of their reader, so that a header, its message and a short payload cost one system call.
// A span from data() or take() is valid until the next space().
class ReadAhead {
 public:
  static constexpr std::size_t kSize = 16 * 1024;

  ReadAhead() : buffer_(kSize) {}

  [[nodiscard]] std::span<const std::byte> data() const { return {buffer_.data() + begin_, end_ - begin_}; }
  [[nodiscard]] std::size_t size() const { return end_ - begin_; }
  // Room for more; moves what is there to the front when `wanted` bytes in all would not fit behind it. `wanted` is at most kSize.
  [[nodiscard]] std::span<std::byte> space(std::size_t wanted);
  void commit(std::size_t bytes) { end_ += bytes; }
  // The next `bytes` (at most size()), consumed.
  [[nodiscard]] std::span<const std::byte> take(std::size_t bytes);
  // Hands out what is there into the first pieces and trims the cursor by it.
  std::size_t drain_into(IovecCursor& cursor);

 private:
  std::vector<std::byte> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

}  // namespace moonpool::net
