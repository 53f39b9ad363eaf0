#include "store/membership.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/logging.h"
#include "base/sync_point.h"
#include "store/master_client.h"

namespace moonpool::store {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kBackoff{50};  // jittered: 50-100 ms
constexpr seconds kConnectTimeout{3};
constexpr seconds kCallTimeout{10};       // of registering and mounting
constexpr seconds kFenceTimeout{10};      // for writes under an older term to leave the owner's memory
constexpr seconds kSyncGrace{5};          // beyond the interval in which the master promised to answer
constexpr milliseconds kRetireWait{100};  // for readers and writers to leave, before the next NodeSync acknowledges what is done
constexpr seconds kPathReportInterval{5};
constexpr std::size_t kMostReportedPaths = 64;  // those that most bytes went over
constexpr std::size_t kReportBytes = 1U << 20;
constexpr std::size_t kEntryOverhead = 48;  // of a catalogue entry on the wire, beyond its key

// Trying again cannot help until a person has changed something.
bool needs_a_person(ErrorCode code) {
  return code == ErrorCode::kUnauthenticated || code == ErrorCode::kProtocol || code == ErrorCode::kInvalidParams;
}

}  // namespace

Membership::Membership(MembershipOptions options, transfer::Owner& owner, Standing& standing)
    : options_(std::move(options)), owner_(owner), standing_(standing) {}

Membership::~Membership() { end_thread(); }

void Membership::start() {
  thread_ = std::thread([this] { run(); });
}

void Membership::end_thread() {
  standing_.stop();
  {
    const std::scoped_lock lock(lane_mutex_);
    if (lane_) lane_->abort();
  }
  if (thread_.joinable()) thread_.join();
}

void Membership::stop(Deadline deadline) {
  const bool was_registered = standing_.registered();
  end_thread();
  if (was_registered) leave(deadline);
  const std::scoped_lock lock(lane_mutex_);
  lane_.reset();
  attendance_.reset();
}

void Membership::run() {
  bool registered = false;
  while (!standing_.stopped()) {
    Status status;
    if (!lane_) status = connect();
    if (status.ok() && !registered) {
      status = register_node();
      registered = status.ok();
    }
    if (status.ok()) status = attend();
    if (status.ok()) status = sync();
    if (!status.ok() && !standing_.stopped()) note_failure(status, registered);
  }
}

Status Membership::connect() {
  const auto& master = options_.masters[current_];
  auto lane = net::Lane::connect(master, options_.identity, Deadline::after(kConnectTimeout));
  if (!lane) return lane.status();
  const std::scoped_lock lock(lane_mutex_);
  lane_ = std::move(*lane);
  // stop() may have looked before there was a lane to abort.
  return standing_.stopped() ? Status{ErrorCode::kCancelled, "closing"} : Status{};
}

void Membership::note_failure(const Status& status, bool& registered) {
  const bool forgotten = status.code() == ErrorCode::kNotRegistered || status.code() == ErrorCode::kStaleTerm;
  const bool lane_is_fine = forgotten || status.code() == ErrorCode::kRecovering;
  if (!lane_is_fine || (lane_ && !lane_->healthy())) {
    const std::scoped_lock lock(lane_mutex_);
    lane_.reset();
    attendance_.reset();
    current_ = (current_ + 1) % options_.masters.size();
  }
  const bool was_registered = registered;
  if (registered && !forgotten) log::info("lost the master at {}: {}; connecting again", describe(options_.masters), status.to_string());
  if (forgotten) {
    if (registered) log::info("the master does not know this node any more ({}); registering again", status.message());
    registered = false;
  }
  if (!registered) {
    standing_.set_unregistered({status.code(), gave_up_text(status)}, needs_a_person(status.code()));
  }
  if (was_registered && forgotten && lane_) return;  // registers again at once, the first time
  static_cast<void>(standing_.pause(jittered(kBackoff)));
}

std::string Membership::gave_up_text(const Status& status) const {
  const std::string masters = describe(options_.masters);
  switch (status.code()) {
    case ErrorCode::kUnauthenticated:
      return fmt::format("the master at {} refused this node's cluster token: {}; give both the same token", masters, status.message());
    case ErrorCode::kUnavailable:
    case ErrorCode::kRpcTimeout:
      return fmt::format("cannot reach the master at {}: {}; start one with `moonpool master --port {}` or correct master_server_address",
                         masters, status.message(), options_.masters.front().port);
    default:
      return fmt::format("cannot register with the master at {}: {}", masters, status.message());
  }
}

Status Membership::call(wire::Method method, const google::protobuf::MessageLite& request, google::protobuf::MessageLite& reply,
                        Deadline deadline) {
  return lane_->call(method, request, reply, deadline);
}

Status Membership::register_node() {
  wire::RegisterNodeRequest request;
  request.set_node_id(options_.identity.node_id.to_bytes());
  request.set_name(options_.name);
  request.set_host(options_.listen.host);
  request.set_port(options_.listen.port);
  request.set_highest_term(std::max(owner_.term(), term_).value);
  for (const auto& incarnation : fenced_.all()) request.add_fenced(incarnation);
  attendance_.reset();  // what it was bound to is the last registration
  wire::RegisterNodeReply reply;
  MOONPOOL_RETURN_IF_ERROR(call(wire::METHOD_REGISTER_NODE, request, reply, Deadline::after(kCallTimeout)));
  fenced_.remember(reply.fenced());
  MOONPOOL_SYNC_POINT("membership.before_adopt_term");
  MOONPOOL_RETURN_IF_ERROR(owner_.adopt_term(Term{reply.term()}, Deadline::after(kFenceTimeout)));
  term_ = Term{reply.term()};
  acknowledged_.clear();
  withdrawn_.clear();
  outstanding_.clear();
  if (reply.sync_interval_ms() > 0) sync_interval_ = milliseconds(reply.sync_interval_ms());
  for (const auto& segment : owner_.segments()) MOONPOOL_RETURN_IF_ERROR(mount(segment.incarnation));
  log::info("registered with the master at {} in term {}", options_.masters[current_].to_string(), term_.value);
  standing_.set_registered(term_);
  if (std::exchange(registered_before_, true) && options_.registered_again) options_.registered_again();
  return {};
}

Status Membership::mount(const Incarnation& incarnation) {
  const auto find = [this](const Incarnation& wanted) -> std::optional<transfer::SegmentStatus> {
    for (const auto& segment : owner_.segments()) {
      if (segment.incarnation == wanted) return segment;
    }
    return std::nullopt;
  };
  auto segment = find(incarnation);
  if (!segment) return {};  // unmounted meanwhile
  Status status = report(*segment);
  if (status.code() != ErrorCode::kStaleIncarnation) return status;
  log::warning("the master has fenced this node's segment; emptying it and mounting it anew");
  auto fresh = owner_.remount(incarnation, Deadline::after(kFenceTimeout));
  if (!fresh) return fresh.status();
  segment = find(*fresh);
  return segment ? report(*segment) : Status{};
}

Status Membership::report(const transfer::SegmentStatus& segment) {
  const auto entries = owner_.catalogue(segment.incarnation);
  std::size_t next = 0;
  do {
    wire::MountSegmentRequest request;
    request.set_node_id(options_.identity.node_id.to_bytes());
    request.set_term(term_.value);
    auto& info = *request.mutable_segment();
    info.set_incarnation(segment.incarnation.to_bytes());
    info.set_name(options_.name);
    info.set_host(options_.listen.host);
    info.set_port(options_.listen.port);
    info.set_size(segment.size);
    info.set_base(segment.base);
    info.set_protocol(options_.protocol);
    info.set_node_id(options_.identity.node_id.to_bytes());
    for (std::size_t bytes = 0; next < entries.size() && bytes < kReportBytes; ++next) {
      const auto& entry = entries[next];
      request.add_key(entry.key);
      request.add_offset(entry.offset);
      request.add_length(entry.length);
      request.add_version_term(entry.version.term.value);
      request.add_version_count(entry.version.count);
      request.add_checksum(entry.checksum);
      bytes += entry.key.size() + kEntryOverhead;
    }
    request.set_last(next == entries.size());
    wire::MountSegmentReply reply;
    MOONPOOL_RETURN_IF_ERROR(call(wire::METHOD_MOUNT_SEGMENT, request, reply, Deadline::after(kCallTimeout)));
  } while (next < entries.size());
  return {};
}

Status Membership::attend() {
  if (attendance_ && attendance_->healthy()) return {};
  auto lane = net::Lane::connect(options_.masters[current_], options_.identity, Deadline::after(kConnectTimeout));
  if (!lane) return lane.status();
  wire::AttendRequest request;
  request.set_node_id(options_.identity.node_id.to_bytes());
  request.set_term(term_.value);
  wire::Empty reply;
  // A master of an older release does not know of it, and finds out by the heartbeat alone.
  const Status status = (*lane)->call(wire::METHOD_ATTEND, request, reply, Deadline::after(kConnectTimeout));
  if (!status.ok() && status.code() != ErrorCode::kNotSupported) return status;
  attendance_ = std::move(*lane);
  return {};
}

Status Membership::sync() {
  wire::NodeSyncRequest request;
  request.set_node_id(options_.identity.node_id.to_bytes());
  request.set_term(term_.value);
  for (const std::uint64_t sequence : acknowledged_) request.add_acknowledged(sequence);
  for (const std::uint64_t sequence : withdrawn_) request.add_withdrawn(sequence);
  add_paths_to(request);
  wire::NodeSyncReply reply;
  MOONPOOL_RETURN_IF_ERROR(call(wire::METHOD_NODE_SYNC, request, reply, Deadline::after(sync_interval_ + kSyncGrace)));
  acknowledged_.clear();
  for (const std::uint64_t sequence : withdrawn_) outstanding_[sequence] = Outstanding::kWithdrawalTold;
  withdrawn_.clear();
  if (Term{reply.term()} != term_) {
    return {ErrorCode::kStaleTerm, fmt::format("it reigns in term {}, this node registered in {}", reply.term(), term_.value)};
  }
  carry_out(reply);
  return {};
}

void Membership::add_paths_to(wire::NodeSyncRequest& request) {
  if (!options_.path_use || !next_path_report_.expired()) return;
  next_path_report_ = Deadline::after(kPathReportInterval);
  auto all = options_.path_use();
  const auto bytes = [](const transfer::PathUse& use) { return use.bytes_written + use.bytes_read; };
  std::ranges::sort(all, [&](const auto& a, const auto& b) { return bytes(a) > bytes(b); });
  for (std::size_t i = 0; i < std::min(all.size(), kMostReportedPaths); ++i) {
    auto& report = *request.add_path();
    report.set_node_id(all[i].peer.node.to_bytes());
    report.set_peer(all[i].peer.endpoint.to_string());
    report.set_path(all[i].path);
    report.set_reason(all[i].reason);
    report.set_bytes_written(all[i].bytes_written);
    report.set_bytes_read(all[i].bytes_read);
    report.set_failures(all[i].failures);
  }
  if (!options_.device_use) return;
  const auto devices = options_.device_use();
  request.set_device_bytes_in_place(devices.bytes_in_place);
  request.set_device_bytes_by_nic(devices.bytes_by_nic);
  request.set_device_bytes_staged(devices.bytes_staged);
}

void Membership::carry_out(const wire::NodeSyncReply& reply) {
  fenced_.remember(reply.fenced());
  if (reply.has_oldest_grant()) owner_.set_oldest_grant({Term{reply.oldest_grant().term()}, reply.oldest_grant().count()});
  std::vector<transfer::RetirementOrder> orders;
  orders.reserve(static_cast<std::size_t>(reply.retirements_size()));
  for (const auto& retirement : reply.retirements()) {
    transfer::RetirementOrder order;
    order.sequence = retirement.sequence();
    // An id that is none of ours is complete at once, as the owner's contract says.
    order.extent.incarnation = Incarnation::from_bytes(retirement.incarnation()).value_or(Incarnation{});
    order.extent.offset = retirement.offset();
    order.extent.length = retirement.length();
    order.extent.version = {Term{retirement.version().term()}, retirement.version().count()};
    orders.push_back(order);
  }
  for (const auto& order : orders) outstanding_.try_emplace(order.sequence, Outstanding::kOrdered);
  if (outstanding_.empty()) return;
  MOONPOOL_SYNC_POINT("membership.before_retire");
  // Those that are left over from before are held up by somebody who takes his time: the new ones do not wait with them.
  acknowledged_ = owner_.retire(orders, Deadline::after(orders.empty() ? milliseconds(0) : kRetireWait));
  for (const std::uint64_t sequence : acknowledged_) outstanding_.erase(sequence);
  if (outstanding_.empty()) return;
  for (const std::uint64_t sequence : owner_.withdrawn()) {
    const auto found = outstanding_.find(sequence);
    if (found != outstanding_.end() && found->second == Outstanding::kOrdered) withdrawn_.push_back(sequence);
  }
}

// The thread has ended; the lane that it left may have been aborted in mid-frame.
void Membership::leave(Deadline deadline) {
  for (const auto& master : options_.masters) {
    auto lane = net::Lane::connect(master, options_.identity, deadline);
    if (!lane) continue;
    wire::DeregisterNodeRequest request;
    request.set_node_id(options_.identity.node_id.to_bytes());
    wire::Empty reply;
    const Status status = (*lane)->call(wire::METHOD_DEREGISTER_NODE, request, reply, deadline);
    if (status.ok()) return;
    log::debug("telling the master at {} that this node leaves: {}", master.to_string(), status.to_string());
  }
  log::info("could not tell the master that this node leaves; it finds out when the heartbeats stay away");
}

}  // namespace moonpool::store
