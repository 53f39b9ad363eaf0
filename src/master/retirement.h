// Orders to let go of an extent, from the master to one owner, and what waits for them.
//
// Each node has one outbox. An order has a sequence number of the node's; it is delivered by the node's next NodeSync, delivered again
// after a while, until the node has acknowledged it or its segment is fenced. Only then is the extent's space free, and only then is a
// remove that waits for it answered. A reader (a view of another process, above all) may hold up the space for as long as it likes; the
// owner then says that the extent is withdrawn, so that nobody finds it any more: that answers the remove, while the space stays in
// quarantine. Cost: one map node an order.
// Threads: any. Lock order: outbox, then segment. The callback runs without a lock held.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/ids.h"
#include "master/types.h"

namespace moonpool::master {

class Segment;

// All orders under way for one key (its replicas, and its older versions). A remove of the key is over when none is outstanding.
class RetirementTicket {
 public:
  enum class State { kOutstanding, kDone, kLost };
  [[nodiscard]] State state() const {
    if (lost_.load()) return State::kLost;
    return outstanding_.load() == 0 ? State::kDone : State::kOutstanding;
  }
  // Some of it ended with its segment's fence instead of an acknowledgement: who was told "removed" has to remember the fence.
  [[nodiscard]] bool fenced() const { return fenced_.load(); }

 private:
  friend class Outbox;
  std::atomic<std::uint32_t> outstanding_{0};
  std::atomic<bool> fenced_{false};
  std::atomic<bool> lost_{false};
};

struct Retirement {
  std::uint64_t sequence = 0;
  std::shared_ptr<Segment> segment;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  Version version;
  std::shared_ptr<RetirementTicket> ticket;
  bool holds_space = true;
  bool withdrawn = false;  // said to be; the ticket is let go then
  TimeMs sent = 0;         // 0: never yet
};

class Outbox {
 public:
  // `on_added` is called when there is something to send again (the node's NodeSync may be waiting for it).
  explicit Outbox(std::function<void()> on_added) : on_added_(std::move(on_added)) {}

  // Those never sent, and those sent longer than `resend_after` ago (unless withdrawn), at most `limit`; marks them as sent now.
  [[nodiscard]] std::vector<Retirement> collect(TimeMs now, TimeMs resend_after, std::size_t limit);
  [[nodiscard]] bool has_unsent() const { return unsent_.load() > 0; }
  // Frees the extents. Returns how many orders were outstanding among them.
  std::size_t acknowledge(std::span<const std::uint64_t> sequences);
  // Their extents cannot be found any more; their space is not free. Returns how many had not been withdrawn before.
  std::size_t withdraw(std::span<const std::uint64_t> sequences);
  // The barrier of remove-all: every order up to it has to be over, or withdrawn.
  [[nodiscard]] std::uint64_t last_sequence() const;
  [[nodiscard]] bool all_over_up_to(std::uint64_t sequence) const;
  [[nodiscard]] std::size_t outstanding() const;
  // A new reign: nobody will hear of the end of these any more.
  void lose_all();

 private:
  friend class Segment;
  void add(Segment& segment, Retirement order);
  void drop(const Segment& segment);
  std::size_t acknowledge_slice(std::span<const std::uint64_t> sequences);

  // Orders come in thousands: puts and evictions, which need the same locks, are let in between so many.
  static constexpr std::size_t kSlice = 64;

  const std::function<void()> on_added_;
  mutable std::mutex mutex_;  // guards what follows
  std::map<std::uint64_t, Retirement> orders_;
  std::uint64_t last_sequence_ = 0;
  std::uint64_t sent_up_to_ = 0;  // all after it have never been sent
  std::atomic<std::uint64_t> unsent_{0};
};

}  // namespace moonpool::master
