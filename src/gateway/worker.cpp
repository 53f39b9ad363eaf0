#include "gateway/worker.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <exception>

#include "base/logging.h"
#include "gateway/session.h"

namespace moonpool::gateway {

Worker::Worker(GatewayState& state, Resolver& resolver)
    : state_(state),
      pool_(context_.get_executor(), resolver, state.settings().timeouts.upstream_idle, state.settings().limits.idle_upstream_connections,
            state.tls),
      sweep_timer_(context_.get_executor()) {}

Worker::~Worker() { stop_now(); }

void Worker::run() {
  asio::co_spawn(context_.get_executor(), sweep(), asio::detached);
  thread_ = std::thread([this] { loop(); });
}

// A thread that sleeps is woken some tens of microseconds after its event. So before it sleeps it looks on for a moment, as long as that
// has lately been worth it: a score goes up when something came meanwhile, down when nothing did. Real engines answer after milliseconds,
// so it soon stops there, and tries again now and then.
void Worker::loop() {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::microseconds kLook{40};
  constexpr int kBest = 64;
  constexpr int kTryEach = 256;
  int score = 0;
  int sleeps = 0;
  while (!context_.stopped()) {
    if (context_.poll() != 0) continue;
    if (score > 0 || ++sleeps % kTryEach == 0) {
      bool came = false;
      const auto until = Clock::now() + kLook;
      while (!came && !context_.stopped() && Clock::now() < until) {
        std::this_thread::yield();  // whoever else wants this core has it first
        came = context_.poll() != 0;
      }
      score = came ? std::min(score + 2, kBest) : std::max(score - 1, 0);
      if (came) continue;
    }
    context_.run_one();
  }
}

void Worker::adopt(Socket socket) {
  auto client = std::make_shared<ClientConnection>(std::move(socket), state_.settings().timeouts);
  asio::co_spawn(
      context_.get_executor(), [this, client]() mutable { return serve(std::move(client)); },
      [](const std::exception_ptr& thrown) {
        if (thrown == nullptr) return;
        try {
          std::rethrow_exception(thrown);
        } catch (const std::exception& error) {
          log::error("a client's connection was closed because of an unexpected error: {}", error.what());
        }
      });
}

Task<void> Worker::serve(std::shared_ptr<ClientConnection> client) {
  struct Registration {
    Registration(Worker& worker, ClientConnection& connection) : owner(worker), client(connection) {
      owner.clients_.insert(&client);
      owner.state_.counters.client_connections.fetch_add(1);
    }
    ~Registration() {
      owner.clients_.erase(&client);
      owner.state_.counters.client_connections.fetch_sub(1);
      owner.state_.counters.client_connections.notify_all();
    }
    Worker& owner;
    ClientConnection& client;
  };
  const Registration registration(*this, *client);
  if (TlsContext tls = state_.tls.server(); tls != nullptr) {
    const bool secured = co_await client->secure(std::move(tls));
    if (!secured) {
      client->close();
      co_return;
    }
  }
  co_await run_session(client, state_, pool_);
}

Task<void> Worker::sweep() {
  for (;;) {
    sweep_timer_.expires_after(std::chrono::seconds(1));
    co_await sweep_timer_.async_wait(kAwait);
    const Settings& settings = state_.settings();
    pool_.set_limits(settings.timeouts.upstream_idle, settings.limits.idle_upstream_connections);
    pool_.sweep();
  }
}

void Worker::close_idle_clients() {
  asio::post(context_, [this] {
    for (ClientConnection* client : clients_) client->close_if_idle();
  });
}

void Worker::interrupt_clients() {
  asio::post(context_, [this] {
    for (ClientConnection* client : clients_) client->interrupt();
  });
}

void Worker::stop_now() {
  context_.stop();
  if (thread_.joinable()) thread_.join();
}

}  // namespace moonpool::gateway
