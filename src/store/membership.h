// Keeps the node a member of the pool: one background thread that registers it, reports what its segments hold, and carries out the
// master's orders, for as long as the client lives.
//
// The thread's loop: connect to the master (the addresses in turn) -> RegisterNode -> Owner::adopt_term -> MountSegment with the catalogue
// of every segment -> NodeSync over and over. A broken connection is made again after 50-100 ms, and NodeSync simply goes on over it; when
// the master answers kNotRegistered or kStaleTerm (it forgot us, or it is a new one) the node registers again. A segment that the master
// has fenced is emptied and mounted under a new incarnation. Retirements are acknowledged with the next NodeSync, once the owner says that
// nobody touches the extent.
//
// A second connection, on which nothing is said, tells the master at once when this process dies.
//
// Costs: one thread, two connections, at most one message a second while nothing happens; after a master's restart the catalogues, in
// messages of about 1 MiB. Threads: start() and stop() from one thread; the rest from any. Ownership: by the client, which also owns the
// Owner and the Standing that this refers to.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/deadline.h"
#include "base/ids.h"
#include "base/result.h"
#include "net/endpoint.h"
#include "net/handshake.h"
#include "net/lane.h"
#include "store/fenced_memory.h"
#include "store/standing.h"
#include "transfer/owner.h"
#include "transfer/path_selector.h"
#include "wire.pb.h"

namespace moonpool::store {

struct MembershipOptions {
  net::Identity identity;
  std::string name;      // "host:port" as users see it
  net::Endpoint listen;  // where this node's server is reached
  std::string protocol;
  std::vector<net::Endpoint> masters;
  // Called on the membership thread after each registration but the first: the master was restarted, and what is kept beside it may be lost
  // too. Must not block for longer than a heartbeat may be late.
  std::function<void()> registered_again;
  // For the master's status; called on the membership thread every kPathReportInterval.
  std::function<std::vector<transfer::PathUse>()> path_use;
  struct DeviceUse {
    std::uint64_t bytes_in_place = 0;
    std::uint64_t bytes_by_nic = 0;
    std::uint64_t bytes_staged = 0;
  };
  std::function<DeviceUse()> device_use;  // of device memory; goes with it
};

class Membership {
 public:
  Membership(MembershipOptions options, transfer::Owner& owner, Standing& standing);
  ~Membership();  // as stop(), without telling the master

  void start();
  // Ends the thread, then tells the master within the deadline that the node leaves: its segments leave the pool at once.
  void stop(Deadline deadline);

  // What other replies said about fenced incarnations.
  FencedMemory& fenced() { return fenced_; }

 private:
  void run();
  [[nodiscard]] Status connect();
  [[nodiscard]] Status register_node();
  [[nodiscard]] Status mount(const Incarnation& incarnation);
  [[nodiscard]] Status report(const transfer::SegmentStatus& segment);
  [[nodiscard]] Status attend();
  [[nodiscard]] Status sync();
  void add_paths_to(wire::NodeSyncRequest& request);
  void carry_out(const wire::NodeSyncReply& reply);
  void note_failure(const Status& status, bool& registered);
  [[nodiscard]] std::string gave_up_text(const Status& status) const;
  [[nodiscard]] Status call(wire::Method method, const google::protobuf::MessageLite& request, google::protobuf::MessageLite& reply,
                            Deadline deadline);
  void leave(Deadline deadline);
  void end_thread();

  const MembershipOptions options_;
  transfer::Owner& owner_;
  Standing& standing_;
  FencedMemory fenced_;
  std::thread thread_;

  std::mutex lane_mutex_;            // guards the pointer against stop(); the thread uses the lane without it
  std::unique_ptr<net::Lane> lane_;  // null while not connected

  // The thread's own.
  std::unique_ptr<net::Lane> attendance_;  // idle: its end tells the master that this process has gone (METHOD_ATTEND)
  std::size_t current_ = 0;                // index into options_.masters
  Term term_;                              // of the last registration
  bool registered_before_ = false;
  std::chrono::milliseconds sync_interval_{1000};
  Deadline next_path_report_ = Deadline::at({});
  std::vector<std::uint64_t> acknowledged_;  // carried out, not told to the master yet
  std::vector<std::uint64_t> withdrawn_;     // carried out but for readers, not told to the master yet
  // Ordered, and waiting for readers or writers to leave.
  enum class Outstanding : std::uint8_t { kOrdered, kWithdrawalTold };
  std::unordered_map<std::uint64_t, Outstanding> outstanding_;
};

}  // namespace moonpool::store
