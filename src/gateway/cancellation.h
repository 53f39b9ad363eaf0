// How a client that goes away stops the work done for it: whatever the request waits on at that moment is aborted.
//
// A request has one Cancellation; each wait (connect, read, DNS, pause before a retry) enters itself for as long as it lasts. cancel()
// aborts the one that is entered and makes all later ones fail at once. Threads: all on the request's own. Ownership: the request's
// coroutine.
#pragma once

#include <utility>

namespace moonpool::gateway {

// Something that waits and can be told to stop: its wait then ends with an error, soon.
class Abortable {
 public:
  virtual void abort() = 0;

 protected:
  ~Abortable() = default;
};

class Cancellation {
 public:
  [[nodiscard]] bool cancelled() const { return cancelled_; }
  void cancel() {
    cancelled_ = true;
    if (waiting_ != nullptr) waiting_->abort();
  }

  class Scope {
   public:
    Scope(Cancellation& cancellation, Abortable& waiting)
        : cancellation_(cancellation), before_(std::exchange(cancellation.waiting_, &waiting)) {
      if (cancellation.cancelled_) waiting.abort();
    }
    ~Scope() { cancellation_.waiting_ = before_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Cancellation& cancellation_;
    Abortable* before_;
  };

 private:
  bool cancelled_ = false;
  Abortable* waiting_ = nullptr;
};

}  // namespace moonpool::gateway
