#include "gateway/testing/test_client.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace moonpool::gateway::testing {

namespace {
constexpr int kPatienceMs = 20'000;
}

TestClient::TestClient(std::uint16_t port, const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return;
  socket_ = ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (::connect(socket_, found->ai_addr, found->ai_addrlen) != 0) close();
  ::freeaddrinfo(found);
}

TestClient::~TestClient() { close(); }

void TestClient::close() {
  if (socket_ >= 0) ::close(socket_);
  socket_ = -1;
}

bool TestClient::send(std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

bool TestClient::send_request(std::string_view method, std::string_view target, std::string_view body, std::string_view fields) const {
  std::string text;
  text.append(method).append(" ").append(target).append(" HTTP/1.1\r\nHost: gateway\r\n").append(fields);
  if (method == "POST")
    text.append("Content-Type: application/json\r\nContent-Length: ").append(std::to_string(body.size())).append("\r\n");
  text.append("\r\n").append(body);
  return send(text);
}

bool TestClient::more() {
  pollfd waiting{socket_, POLLIN, 0};
  if (::poll(&waiting, 1, kPatienceMs) <= 0) return false;
  char buffer[16 * 1024];
  const ssize_t count = ::recv(socket_, buffer, sizeof(buffer), 0);
  if (count <= 0) return false;
  received_.append(buffer, static_cast<std::size_t>(count));
  return true;
}

std::optional<std::string> TestClient::take_line() {
  std::size_t end = 0;
  while ((end = received_.find("\r\n")) == std::string::npos) {
    if (!more()) return std::nullopt;
  }
  std::string line = received_.substr(0, end);
  received_.erase(0, end + 2);
  return line;
}

ClientAnswer TestClient::read_head() {
  ClientAnswer answer;
  const auto start = take_line();
  if (!start || start->size() < 12) return answer;
  for (;;) {
    const auto line = take_line();
    if (!line) return answer;
    if (line->empty()) break;
    const std::size_t colon = line->find(": ");
    std::string name = line->substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    answer.fields[name] = line->substr(colon + 2);
  }
  answer.status = static_cast<unsigned>(std::atoi(start->c_str() + 9));
  return answer;
}

std::optional<std::string> TestClient::read_chunk() {
  const auto size_line = take_line();
  if (!size_line) {
    ended_badly_ = true;
    return std::nullopt;
  }
  const std::size_t size = std::strtoull(size_line->c_str(), nullptr, 16);
  while (received_.size() < size + 2) {
    if (more()) continue;
    ended_badly_ = true;
    return std::nullopt;
  }
  std::string bytes = received_.substr(0, size);
  received_.erase(0, size + 2);
  if (size == 0) return std::nullopt;
  return bytes;
}

ClientAnswer TestClient::read_answer() {
  ClientAnswer answer = read_head();
  if (answer.status == 0 || answer.status == 100) return answer;
  if (answer.fields.contains("transfer-encoding")) {
    while (auto bytes = read_chunk()) answer.body += *bytes;
    answer.complete = !ended_badly_;
    return answer;
  }
  const auto length = answer.fields.find("content-length");
  if (length == answer.fields.end()) {
    while (more()) {
    }
    answer.body = std::move(received_);
    answer.complete = true;
    return answer;
  }
  const std::size_t wanted = std::strtoull(length->second.c_str(), nullptr, 10);
  while (received_.size() < wanted && more()) {
  }
  answer.complete = received_.size() >= wanted;
  answer.body = received_.substr(0, wanted);
  received_.erase(0, wanted);
  return answer;
}

ClientAnswer TestClient::request(std::string_view method, std::string_view target, std::string_view body, std::string_view fields) {
  if (!connected() || !send_request(method, target, body, fields)) return {};
  return read_answer();
}

bool TestClient::readable_within(int milliseconds) const {
  pollfd waiting{socket_, POLLIN, 0};
  return ::poll(&waiting, 1, milliseconds) > 0;
}

bool TestClient::sees_close() {
  pollfd waiting{socket_, POLLIN, 0};
  if (!received_.empty() || ::poll(&waiting, 1, kPatienceMs) <= 0) return false;
  char byte = 0;
  return ::recv(socket_, &byte, 1, 0) <= 0;
}

}  // namespace moonpool::gateway::testing
