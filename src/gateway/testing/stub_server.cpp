#include "gateway/testing/stub_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>

#include "gateway/testing/local_sockets.h"

namespace moonpool::gateway::testing {

namespace {

// Head and body; false when the peer went away before.
bool read_request(int socket, StubRequest& request) {
  std::string received;
  std::size_t head_end = std::string::npos;
  std::size_t length = 0;
  for (;;) {
    if (head_end == std::string::npos) {
      head_end = received.find("\r\n\r\n");
      if (head_end != std::string::npos) {
        const std::string head = received.substr(0, head_end + 2);
        const std::size_t first_end = head.find("\r\n");
        const std::string first = head.substr(0, first_end);
        request.method = first.substr(0, first.find(' '));
        request.target = first.substr(request.method.size() + 1, first.rfind(' ') - request.method.size() - 1);
        for (std::size_t at = first_end + 2; at < head.size();) {
          const std::size_t end = head.find("\r\n", at);
          const std::string line = head.substr(at, end - at);
          std::string name = line.substr(0, line.find(':'));
          std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
          request.fields[name] = line.substr(std::min(line.size(), name.size() + 2));
          at = end + 2;
        }
        if (request.fields.contains("content-length")) length = std::stoul(request.fields["content-length"]);
      }
    }
    if (head_end != std::string::npos && received.size() >= head_end + 4 + length) break;
    char bytes[16384];
    const ssize_t count = ::recv(socket, bytes, sizeof(bytes), 0);
    if (count <= 0) return false;
    received.append(bytes, static_cast<std::size_t>(count));
  }
  request.body = received.substr(head_end + 4, length);
  return true;
}

}  // namespace

StubServer::StubServer(Handler handler, std::uint16_t port) : handler_(std::move(handler)), port_(port) {
  listener_ = listen_locally(port_);
  acceptor_ = std::thread([this] { accept_loop(); });
}

StubServer::~StubServer() {
  stopping_ = true;
  ::shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  ::close(listener_);
  {
    const std::lock_guard lock(mutex_);
    for (const int socket : sockets_) ::shutdown(socket, SHUT_RDWR);
  }
  for (auto& thread : threads_) thread.join();
}

void StubServer::accept_loop() {
  for (;;) {
    const int socket = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0 || stopping_) {
      if (socket >= 0) ::close(socket);
      return;
    }
    const std::lock_guard lock(mutex_);
    sockets_.insert(socket);
    threads_.emplace_back([this, socket] { serve(socket); });
  }
}

void StubServer::serve(int socket) {
  StubRequest request;
  if (read_request(socket, request)) {
    handler_(request, [&](std::string_view bytes) {
      while (!bytes.empty()) {
        const ssize_t sent = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent <= 0) return false;
        bytes.remove_prefix(static_cast<std::size_t>(sent));
      }
      // A peer that is gone shows here even when nothing is sent.
      char byte = 0;
      return ::recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0;
    });
  }
  const std::lock_guard lock(mutex_);
  sockets_.erase(socket);
  ::close(socket);
}

std::string StubServer::answer(unsigned status, std::string_view body, std::string_view extra_fields) {
  std::string text = "HTTP/1.1 " + std::to_string(status) + " Stub\r\nContent-Type: application/json\r\nConnection: close\r\n";
  text.append(extra_fields).append("Content-Length: ").append(std::to_string(body.size())).append("\r\n\r\n").append(body);
  return text;
}

std::string StubServer::chunk(std::string_view bytes) {
  char digits[20];
  std::snprintf(digits, sizeof(digits), "%zx\r\n", bytes.size());
  return digits + std::string(bytes) + "\r\n";
}

}  // namespace moonpool::gateway::testing
