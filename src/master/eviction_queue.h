// The order in which one shard's objects are to be evicted, such that all shards together keep one order.
//
// CLOCK as a queue with reinsertion (the main queue of S3-FIFO): a hit only counts up to kMaxHits, under the shard's lock that the
// look-up holds anyway; an object that reaches the front with hits left, or with a lease, goes to the back with one hit less. Stamps of
// one global counter make the shards' fronts comparable, so that eviction takes the oldest of all shards, however few objects each has.
// Soft-pinned objects stand in a queue of their own, which is touched when the other has nothing. Hard-pinned ones stand in none.
// Threads: the shard's mutex, but for head(), which is a hint for anyone.
#pragma once

#include <array>
#include <atomic>
#include <boost/intrusive/list.hpp>
#include <cstdint>

#include "master/object_entry.h"

namespace moonpool::master {

class EvictionQueue {
 public:
  static constexpr std::uint8_t kMaxHits = 3;
  static constexpr std::uint64_t kEmpty = ~0ULL;

  explicit EvictionQueue(std::atomic<std::uint64_t>& stamps) : stamps_(stamps) {}
  ~EvictionQueue() {
    for (auto& queue : queues_) queue.list.clear();
  }

  void push_back(Entry& entry, QueueKind kind) {
    remove(entry);
    entry.queue = kind;
    entry.stamp = stamps_.fetch_add(1, std::memory_order_relaxed);
    of(kind).list.push_back(entry);
    publish(kind);
  }
  void remove(Entry& entry) {
    if (entry.queue == QueueKind::kNone) return;
    auto& list = of(entry.queue).list;
    list.erase(list.iterator_to(entry));
    publish(entry.queue);
    entry.queue = QueueKind::kNone;
  }
  [[nodiscard]] Entry* front(QueueKind kind) { return of(kind).list.empty() ? nullptr : &of(kind).list.front(); }
  [[nodiscard]] std::size_t size(QueueKind kind) { return of(kind).list.size(); }
  // The front's stamp, or kEmpty.
  [[nodiscard]] std::uint64_t head(QueueKind kind) const {
    return queues_[kind == QueueKind::kSoft ? 1 : 0].head.load(std::memory_order_relaxed);
  }

 private:
  struct Queue {
    boost::intrusive::list<Entry> list;
    std::atomic<std::uint64_t> head{kEmpty};
  };
  [[nodiscard]] Queue& of(QueueKind kind) { return queues_[kind == QueueKind::kSoft ? 1 : 0]; }
  void publish(QueueKind kind) {
    auto& queue = of(kind);
    queue.head.store(queue.list.empty() ? kEmpty : queue.list.front().stamp, std::memory_order_relaxed);
  }
  std::atomic<std::uint64_t>& stamps_;
  std::array<Queue, 2> queues_;
};

}  // namespace moonpool::master
