#include "transfer/rdma/verbs/event_thread.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

namespace moonpool::transfer::rdma {

std::shared_ptr<EventThread> EventThread::shared() {
  static std::mutex mutex;
  static std::weak_ptr<EventThread> current;
  const std::lock_guard lock(mutex);
  auto thread = current.lock();
  if (!thread) {
    thread = std::shared_ptr<EventThread>(new EventThread());
    current = thread;
  }
  return thread;
}

EventThread::EventThread() : wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), thread_([this] { run(); }) {}

EventThread::~EventThread() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake();
  thread_.join();
  ::close(wake_);
}

void EventThread::wake() const {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_, &one, sizeof one);  // fails only when it is readable already
}

void EventThread::add(int descriptor, std::function<bool()> readable) {
  {
    const std::lock_guard lock(mutex_);
    sources_.push_back({descriptor, std::make_shared<const std::function<bool()>>(std::move(readable))});
  }
  wake();
}

void EventThread::remove(int descriptor) {
  const std::lock_guard calling(calling_);
  const std::lock_guard lock(mutex_);
  std::erase_if(sources_, [&](const Source& source) { return source.descriptor == descriptor; });
  wake();
}

void EventThread::call(int descriptor) {
  const std::lock_guard calling(calling_);
  std::shared_ptr<const std::function<bool()>> readable;
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::ranges::find(sources_, descriptor, &Source::descriptor);
    if (found == sources_.end()) return;
    readable = found->readable;
  }
  if ((*readable)()) return;
  const std::lock_guard lock(mutex_);
  std::erase_if(sources_, [&](const Source& source) { return source.readable == readable; });
}

void EventThread::run() {
  std::vector<pollfd> waiting;
  for (;;) {
    waiting.assign(1, {wake_, POLLIN, 0});
    {
      const std::lock_guard lock(mutex_);
      if (stop_) return;
      for (const Source& source : sources_) waiting.push_back({source.descriptor, POLLIN, 0});
    }
    if (::poll(waiting.data(), waiting.size(), -1) < 0) continue;
    std::uint64_t count = 0;
    if (waiting[0].revents != 0) [[maybe_unused]]
      const ssize_t got = ::read(wake_, &count, sizeof count);
    for (std::size_t i = 1; i < waiting.size(); ++i) {
      if (waiting[i].revents != 0) call(waiting[i].fd);
    }
  }
}

}  // namespace moonpool::transfer::rdma
