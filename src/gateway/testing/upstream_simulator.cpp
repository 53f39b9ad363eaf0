#include "gateway/testing/upstream_simulator.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <cstdlib>
#include <stdexcept>

namespace moonpool::gateway::testing {

namespace {

bool send_all(int socket, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

bool peer_closed(int socket) {
  pollfd waiting{socket, POLLIN | POLLRDHUP, 0};
  if (::poll(&waiting, 1, 10) <= 0) return false;
  char byte = 0;
  return ::recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0 || (waiting.revents & (POLLERR | POLLHUP)) != 0;
}

int listen_on(const std::string& host, std::uint16_t& port) {
  const bool v6 = host.find(':') != std::string::npos;
  const int socket = ::socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;
  ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  sockaddr_storage address{};
  socklen_t size = 0;
  if (v6) {
    auto* in6 = reinterpret_cast<sockaddr_in6*>(&address);
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(port);
    ::inet_pton(AF_INET6, host.c_str(), &in6->sin6_addr);
    size = sizeof(*in6);
  } else {
    auto* in = reinterpret_cast<sockaddr_in*>(&address);
    in->sin_family = AF_INET;
    in->sin_port = htons(port);
    ::inet_pton(AF_INET, host.c_str(), &in->sin_addr);
    size = sizeof(*in);
  }
  if (::bind(socket, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(socket, 256) != 0) {
    throw std::runtime_error("the simulator cannot listen on " + host + ":" + std::to_string(port));
  }
  ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size);
  port = ntohs(v6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
  return socket;
}

std::string head(unsigned status, std::string_view type, std::size_t length, std::string_view extra = {}) {
  return "HTTP/1.1 " + std::to_string(status) + " Simulated\r\nServer: simulator\r\n" + std::string(extra) +
         "Content-Type: " + std::string(type) + "\r\nContent-Length: " + std::to_string(length) + "\r\n\r\n";
}

std::string chunk(const std::string& bytes) {
  char size[20];
  std::snprintf(size, sizeof(size), "%zx\r\n", bytes.size());
  return size + bytes + "\r\n";
}

std::string event(const std::string& token) { return R"(data: {"choices":[{"text":")" + token + "\"}]}\n\n"; }

bool wants_stream(const std::string& body) {
  boost::system::error_code error;
  const auto document = boost::json::parse(body, error);
  if (error || !document.is_object()) return false;
  const auto* stream = document.get_object().if_contains("stream");
  return stream != nullptr && stream->is_bool() && stream->get_bool();
}

}  // namespace

UpstreamSimulator::UpstreamSimulator(std::string model, std::string host) : model_(std::move(model)), host_(std::move(host)) { start(); }

UpstreamSimulator::~UpstreamSimulator() { stop(); }

std::string UpstreamSimulator::name() const {
  return (host_.find(':') == std::string::npos ? host_ : "[" + host_ + "]") + ":" + std::to_string(port_);
}

void UpstreamSimulator::start() {
  stopping_ = false;
  listener_ = listen_on(host_, port_);
  acceptor_ = std::thread([this, listener = listener_] { accept_loop(listener); });
}

void UpstreamSimulator::stop() {
  if (!acceptor_.joinable()) return;
  stopping_ = true;
  ::shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  ::close(listener_);
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    for (const int socket : sockets_) ::shutdown(socket, SHUT_RDWR);
    threads.swap(threads_);
    changed_.notify_all();
  }
  for (auto& thread : threads) thread.join();
}

void UpstreamSimulator::accept_loop(int listener) {
  for (;;) {
    const int socket = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) return;
    const int yes = 1;
    ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    const int number = ++connections_;
    const std::lock_guard lock(mutex_);
    sockets_.insert(socket);
    threads_.emplace_back([this, socket, number] { serve(socket, number); });
  }
}

void UpstreamSimulator::serve(int socket, int number) {
  std::string received;
  for (;;) {
    SeenRequest request;
    request.connection = number;
    {
      const std::lock_guard lock(mutex_);
      idle_.insert(socket);
    }
    if (!read_request(socket, received, request)) break;
    {
      const std::lock_guard lock(mutex_);
      seen_.push_back(request);
    }
    if (!answer(socket, request)) break;
  }
  const std::lock_guard lock(mutex_);
  sockets_.erase(socket);
  idle_.erase(socket);
  ::close(socket);
}

bool UpstreamSimulator::read_request(int socket, std::string& received, SeenRequest& request) {
  const auto more = [&] {
    char buffer[16 * 1024];
    const ssize_t count = ::recv(socket, buffer, sizeof(buffer), 0);
    if (count <= 0) return false;
    const std::lock_guard lock(mutex_);
    idle_.erase(socket);
    received.append(buffer, static_cast<std::size_t>(count));
    return true;
  };
  std::size_t end = 0;
  while ((end = received.find("\r\n\r\n")) == std::string::npos) {
    if (!more()) return false;
  }
  std::string text = received.substr(0, end + 2);
  received.erase(0, end + 4);
  const std::size_t first = text.find("\r\n");
  const std::string line = text.substr(0, first);
  request.method = line.substr(0, line.find(' '));
  request.target = line.substr(line.find(' ') + 1, line.rfind(' ') - line.find(' ') - 1);
  for (std::size_t at = first + 2; at < text.size();) {
    const std::size_t stop_at = text.find("\r\n", at);
    const std::size_t colon = text.find(':', at);
    std::string field = text.substr(at, colon - at);
    std::transform(field.begin(), field.end(), field.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    request.fields[field] = text.substr(colon + 2, stop_at - colon - 2);
    at = stop_at + 2;
  }
  const auto length = request.fields.find("content-length");
  const std::size_t wanted = length == request.fields.end() ? 0 : std::strtoull(length->second.c_str(), nullptr, 10);
  while (received.size() < wanted) {
    if (!more()) return false;
  }
  request.body = received.substr(0, wanted);
  received.erase(0, wanted);
  return true;
}

bool UpstreamSimulator::answer(int socket, const SeenRequest& request) {
  if (request.target.starts_with("/v1/") && request.method == "POST") return answer_completion(socket, request);
  std::string body = "{}";
  unsigned status = 200;
  if (request.target == "/v1/models") body = R"({"object":"list","data":[{"id":")" + model_ + R"(","object":"model"}]})";
  if (request.target == "/health") {
    const std::lock_guard lock(mutex_);
    status = health_status_;
  }
  return send_all(socket, head(status, "application/json", body.size()) + body);
}

bool UpstreamSimulator::answer_completion(int socket, const SeenRequest& request) {
  const Behaviour now = behaviour();
  switch (now.fault) {
    case Fault::kStatus: {
      const std::string body =
          R"({"error":{"message":"simulated )" + std::to_string(now.status) + R"(","code":)" + std::to_string(now.status) + "}}";
      return send_all(socket, head(now.status, "application/json", body.size(), now.extra_fields) + body);
    }
    case Fault::kCloseBeforeHead:
      return false;
    case Fault::kCloseInHead:
      send_all(socket, "HTTP/1.1 200 OK\r\nContent-Ty");
      return false;
    case Fault::kGarbage:
      send_all(socket, "\x16\x03\x01 this is not HTTP\r\n\r\n");
      return false;
    case Fault::kStallBeforeHead:
      stall(socket);
      return false;
    default:
      break;
  }
  if (wants_stream(request.body)) return answer_stream(socket, now);
  std::string joined;
  for (const auto& token : now.tokens) joined += token;
  const std::string body = R"({"object":"text_completion","served_by":")" + name() + R"(","choices":[{"text":")" + joined + "\"}]}";
  if (now.fault == Fault::kUntilCloseCut) {
    send_all(socket, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" + body.substr(0, body.size() / 2));
    return false;
  }
  const std::string answer_head = head(200, "application/json", body.size(), now.extra_fields);
  if (now.fault == Fault::kCloseInBody || now.fault == Fault::kCloseInStream) {
    send_all(socket, answer_head + body.substr(0, body.size() / 2));
    return false;
  }
  if (now.fault == Fault::kStallInStream) {
    send_all(socket, answer_head + body.substr(0, body.size() / 2));
    stall(socket);
    return false;
  }
  if (!wait_for_token(socket)) return false;
  return send_all(socket, answer_head + body);
}

bool UpstreamSimulator::answer_stream(int socket, const Behaviour& now) {
  if (!send_all(socket, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n" + now.extra_fields +
                            "Transfer-Encoding: chunked\r\n\r\n")) {
    return false;
  }
  if (now.fault == Fault::kCloseInBody) return false;
  std::size_t sent = 0;
  for (const auto& token : now.tokens) {
    if (sent++ == now.tokens_before_fault) {
      if (now.fault == Fault::kCloseInStream) return false;
      if (now.fault == Fault::kCloseInEvent) {
        send_all(socket, chunk(R"(data: {"choices":[{"te)"));
        return false;
      }
      if (now.fault == Fault::kStallInStream) {
        stall(socket);
        return false;
      }
    }
    if (!wait_for_token(socket)) return false;
    if (!send_all(socket, chunk(event(token)))) {
      ++abandoned_;
      return false;
    }
  }
  if (now.fault != Fault::kEndWithoutDone && !send_all(socket, chunk("data: [DONE]\n\n"))) return false;
  return send_all(socket, "0\r\n\r\n");
}

void UpstreamSimulator::stall(int socket) {
  while (!stopping_) {
    if (!peer_closed(socket)) continue;
    if (!stopping_) ++abandoned_;
    return;
  }
}

bool UpstreamSimulator::wait_for_token(int socket) {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, std::chrono::milliseconds(5), [&] { return !holding_ || tokens_released_ > 0 || stopping_; });
      if (stopping_) return false;
      if (!holding_) return true;
      if (tokens_released_ > 0) {
        --tokens_released_;
        return true;
      }
    }
    if (!peer_closed(socket)) continue;
    if (!stopping_) ++abandoned_;
    return false;
  }
}

Behaviour UpstreamSimulator::behaviour() {
  const std::lock_guard lock(mutex_);
  if (!next_) return behaviour_;
  Behaviour once = std::move(*next_);
  next_.reset();
  return once;
}

void UpstreamSimulator::set(Behaviour behaviour) {
  const std::lock_guard lock(mutex_);
  behaviour_ = std::move(behaviour);
}

void UpstreamSimulator::set_next(Behaviour behaviour) {
  const std::lock_guard lock(mutex_);
  next_ = std::move(behaviour);
}

void UpstreamSimulator::set_health_status(unsigned status) {
  const std::lock_guard lock(mutex_);
  health_status_ = status;
}

void UpstreamSimulator::hold_tokens() {
  const std::lock_guard lock(mutex_);
  holding_ = true;
  tokens_released_ = 0;
}

void UpstreamSimulator::release_tokens(int count) {
  const std::lock_guard lock(mutex_);
  tokens_released_ += count;
  changed_.notify_all();
}

void UpstreamSimulator::close_idle_connections() {
  const std::lock_guard lock(mutex_);
  for (const int socket : idle_) ::shutdown(socket, SHUT_RDWR);
}

std::vector<SeenRequest> UpstreamSimulator::completions() const {
  auto requests = all();
  std::erase_if(requests, [](const SeenRequest& request) { return request.method != "POST"; });
  return requests;
}

std::vector<SeenRequest> UpstreamSimulator::all() const {
  const std::lock_guard lock(mutex_);
  return seen_;
}

}  // namespace moonpool::gateway::testing
