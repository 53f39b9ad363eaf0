#include "gateway/resolver.h"

#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <memory>
#include <optional>
#include <string>

#include "gateway/dns_client.h"

namespace moonpool::gateway {

namespace {

// The waiting side of one look-up. Shared with the look-up itself, which may end long after nobody waits any more.
template <typename Found>
struct Waiting final : Abortable {
  explicit Waiting(const Executor& executor) : timer(executor) {}
  void abort() override { timer.cancel(); }

  Timer timer;
  std::optional<Result<Found>> found;
};

// Runs `look_up` on the pool and waits for it, as long as the limit allows.
template <typename Found, typename LookUp>
Task<Result<Found>> run(asio::thread_pool& pool, std::string what, LookUp look_up, TimeLimit limit, Cancellation& cancellation) {
  const Executor executor = co_await asio::this_coro::executor;
  auto waiting = std::make_shared<Waiting<Found>>(executor);
  waiting->timer.expires_at(limit.deadline.time());
  asio::post(pool, [waiting, executor, look_up = std::move(look_up)] {
    Result<Found> found = look_up();
    asio::post(executor, [waiting, found = std::move(found)]() mutable {
      waiting->found = std::move(found);
      waiting->timer.cancel();
    });
  });
  {
    const Cancellation::Scope scope(cancellation, *waiting);
    if (!cancellation.cancelled()) co_await waiting->timer.async_wait(kAwait);
  }
  if (cancellation.cancelled()) co_return Status(ErrorCode::kCancelled, "the client went away");
  if (!waiting->found) {
    co_return Status(ErrorCode::kRpcTimeout, "resolving " + what + " took longer than " + limit.text() + ": check the name server");
  }
  co_return std::move(*waiting->found);
}

Result<std::vector<Endpoint>> system_look_up(asio::thread_pool& pool, const std::string& host, std::uint16_t port) {
  boost::system::error_code error;
  asio::ip::tcp::resolver resolver(pool);
  const auto found = resolver.resolve(host, std::to_string(port), asio::ip::tcp::resolver::numeric_service, error);
  std::vector<Endpoint> endpoints;
  for (const auto& entry : found) endpoints.push_back(entry.endpoint());
  if (error || endpoints.empty()) return Status(ErrorCode::kUnavailable, "cannot resolve " + host + ": " + error.message());
  return endpoints;
}

// A pause has nothing to find.
struct Pausing final : Abortable {
  explicit Pausing(const Executor& executor) : timer(executor) {}
  void abort() override { timer.cancel(); }
  Timer timer;
};

}  // namespace

Task<Result<std::vector<Endpoint>>> Resolver::resolve(const InstanceName& name, TimeLimit limit, Cancellation& cancellation) {
  if (name.is_literal()) {
    co_return std::vector<Endpoint>{Endpoint(asio::ip::make_address(name.host()), name.port())};
  }
  const auto look_up = [this, host = name.host(), port = name.port()] { return system_look_up(pool_, host, port); };
  co_return co_await run<std::vector<Endpoint>>(pool_, name.host(), look_up, limit, cancellation);
}

Task<Result<std::vector<InstanceName>>> Resolver::services(const std::string& name, const std::string& server, TimeLimit limit,
                                                           Cancellation& cancellation) {
  const auto look_up = [name, server, deadline = limit.deadline] { return look_up_services(name, server, deadline); };
  co_return co_await run<std::vector<InstanceName>>(pool_, name, look_up, limit, cancellation);
}

Task<void> pause(std::chrono::nanoseconds duration, Cancellation& cancellation) {
  Pausing waiting(co_await asio::this_coro::executor);
  waiting.timer.expires_after(duration);
  const Cancellation::Scope scope(cancellation, waiting);
  if (!cancellation.cancelled()) co_await waiting.timer.async_wait(kAwait);
}

}  // namespace moonpool::gateway
