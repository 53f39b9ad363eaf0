// One frame of TcpTransport and its answer, over one lane.
//
// Each sets the status of every operation it was given that has an outcome by itself; the returned Status is of the path: when it is an
// error, operations without an outcome of their own have met it. `answered` tells whether any of the answer had arrived by then.
// Threads: the caller's, with the lane on loan to it.
#pragma once

#include <span>

#include "net/lane.h"
#include "transfer/batch_parts.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

struct ExchangeResult {
  Status path;
  bool answered = false;
};

[[nodiscard]] ExchangeResult exchange_write(net::Lane& lane, std::span<Outgoing<WriteOperation>> frame, Deadline deadline);
[[nodiscard]] ExchangeResult exchange_read(net::Lane& lane, std::span<Outgoing<ReadOperation>> frame, bool verify, Deadline deadline);

}  // namespace moonpool::transfer
