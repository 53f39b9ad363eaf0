#include <boost/asio/execution_context.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <atomic>
#include <list>
#include <mutex>

#include "net/server.h"

namespace moonpool::net {
namespace asio = boost::asio;
namespace {

// The way into an io_context that may be going away: once its shutdown has begun, nothing is posted any more. Shared with every waiter,
// so that a notifier on another thread never touches a context that is being destroyed.
class Gate {
 public:
  explicit Gate(asio::io_context& context) : context_(&context) {}

  template <typename Function>
  void post(Function function) {
    const std::lock_guard lock(mutex_);
    if (context_ != nullptr) asio::post(*context_, std::move(function));
  }
  void close() {
    const std::lock_guard lock(mutex_);
    context_ = nullptr;
  }

 private:
  std::mutex mutex_;
  asio::io_context* context_;  // guarded by mutex_; null once closed
};

// Asio shuts its services down newest first and the scheduler last, so the gate closes before the queue that it leads to.
class GateService : public asio::execution_context::service {
 public:
  static inline asio::execution_context::id id;
  explicit GateService(asio::execution_context& context)
      : asio::execution_context::service(context), gate_(std::make_shared<Gate>(static_cast<asio::io_context&>(context))) {}
  ~GateService() override = default;
  void shutdown() override { gate_->close(); }
  [[nodiscard]] const std::shared_ptr<Gate>& gate() const { return gate_; }

 private:
  std::shared_ptr<Gate> gate_;
};

struct Waiter {
  Waiter(const asio::any_io_executor& executor, std::shared_ptr<Gate> way) : timer(executor), gate(std::move(way)) {}
  asio::steady_timer timer;  // touched on the waiter's thread only
  std::shared_ptr<Gate> gate;
};

}  // namespace

class AsyncEvent::Impl {
 public:
  using Waiters = std::list<std::shared_ptr<Waiter>>;

  [[nodiscard]] std::uint64_t epoch() const { return epoch_.load(); }

  void notify_all() {
    // Sequentially consistent with enlist(): either the waiter is counted here, or it sees the new epoch there.
    epoch_.fetch_add(1);
    if (waiting_.load() == 0) return;
    const std::lock_guard lock(mutex_);
    for (const auto& waiter : waiters_) waiter->gate->post([waiter] { waiter->timer.cancel(); });
  }

  Waiters::iterator enlist(const std::shared_ptr<Waiter>& waiter) {
    waiting_.fetch_add(1);
    const std::lock_guard lock(mutex_);
    return waiters_.insert(waiters_.end(), waiter);
  }
  void leave(Waiters::iterator place) {
    waiting_.fetch_sub(1);
    const std::lock_guard lock(mutex_);
    waiters_.erase(place);
  }

 private:
  std::atomic<std::uint64_t> epoch_{0};
  std::atomic<std::uint32_t> waiting_{0};
  std::mutex mutex_;
  Waiters waiters_;  // guarded by mutex_
};

AsyncEvent::AsyncEvent() : impl_(std::make_shared<Impl>()) {}
AsyncEvent::~AsyncEvent() = default;
std::uint64_t AsyncEvent::epoch() const { return impl_->epoch(); }
void AsyncEvent::notify_all() { impl_->notify_all(); }

namespace {
// On the list for as long as the coroutine's frame lives, which may end by destruction when its server stops.
template <typename Impl>
class Enlisted {
 public:
  Enlisted(Impl& impl, const std::shared_ptr<Waiter>& waiter) : impl_(impl), place_(impl.enlist(waiter)) {}
  ~Enlisted() { impl_.leave(place_); }
  Enlisted(const Enlisted&) = delete;
  Enlisted& operator=(const Enlisted&) = delete;

 private:
  Impl& impl_;
  typename Impl::Waiters::iterator place_;
};
}  // namespace

Task<bool> AsyncEvent::wait(std::uint64_t seen, Deadline deadline) {
  const std::shared_ptr<Impl> impl = impl_;  // the event itself may go before its last waiter has left
  if (impl->epoch() != seen) co_return true;
  const auto executor = co_await asio::this_coro::executor;
  auto& context = static_cast<asio::io_context&>(executor.context());
  const auto waiter = std::make_shared<Waiter>(executor, asio::use_service<GateService>(context).gate());
  const Enlisted<Impl> enlisted(*impl, waiter);
  while (impl->epoch() == seen && !deadline.expired()) {
    waiter->timer.expires_at(deadline.time());
    boost::system::error_code ignored;
    co_await waiter->timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  co_return impl->epoch() != seen;
}

}  // namespace moonpool::net
