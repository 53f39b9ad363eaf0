// What the transports that speak with an owner's server share: how a batch is put into messages and cut into frames.
//
// Threads: the caller's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "net/lane.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

template <typename Operation>
struct Outgoing {
  Operation* operation = nullptr;
  bool settled = false;  // its status is final
};

// The status of an operation on the wire, with a text for people.
[[nodiscard]] Status refused(const net::Lane& lane, const char* operation, const ExtentRef& extent, std::int32_t number);

// Names the extents of a frame in its columns, each incarnation once (extent_columns.h is the other end).
class IncarnationColumn {
 public:
  // All but the length, which not all messages have.
  template <typename Message>
  void add(Message& message, const ExtentRef& extent) {
    message.add_segment(index_of(extent.incarnation));
    message.add_offset(extent.offset);
    message.add_version_term(extent.version.term.value);
    message.add_version_count(extent.version.count);
  }
  // Once all extents have been added.
  template <typename Message>
  void write_to(Message& message) const {
    for (const auto& incarnation : known_) message.add_incarnation(incarnation.to_bytes());
  }

 private:
  [[nodiscard]] std::uint32_t index_of(const Incarnation& incarnation);

  std::vector<Incarnation> known_;  // few: the segments of one peer
};

// The chunks that cover a read's range.
struct CoveringRange {
  std::uint64_t start = 0;
  std::uint64_t length = 0;
};
[[nodiscard]] CoveringRange covering_range(const ReadOperation& operation);

// Operations that need the network; the others have their outcome already.
[[nodiscard]] std::vector<Outgoing<WriteOperation>> select(std::span<WriteOperation> operations);
[[nodiscard]] std::vector<Outgoing<ReadOperation>> select(std::span<ReadOperation> operations);

struct FrameSize {
  std::size_t entries = 0;
  std::uint64_t bytes = 0;
  std::uint64_t key_bytes = 0;
};
[[nodiscard]] FrameSize size_of(const WriteOperation& operation);
[[nodiscard]] FrameSize size_of(const ReadOperation& operation);

// The longest front of `rest` that fits one frame; an operation that is larger by itself goes alone.
template <typename Operation>
[[nodiscard]] std::span<Outgoing<Operation>> next_frame(std::span<Outgoing<Operation>> rest, const FrameSize& most) {
  FrameSize total;
  std::size_t count = 0;
  while (count < std::min(rest.size(), most.entries)) {
    const auto size = size_of(*rest[count].operation);
    total.bytes += size.bytes;
    total.key_bytes += size.key_bytes;
    if (count > 0 && (total.bytes > most.bytes || total.key_bytes > most.key_bytes)) break;
    ++count;
  }
  return rest.first(count);
}

}  // namespace moonpool::transfer
