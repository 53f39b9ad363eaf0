// The streams and events of fake devices: a stream is a queue with a thread of its own, an event holds the point that its last record() put
// into a stream.
//
// Order is CUDA's: work of a stream runs one after the other, streams among each other have no order but by events, and a wait() is for the
// record() before it, whatever is recorded afterwards. An error ends a stream: its later work is accepted and skipped, the points behind it
// carry the error, and a stream that waits for such a point has it too. (With a GPU the whole context has ended, and calls say so at once.)
//
// Threads: any. Lifetime: the destructor ends all work, held work too, and joins all threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "transfer/cuda/driver/driver.h"

namespace moonpool::transfer::cuda {

class FakeStreams {
 public:
  using Work = std::function<Status()>;

  FakeStreams() = default;
  FakeStreams(const FakeStreams&) = delete;
  FakeStreams& operator=(const FakeStreams&) = delete;
  ~FakeStreams();

  [[nodiscard]] Stream create_stream(int device);
  [[nodiscard]] Event create_event(int device);
  // What is queued still runs. False: no such stream or event of this device.
  bool destroy(int device, Stream stream);
  bool destroy(int device, Event event);
  // False: no such stream (or event) of this device. The legacy default stream of each device is always there.
  [[nodiscard]] bool enqueue(int device, Stream stream, Work work);
  [[nodiscard]] bool record(int device, Event event, Stream stream);
  [[nodiscard]] bool wait(int device, Stream stream, Event event);
  // Nullopt: no such event. An event that was never recorded is done.
  [[nodiscard]] std::optional<Result<bool>> done(Event event);

  // Returns when what was queued before has ended. New streams are held too.
  void hold();
  void release();
  [[nodiscard]] std::uint64_t live_handles() const;

 private:
  struct Point {  // guarded by mutex_
    bool reached = false;
    Status error;
  };
  struct Item {  // one of the three
    Work run;
    std::shared_ptr<Point> reach;
    std::shared_ptr<Point> await;
  };
  struct Queue {  // guarded by mutex_
    explicit Queue(int of) : device(of) {}
    const int device;
    std::deque<Item> items;
    std::uint64_t queued = 0;
    std::uint64_t ended = 0;
    std::optional<std::uint64_t> last;  // held: no work behind this number starts
    bool closing = false;
    bool gone = false;  // its thread is about to end
    Status error;
    std::thread thread;
  };
  struct EventEntry {
    int device;
    std::shared_ptr<Point> last;  // null: never recorded
  };

  Queue* find(int device, Stream stream);  // with mutex_
  Queue& start(int device);                // with mutex_
  void push(Queue& queue, Item item);      // with mutex_
  void run(Queue& queue);
  void run_item(Queue& queue, Item item, std::unique_lock<std::mutex>& lock);
  void join_those_gone();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  std::uint64_t next_handle_ = 0x1000;
  std::list<Queue> queues_;
  std::map<std::uintptr_t, Queue*> streams_;  // by handle
  std::map<int, Queue*> default_streams_;     // by device
  std::map<std::uintptr_t, EventEntry> events_;
};

}  // namespace moonpool::transfer::cuda
