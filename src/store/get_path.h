// A get of a batch: one GetReplicas, one read per owner, verified by the transport; another replica, or another look-up, where one failed.
//
// Replicas are tried in random order, this process's own memory first. When all of a key's replicas have failed:
//  - because they are gone (evicted, replaced, their owner restarted): the master is asked once more, then it is a miss;
//  - because nobody answers, or the bytes were wrong: the master is asked again for a moment (kTransientPatience: an owner that died does
//  not come
//    back with the same bytes, and a caller that recomputes wants to know soon), then it is kTransferFail.
// A read counts only when the transport says that incarnation, version and checksums held to its end; what a failed attempt left in the
// destination is undefined, and its result is negative.
//
// Threads: any number of callers; a call works on its own thread, and on one more per further owner while bytes move.
#pragma once

#include <boost/container/small_vector.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/ids.h"
#include "base/result.h"
#include "store/client.h"
#include "store/master_client.h"
#include "store/standing.h"
#include "store/wire_parts.h"
#include "transfer/transport.h"

namespace moonpool::store {

class GetPath {
 public:
  // One entry is the rule, and stands in place.
  template <typename T>
  using Few = boost::container::small_vector<T, 1>;
  using Destination = Few<MutableBytes>;
  // A part of an object and where it goes.
  struct Part {
    std::uint64_t start = 0;
    std::uint64_t length = 0;
    Destination destination;  // sizes add up to length
  };
  using Parts = Few<Part>;
  // Decides, once the size of object `index` is known, which parts of it are read; an error is that object's result.
  using Plan = std::function<Result<Parts>(std::size_t index, std::uint64_t size)>;

  // All references outlive this object.
  GetPath(NodeId self, std::string_view tenant, MasterClient& master, transfer::Transport& paths, const Standing& standing);

  // Bytes read per key, or why not, in order. The plan is called on this thread, once per look-up of a key.
  [[nodiscard]] std::vector<Result<std::uint64_t>> get(std::span<const std::string_view> keys, const Plan& plan, Deadline deadline) const;

  // What the master knows of each key. Whole-call errors are every key's. A put that is under way is a miss.
  struct Location {
    std::uint64_t size = 0;
    std::uint64_t checksum = 0;
    Version version;
    struct Copy {
      std::shared_ptr<const Segment> segment;
      std::uint64_t offset = 0;
    };
    Few<Copy> copies;
  };
  [[nodiscard]] std::vector<Result<Location>> locate(std::span<const std::string_view> keys, Deadline deadline) const;

 private:
  class Call;

  const NodeId self_;
  const std::string self_bytes_;  // on the wire
  const std::string tenant_;      // as on the wire
  MasterClient& master_;
  transfer::Transport& paths_;
  const Standing& standing_;
};

}  // namespace moonpool::store
