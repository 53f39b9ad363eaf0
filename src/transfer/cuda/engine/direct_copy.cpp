#include "transfer/cuda/engine/direct_copy.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/pauses.h"

namespace moonpool::transfer::cuda {

Status wait_for(Driver& driver, int device, Event event, Deadline deadline) {
  for (Pauses pauses;; pauses.next()) {
    const auto reached = driver.done(device, event);
    if (!reached.ok()) return reached.status();
    if (*reached) break;
  }
  if (!deadline.expired()) return {};
  return {ErrorCode::kRpcTimeout, "device " + std::to_string(device) + " did not get to it in time"};
}

// ---------------------------------------------------------------- streams

Result<CopyStreams::Pair> CopyStreams::take(Driver& driver, int device) {
  {
    const std::scoped_lock lock(mutex_);
    driver_ = &driver;
    if (auto node = idle_.extract(device); !node.empty()) return node.mapped();
  }
  const auto stream = driver.create_stream(device);
  if (!stream.ok()) return stream.status();
  const auto event = driver.create_event(device);
  if (event.ok()) return Pair{*stream, *event};
  driver.destroy_stream(device, *stream);
  return event.status();
}

void CopyStreams::give_back(int device, Pair pair) {
  const std::scoped_lock lock(mutex_);
  idle_.emplace(device, pair);
}

void CopyStreams::drop(Driver& driver, int device, Pair pair) {
  driver.destroy_event(device, pair.event);
  driver.destroy_stream(device, pair.stream);
}

CopyStreams::~CopyStreams() {
  for (const auto& [device, pair] : idle_) drop(*driver_, device, pair);
}

// ---------------------------------------------------------------- copies

DirectCopy::~DirectCopy() { (void)wait(Deadline::after(std::chrono::seconds(0))); }

Status DirectCopy::start(Opcode opcode, std::span<const Batch> batches, Stream after, bool reachable, Deadline deadline) {
  const std::uint64_t least = reachable ? kLargeCopy : 0;
  std::size_t count = 0;
  std::size_t small = 0;
  for (const auto& batch : batches) {
    count += batch.pieces.size();
    for (const auto& piece : batch.pieces) small += piece.length < least ? 1 : 0;
  }
  if (small < count) MOONPOOL_RETURN_IF_ERROR(start_large(opcode, batches, least, after));
  return small == 0 ? Status() : start_small(opcode, batches, small, least, after, deadline);
}

// Pieces of `least` bytes or more.
Status DirectCopy::start_large(Opcode opcode, std::span<const Batch> batches, std::uint64_t least, Stream after) {
  Driver& driver = runtime_.driver();
  auto pair = streams_.take(driver, device_);
  if (!pair.ok()) return pair.status();
  stream_ = *pair;
  Status status;
  if (after != Stream::kLegacyDefault || runtime_.settings().after_default_stream) {
    status = driver.record(device_, stream_->event, after);
    if (status.ok()) status = driver.wait(device_, stream_->stream, stream_->event);
  }
  for (const auto& batch : batches) {
    for (const auto& piece : batch.pieces) {
      if (!status.ok()) break;
      if (piece.length < least) continue;
      const std::uint64_t remote = piece.remote + batch.offset;
      const auto [to, from] = opcode == Opcode::kWrite ? std::pair(remote, piece.local) : std::pair(piece.local, remote);
      status = driver.copy(device_, to, from, piece.length, stream_->stream);
    }
  }
  // What was queued is waited for, also after an error.
  const Status recorded = driver.record(device_, stream_->event, stream_->stream);
  return status.ok() ? recorded : status;
}

void DirectCopy::List::clear(std::size_t room) {
  pieces.clear();
  jobs.clear();
  pieces.reserve(room);  // jobs point into it
  jobs.reserve(room);
}

// Pieces that follow each other in the other place are one job.
void DirectCopy::List::add(int device, std::uint64_t local, std::uint64_t remote, std::uint64_t length) {
  pieces.push_back({local, length});
  if (jobs.empty() || jobs.back().device_address + jobs.back().length != remote) {
    auto& job = jobs.emplace_back();
    job.device = device;
    job.device_address = remote;
    job.pieces = std::span(&pieces.back(), 0);
  }
  auto& job = jobs.back();
  job.pieces = std::span(job.pieces.data(), job.pieces.size() + 1);
  job.length += length;
}

// Those of less, `count`.
Status DirectCopy::start_small(Opcode opcode, std::span<const Batch> batches, std::size_t count, std::uint64_t least, Stream after,
                               Deadline deadline) {
  const std::size_t room = std::min(count, kLaunchPieces);
  std::size_t list = 0;
  lists_[list].clear(room);
  for (const auto& batch : batches) {
    for (const auto& piece : batch.pieces) {
      if (piece.length >= least) continue;
      if (lists_[list].pieces.size() == kLaunchPieces) {
        MOONPOOL_RETURN_IF_ERROR(submit(opcode, list, after, deadline));
        // All that the first launch came after has ended before the second: what is queued there by then need not be waited for.
        if (!idle_) {
          auto pair = streams_.take(runtime_.driver(), device_);
          if (!pair.ok()) return pair.status();
          idle_ = *pair;
          after = idle_->stream;
        }
        list = 1 - list;
        lists_[list].clear(room);
      }
      lists_[list].add(device_, piece.local, piece.remote + batch.offset, piece.length);
    }
  }
  return submit(opcode, list, after, deadline);
}

// After the end of the other list's launch.
Status DirectCopy::submit(Opcode opcode, std::size_t list, Stream after, Deadline deadline) {
  MOONPOOL_RETURN_IF_ERROR(wait(lists_[1 - list], deadline));
  auto ticket = runtime_.copier().submit(opcode == Opcode::kWrite ? Direction::kGather : Direction::kScatter, lists_[list].jobs, after);
  if (!ticket.ok()) return ticket.status();
  lists_[list].ticket = std::move(*ticket);
  return {};
}

Status DirectCopy::wait(List& list, Deadline deadline) {
  if (list.ticket == nullptr) return {};
  Status copied = runtime_.copier().wait(*list.ticket, deadline);
  list.ticket.reset();
  return copied;
}

void DirectCopy::put_away(std::optional<CopyStreams::Pair>& pair, const Status& status) {
  if (!pair) return;
  if (status.ok() || status.code() == ErrorCode::kRpcTimeout) {
    streams_.give_back(device_, *pair);
  } else {
    CopyStreams::drop(runtime_.driver(), device_, *pair);
  }
  pair.reset();
}

Status DirectCopy::wait(Deadline deadline) {
  Status status;
  if (stream_) {
    status = wait_for(runtime_.driver(), device_, stream_->event, deadline);
    put_away(stream_, status);
  }
  Status small;
  for (auto& list : lists_) {
    Status copied = wait(list, deadline);
    if (small.ok()) small = std::move(copied);
  }
  put_away(idle_, small);
  if (status.ok()) status = std::move(small);
  return status;
}

}  // namespace moonpool::transfer::cuda
