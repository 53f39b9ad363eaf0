// The static upstream of the gateway's benchmark: answers as a vLLM does, with nothing behind it.
//
//   gateway_upstream          prints its port and serves until it is killed or its parent ends
//
// POST: one answer with usage and kv_transfer_params or, with "stream": true, `max_tokens` events. How far apart they are, in microseconds,
// is taken from `seed`, a field that every proxy passes on; with none or 0, all are sent at once. The text of each is the time at which it
// was written. GET /health and /v1/models are what routers ask for. One thread.
#include <deque>
#include <queue>
#include <vector>

#include "http_bench.h"

namespace {

using namespace moonpool::bench;

constexpr std::string_view kAnswer =
    R"({"id":"chatcmpl-bench","object":"chat.completion","created":1,"model":"bench","choices":[{"index":0,"message":{"role":"assistant",)"
    R"("content":"whole answer"},"text":"whole answer","logprobs":null,"finish_reason":"stop"}],)"
    R"("usage":{"prompt_tokens":256,"total_tokens":264,"completion_tokens":8},)"
    R"("kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[1,2,3,4,5,6,7,8],)"
    R"("remote_engine_id":"4bfa0b5e-7a3c-4c3a-9c55-0d6c1a3d7d4e","remote_host":"127.0.0.1","remote_port":5600,"tp_size":1}})";
constexpr std::string_view kModels =
    R"({"object":"list","data":[{"id":"bench","object":"model","created":1,"owned_by":"vllm","max_model_len":32768}]})";
constexpr std::string_view kStreamHead =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
constexpr std::string_view kEvent =
    R"(data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench","choices":[{"index":0,"delta":{"content":")"
    "0000000000000000000"
    R"("},"logprobs":null,"finish_reason":null}]})"
    "\n\n";
constexpr std::string_view kStreamEnd =
    R"(data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]})"
    "\n\ndata: [DONE]\n\n";

std::string chunk(std::string_view data) {
  char size[20];
  const int digits = std::snprintf(size, sizeof size, "%zx\r\n", data.size());
  return std::string(size, static_cast<std::size_t>(digits)).append(data).append("\r\n");
}

std::string whole(std::string_view body) {
  return "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
         std::string(body);
}

// The number behind "name": in a JSON text that was written by our load generator, perhaps by another serializer since.
std::size_t member(std::string_view body, std::string_view name) {
  const std::size_t at = body.find(name);
  if (at == std::string_view::npos) return 0;
  std::string_view value = body.substr(at + name.size());
  while (value.starts_with(' ') || value.starts_with(':')) value.remove_prefix(1);
  if (value.starts_with("true")) return 1;
  return number(value).value_or(0);
}

struct Connection {
  int socket = -1;
  std::uint32_t generation = 0;
  bool waits_to_write = false;
  std::size_t tokens_left = 0;
  Nanoseconds interval = 0;
  std::string in;
  std::string out;
};

struct Due {
  Nanoseconds time;
  std::uint32_t connection;
  std::uint32_t generation;
  bool operator>(const Due& other) const { return time > other.time; }
};

class Upstream {
 public:
  Upstream() {
    sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    if (::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(listener_, 4096) != 0) fail("listen");
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    std::printf("%u\n", ntohs(address.sin_port));
    std::fflush(stdout);
    epoll_.add(listener_, kListener);
    stamp_at_ = event_.find("0000000000000000000");
  }

  [[noreturn]] void serve() {
    for (;;) {
      const Nanoseconds until = due_.empty() ? now() + kSecond : due_.top().time;
      for (const epoll_event& event : epoll_.wait(until)) {
        if (event.data.u32 == kListener) {
          accept_all();
          continue;
        }
        Connection& connection = connections_[event.data.u32];
        if (connection.socket < 0) continue;
        if ((event.events & EPOLLOUT) != 0) flush(event.data.u32);
        if ((event.events & ~EPOLLOUT) != 0) receive(event.data.u32);
      }
      send_due_tokens();
    }
  }

 private:
  static constexpr std::uint32_t kListener = 0xFFFFFFFF;

  void accept_all() {
    for (int socket = accept_one(); socket >= 0; socket = accept_one()) {
      set_no_delay(socket);
      std::uint32_t index = static_cast<std::uint32_t>(connections_.size());
      if (free_.empty()) {
        connections_.emplace_back();
      } else {
        index = free_.back();
        free_.pop_back();
      }
      connections_[index].socket = socket;
      epoll_.add(socket, index);
    }
  }
  [[nodiscard]] int accept_one() const { return ::accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC); }

  void close(std::uint32_t index) {
    Connection& connection = connections_[index];
    ::close(connection.socket);
    const std::uint32_t generation = connection.generation + 1;
    connection = Connection{};
    connection.generation = generation;
    free_.push_back(index);
  }

  void receive(std::uint32_t index) {
    Connection& connection = connections_[index];
    const ssize_t count = ::recv(connection.socket, buffer_.data(), buffer_.size(), 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0) return close(index);
    connection.in.append(buffer_.data(), static_cast<std::size_t>(count));
    const std::uint32_t generation = connection.generation;
    while (connection.generation == generation && connection.tokens_left == 0 && take_request(index)) {
    }
  }

  // Answers the request at the beginning of `in`. False when it is not all there.
  bool take_request(std::uint32_t index) {
    Connection& connection = connections_[index];
    const std::size_t end = connection.in.find("\r\n\r\n");
    if (end == std::string::npos) return false;
    const std::string_view head = std::string_view(connection.in).substr(0, end + 2);
    if (!field(head, "transfer-encoding:").empty()) {
      std::fprintf(stderr, "the upstream takes no chunked request\n");
      close(index);
      return false;
    }
    const std::size_t length = number(field(head, "content-length:")).value_or(0);
    if (connection.in.size() < end + 4 + length) return false;
    const std::string_view body = std::string_view(connection.in).substr(end + 4, length);
    if (head.starts_with("POST")) {
      ++posts_;
      if (body.find("4bfa0b5e-7a3c-4c3a") != std::string_view::npos) ++with_parameters_;
      complete(index, body);
    } else if (head.starts_with("GET /counts")) {
      connection.out += whole("[" + std::to_string(posts_) + "," + std::to_string(with_parameters_) + "]");
    } else {
      connection.out += head.starts_with("GET /v1/models") ? models_ : healthy_;
    }
    connection.in.erase(0, end + 4 + length);
    flush(index);
    return true;
  }

  void complete(std::uint32_t index, std::string_view body) {
    Connection& connection = connections_[index];
    if (member(body, "\"stream\"") == 0) {
      connection.out += answer_;
      return;
    }
    connection.out += kStreamHead;
    connection.tokens_left = std::max<std::size_t>(1, member(body, "\"max_tokens\""));
    connection.interval = static_cast<Nanoseconds>(member(body, "\"seed\"")) * 1000;
    if (connection.interval == 0) {
      while (connection.tokens_left > 0) add_token(connection);
    } else {
      add_token(connection);
      plan(index, now() + connection.interval);
    }
  }

  void plan(std::uint32_t index, Nanoseconds time) {
    if (connections_[index].tokens_left > 0) due_.push({time, index, connections_[index].generation});
  }

  void add_token(Connection& connection) {
    std::snprintf(digits_, sizeof digits_, "%0*lld", static_cast<int>(kStampDigits), static_cast<long long>(now()));
    event_.replace(stamp_at_, kStampDigits, digits_, kStampDigits);
    connection.out += event_;
    if (--connection.tokens_left == 0) connection.out += stream_end_;
  }

  void send_due_tokens() {
    while (!due_.empty() && due_.top().time <= now()) {
      const Due due = due_.top();
      due_.pop();
      Connection& connection = connections_[due.connection];
      if (connection.generation != due.generation) continue;
      add_token(connection);
      plan(due.connection, due.time + connection.interval);
      flush(due.connection);
    }
  }

  void flush(std::uint32_t index) {
    Connection& connection = connections_[index];
    if (connection.out.empty() && !connection.waits_to_write) return;
    const ssize_t sent = ::send(connection.socket, connection.out.data(), connection.out.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return close(index);
    connection.out.erase(0, static_cast<std::size_t>(std::max<ssize_t>(sent, 0)));
    if (connection.waits_to_write == !connection.out.empty()) return;
    connection.waits_to_write = !connection.out.empty();
    epoll_.change(connection.socket, connection.waits_to_write ? EPOLLIN | EPOLLOUT : EPOLLIN, index);
  }

  Epoll epoll_;
  int listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  std::deque<Connection> connections_;
  std::vector<std::uint32_t> free_;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  std::vector<char> buffer_ = std::vector<char>(65536);
  std::string event_ = chunk(kEvent);
  std::string stream_end_ = chunk(kStreamEnd) + "0\r\n\r\n";
  std::string answer_ = whole(kAnswer);
  std::string models_ = whole(kModels);
  std::string healthy_ = whole("{}");
  std::size_t stamp_at_ = 0;
  std::size_t posts_ = 0;
  std::size_t with_parameters_ = 0;
  char digits_[kStampDigits + 1];
};

}  // namespace

int main() {
  prepare_process();
  Upstream upstream;
  upstream.serve();
}
