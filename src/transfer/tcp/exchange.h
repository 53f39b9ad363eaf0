// One frame of TcpTransport and its answer, over one lane.
//
// Each sets the status of every operation it was given that has an outcome by itself; the returned Status is of the path: when it is an
// error, operations without an outcome of their own have met it. `answered` tells whether any of the answer had arrived by then.
// Threads: the caller's, with the lane on loan to it.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "net/lane.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

// The status of an operation on the wire, with a text for people.
[[nodiscard]] Status refused(const net::Lane& lane, const char* operation, const ExtentRef& extent, std::int32_t number);
// Gives every incarnation of a frame its index in the frame's column.
class IncarnationColumn {
 public:
  [[nodiscard]] std::uint32_t index_of(const Incarnation& incarnation);
  template <typename Message>
  void write_to(Message& message) const {
    for (const auto& incarnation : known_) message.add_incarnation(incarnation.to_bytes());
  }

 private:
  std::vector<Incarnation> known_;  // few: the segments of one peer
};

template <typename Operation>
struct Outgoing {
  Operation* operation = nullptr;
  bool settled = false;  // its status is final
};

struct ExchangeResult {
  Status path;
  bool answered = false;
};

[[nodiscard]] ExchangeResult exchange_write(net::Lane& lane, std::span<Outgoing<WriteOperation>> frame, Deadline deadline);
[[nodiscard]] ExchangeResult exchange_read(net::Lane& lane, std::span<Outgoing<ReadOperation>> frame, bool verify, Deadline deadline);

// The chunks that cover a read's range.
struct CoveringRange {
  std::uint64_t start = 0;
  std::uint64_t length = 0;
};
[[nodiscard]] CoveringRange covering_range(const ReadOperation& operation);

}  // namespace moonpool::transfer
