// Typed calls to the master, which outlast its absence: a call is answered by whichever master comes within its deadline.
//
// Tried again, after a short jittered wait on the node's Standing: kUnavailable (the next address of the list is asked), kRecovering,
// kNotRegistered (the membership thread is about to register the node again). Everything else goes to the caller as it came. When the
// deadline has passed the error is kRpcTimeout (the master took the call and did not answer) or kRpcFail (nobody to answer), and its text
// names the address, the operation, the time waited and what to do.
//
// Two sets of lanes: calls that the master may hold back (exist with a wait, removes) never keep the quick ones (a put's commit) waiting.
// Threads: any number of callers. Ownership: by the client; close() before destruction makes all calls return kCancelled.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "net/endpoint.h"
#include "net/handshake.h"
#include "net/lane_pool.h"
#include "net/object_messages.h"
#include "store/standing.h"
#include "wire.pb.h"

namespace moonpool::store {

// "host:port[,host:port...]"; the port defaults to the master's 50051.
[[nodiscard]] Result<std::vector<net::Endpoint>> parse_master_addresses(std::string_view text);
// "127.0.0.1:50051 or 127.0.0.1:50052", for error texts.
[[nodiscard]] std::string describe(const std::vector<net::Endpoint>& masters);

namespace lean = net::lean;

// A reply in the form of net/lean_codec.h, with the bytes that it refers to.
template <typename Message>
class Received {
 public:
  Received() = default;
  // Moving keeps the address of the bytes.
  Received(Received&&) noexcept = default;
  Received& operator=(Received&&) noexcept = default;
  Received(const Received&) = delete;
  Received& operator=(const Received&) = delete;
  ~Received() = default;
  const Message* operator->() const { return &message_; }
  const Message& operator*() const { return message_; }

 private:
  friend class MasterClient;
  std::vector<std::byte> bytes_;
  Message message_;
};

class MasterClient {
 public:
  MasterClient(std::vector<net::Endpoint> masters, const net::Identity& self, const Standing& standing);

  [[nodiscard]] Result<Received<lean::PutStartReply>> put_start(const lean::PutStartRequest& request, Deadline deadline);
  [[nodiscard]] Result<Received<lean::StatusReply>> put_commit(const lean::PutCommitRequest& request, Deadline deadline);
  [[nodiscard]] Result<Received<lean::ExistReply>> exist(const lean::ExistRequest& request, Deadline deadline);
  [[nodiscard]] Result<Received<lean::GetReplicasReply>> get_replicas(const lean::GetReplicasRequest& request, Deadline deadline);
  // `repeated`: the request may have been carried out before by a master that did not get to answer.
  struct Removed {
    wire::StatusReply reply;
    bool repeated = false;
  };
  [[nodiscard]] Result<Removed> remove(const wire::RemoveRequest& request, Deadline deadline);
  [[nodiscard]] Result<wire::RemoveMatchingReply> remove_matching(const wire::RemoveMatchingRequest& request, Deadline deadline);
  // Not tried again: tells whether the master answers now.
  [[nodiscard]] Status ping(Deadline deadline);

  void close();

 private:
  [[nodiscard]] Status call(net::LanePool& lanes, wire::Method method, net::ConstBytes request, std::vector<std::byte>& reply,
                            Deadline deadline, bool* repeated = nullptr);
  template <typename Reply, typename Request>
  [[nodiscard]] Result<Received<Reply>> call_lean(net::LanePool& lanes, wire::Method method, const Request& request, Deadline deadline);
  [[nodiscard]] Status call(net::LanePool& lanes, wire::Method method, const google::protobuf::MessageLite& request,
                            google::protobuf::MessageLite& reply, Deadline deadline, bool* repeated = nullptr);
  [[nodiscard]] Status gave_up(wire::Method method, const Status& last, Deadline::Clock::time_point since) const;

  const std::vector<net::Endpoint> masters_;
  const Standing& standing_;
  std::atomic<std::size_t> current_{0};  // index into masters_ of the one that answered last
  net::LanePool quick_;
  net::LanePool waiting_;
};

}  // namespace moonpool::store
