#include "store/master_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace moonpool::store {

namespace {

using std::chrono::milliseconds;

constexpr std::uint16_t kMasterPort = 50051;
constexpr milliseconds kFirstPause{5};
constexpr milliseconds kLongestPause{60};

const char* name_of_call(wire::Method method) {
  switch (method) {
    case wire::METHOD_PUT_START:
      return "PutStart";
    case wire::METHOD_PUT_COMMIT:
      return "PutCommit";
    case wire::METHOD_EXIST:
      return "Exist";
    case wire::METHOD_GET_REPLICAS:
      return "GetReplicas";
    case wire::METHOD_REMOVE:
      return "Remove";
    case wire::METHOD_REMOVE_MATCHING:
      return "RemoveMatching";
    case wire::METHOD_PING:
      return "Ping";
    default:
      return "a call";
  }
}

bool transient(ErrorCode code) {
  return code == ErrorCode::kUnavailable || code == ErrorCode::kRecovering || code == ErrorCode::kNotRegistered ||
         code == ErrorCode::kRpcTimeout;
}

net::LanePoolOptions lane_options() {
  net::LanePoolOptions options;
  options.lanes_per_peer = 16;
  return options;
}

}  // namespace

Result<std::vector<net::Endpoint>> parse_master_addresses(std::string_view text) {
  std::vector<net::Endpoint> masters;
  while (!text.empty()) {
    const std::size_t comma = std::min(text.find(','), text.size());
    std::string_view one = text.substr(0, comma);
    text.remove_prefix(std::min(text.size(), comma + 1));
    while (!one.empty() && one.front() == ' ') one.remove_prefix(1);
    while (!one.empty() && one.back() == ' ') one.remove_suffix(1);
    if (one.empty()) continue;
    auto endpoint = net::Endpoint::parse(one, kMasterPort);
    if (!endpoint) {
      return {ErrorCode::kInvalidParams,
              fmt::format("master_server_address \"{}\": {}; write it as host:port", one, endpoint.status().message())};
    }
    masters.push_back(*endpoint);
  }
  if (masters.empty()) {
    return {ErrorCode::kInvalidParams,
            "master_server_address is empty: give the host:port on which the master listens (port 50051 by default)"};
  }
  return masters;
}

std::string describe(const std::vector<net::Endpoint>& masters) {
  std::string text;
  for (const auto& master : masters) {
    if (!text.empty()) text += " or ";
    text += master.to_string();
  }
  return text;
}

MasterClient::MasterClient(std::vector<net::Endpoint> masters, const net::Identity& self, const Standing& standing)
    : masters_(std::move(masters)), standing_(standing), quick_(self, lane_options()), waiting_(self, lane_options()) {}

Status MasterClient::gave_up(wire::Method method, const Status& last, Deadline::Clock::time_point since) const {
  const double waited = std::chrono::duration<double>(Deadline::Clock::now() - since).count();
  const bool silent = last.code() == ErrorCode::kRpcTimeout;
  return {
      silent ? ErrorCode::kRpcTimeout : ErrorCode::kRpcFail,
      fmt::format("the master at {} did not answer {} within {:.1f} s (last: {}); check that it runs (moonpool master --port {}) and that "
                  "master_server_address names it",
                  describe(masters_), name_of_call(method), waited, last.to_string(), masters_.front().port)};
}

Status MasterClient::call(net::LanePool& lanes, wire::Method method, net::ConstBytes request, std::vector<std::byte>& reply,
                          Deadline deadline, bool* repeated) {
  const auto since = Deadline::Clock::now();
  auto pause = kFirstPause;
  Status reason;
  while (true) {
    const std::size_t index = current_.load(std::memory_order_relaxed);
    const auto attempted = Deadline::Clock::now();
    Status status = lanes.call(masters_[index], method, request, reply, deadline);
    if (status.ok()) return status;
    // A last attempt that the deadline cut short says less than the one before it ("refused") did.
    const bool cut_short = status.code() == ErrorCode::kRpcTimeout && Deadline::Clock::now() - attempted < kLongestPause;
    if (reason.ok() || !cut_short) reason = status;
    if (standing_.stopped() || status.code() == ErrorCode::kCancelled) return {ErrorCode::kCancelled, "the store client is closed"};
    if (!transient(status.code())) return status;
    if (repeated != nullptr && (status.code() == ErrorCode::kUnavailable || status.code() == ErrorCode::kRpcTimeout)) *repeated = true;
    if (status.code() == ErrorCode::kUnavailable || status.code() == ErrorCode::kRpcTimeout) {
      // Only the caller that saw this address fail moves on; the others find the next one already chosen.
      std::size_t expected = index;
      current_.compare_exchange_strong(expected, (index + 1) % masters_.size());
    }
    if (deadline.left() <= pause) return gave_up(method, reason, since);
    if (!standing_.pause(std::min(deadline.left(), jittered(pause)))) return {ErrorCode::kCancelled, "the store client is closed"};
    if (deadline.expired()) return gave_up(method, reason, since);
    pause = std::min(kLongestPause, pause * 2);
  }
}

namespace {
Status unparsable(wire::Method method) {
  return {ErrorCode::kProtocol,
          fmt::format("the master's answer to {} does not parse; do master and client have the same release?", name_of_call(method))};
}
}  // namespace

Status MasterClient::call(net::LanePool& lanes, wire::Method method, const google::protobuf::MessageLite& request,
                          google::protobuf::MessageLite& reply, Deadline deadline, bool* repeated) {
  const std::string sent = request.SerializeAsString();
  std::vector<std::byte> bytes;
  MOONPOOL_RETURN_IF_ERROR(call(lanes, method, std::as_bytes(std::span(sent)), bytes, deadline, repeated));
  return reply.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) ? Status() : unparsable(method);
}

template <typename Reply, typename Request>
Result<Received<Reply>> MasterClient::call_lean(net::LanePool& lanes, wire::Method method, const Request& request, Deadline deadline) {
  thread_local std::string sent;  // keeps its memory from one call to the next
  lean::write(request, sent);
  Received<Reply> reply;
  MOONPOOL_RETURN_IF_ERROR(call(lanes, method, std::as_bytes(std::span(sent)), reply.bytes_, deadline));
  if (!lean::parse(reply.bytes_, reply.message_)) return unparsable(method);
  return reply;
}

Result<Received<lean::PutStartReply>> MasterClient::put_start(const lean::PutStartRequest& request, Deadline deadline) {
  return call_lean<lean::PutStartReply>(quick_, wire::METHOD_PUT_START, request, deadline);
}

Result<Received<lean::StatusReply>> MasterClient::put_commit(const lean::PutCommitRequest& request, Deadline deadline) {
  return call_lean<lean::StatusReply>(quick_, wire::METHOD_PUT_COMMIT, request, deadline);
}

Result<Received<lean::ExistReply>> MasterClient::exist(const lean::ExistRequest& request, Deadline deadline) {
  return call_lean<lean::ExistReply>(request.wait_ms > 0 ? waiting_ : quick_, wire::METHOD_EXIST, request, deadline);
}

Result<Received<lean::GetReplicasReply>> MasterClient::get_replicas(const lean::GetReplicasRequest& request, Deadline deadline) {
  return call_lean<lean::GetReplicasReply>(quick_, wire::METHOD_GET_REPLICAS, request, deadline);
}

Result<MasterClient::Removed> MasterClient::remove(const wire::RemoveRequest& request, Deadline deadline) {
  Removed removed;
  MOONPOOL_RETURN_IF_ERROR(call(waiting_, wire::METHOD_REMOVE, request, removed.reply, deadline, &removed.repeated));
  return removed;
}

Result<wire::RemoveMatchingReply> MasterClient::remove_matching(const wire::RemoveMatchingRequest& request, Deadline deadline) {
  wire::RemoveMatchingReply reply;
  MOONPOOL_RETURN_IF_ERROR(call(waiting_, wire::METHOD_REMOVE_MATCHING, request, reply, deadline));
  return reply;
}

Status MasterClient::ping(Deadline deadline) {
  wire::Empty request;
  wire::PingReply reply;
  Status last;
  for (std::size_t i = 0; i < masters_.size(); ++i) {
    last = quick_.call(masters_[(current_ + i) % masters_.size()], wire::METHOD_PING, request, reply, deadline);
    if (last.ok()) return last;
  }
  return gave_up(wire::METHOD_PING, last, Deadline::Clock::now());
}

void MasterClient::close() {
  quick_.close();
  waiting_.close();
}

}  // namespace moonpool::store
