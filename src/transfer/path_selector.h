// The paths of a process, as one Transport: each batch goes over the first path that reaches its peer, in the order in which paths were
// added (the fastest first: local, then tcp). Counts what went where, for status.
//
// Cost: a lookup in a small table and a few atomic additions a batch. Threads: add() before use; the rest from any.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "transfer/transport.h"

namespace moonpool::transfer {

// What went to one peer over one path since the start.
struct PathUse {
  Peer peer;
  std::string path;
  std::uint64_t writes = 0;
  std::uint64_t bytes_written = 0;
  std::uint64_t reads = 0;
  std::uint64_t bytes_read = 0;
  std::uint64_t failures = 0;  // of operations, whatever the reason
};

class PathSelector final : public Transport {
 public:
  // Peers beyond it are served, but their use is not counted: a process that runs for months meets many incarnations of its peers.
  static constexpr std::size_t kMaxCountedPeers = 4096;

  void add(std::unique_ptr<Transport> path) { paths_.push_back(std::move(path)); }
  // nullptr when no path reaches it.
  [[nodiscard]] Transport* path_to(const Peer& peer) const;
  [[nodiscard]] std::vector<PathUse> use() const;

  [[nodiscard]] std::string_view name() const override { return "selector"; }
  [[nodiscard]] bool reaches(const Peer& peer) const override { return path_to(peer) != nullptr; }
  void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override;
  void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override;

 private:
  struct Counters {
    Peer peer;
    const Transport* path = nullptr;
    std::atomic<std::uint64_t> writes{0};
    std::atomic<std::uint64_t> bytes_written{0};
    std::atomic<std::uint64_t> reads{0};
    std::atomic<std::uint64_t> bytes_read{0};
    std::atomic<std::uint64_t> failures{0};
  };
  Counters* counters_of(const Peer& peer, const Transport* path);

  std::vector<std::unique_ptr<Transport>> paths_;
  mutable std::shared_mutex mutex_;                                 // guards counters_; the counters themselves are atomic
  std::unordered_map<NodeId, std::unique_ptr<Counters>> counters_;  // a node keeps its path: what reaches it does not change
};

}  // namespace moonpool::transfer
