#include "transfer/async_transfers.h"

#include <string>
#include <system_error>
#include <utility>

namespace moonpool::transfer {

namespace {

Status unknown(std::uint64_t id) {
  return {ErrorCode::kInvalidParams, "no transfer has the id " + std::to_string(id) + " (or it was forgotten)"};
}

}  // namespace

Result<std::uint64_t> AsyncTransfers::submit(Work work, Deadline deadline) {
  const std::scoped_lock lock(mutex_);
  if (stopping_) return Status(ErrorCode::kCancelled, "the engine is shutting down");
  if (queue_.size() >= kMostQueued) {
    return Status(ErrorCode::kUnavailable, std::to_string(kMostQueued) + " transfers are waiting already: wait for some of them");
  }
  try {
    while (threads_.size() < kThreads) threads_.emplace_back([this] { run(); });
  } catch (const std::system_error& error) {
    if (threads_.empty()) return Status(ErrorCode::kInternal, std::string("cannot start a thread for transfers: ") + error.what());
  }
  auto job = std::make_shared<Job>();
  job->id = ++last_id_;
  job->work = std::move(work);
  job->deadline = deadline;
  jobs_.emplace(job->id, job);
  queue_.push_back(job);
  queued_.notify_one();
  return job->id;
}

std::shared_ptr<AsyncTransfers::Job> AsyncTransfers::find(std::uint64_t id) const {
  const auto found = jobs_.find(id);
  return found == jobs_.end() ? nullptr : found->second;
}

Result<TransferState> AsyncTransfers::state(std::uint64_t id) const {
  const std::scoped_lock lock(mutex_);
  const auto job = find(id);
  if (job == nullptr) return unknown(id);
  if (!job->ended) return TransferState::kPending;
  if (job->outcome.ok()) return TransferState::kDone;
  return job->outcome.code() == ErrorCode::kRpcTimeout ? TransferState::kTimedOut : TransferState::kFailed;
}

Status AsyncTransfers::wait(std::uint64_t id) {
  std::unique_lock lock(mutex_);
  const auto job = find(id);
  if (job == nullptr) return unknown(id);
  ended_.wait(lock, [&] { return job->ended; });  // bounded: every job ends by its deadline
  jobs_.erase(id);
  return job->outcome;
}

void AsyncTransfers::forget(std::uint64_t id) {
  const std::scoped_lock lock(mutex_);
  jobs_.erase(id);
}

void AsyncTransfers::end(Job& job, Status outcome) {
  job.ended = true;
  job.outcome = std::move(outcome);
  ended_ids_.push_back(job.id);
  while (ended_ids_.size() > kMostEnded) {
    jobs_.erase(ended_ids_.front());
    ended_ids_.pop_front();
  }
  ended_.notify_all();
}

void AsyncTransfers::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    queued_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const auto job = std::move(queue_.front());
    queue_.pop_front();
    Status outcome;
    if (stopping_) {
      outcome = Status(ErrorCode::kCancelled, "the engine is shutting down");
    } else if (job->deadline.expired()) {
      outcome = Status(ErrorCode::kRpcTimeout, "the transfer's time passed while it waited for others");
    } else {
      lock.unlock();
      outcome = job->work(job->deadline);
      lock.lock();
    }
    job->work = nullptr;
    end(*job, std::move(outcome));
  }
}

void AsyncTransfers::stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  queued_.notify_all();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace moonpool::transfer
