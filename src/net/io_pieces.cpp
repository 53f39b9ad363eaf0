#include "net/io_pieces.h"

#include <algorithm>
#include <climits>
#include <cstring>

namespace moonpool::net {
namespace {
// More than a socket buffer takes in one call, so a longer list would only be copied into the kernel in vain.
constexpr std::size_t kBytesPerCall = 8U << 20;
}  // namespace

void IovecCursor::clear() {
  pieces_.clear();
  first_ = 0;
  left_ = 0;
}

void IovecCursor::add(std::span<const std::byte> piece) {
  if (piece.empty()) return;
  pieces_.push_back({const_cast<std::byte*>(piece.data()), piece.size()});
  left_ += piece.size();
}

std::span<iovec> IovecCursor::next() {
  const std::size_t most = std::min<std::size_t>(pieces_.size() - first_, IOV_MAX);
  std::size_t count = 0;
  for (std::size_t bytes = 0; count < most && bytes < kBytesPerCall; ++count) bytes += pieces_[first_ + count].iov_len;
  return {pieces_.data() + first_, count};
}

void IovecCursor::advance(std::size_t bytes) {
  left_ -= bytes;
  while (bytes > 0) {
    iovec& piece = pieces_[first_];
    const std::size_t step = std::min(bytes, piece.iov_len);
    piece.iov_base = static_cast<std::byte*>(piece.iov_base) + step;
    piece.iov_len -= step;
    bytes -= step;
    if (piece.iov_len == 0) ++first_;
  }
}

std::span<std::byte> ReadAhead::space(std::size_t wanted) {
  if (begin_ == end_) begin_ = end_ = 0;
  if (begin_ > 0 && begin_ + wanted > buffer_.size()) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, size());
    end_ = size();
    begin_ = 0;
  }
  return {buffer_.data() + end_, buffer_.size() - end_};
}

std::span<const std::byte> ReadAhead::take(std::size_t bytes) {
  const std::span<const std::byte> taken(buffer_.data() + begin_, bytes);
  begin_ += bytes;
  return taken;
}

std::size_t ReadAhead::drain_into(IovecCursor& cursor) {
  const std::size_t total = std::min(size(), cursor.left());
  for (std::size_t moved = 0; moved < total;) {
    const iovec piece = cursor.next().front();
    const std::size_t step = std::min(piece.iov_len, total - moved);
    std::memcpy(piece.iov_base, take(step).data(), step);
    cursor.advance(step);
    moved += step;
  }
  return total;
}

}  // namespace moonpool::net
