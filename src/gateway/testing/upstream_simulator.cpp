#include "gateway/testing/upstream_simulator.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "gateway/testing/local_sockets.h"
#include "gateway/testing/simulated_answer.h"

namespace moonpool::gateway::testing {

namespace {

bool peer_closed(int socket) {
  pollfd waiting{socket, POLLIN | POLLRDHUP, 0};
  if (::poll(&waiting, 1, 10) <= 0) return false;
  char byte = 0;
  return ::recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0 || (waiting.revents & (POLLERR | POLLHUP | POLLRDHUP)) != 0;
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
  bool usable = true;
  if (const Behaviour now = peek(); now.point == Point::kAccepted) {
    go_wrong(socket, now.how, true, false);
    usable = false;
  }
  while (usable) {
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
  {
    const std::lock_guard lock(mutex_);
    if (request.target == "/health") status = health_status_;
    if (const auto own = pages_.find(request.target); own != pages_.end()) body = own->second;
  }
  return send_all(socket, simulated_head(status, "application/json", body.size()) + body);
}

namespace {

// The older names of the same things.
void translate(Behaviour& now, bool streamed) {
  const auto at = [&](Point point, How how) {
    now.point = point;
    now.how = how;
  };
  switch (now.fault) {
    case Fault::kCloseBeforeHead:
      return at(Point::kRequestRead, How::kClose);
    case Fault::kCloseInHead:
      return at(Point::kInHead, How::kClose);
    case Fault::kCloseInBody:
      return at(streamed ? Point::kHeadSent : Point::kInBody, How::kClose);
    case Fault::kCloseInStream:
      return at(streamed ? Point::kBetweenTokens : Point::kInBody, How::kClose);
    case Fault::kCloseInEvent:
      return at(Point::kInToken, How::kClose);
    case Fault::kStallBeforeHead:
      return at(Point::kRequestRead, How::kStall);
    case Fault::kStallInStream:
      return at(streamed ? Point::kBetweenTokens : Point::kInBody, How::kStall);
    case Fault::kGarbage:
      return at(Point::kRequestRead, How::kMalformed);
    default:
      return;
  }
}

}  // namespace

bool UpstreamSimulator::answer_completion(int socket, const SeenRequest& request) {
  Behaviour now = behaviour();
  const Job job = job_of(request, now.tokens);
  translate(now, job.streamed);
  if (now.fault == Fault::kStatus) {
    const std::string body =
        R"({"error":{"message":"simulated )" + std::to_string(now.status) + R"(","code":)" + std::to_string(now.status) + "}}";
    return send_all(socket, simulated_head(now.status, "application/json", body.size(), now.extra_fields) + body);
  }
  if (now.prefill_tokens_per_s > 0 && !pace(socket, static_cast<double>(request.body.size()) / 4 / now.prefill_tokens_per_s)) return false;
  const std::string id = (job.chat ? "chatcmpl-" : "cmpl-") + std::to_string(port_) + "-" + std::to_string(request.connection);
  const SimulatedAnswer says{job, now, id, model_, name()};
  if (job.streamed) return send_pieces(socket, says.stream_pieces(), now);
  if (now.fault == Fault::kUntilCloseCut) {
    const std::string body = says.plain_body();
    send_all(socket, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" + body.substr(0, body.size() / 2));
    return false;
  }
  return wait_for_token(socket) && send_pieces(socket, says.plain_pieces(), now);
}

bool UpstreamSimulator::send_pieces(int socket, const std::vector<Piece>& pieces, const Behaviour& now) {
  std::size_t sent = 0;
  const bool chunked = pieces[0].bytes.find("chunked") != std::string::npos;
  for (const Piece& piece : pieces) {
    const bool in_head = &piece == &pieces[0];
    if (piece.token && !wait_for_token(socket)) return false;
    if (piece.token && now.decode_tokens_per_s > 0 && !pace(socket, 1 / now.decode_tokens_per_s)) return false;
    const bool at_byte = now.point == Point::kByte && now.byte < sent + piece.bytes.size();
    const bool before = now.point != Point::kNowhere && piece.before == now.point;
    const bool within = now.point != Point::kNowhere && piece.within == now.point;
    if (before || within || at_byte) {
      const std::size_t part = at_byte ? now.byte - sent : within ? piece.bytes.size() / 2 : 0;
      send_all(socket, std::string_view(piece.bytes).substr(0, part));
      if (now.error_event) {
        send_all(socket, simulated_chunk(R"(data: {"error":{"message":"EngineCore died","type":"InternalServerError","code":500}})"
                                         "\n\n") +
                             simulated_chunk("data: [DONE]\n\n") + "0\r\n\r\n");
        return false;
      }
      go_wrong(socket, now.how, in_head, chunked);
      return false;
    }
    if (!send_all(socket, piece.bytes)) {
      abandoned_now();
      return false;
    }
    sent += piece.bytes.size();
  }
  return true;
}

void UpstreamSimulator::go_wrong(int socket, How how, bool in_head, bool chunked) {
  // A reset overtakes what was sent before it, and bytes that are no HTTP spoil what is read with them: that is to be read first.
  if (!in_head && (how == How::kReset || how == How::kMalformed) && !pace(socket, 0.03)) return;
  switch (how) {
    case How::kClose:
      return;
    case How::kReset: {
      const linger at_once{1, 0};
      ::setsockopt(socket, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
      return;
    }
    case How::kStall:
      return stall(socket);
    case How::kMalformed:
      send_all(socket, in_head ? std::string_view("\x16\x03\x01 this is not HTTP\r\n\r\n") : chunked ? "\r\nzz\r\n!" : "");
      return;
  }
}

bool UpstreamSimulator::pace(int socket, double seconds) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!stopping_) {
    const auto left = std::chrono::duration<double, std::milli>(until - std::chrono::steady_clock::now()).count();
    if (left <= 0) return true;
    pollfd waiting{socket, POLLIN | POLLRDHUP, 0};
    char byte = 0;
    if (::poll(&waiting, 1, std::min(50, static_cast<int>(left) + 1)) > 0 && ::recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0) {
      abandoned_now();
      return false;
    }
  }
  return false;
}

Behaviour UpstreamSimulator::peek() {
  const std::lock_guard lock(mutex_);
  return next_ ? *next_ : behaviour_;
}

void UpstreamSimulator::abandoned_now() {
  last_abandoned_ = std::chrono::steady_clock::now();
  ++abandoned_;
}

void UpstreamSimulator::stall(int socket) {
  ++stalled_;
  while (!stopping_) {
    if (!peer_closed(socket)) continue;
    if (!stopping_) abandoned_now();
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
    if (!stopping_) abandoned_now();
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

void UpstreamSimulator::set_page(const std::string& target, std::string body) {
  const std::lock_guard lock(mutex_);
  pages_[target] = std::move(body);
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
