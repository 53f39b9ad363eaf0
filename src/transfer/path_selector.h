// The paths of a process, as one Transport: each batch goes over the first path that reaches its peer, in the order in which paths were
// added (the fastest first: local, shm, rdma, tcp). What fails there with kUnavailable or kNotSupported goes over the next one, so a path
// that breaks, or cannot do what is asked, costs a batch time, not success. Counts what went where and why, for status.
//
// Cost: a lookup in a small table and a few atomic additions a batch. Threads: add() and rule_out() before use; the rest from any.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "transfer/transport.h"

namespace moonpool::transfer {

// What went to one peer over one path since the start.
struct PathUse {
  Peer peer;
  std::string path;
  std::string reason;  // why no better path was taken, lately; empty when there was none to say
  std::uint64_t writes = 0;
  std::uint64_t bytes_written = 0;
  std::uint64_t reads = 0;
  std::uint64_t bytes_read = 0;  // views included
  std::uint64_t failures = 0;    // of operations, whatever the reason
};

class PathSelector final : public Transport {
 public:
  // Peers beyond it are served, but their use is not counted: a process that runs for months meets many incarnations of its peers.
  static constexpr std::size_t kMaxCountedPeers = 4096;

  void add(std::unique_ptr<Transport> path) { paths_.push_back(std::move(path)); }
  // A path that this process is not to take, and why: shown as the reason for those behind it.
  void rule_out(std::string reason) { ruled_out_ = std::move(reason); }
  // nullptr when no path reaches it.
  [[nodiscard]] Transport* path_to(const Peer& peer) const;
  // Ordered by peer, then as the paths were added.
  [[nodiscard]] std::vector<PathUse> use() const;

  [[nodiscard]] std::string_view name() const override { return "selector"; }
  [[nodiscard]] bool reaches(const Peer& peer) const override { return path_to(peer) != nullptr; }
  void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override;
  void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override;
  // Over the best path alone: a caller that gets no view reads instead.
  void view(const Peer& peer, std::span<ViewOperation> operations, Deadline deadline) override;
  // The same: a caller that cannot write in place writes. Writes that the path does not support are not counted.
  void write_in_place(const Peer& peer, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline) override;
  // Over the best path alone: others cannot touch this memory.
  [[nodiscard]] bool moves_device_memory(const Peer& peer) const override;
  void write_device(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override;
  void read_device(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override;

 private:
  struct Counters {
    Peer peer;
    std::atomic<std::uint64_t> writes{0};
    std::atomic<std::uint64_t> bytes_written{0};
    std::atomic<std::uint64_t> reads{0};
    std::atomic<std::uint64_t> bytes_read{0};
    std::atomic<std::uint64_t> failures{0};
  };
  using PathCounters = std::vector<Counters>;  // one a path
  std::shared_ptr<PathCounters> counters_of(const Peer& peer);
  [[nodiscard]] Status unreachable(const Peer& peer) const;
  [[nodiscard]] std::string reason_for(const Peer& peer, std::size_t path) const;
  template <typename Operation, typename Move, typename Count>
  void run(const Peer& peer, std::span<Operation> operations, const Move& move, const Count& count);
  template <typename Operation, typename Move, typename Count>
  void run_on_best(const Peer& peer, std::span<Operation> operations, const Move& move, const Count& count);
  static void count_write(Counters& counters, const WriteOperation& operation);
  static void count_attempt(Counters& counters, const WriteOperation& operation);
  static void count_read(Counters& counters, const ReadOperation& operation);

  std::vector<std::unique_ptr<Transport>> paths_;
  std::string ruled_out_;
  mutable std::shared_mutex mutex_;                                     // guards counters_; the counters themselves are atomic
  std::unordered_map<NodeId, std::shared_ptr<PathCounters>> counters_;  // by peer
};

}  // namespace moonpool::transfer
