#include "transfer/rdma/extent_session.h"

#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/sync_point.h"
#include "transfer/checksum.h"
#include "transfer/extent_columns.h"

namespace moonpool::transfer::rdma {

namespace {

constexpr std::chrono::milliseconds kLookAgain{2};

Status contradiction(const std::string& what) { return {ErrorCode::kProtocol, "rdma: " + what}; }

Status session_ended() { return {ErrorCode::kUnavailable, "rdma: the session was ended by the owner: open another one"}; }

net::Task<void> pause(std::chrono::milliseconds time) {
  net::AsyncEvent never;
  static_cast<void>(co_await never.wait(never.epoch(), Deadline::after(time)));
}

}  // namespace

ExtentSession::ExtentSession(Owner& owner, std::function<void()> fence) : owner_(owner), fence_(std::move(fence)) {}

// ---------------------------------------------------------------- writers

net::Task<Result<wire::RdmaBeginReply>> ExtentSession::begin(const wire::RdmaBeginRequest& request, Deadline deadline) {
  if (Status status = check_columns(request); !status.ok()) co_return status;
  const int entries = request.segment_size();
  if (request.length_size() != entries) co_return contradiction("the columns of a request differ in length");
  const auto incarnations = incarnations_of(request.incarnation());
  if (!incarnations.ok()) co_return incarnations.status();
  {
    const std::scoped_lock lock(mutex_);
    if (ended_) co_return session_ended();
    if (writers_.size() + static_cast<std::size_t>(entries) > kMaxTickets) {
      co_return Status(ErrorCode::kUnavailable, "rdma: this session has announced too many writes: complete some");
    }
  }
  const Deadline patience = deadline.sooner(kPatience);
  std::vector<std::pair<int, Writer>> admitted;
  wire::RdmaBeginReply reply;
  for (int i = 0; i < entries; ++i) {
    Writer writer{extent_of(request, *incarnations, i), {}};
    writer.extent.length = request.length(i);
    auto pin = owner_.begin_write(writer.extent, fence_);
    // An earlier attempt, over a session that its writer has lost, is on its way out.
    while (pin.code() == ErrorCode::kUnavailable && !patience.expired()) {
      co_await pause(kLookAgain);
      pin = owner_.begin_write(writer.extent, fence_);
    }
    reply.add_status(pin.status().number());
    reply.add_ticket(0);
    if (pin.ok()) writer.pin = std::move(*pin);
    if (pin.ok() || pin.code() == ErrorCode::kObjectAlreadyExists) admitted.emplace_back(i, std::move(writer));
  }
  MOONPOOL_SYNC_POINT("rdma.begin.admitted");
  const std::scoped_lock lock(mutex_);
  if (ended_) co_return session_ended();  // nothing can be written any more, and the pins go with this frame
  for (auto& [i, writer] : admitted) {
    reply.set_ticket(i, ++last_ticket_);
    writers_.emplace(last_ticket_, std::move(writer));
  }
  co_return reply;
}

Status ExtentSession::check(const wire::RdmaCompleteRequest& request) {
  const std::scoped_lock lock(mutex_);
  return check_locked(request);
}

Status ExtentSession::check_locked(const wire::RdmaCompleteRequest& request) const {
  if (ended_) return session_ended();
  const int entries = request.ticket_size();
  if (static_cast<std::size_t>(entries) > kMaxEntriesPerFrame) {
    return {ErrorCode::kInvalidParams, "rdma: a request of " + std::to_string(entries) + " entries is too large: split the batch"};
  }
  if (request.key_size() != entries || request.failed_size() != entries) {
    return contradiction("the columns of a request differ in length");
  }
  if (entries > 0 && request.checksum_chunk() != kChecksumChunk) {
    return contradiction("checksums per " + std::to_string(request.checksum_chunk()) + " bytes are not what this release speaks");
  }
  std::unordered_set<std::uint64_t> seen;
  std::uint64_t checksums = 0;
  for (int i = 0; i < entries; ++i) {
    const auto found = writers_.find(request.ticket(i));
    if (found == writers_.end() || !seen.insert(request.ticket(i)).second) return contradiction("a ticket was not given, or is used up");
    if (!request.failed(i)) checksums += chunks_of(found->second.extent.length);
  }
  if (checksums != static_cast<std::uint64_t>(request.checksum_size())) return contradiction("the checksums are not those of the extents");
  return {};
}

Result<wire::RdmaCompleteReply> ExtentSession::complete(const wire::RdmaCompleteRequest& request) {
  std::vector<Writer> writers;
  {
    const std::scoped_lock lock(mutex_);
    MOONPOOL_RETURN_IF_ERROR(check_locked(request));
    for (const auto ticket : request.ticket()) writers.push_back(std::move(writers_.extract(ticket).mapped()));
  }
  wire::RdmaCompleteReply reply;
  std::size_t used = 0;
  for (std::size_t i = 0; i < writers.size(); ++i) {
    Writer& writer = writers[i];
    const int index = static_cast<int>(i);
    if (request.failed(index)) {
      writer.pin.reset();
      reply.add_status(0);
      continue;
    }
    const auto all = std::span<const std::uint64_t>(request.checksum().data(), static_cast<std::size_t>(request.checksum_size()));
    const auto checksums = all.subspan(used, chunks_of(writer.extent.length));
    used += checksums.size();
    const Status status = writer.pin ? owner_.complete_write(std::move(*writer.pin), request.key(index), checksums)
                                     : owner_.confirm_write(writer.extent, checksums);
    reply.add_status(status.number());
  }
  return reply;
}

// ---------------------------------------------------------------- readers

Result<wire::ShmPinReply> ExtentSession::pin(const wire::ShmPinRequest& request) {
  if (static_cast<std::size_t>(request.segment_size()) > kMaxEntriesPerFrame) {
    return Status(ErrorCode::kInvalidParams, "rdma: a request of too many entries: split the batch");
  }
  const std::scoped_lock lock(mutex_);
  if (ended_) return session_ended();
  wire::ShmPinReply reply;
  MOONPOOL_RETURN_IF_ERROR(pins_.pin(owner_, request, reply, fence_));
  return reply;
}

void ExtentSession::unpin(const wire::ShmUnpinRequest& request) {
  const std::scoped_lock lock(mutex_);
  pins_.unpin(request);
}

void ExtentSession::end() {
  std::unordered_map<std::uint64_t, Writer> writers;
  {
    const std::scoped_lock lock(mutex_);
    ended_ = true;
    writers.swap(writers_);
    pins_.clear();
  }
  writers.clear();
}

}  // namespace moonpool::transfer::rdma
