// Keeps what the NICs serve equal to what the owner has mounted: each segment's memory is registered under its incarnation when it opens,
// and the keys die when it closes, before the owner waits for anybody to leave.
//
// Registering pins every page, 0.15 s per GiB, and a remount happens on the thread that sends the heartbeats; so a thread of its own does
// it, and peers use tcp until it is done. What has closed meanwhile is taken back at once: nobody can begin a write there, and what
// somebody reads of it he checks. Whoever mounts at start-up awaits the outcome, to tell its user why memory cannot be registered
// (memlock). Threads: any; one of its own. The owner keeps a reference from start() to stop(), and outlives it.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "base/deadline.h"
#include "base/result.h"
#include "transfer/owner.h"
#include "transfer/rdma/memory_map.h"
#include "transfer/segment_listener.h"

namespace moonpool::transfer::rdma {

class ServedSegments final : public SegmentListener, public std::enable_shared_from_this<ServedSegments> {
 public:
  ServedSegments(Owner& owner, std::shared_ptr<MemoryMap> memory) : owner_(owner), memory_(std::move(memory)) {}
  ~ServedSegments() override { stop(); }

  void start();
  // Nothing is served any more.
  void stop();
  // Whether the NICs serve this segment: kUnavailable with the limit and the remedy, kStaleIncarnation, or kRpcTimeout.
  [[nodiscard]] Status wait_served(const Incarnation& incarnation, Deadline deadline);

  void announce_open(const Incarnation& incarnation) override;
  void announce_closed(const Incarnation& incarnation) override;

 private:
  void run();
  Status serve(const Incarnation& incarnation);

  Owner& owner_;
  const std::shared_ptr<MemoryMap> memory_;
  std::mutex mutex_;  // guards what follows; not held while memory is registered
  std::condition_variable changed_;
  std::deque<Incarnation> waiting_;                   // to be registered
  std::unordered_map<Incarnation, Status> outcomes_;  // of those that are open
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace moonpool::transfer::rdma
