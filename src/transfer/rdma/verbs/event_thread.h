// The one thread that hears what NICs say on their own account: ports that go up and down, queue pairs that break, peers that connect
// through rdma_cm. It sleeps in poll(2) until one of its descriptors can be read.
//
// Ownership: shared by all NICs of the process; the last one's end joins it. Threads: add() and remove() from any, but not from a callback.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace moonpool::transfer::rdma {

class EventThread {
 public:
  static std::shared_ptr<EventThread> shared();
  ~EventThread();
  EventThread(const EventThread&) = delete;
  EventThread& operator=(const EventThread&) = delete;

  // `readable` is called on the thread whenever `descriptor` can be read; it must not block. Once it has returned false (the descriptor is
  // dead) it is not called again.
  void add(int descriptor, std::function<bool()> readable);
  // When it has returned, the callback neither runs nor will again.
  void remove(int descriptor);

 private:
  struct Source {
    int descriptor = -1;
    std::shared_ptr<const std::function<bool()>> readable;
  };

  EventThread();
  void run();
  void wake() const;
  // Runs the callback of a descriptor, if it is still there.
  void call(int descriptor);

  int wake_ = -1;  // eventfd
  std::mutex mutex_;
  std::vector<Source> sources_;
  bool stop_ = false;
  std::mutex calling_;  // held during callbacks, so that remove() can wait for them; taken before mutex_
  std::thread thread_;
};

}  // namespace moonpool::transfer::rdma
