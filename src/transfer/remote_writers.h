// How an owner keeps writers of other processes in line that touch a segment's memory without asking it first (shm/).
//
// Such a writer announces itself in shared memory, then looks at what the owner has announced there; the owner announces, then looks at who
// has announced himself. Whatever the order in time, one of them sees the other. So the owner tells each change of its mind *before*
// it takes effect, and calls harvest() between the two: writers that were faster are admitted to the catalogue like any other, under the
// rules that still hold, and those that come later back out before they touch a byte.
//
// Threads: any; called without a segment's mutex and without the registry's. harvest() calls Owner::begin_write() and complete_write().
#pragma once

#include <cstdint>

#include "base/ids.h"

namespace moonpool::transfer {

class RemoteWriters {
 public:
  virtual ~RemoteWriters() = default;

  virtual void announce_open(const Incarnation& incarnation) = 0;
  virtual void announce_closing(const Incarnation& incarnation) = 0;
  virtual void announce_term(Term term) = 0;
  virtual void announce_oldest(Version oldest) = 0;
  virtual void announce_retired(std::uint64_t offset, Version version) = 0;
  // Takes what they have announced, written or given up so far into the owner's catalogue. Cheap when there is nothing new.
  virtual void harvest() = 0;
};

}  // namespace moonpool::transfer
