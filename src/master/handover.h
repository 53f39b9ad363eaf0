// Which missing keys are on their way, so that a reader who asks a moment too early may wait for them instead of missing them.
//
// A prefill instance looks up its prompt's blocks before it computes them, and puts the last ones shortly after its HTTP answer; the
// decode instance that asks right then must not miss them. So a look-up's misses are remembered as "expected by" the node that asked, for
// kExpectMs, and another node that finds such a key missing may wait for it, if the expecting node has put something before or is new. A
// wait that came to nothing takes the expectation back (it is paid once), as does the end of a put of that key, whichever way; a node that
// has never put is waited for in vain once in its life.
// Bounded: kPerShard keys a shard, the oldest forgotten first; kNodes nodes a key. Threads: any; a leaf lock a shard.
#pragma once

#include <array>
#include <atomic>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "master/types.h"

namespace moonpool::master {

class Handover {
 public:
  static constexpr std::size_t kShards = 16;
  static constexpr std::size_t kPerShard = 16384;
  static constexpr std::size_t kNodes = 3;
  static constexpr TimeMs kExpectMs = 60'000;

  [[nodiscard]] static std::size_t shard_of(std::uint64_t hash) { return (hash >> 20) % kShards; }

  // This node looked the key up and missed it.
  void missed(std::uint64_t hash, NodeId by, TimeMs now);
  // Whether another node, which `may_put`, is expected to put it.
  [[nodiscard]] bool expected_by_other(std::uint64_t hash, NodeId asker, TimeMs now, const std::function<bool(NodeId)>& may_put) const;
  // The key was committed, its put ended otherwise, or a wait for it came to nothing.
  // Returns the nodes that had expected it.
  std::vector<NodeId> settle(std::uint64_t hash);
  [[nodiscard]] std::size_t size() const;

  struct Counters {
    std::atomic<std::uint64_t> waits{0};
    std::atomic<std::uint64_t> satisfied{0};
    std::atomic<std::uint64_t> timed_out{0};
    std::atomic<std::uint64_t> keys_waited{0};
    std::atomic<std::uint64_t> waited_ms{0};
    // Waits that took at most kBucketMs[i]; cumulative counts are made when they are shown.
    std::array<std::atomic<std::uint64_t>, 9> buckets{};
  };
  static constexpr std::array<TimeMs, 8> kBucketMs{1, 5, 10, 25, 50, 100, 250, 500};
  void count_wait(TimeMs waited, bool satisfied);
  Counters counters;

 private:
  struct Expectation {
    std::array<std::pair<NodeId, TimeMs>, kNodes> by{};  // newest first; no node: empty
  };
  struct Shard {
    mutable std::mutex mutex;
    boost::unordered_flat_map<std::uint64_t, Expectation> expected;
    std::deque<std::pair<std::uint64_t, TimeMs>> order;  // by first miss; may name keys that are settled
  };
  std::array<Shard, kShards> shards_;
};

}  // namespace moonpool::master
