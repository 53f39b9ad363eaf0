#include "gateway/resolver.h"

#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <memory>

namespace moonpool::gateway {

namespace {

// The waiting side of one look-up. Shared with the look-up itself, which may end long after nobody waits any more.
struct Waiting final : Abortable {
  explicit Waiting(const Executor& executor) : timer(executor) {}
  void abort() override { timer.cancel(); }

  Timer timer;
  bool done = false;
  boost::system::error_code error;
  std::vector<Endpoint> endpoints;
};

}  // namespace

Task<Result<std::vector<Endpoint>>> Resolver::resolve(const InstanceName& name, TimeLimit limit, Cancellation& cancellation) {
  if (name.is_literal()) {
    co_return std::vector<Endpoint>{Endpoint(asio::ip::make_address(name.host()), name.port())};
  }
  const Executor executor = co_await asio::this_coro::executor;
  auto waiting = std::make_shared<Waiting>(executor);
  waiting->timer.expires_at(limit.deadline.time());
  asio::post(pool_, [this, waiting, executor, host = name.host(), port = name.port()] {
    boost::system::error_code error;
    asio::ip::tcp::resolver resolver(pool_);
    const auto found = resolver.resolve(host, std::to_string(port), asio::ip::tcp::resolver::numeric_service, error);
    std::vector<Endpoint> endpoints;
    for (const auto& entry : found) endpoints.push_back(entry.endpoint());
    asio::post(executor, [waiting, error, endpoints = std::move(endpoints)]() mutable {
      waiting->done = true;
      waiting->error = error;
      waiting->endpoints = std::move(endpoints);
      waiting->timer.cancel();
    });
  });
  {
    const Cancellation::Scope scope(cancellation, *waiting);
    if (!cancellation.cancelled()) co_await waiting->timer.async_wait(kAwait);
  }
  if (cancellation.cancelled()) co_return Status(ErrorCode::kCancelled, "the client went away");
  if (!waiting->done) {
    co_return Status(ErrorCode::kRpcTimeout, "resolving " + name.host() + " took longer than " + limit.text() + ": check the name server");
  }
  if (waiting->error || waiting->endpoints.empty()) {
    co_return Status(ErrorCode::kUnavailable, "cannot resolve " + name.host() + ": " + waiting->error.message());
  }
  co_return std::move(waiting->endpoints);
}

Task<void> pause(std::chrono::nanoseconds duration, Cancellation& cancellation) {
  Waiting waiting(co_await asio::this_coro::executor);
  waiting.timer.expires_after(duration);
  const Cancellation::Scope scope(cancellation, waiting);
  if (!cancellation.cancelled()) co_await waiting.timer.async_wait(kAwait);
}

}  // namespace moonpool::gateway
