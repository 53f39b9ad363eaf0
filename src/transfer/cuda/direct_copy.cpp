#include "transfer/cuda/direct_copy.h"

#include <chrono>
#include <thread>
#include <utility>

namespace moonpool::transfer::cuda {

namespace {

constexpr std::chrono::microseconds kSpin{200};
constexpr std::chrono::microseconds kLookAgain{50};

}  // namespace

// The driver's own waits cannot be ended, and a blocked thread would hold its context: short looks cost less than either.
Status wait_for(Driver& driver, int device, Event event, Deadline deadline) {
  const auto spin = Deadline::after(kSpin);
  for (;;) {
    const auto reached = driver.done(device, event);
    if (!reached.ok()) return reached.status();
    if (*reached) break;
    if (spin.expired()) {
      std::this_thread::sleep_for(kLookAgain);
    } else {
      std::this_thread::yield();
    }
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

Status DirectCopy::start(Opcode opcode, std::span<const Batch> batches, Stream after, bool reachable) {
  const std::uint64_t least = reachable ? kLargeCopy : 0;
  std::size_t count = 0;
  std::size_t small = 0;
  for (const auto& batch : batches) {
    count += batch.pieces.size();
    for (const auto& piece : batch.pieces) small += piece.length < least ? 1 : 0;
  }
  if (small < count) MOONPOOL_RETURN_IF_ERROR(start_large(opcode, batches, least, after));
  return small == 0 ? Status() : start_small(opcode, batches, small, least, after);
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

// Those of less, `count`; what follows each other in the other place is one job.
Status DirectCopy::start_small(Opcode opcode, std::span<const Batch> batches, std::size_t count, std::uint64_t least, Stream after) {
  job_pieces_.reserve(count);
  jobs_.reserve(count);
  for (const auto& batch : batches) {
    std::uint64_t end = 0;  // of the last job, for the first piece: none
    for (const auto& piece : batch.pieces) {
      if (piece.length >= least) continue;
      const std::uint64_t remote = piece.remote + batch.offset;
      job_pieces_.push_back({piece.local, piece.length});
      if (end != remote) {
        auto& job = jobs_.emplace_back();
        job.device = device_;
        job.device_address = remote;
        job.pieces = std::span(&job_pieces_.back(), 0);
      }
      auto& job = jobs_.back();
      job.pieces = std::span(job.pieces.data(), job.pieces.size() + 1);
      job.length += piece.length;
      end = remote + piece.length;
    }
  }
  auto ticket = runtime_.copier().submit(opcode == Opcode::kWrite ? Direction::kGather : Direction::kScatter, jobs_, after);
  if (!ticket.ok()) return ticket.status();
  ticket_ = std::move(*ticket);
  return {};
}

Status DirectCopy::wait(Deadline deadline) {
  Status status;
  if (stream_) {
    status = wait_for(runtime_.driver(), device_, stream_->event, deadline);
    const auto pair = *std::exchange(stream_, std::nullopt);
    if (status.ok() || status.code() == ErrorCode::kRpcTimeout) {
      streams_.give_back(device_, pair);
    } else {
      CopyStreams::drop(runtime_.driver(), device_, pair);
    }
  }
  if (ticket_ != nullptr) {
    Status copied = runtime_.copier().wait(*ticket_, deadline);
    ticket_.reset();
    if (status.ok()) status = std::move(copied);
  }
  return status;
}

}  // namespace moonpool::transfer::cuda
