#include "net/http_client.h"

#include <boost/asio/error.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <list>
#include <mutex>
#include <optional>
#include <utility>
#include <variant>

#include "net/deadline_socket.h"
#include "net/http_url.h"

namespace moonpool::net {

namespace {

namespace http = boost::beast::http;

constexpr std::uint32_t kMaxHeaderBytes = 64U << 10;

struct Failure {
  Status status;
  bool peer_closed_idle;  // the connection ended before any byte of an answer: what a kept connection of a restarted server does
};

struct Answer {
  HttpResponse response;
  bool keep_alive;
};

ErrorCode code_of(const boost::system::error_code& error) {
  if (error == boost::asio::error::timed_out) return ErrorCode::kRpcTimeout;
  if (error == http::error::body_limit || error == http::error::header_limit) return ErrorCode::kBufferOverflow;
  if (error == http::error::end_of_stream || error == http::error::partial_message) return ErrorCode::kUnavailable;
  if (error.category() == http::make_error_code(http::error::bad_version).category()) return ErrorCode::kProtocol;
  return ErrorCode::kUnavailable;
}

std::string explain(const boost::system::error_code& error, const HttpClientOptions& options) {
  switch (code_of(error)) {
    case ErrorCode::kRpcTimeout:
      return "no whole answer before the deadline: the server is stopped, overloaded or unreachable; check it, or allow more time";
    case ErrorCode::kBufferOverflow:
      return "the answer is larger than the limit of " + std::to_string(options.max_body_bytes) +
             " bytes: check that the URL is the right one";
    case ErrorCode::kProtocol:
      return "the answer is not HTTP (" + error.message() + "): check that the port belongs to an HTTP server";
    default:
      return "the connection broke (" + error.message() + "): check that the server still runs";
  }
}

HttpResponse to_response(http::response<http::string_body>&& message) {
  HttpResponse response{static_cast<int>(message.result_int()), {}, std::move(message.body())};
  for (const auto& field : message.base()) {
    response.headers.emplace_back(std::string(field.name_string()), std::string(field.value()));
  }
  response.content_type = find_header(response.headers, "Content-Type").value_or("");
  return response;
}

bool is_token(std::string_view text) {
  return !text.empty() &&
         text.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == std::string_view::npos;
}

// One exchange over `socket`, whose deadline is set.
std::variant<Answer, Failure> exchange(DeadlineSocket& socket, const http::request<http::string_body>& request,
                                       const HttpClientOptions& options) {
  boost::system::error_code error;
  http::write(socket, request, error);
  // A server that refuses a large body answers and closes before it has read it all: the answer is worth more than the broken pipe.
  const bool cut_short = error == boost::system::errc::broken_pipe || error == boost::system::errc::connection_reset;
  if (error && !cut_short) return Failure{Status(code_of(error), explain(error, options)), false};

  http::response_parser<http::string_body> parser;
  parser.header_limit(kMaxHeaderBytes);
  parser.body_limit(options.max_body_bytes);
  if (request.method() == http::verb::head) parser.skip(true);
  boost::beast::flat_buffer buffer;
  http::read(socket, buffer, parser, error);
  if (error) {
    const bool closed = error == http::error::end_of_stream || error == boost::system::errc::connection_reset || cut_short;
    return Failure{Status(code_of(error), explain(error, options)), closed && !parser.got_some()};
  }
  const bool keep_alive = parser.get().keep_alive() && buffer.size() == 0 && !cut_short;
  return Answer{to_response(parser.release()), keep_alive};
}

}  // namespace

class HttpClient::Impl {
 public:
  explicit Impl(HttpClientOptions options) : options_(options) {}

  [[nodiscard]] bool may_repeat(std::string_view method) const { return method != "POST" || options_.repeat_posts; }

  Result<HttpResponse> request(const HttpUrl& url, const http::request<http::string_body>& message, bool repeatable, Deadline deadline) {
    for (;;) {
      auto kept = take_idle(url.endpoint);
      const bool reused = kept.has_value();
      if (!reused) {
        auto fresh = DeadlineSocket::connect(url.endpoint, deadline);
        if (!fresh) return fresh.status();
        kept = std::move(*fresh);
      }
      kept->set_deadline(deadline);
      auto outcome = exchange(*kept, message, options_);
      if (auto* answer = std::get_if<Answer>(&outcome)) {
        if (answer->keep_alive) give_back(url.endpoint, std::move(*kept));
        return std::move(answer->response);
      }
      auto& failure = std::get<Failure>(outcome);
      if (!(reused && repeatable && failure.peer_closed_idle)) return std::move(failure.status);
    }
  }

 private:
  struct Idle {
    Endpoint endpoint;
    DeadlineSocket socket;
  };

  std::optional<DeadlineSocket> take_idle(const Endpoint& endpoint) {
    const std::lock_guard lock(mutex_);
    for (auto it = idle_.begin(); it != idle_.end();) {
      if (it->endpoint != endpoint) {
        ++it;
        continue;
      }
      auto socket = std::move(it->socket);
      it = idle_.erase(it);
      if (socket.quiet()) return socket;
    }
    return std::nullopt;
  }

  void give_back(const Endpoint& endpoint, DeadlineSocket socket) {
    const std::lock_guard lock(mutex_);
    idle_.push_front(Idle{endpoint, std::move(socket)});
    while (idle_.size() > options_.max_idle_connections) idle_.pop_back();
  }

  const HttpClientOptions options_;
  std::mutex mutex_;      // guards idle_
  std::list<Idle> idle_;  // the latest used first
};

HttpClient::HttpClient(HttpClientOptions options) : impl_(std::make_unique<Impl>(options)) {}
HttpClient::~HttpClient() = default;
HttpClient::HttpClient(HttpClient&&) noexcept = default;
HttpClient& HttpClient::operator=(HttpClient&&) noexcept = default;

Result<HttpResponse> HttpClient::request(std::string_view method, std::string_view url, std::string_view body, const HttpHeaders& headers,
                                         Deadline deadline) {
  const auto start = Deadline::Clock::now();
  const auto failed = [&](const Status& status) {
    const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(Deadline::Clock::now() - start).count();
    return Status(status.code(),
                  std::string(method) + " " + redact_url(url) + " failed after " + std::to_string(waited) + " ms: " + status.message());
  };
  auto parsed = parse_http_url(url);
  if (!parsed) return parsed.status();
  if (!is_token(method)) return Status(ErrorCode::kInvalidParams, "not an HTTP method: '" + redact_url(method) + "'");

  http::request<http::string_body> message;
  message.version(11);
  message.method_string(method);
  message.target(parsed->target);
  try {
    message.set(http::field::host, parsed->endpoint.to_string());
    for (const auto& [name, value] : headers) {
      // A line break in a value would let it become a header of its own.
      if (!is_token(name) || value.find_first_of(std::string_view("\r\n\0", 3)) != std::string::npos) {
        return failed(Status(ErrorCode::kInvalidParams, "the header '" + redact_url(name) + "' has a character that HTTP does not allow"));
      }
      message.set(name, value);
    }
    message.body() = body;
    message.prepare_payload();
    // prepare_payload() leaves the length out of a body-less request; some servers want it of a PUT or POST.
    if (body.empty() && (method == "PUT" || method == "POST")) message.content_length(0);
    auto response = impl_->request(*parsed, message, impl_->may_repeat(method), deadline);
    if (!response) return failed(response.status());
    return response;
  } catch (const std::exception& error) {  // Beast throws for a header or body beyond its own limits
    return failed(Status(ErrorCode::kInvalidParams, error.what()));
  }
}

Result<HttpResponse> HttpClient::get(std::string_view url, Deadline deadline) { return request("GET", url, {}, {}, deadline); }

}  // namespace moonpool::net
