// The rails of one session, the user's ends: opened over the control lane, lost when they break, opened again when there is hope.
//
// What is known of the ways to a peer is shared by all sessions with it (PeerPaths): when a NIC failed, how often in a row, and why, so
// that each failure is paid once and a path that stays broken is tried ever more seldom. Threads: a Rails belongs to its session's holder,
// but break_off_all() is for any thread; PeerPaths for any.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "net/lane.h"
#include "transfer/rdma/memory_map.h"
#include "transfer/rdma/options.h"
#include "transfer/rdma/peer_session.h"
#include "wire.pb.h"

namespace moonpool::transfer::rdma {

// Before something that failed so many times in a row is tried again: `first`, doubled each time, sixteen times that at most.
[[nodiscard]] std::chrono::milliseconds pause_after(std::chrono::milliseconds first, std::uint32_t failures);

class PeerPaths {
 public:
  PeerPaths(std::string peer, std::size_t nics, std::chrono::milliseconds come_back_after);

  [[nodiscard]] const std::string& peer() const { return peer_; }
  // Whether this NIC may be tried now: it never failed, or some time ago, or a port has changed since (Devices::generation()).
  [[nodiscard]] bool may_try(std::size_t nic, std::uint64_t generation) const;
  void failed(std::size_t nic, std::uint64_t generation, const std::string& reason);
  void works(std::size_t nic);
  // "mlx5_0: port down; mlx5_1: transport retry counter exceeded"; empty when nothing is wrong.
  [[nodiscard]] std::string trouble(const Devices& devices) const;

  // What the peer serves, as it told.
  [[nodiscard]] std::shared_ptr<const ServedRanges> served(const Incarnation& incarnation) const;
  void remember(const Incarnation& incarnation, std::shared_ptr<const ServedRanges> ranges);
  void forget(const Incarnation& incarnation);
  void forget_all_served();

 private:
  struct Trouble {
    std::uint32_t failures = 0;  // in a row
    std::uint64_t generation = 0;
    Deadline::Clock::time_point again{};
    std::string reason;
  };
  const std::string peer_;
  const std::chrono::milliseconds come_back_after_;
  mutable std::mutex mutex_;  // guards what follows
  std::vector<Trouble> by_nic_;
  std::map<Incarnation, std::shared_ptr<const ServedRanges>> served_;
};

struct Rail {
  std::uint32_t number = 0;
  std::size_t nic = 0;       // of ours, by index
  std::size_t peer_nic = 0;  // index into ServedRange::remote_keys
  std::string peer_nic_name;
  std::uint32_t capacity = 1;  // work requests outstanding
  bool proven = false;         // something was carried out over it
  std::unique_ptr<QueuePair> queue_pair;
};

class Rails {
 public:
  enum class Cause { kPath, kRefused, kPortDown };

  Rails(std::shared_ptr<MemoryMap> memory, const Options& options, std::shared_ptr<PeerPaths> paths, Counters& counters);
  ~Rails();

  [[nodiscard]] const std::vector<std::unique_ptr<Rail>>& all() const { return rails_; }
  // Opens those that are missing and may be tried, in one exchange. An error is the lane's or the peer's; that no rail could be opened is
  // not one: see all() and PeerPaths::trouble().
  [[nodiscard]] Status open_missing(net::Lane& lane, Deadline deadline);
  // The same at once, whatever failed before, but over other NICs of the peer than those that just failed.
  [[nodiscard]] Status open_elsewhere(net::Lane& lane, Deadline deadline);
  // Its queue pair is destroyed when this returns.
  void lose(const Rail* rail, Cause cause, const std::string& reason);
  // Rails whose own port is down now.
  void lose_those_down();
  void works(Rail& rail);
  void destroy_all();
  void break_off_all();  // any thread; nothing is opened any more

  [[nodiscard]] std::vector<std::uint32_t> take_broken() { return std::exchange(broken_, {}); }
  [[nodiscard]] PeerPaths& paths() { return *paths_; }

 private:
  struct Candidate {
    std::unique_ptr<Rail> rail;
    std::vector<Gid> gids;
    std::string avoid;
  };
  void add_candidate(std::vector<Candidate>& candidates, std::size_t nic, std::string avoid);
  Status open(std::vector<Candidate> candidates, net::Lane& lane, Deadline deadline);
  Status connect(Candidate& candidate, const wire::RdmaOpenReply& reply, int index);
  void adopt(std::unique_ptr<Rail> rail);
  void retire(std::unique_ptr<Rail> rail);
  [[nodiscard]] bool has_rail(std::size_t nic) const;
  [[nodiscard]] bool shares_peer_nic(const Rail& rail) const;

  const std::shared_ptr<MemoryMap> memory_;
  const Options options_;
  const std::shared_ptr<PeerPaths> paths_;
  Counters& counters_;

  std::mutex mutex_;  // guards changes of rails_ against break_off_all()
  std::vector<std::unique_ptr<Rail>> rails_;
  bool broken_off_ = false;  // guarded by mutex_

  std::uint32_t next_number_ = 1;
  std::vector<std::uint32_t> broken_;
  std::vector<std::uint32_t> closed_;         // to tell the peer with the next opening
  std::map<std::size_t, std::string> avoid_;  // by NIC: the peer's over which it failed last
  std::uint32_t shared_tries_ = 0;            // in a row, of giving a rail a NIC of the peer's to itself
  Deadline::Clock::time_point share_again_{};
};

}  // namespace moonpool::transfer::rdma
