#include "net/http_server.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/logging.h"
#include "net/http_url.h"

namespace moonpool::net {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

// After a refusal, what the peer is still sending is read for so long and so far: closing at once would make the kernel reset the
// connection, and the peer would never see why.
constexpr std::chrono::milliseconds kLingerTime{1000};
constexpr std::size_t kLingerBytes = 1U << 20;
constexpr std::chrono::milliseconds kAcceptPause{100};  // after an error of accept, such as too many open files

auto into(error_code& error) { return asio::redirect_error(asio::use_awaitable, error); }

// Asio leaves it out; a program that this process starts would otherwise keep the port.
void close_on_exec(int fd) { ::fcntl(fd, F_SETFD, FD_CLOEXEC); }

tcp::endpoint to_asio(const SocketAddress& address) {
  tcp::endpoint endpoint;
  endpoint.resize(address.length);
  std::memcpy(endpoint.data(), &address.storage, address.length);
  return endpoint;
}

std::string text_of(const tcp::endpoint& endpoint) { return Endpoint{endpoint.address().to_string(), endpoint.port()}.to_string(); }

Status bind_error(const Endpoint& wanted, const error_code& error) {
  std::string advice = "check the host";
  if (error == asio::error::address_in_use) {
    advice = "another process listens there: stop it (ss -ltnp shows which) or choose another port";
  } else if (error == asio::error::access_denied) {
    advice = "ports below 1024 need privileges: choose a higher port";
  } else if (error == boost::system::errc::address_not_available) {
    advice = "this machine has no such address: use one of its own (ip address shows them)";
  }
  return Status(ErrorCode::kUnavailable, "cannot listen on " + wanted.to_string() + ": " + error.message() + ": " + advice);
}

http::response<http::string_body> to_beast(HttpResponse&& response, unsigned version, bool keep_alive, bool head) {
  http::response<http::string_body> message;
  message.version(version);
  message.result(static_cast<unsigned>(response.status));
  message.set(http::field::content_type, response.content_type);
  for (const auto& [name, value] : response.headers) message.set(name, value);
  const auto length = response.body.size();
  if (!head) message.body() = std::move(response.body);
  message.keep_alive(keep_alive);
  message.content_length(length);
  return message;
}

HttpResponse refusal(int status, std::string text) { return {.status = status, .body = std::move(text) + "\n"}; }

// What a request that could not be parsed is answered with; nullopt where there is nobody to answer.
std::optional<HttpResponse> refusal_for(const error_code& error, const HttpServerOptions& options) {
  if (error == http::error::end_of_stream || error == http::error::partial_message) return std::nullopt;
  if (error == http::error::header_limit) {
    return refusal(431, "the request line and headers are larger than " + std::to_string(options.max_header_bytes) + " bytes");
  }
  if (error == http::error::body_limit) return refusal(413, "the body is larger than " + std::to_string(options.max_body_bytes) + " bytes");
  if (error.category() == http::make_error_code(http::error::bad_version).category()) {
    return refusal(400, "not an HTTP/1.1 request: " + error.message());
  }
  return std::nullopt;
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const HttpServerOptions& options, HttpHandler handler) : options_(options), handler_(std::move(handler)) {}
  ~Impl() { stop(); }

  Status listen() {
    const Endpoint wanted{options_.host, options_.port};
    auto addresses = resolve(wanted, Deadline::after(options_.resolve_timeout));
    if (!addresses) return Status(addresses.code(), "cannot listen on " + wanted.to_string() + ": " + addresses.status().message());
    port_ = options_.port;
    error_code last;
    for (const auto& address : *addresses) {
      auto endpoint = to_asio(address);
      endpoint.port(port_);
      last = add_acceptor(endpoint);
      // A name may have an address of a family that this machine has switched off; all other trouble is the caller's to know.
      const bool absent = last == boost::system::errc::address_not_available || last == boost::system::errc::address_family_not_supported;
      if (last && !absent) return bind_error(wanted, last);
    }
    if (acceptors_.empty()) return bind_error(wanted, last);
    return {};
  }

  void run() {
    for (auto& acceptor : acceptors_) asio::co_spawn(*context_, accept(acceptor), asio::detached);
    for (std::size_t i = 0; i < std::max<std::size_t>(options_.threads, 1); ++i) {
      threads_.emplace_back([context = context_.get()] { context->run(); });
    }
  }

  void stop() {
    const std::lock_guard lock(stop_mutex_);
    if (!context_) return;
    context_->stop();
    for (auto& thread : threads_) thread.join();
    acceptors_.clear();
    context_.reset();  // with it the coroutines that wait, and so their sockets
  }

  [[nodiscard]] std::uint16_t port() const { return port_; }

 private:
  error_code add_acceptor(const tcp::endpoint& endpoint) {
    tcp::acceptor acceptor(*context_);
    error_code error;
    acceptor.open(endpoint.protocol(), error);
    if (!error) close_on_exec(acceptor.native_handle());
    if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
    if (!error && endpoint.protocol() == tcp::v6()) acceptor.set_option(asio::ip::v6_only(true), error);
    if (!error) acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (error) return error;
    port_ = acceptor.local_endpoint(error).port();
    acceptors_.push_back(std::move(acceptor));
    return error;
  }

  asio::awaitable<void> accept(tcp::acceptor& acceptor) {
    for (;;) {
      error_code error;
      tcp::socket socket(asio::make_strand(*context_));
      co_await acceptor.async_accept(socket, into(error));
      if (!error) {
        close_on_exec(socket.native_handle());
        auto executor = socket.get_executor();
        asio::co_spawn(executor, serve(beast::tcp_stream(std::move(socket))), asio::detached);
        continue;
      }
      if (!acceptor.is_open()) co_return;
      log::warning("http server on port {}: accept failed ({}); pausing {} ms", port_, error.message(), kAcceptPause.count());
      asio::steady_timer timer(*context_, kAcceptPause);
      co_await timer.async_wait(into(error));
    }
  }

  asio::awaitable<void> serve(beast::tcp_stream stream) {
    const Connection counted(connections_);
    error_code error;
    const auto remote = stream.socket().remote_endpoint(error);
    const auto peer = error ? std::string("unknown peer") : text_of(remote);
    stream.socket().set_option(tcp::no_delay(true), error);
    if (counted.number > options_.max_connections) {
      co_await refuse(stream, refusal(503, "too many connections"));
      co_return;
    }
    beast::flat_buffer buffer;
    while (co_await serve_one(stream, buffer, peer)) {
    }
  }

  // One request and its response; false when the connection is over.
  asio::awaitable<bool> serve_one(beast::tcp_stream& stream, beast::flat_buffer& buffer, const std::string& peer) {
    error_code error;
    http::request_parser<http::string_body> parser;
    parser.header_limit(options_.max_header_bytes);
    parser.body_limit(options_.max_body_bytes);
    stream.expires_after(options_.idle_timeout);
    co_await http::async_read_header(stream, buffer, parser, into(error));
    if (!error && beast::iequals(parser.get()[http::field::expect], "100-continue")) {
      http::response<http::empty_body> go_on(http::status::continue_, parser.get().version());
      co_await http::async_write(stream, go_on, into(error));
    }
    if (!error && !parser.is_done()) co_await http::async_read(stream, buffer, parser, into(error));
    if (error) {
      if (auto answer = refusal_for(error, options_)) {
        log::debug("http server on port {}: {} from {}", port_, error.message(), peer);
        co_await refuse(stream, std::move(*answer));
      }
      co_return false;
    }
    const auto message = parser.release();
    auto response = to_beast(handle(message, peer), message.version(), message.keep_alive(), message.method() == http::verb::head);
    stream.expires_after(options_.idle_timeout);
    co_await http::async_write(stream, response, into(error));
    co_return !error && response.keep_alive();
  }

  HttpResponse handle(const http::request<http::string_body>& message, const std::string& peer) {
    auto target = parse_request_target(message.target());
    if (!target) return refusal(400, target.status().message());
    HttpRequest request{std::string(message.method_string()), std::move(target->path), std::move(target->query), {}, message.body(), peer};
    for (const auto& field : message.base()) request.headers.emplace_back(std::string(field.name_string()), std::string(field.value()));
    try {
      return handler_(request);
    } catch (const std::exception& error) {
      log::error("http server on port {}: the handler of {} {} failed: {}", port_, request.method, redact_url(request.path), error.what());
      return refusal(500, "internal error: see the server's log");
    }
  }

  asio::awaitable<void> refuse(beast::tcp_stream& stream, HttpResponse response) {
    error_code error;
    auto message = to_beast(std::move(response), 11, false, false);
    stream.expires_after(kLingerTime);
    co_await http::async_write(stream, message, into(error));
    stream.socket().shutdown(tcp::socket::shutdown_send, error);
    std::array<char, 4096> rest;
    for (std::size_t drained = 0; !error && drained < kLingerBytes;) {
      drained += co_await stream.async_read_some(asio::buffer(rest), into(error));
    }
  }

  struct Connection {
    explicit Connection(std::atomic<std::size_t>& all) : all(all), number(++all) {}
    ~Connection() { --all; }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
    std::atomic<std::size_t>& all;
    const std::size_t number;
  };

  const HttpServerOptions options_;
  const HttpHandler handler_;
  std::uint16_t port_ = 0;
  std::atomic<std::size_t> connections_{0};
  std::unique_ptr<asio::io_context> context_ = std::make_unique<asio::io_context>();
  std::vector<tcp::acceptor> acceptors_;
  std::mutex stop_mutex_;  // one stop() at a time
  std::vector<std::thread> threads_;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

Result<std::unique_ptr<HttpServer>> HttpServer::start(const HttpServerOptions& options, HttpHandler handler) {
  try {
    auto impl = std::make_unique<Impl>(options, std::move(handler));
    MOONPOOL_RETURN_IF_ERROR(impl->listen());
    impl->run();
    return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
  } catch (const std::exception& error) {
    return Status(ErrorCode::kInternal, "cannot start the http server on " + options.host + ": " + error.what());
  }
}

std::uint16_t HttpServer::port() const { return impl_->port(); }
void HttpServer::stop() { impl_->stop(); }

}  // namespace moonpool::net
