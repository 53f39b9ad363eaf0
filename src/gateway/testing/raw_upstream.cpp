#include "gateway/testing/raw_upstream.h"

#include <arpa/inet.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "gateway/testing/local_sockets.h"

namespace moonpool::gateway::testing {

namespace {

std::string lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return result;
}

bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
  });
}

}  // namespace

RawUpstream::RawUpstream() : answer_(json_answer("{}")) {
  listener_ = listen_locally(port_);
  acceptor_ = std::thread([this] { accept_loop(); });
}

RawUpstream::~RawUpstream() {
  ::shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  ::close(listener_);
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    for (const int socket : sockets_) ::shutdown(socket, SHUT_RDWR);
    threads.swap(threads_);
  }
  for (auto& thread : threads) thread.join();
}

void RawUpstream::accept_loop() {
  for (int number = 1;; ++number) {
    const int socket = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) return;
    const std::lock_guard lock(mutex_);
    sockets_.insert(socket);
    threads_.emplace_back([this, socket, number] { serve(socket, number); });
  }
}

void RawUpstream::serve(int socket, int number) {
  std::string received;
  std::size_t whole = 0;
  for (;;) {
    const std::size_t head = received.find("\r\n\r\n");
    whole = std::string::npos;
    if (head != std::string::npos) {
      const std::string fields = lower(received.substr(0, head + 2));
      const std::size_t length = fields.find("\r\ncontent-length:");
      whole = head + 4 + (length == std::string::npos ? 0 : std::strtoull(fields.c_str() + length + 17, nullptr, 10));
    }
    if (received.size() < whole) {
      char buffer[16 * 1024];
      const ssize_t count = ::recv(socket, buffer, sizeof(buffer), 0);
      if (count <= 0) break;
      received.append(buffer, static_cast<std::size_t>(count));
      continue;
    }
    const std::string request = received.substr(0, whole);
    received.erase(0, whole);
    if (request.starts_with("GET /health ") || request.starts_with("GET /v1/models HTTP/1.1\r\nHost: " + name() + "\r\n\r\n")) {
      send_all(socket, json_answer(R"({"object":"list","data":[{"id":"m"}]})"));
      ++health_checks_;
      continue;
    }
    std::string answer;
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back({number, request});
      answer = answer_;
    }
    send_all(socket, answer);
  }
  const std::lock_guard lock(mutex_);
  if (!received.empty()) requests_.push_back({number, received});  // the beginning of another: bytes that nobody should have sent
  sockets_.erase(socket);
  ::close(socket);
}

void RawUpstream::answer_with(std::string bytes) {
  const std::lock_guard lock(mutex_);
  answer_ = std::move(bytes);
}

void RawUpstream::send_to_all(std::string_view bytes) const {
  const std::lock_guard lock(mutex_);
  for (const int socket : sockets_) {
    send_all(socket, bytes);
    // Until the other side's kernel has it, which on some machines is a moment later.
    for (int left = 1; left > 0 && ::ioctl(socket, SIOCOUTQ, &left) == 0;) std::this_thread::yield();
  }
}

std::vector<RawUpstream::Received> RawUpstream::requests() const {
  const std::lock_guard lock(mutex_);
  return requests_;
}

std::string json_answer(std::string_view body, std::string_view fields) {
  return "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + std::string(fields) + "Content-Length: " + std::to_string(body.size()) +
         "\r\n\r\n" + std::string(body);
}

bool is_one_request(std::string_view bytes, std::string_view body, std::string& why_not) {
  const auto fail = [&](std::string why) {
    why_not = std::move(why);
    return false;
  };
  const std::size_t head = bytes.find("\r\n\r\n");
  if (head == std::string_view::npos) return fail("its head does not end");
  if (bytes.substr(head + 4) != body) return fail("its body is another");
  int hosts = 0;
  int lengths = 0;
  bool first = true;
  for (std::size_t at = 0; at <= head;) {
    const std::size_t end = bytes.find("\r\n", at);
    const std::string_view line = bytes.substr(at, end - at);
    at = end + 2;
    for (const char c : line) {
      if (static_cast<unsigned char>(c) < ' ' || c == 0x7F) return fail("a control character in " + std::string(line));
    }
    if (std::exchange(first, false)) {
      if (std::count(line.begin(), line.end(), ' ') != 2 || !line.ends_with(" HTTP/1.1")) return fail("a bad request line");
      continue;
    }
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) return fail("a bad field name in " + std::string(line));
    const std::string name = lower(line.substr(0, colon));
    hosts += name == "host" ? 1 : 0;
    if (name == "transfer-encoding") return fail("it has a Transfer-Encoding");
    if (name != "content-length") continue;
    ++lengths;
    if (line.substr(colon + 1) != " " + std::to_string(body.size())) return fail("its length is another");
  }
  if (hosts != 1) return fail("it has not one Host");
  return lengths == 1 || (lengths == 0 && body.empty()) ? true : fail("it has not one Content-Length");
}

}  // namespace moonpool::gateway::testing
