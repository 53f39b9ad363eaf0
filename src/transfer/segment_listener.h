// Who has to know which segments are open: those who hand out ways to their memory beside the owner's own pins (board and rings of shm/,
// registrations of rdma/).
//
// An owner tells the opening after it has begun to answer for the incarnation, and the closing after it has stopped to, before it waits for
// anybody to leave. So a listener that opens its way and then finds no memory behind the incarnation any more (Owner::memory_of) closes it
// again; with that, whatever the order of the two calls, no way stays open.
// Threads: any, also several at once; called without a lock of the owner's.
#pragma once

#include "base/ids.h"

namespace moonpool::transfer {

class SegmentListener {
 public:
  virtual ~SegmentListener() = default;
  virtual void announce_open(const Incarnation& incarnation) = 0;
  virtual void announce_closed(const Incarnation& incarnation) = 0;
};

}  // namespace moonpool::transfer
