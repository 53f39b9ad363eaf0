#include "net/server.h"

#include <sys/socket.h>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <mutex>
#include <thread>

#include "base/logging.h"
#include "net/server_connection.h"
#include "net/server_loop.h"
#include "net/socket.h"

namespace moonpool::net {
namespace asio = boost::asio;
namespace {

constexpr std::chrono::seconds kResolveTime{5};
constexpr std::chrono::milliseconds kAcceptPause{100};
// Of connections beyond the limit, so many at once are told why; more are closed without a word.
constexpr std::size_t kMaxRefusals = 64;

// Dropping is late by at most one tick; a quarter of the shortest bound keeps that in proportion.
std::chrono::milliseconds tick_of(const ServerOptions& options) {
  std::chrono::milliseconds shortest = std::min(options.handshake_timeout, options.stall_timeout);
  if (options.idle_timeout.count() > 0) shortest = std::min(shortest, options.idle_timeout);
  return std::clamp(shortest / 4, std::chrono::milliseconds(5), std::chrono::milliseconds(250));
}

}  // namespace

class Server::Impl {
 public:
  Impl(Identity self, ServerOptions options) {
    shared_.self = std::move(self);
    shared_.options = std::move(options);
  }

  void handle(wire::Method method, Handler handler) { shared_.handlers[method].waiting = std::move(handler); }
  void handle_quickly(wire::Method method, QuickHandler handler) { shared_.handlers[method].quick = std::move(handler); }
  void on_closed(std::function<void(const Session&)> callback) { shared_.on_closed.push_back(std::move(callback)); }
  [[nodiscard]] std::uint16_t port() const { return port_.load(); }

  Status start();
  void stop();

 private:
  Status start_threads();
  void stop_threads();
  Status bind();
  [[nodiscard]] Status bind_failure(const std::string& where, const ListenError& error) const;
  void await_connection();
  void accept_all();
  void accept_later();
  void deal(UniqueFd fd);
  void run_loop(ServerLoop& loop, std::barrier<>& all_stopped);

  ServerShared shared_;
  std::mutex mutex_;  // guards start() and stop() against each other
  std::atomic<std::uint16_t> port_{0};
  std::vector<std::unique_ptr<ServerLoop>> loops_;
  std::vector<std::thread> threads_;
  std::unique_ptr<std::barrier<>> all_stopped_;
  // On the first loop's thread.
  UniqueFd listener_;
  std::optional<asio::posix::stream_descriptor> acceptor_;
  std::optional<asio::steady_timer> accept_timer_;
  std::size_t next_loop_ = 0;
  std::atomic<std::size_t> refusals_{0};
};

Status Server::Impl::bind_failure(const std::string& where, const ListenError& error) const {
  if (error.error == EADDRINUSE) {
    return Status(ErrorCode::kUnavailable, "cannot listen on " + where +
                                               ": another process holds the port (see who with: ss -ltnp 'sport = :" +
                                               where.substr(where.rfind(':') + 1) + "'); stop it or choose another port");
  }
  const char* advice = error.error == EADDRNOTAVAIL ? "; the address is not one of this host's"
                       : error.error == EACCES      ? "; ports below 1024 need privileges"
                                                    : "";
  return Status(ErrorCode::kUnavailable, "cannot listen on " + where + ": " + error.step + ": " + errno_text(error.error) + advice);
}

Status Server::Impl::bind() {
  const ServerOptions& options = shared_.options;
  const auto addresses = resolve(Endpoint{options.host, options.port}, Deadline::after(kResolveTime));
  if (!addresses.ok()) return Status(addresses.code(), "cannot listen: " + addresses.status().message());
  const SocketAddress& address = addresses->front();
  std::uint32_t first = options.port;
  std::uint32_t last = options.port;
  if (options.port == 0) {
    first = options.first_port;
    last = std::max(options.first_port, options.last_port);
  }
  ListenError error;
  for (std::uint32_t port = first; port <= last; ++port) {
    listener_ = listen_on(with_port(address, static_cast<std::uint16_t>(port)), error);
    if (listener_ || error.error != EADDRINUSE) break;
  }
  if (listener_) {
    port_ = port_of(local_address_of(listener_.get()));
    return Status();
  }
  if (first != last && error.error == EADDRINUSE) {
    return Status(ErrorCode::kUnavailable, "cannot listen on " + options.host + ": all ports from " + std::to_string(first) + " to " +
                                               std::to_string(last) + " are taken (see by whom with: ss -ltnp); widen the range");
  }
  return bind_failure(Endpoint{options.host, static_cast<std::uint16_t>(first)}.to_string(), error);
}

Status Server::Impl::start() {
  const std::lock_guard lock(mutex_);
  if (!loops_.empty()) return Status(ErrorCode::kInternal, "the server was started before");
  MOONPOOL_RETURN_IF_ERROR(bind());
  return start_threads();
}

Status Server::Impl::start_threads() {
  const std::size_t count = std::max<std::size_t>(1, shared_.options.threads);
  try {
    for (std::size_t i = 0; i < count; ++i) loops_.push_back(std::make_unique<ServerLoop>(tick_of(shared_.options)));
    asio::io_context& first = loops_.front()->context();
    acceptor_.emplace(first, listener_.get());
    static_cast<void>(listener_.release());
    accept_timer_.emplace(first);
    await_connection();
    all_stopped_ = std::make_unique<std::barrier<>>(static_cast<std::ptrdiff_t>(count));
    for (auto& loop : loops_) threads_.emplace_back([this, &loop] { run_loop(*loop, *all_stopped_); });
  } catch (const std::exception& e) {
    // Those that did start would wait at the barrier for those that did not.
    for (std::size_t i = threads_.size(); all_stopped_ && i < count; ++i) all_stopped_->arrive_and_drop();
    stop_threads();
    return Status(ErrorCode::kInternal, std::string("cannot start the server's threads: ") + e.what());
  }
  return Status();
}

void Server::Impl::run_loop(ServerLoop& loop, std::barrier<>& all_stopped) {
  loop.run();
  // No loop goes away while another may still deal connections to it.
  all_stopped.arrive_and_wait();
  if (&loop == loops_.front().get()) {
    acceptor_.reset();
    accept_timer_.reset();
  }
  loop.destroy();
}

void Server::Impl::stop() {
  const std::lock_guard lock(mutex_);
  stop_threads();
}

void Server::Impl::stop_threads() {
  if (threads_.empty()) return;
  for (auto& loop : loops_) loop->context().stop();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Server::Impl::await_connection() {
  acceptor_->async_wait(asio::posix::stream_descriptor::wait_read, [this](const boost::system::error_code& error) {
    if (!error) accept_all();
  });
}

void Server::Impl::accept_later() {
  accept_timer_->expires_after(kAcceptPause);
  accept_timer_->async_wait([this](const boost::system::error_code& error) {
    if (!error) accept_all();
  });
}

void Server::Impl::accept_all() {
  while (true) {
    UniqueFd fd(::accept4(acceptor_->native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd) {
      deal(std::move(fd));
      continue;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) return await_connection();
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      std::uint64_t left_out = 0;
      if (shared_.stranger_lines.allow(left_out)) {
        log::error("net: port {} cannot accept connections: {}; raise the limit of open files (ulimit -n)", port(), errno_text(errno));
      }
      return accept_later();
    }
    // Anything else is about that one connection (reset before it was accepted).
  }
}

void Server::Impl::deal(UniqueFd fd) {
  configure_connection(fd.get());
  const bool refuse = shared_.connections.load() >= shared_.options.max_connections;
  if (refuse && refusals_.load() >= kMaxRefusals) return;
  auto& counter = refuse ? refusals_ : shared_.connections;
  counter.fetch_add(1);
  ServerLoop& loop = *loops_[next_loop_++ % loops_.size()];
  asio::post(loop.context(), [this, &loop, refuse, fd = std::move(fd)]() mutable {
    try {
      auto connection = std::make_unique<Connection>(loop, shared_, std::move(fd), refuse);
      asio::co_spawn(loop.context(), Connection::serve(std::move(connection)), [this, refuse](const std::exception_ptr&) {
        if (refuse) refusals_.fetch_sub(1);
      });
    } catch (const std::exception& e) {
      (refuse ? refusals_ : shared_.connections).fetch_sub(1);
      log::error("net: a new connection could not be served: {}", e.what());
    }
  });
}

Server::Server(Identity self, ServerOptions options) : impl_(std::make_unique<Impl>(std::move(self), std::move(options))) {}
Server::~Server() { impl_->stop(); }
void Server::handle(wire::Method method, Handler handler) { impl_->handle(method, std::move(handler)); }
void Server::handle_quickly(wire::Method method, QuickHandler handler) { impl_->handle_quickly(method, std::move(handler)); }
void Server::on_closed(std::function<void(const Session&)> callback) { impl_->on_closed(std::move(callback)); }
Status Server::start() { return impl_->start(); }
void Server::stop() { impl_->stop(); }
std::uint16_t Server::port() const { return impl_->port(); }

}  // namespace moonpool::net
