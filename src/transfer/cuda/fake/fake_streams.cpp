#include "transfer/cuda/fake/fake_streams.h"

#include <utility>

namespace moonpool::transfer::cuda {

FakeStreams::~FakeStreams() {
  release();
  {
    const std::lock_guard lock(mutex_);
    for (Queue& queue : queues_) queue.closing = true;
    changed_.notify_all();
  }
  for (Queue& queue : queues_) queue.thread.join();
}

Stream FakeStreams::create_stream(int device) {
  join_those_gone();
  const std::lock_guard lock(mutex_);
  const auto handle = static_cast<std::uintptr_t>(next_handle_++);
  streams_[handle] = &start(device);
  return Stream{handle};
}

Event FakeStreams::create_event(int device) {
  const std::lock_guard lock(mutex_);
  const auto handle = static_cast<std::uintptr_t>(next_handle_++);
  events_[handle] = {device, nullptr};
  return Event{handle};
}

bool FakeStreams::destroy(int device, Stream stream) {
  const std::lock_guard lock(mutex_);
  const auto found = streams_.find(static_cast<std::uintptr_t>(stream));
  if (found == streams_.end() || found->second->device != device) return false;
  found->second->closing = true;
  streams_.erase(found);
  changed_.notify_all();
  return true;
}

bool FakeStreams::destroy(int device, Event event) {
  const std::lock_guard lock(mutex_);
  const auto found = events_.find(static_cast<std::uintptr_t>(event));
  if (found == events_.end() || found->second.device != device) return false;
  events_.erase(found);
  return true;
}

bool FakeStreams::enqueue(int device, Stream stream, Work work) {
  const std::lock_guard lock(mutex_);
  Queue* const queue = find(device, stream);
  if (queue == nullptr) return false;
  push(*queue, {.run = std::move(work), .reach = nullptr, .await = nullptr});
  return true;
}

bool FakeStreams::record(int device, Event event, Stream stream) {
  const std::lock_guard lock(mutex_);
  const auto found = events_.find(static_cast<std::uintptr_t>(event));
  Queue* const queue = find(device, stream);
  if (found == events_.end() || found->second.device != device || queue == nullptr) return false;
  found->second.last = std::make_shared<Point>();
  push(*queue, {.run = nullptr, .reach = found->second.last, .await = nullptr});
  return true;
}

bool FakeStreams::wait(int device, Stream stream, Event event) {
  const std::lock_guard lock(mutex_);
  const auto found = events_.find(static_cast<std::uintptr_t>(event));
  Queue* const queue = find(device, stream);
  if (found == events_.end() || queue == nullptr) return false;
  if (found->second.last != nullptr) push(*queue, {.run = nullptr, .reach = nullptr, .await = found->second.last});
  return true;
}

std::optional<Result<bool>> FakeStreams::done(Event event) {
  const std::lock_guard lock(mutex_);
  const auto found = events_.find(static_cast<std::uintptr_t>(event));
  if (found == events_.end()) return std::nullopt;
  const auto& point = found->second.last;
  if (point == nullptr) return Result<bool>(true);
  if (!point->error.ok()) return Result<bool>(point->error);
  return Result<bool>(point->reached);
}

void FakeStreams::hold() {
  std::unique_lock lock(mutex_);
  if (!held_) {
    held_ = true;
    for (Queue& queue : queues_) queue.last = queue.queued;
  }
  changed_.wait(lock, [this] {
    for (const Queue& queue : queues_) {
      if (queue.last && queue.ended < *queue.last) return false;
    }
    return true;
  });
}

void FakeStreams::release() {
  const std::lock_guard lock(mutex_);
  held_ = false;
  for (Queue& queue : queues_) queue.last.reset();
  changed_.notify_all();
}

std::uint64_t FakeStreams::live_handles() const {
  const std::lock_guard lock(mutex_);
  return streams_.size() + events_.size();
}

FakeStreams::Queue* FakeStreams::find(int device, Stream stream) {
  constexpr std::uintptr_t kLegacyByName = 1;  // CU_STREAM_LEGACY
  const auto handle = static_cast<std::uintptr_t>(stream);
  if (stream == Stream::kLegacyDefault || handle == kLegacyByName) {
    Queue*& queue = default_streams_[device];
    if (queue == nullptr) queue = &start(device);
    return queue;
  }
  const auto found = streams_.find(handle);
  return found == streams_.end() || found->second->device != device ? nullptr : found->second;
}

FakeStreams::Queue& FakeStreams::start(int device) {
  Queue& queue = queues_.emplace_back(device);
  if (held_) queue.last = 0;
  queue.thread = std::thread([this, &queue] { run(queue); });
  return queue;
}

void FakeStreams::push(Queue& queue, Item item) {
  queue.items.push_back(std::move(item));
  ++queue.queued;
  changed_.notify_all();
}

void FakeStreams::run(Queue& queue) {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&queue] {
      if (queue.items.empty()) return queue.closing;
      return !queue.last || queue.ended < *queue.last;
    });
    if (queue.items.empty()) break;
    Item item = std::move(queue.items.front());
    queue.items.pop_front();
    run_item(queue, std::move(item), lock);
    ++queue.ended;
    changed_.notify_all();
  }
  queue.gone = true;
}

void FakeStreams::run_item(Queue& queue, Item item, std::unique_lock<std::mutex>& lock) {
  if (item.await != nullptr) {
    changed_.wait(lock, [&item] { return item.await->reached; });
    if (queue.error.ok()) queue.error = item.await->error;
  }
  if (item.run && queue.error.ok()) {
    lock.unlock();
    Status status = item.run();
    lock.lock();
    queue.error = std::move(status);
  }
  if (item.reach != nullptr) {
    item.reach->reached = true;
    item.reach->error = queue.error;
  }
}

void FakeStreams::join_those_gone() {
  std::list<Queue> gone;
  {
    const std::lock_guard lock(mutex_);
    for (auto queue = queues_.begin(); queue != queues_.end();) {
      const auto next = std::next(queue);
      if (queue->gone) gone.splice(gone.end(), queues_, queue);
      queue = next;
    }
  }
  for (Queue& queue : gone) queue.thread.join();
}

}  // namespace moonpool::transfer::cuda
