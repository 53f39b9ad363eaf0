#include "gateway/worker.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <exception>

#include "base/logging.h"
#include "gateway/session.h"

namespace moonpool::gateway {

Worker::Worker(GatewayState& state, Resolver& resolver)
    : state_(state),
      pool_(context_.get_executor(), resolver, state.settings.timeouts.upstream_idle, state.settings.limits.idle_upstream_connections),
      sweep_timer_(context_.get_executor()) {}

Worker::~Worker() { stop_now(); }

void Worker::run() {
  asio::co_spawn(context_.get_executor(), sweep(), asio::detached);
  thread_ = std::thread([this] { context_.run(); });
}

void Worker::adopt(Socket socket) {
  auto client = std::make_shared<ClientConnection>(std::move(socket), state_.settings.timeouts);
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
  co_await run_session(client, state_, pool_);
}

Task<void> Worker::sweep() {
  for (;;) {
    sweep_timer_.expires_after(std::chrono::seconds(1));
    co_await sweep_timer_.async_wait(kAwait);
    pool_.sweep();
  }
}

void Worker::close_idle_clients() {
  asio::post(context_, [this] {
    for (ClientConnection* client : clients_) client->close_if_idle();
  });
}

void Worker::stop_now() {
  context_.stop();
  if (thread_.joinable()) thread_.join();
}

}  // namespace moonpool::gateway
