// What the tests of this folder share: bare sockets that behave as no Lane or Server would.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <string>
#include <thread>
#include <vector>

#include "net/frame.h"
#include "net/handshake_steps.h"
#include "net/lane.h"
#include "net/server.h"
#include "net/socket.h"

namespace moonpool::net::test {

using std::chrono::milliseconds;
using std::chrono::seconds;

inline Deadline soon() { return Deadline::after(seconds(20)); }
inline Identity identity(std::string token = {}) { return {.node_id = NodeId::generate(), .token = std::move(token)}; }
inline std::unique_ptr<Lane> lane_to(std::uint16_t port, const Identity& self = identity()) {
  auto lane = Lane::connect({"127.0.0.1", port}, self, soon());
  EXPECT_TRUE(lane.ok()) << lane.status().to_string();
  return lane.ok() ? std::move(*lane) : nullptr;
}
inline milliseconds since(Deadline::Clock::time_point start) {
  return std::chrono::duration_cast<milliseconds>(Deadline::Clock::now() - start);
}
inline std::string as_text(std::span<const std::byte> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

// A connected socket with blocking calls, each bounded by 20 s.
class RawSocket {
 public:
  explicit RawSocket(UniqueFd fd) : fd_(std::move(fd)) {}
  static RawSocket connect(std::uint16_t port) {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    return RawSocket(std::move(fd));
  }

  bool send(const std::string& bytes) const {
    return ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  // Exactly `size` bytes, or fewer when the peer ends the stream first.
  [[nodiscard]] std::string read(std::size_t size) const {
    std::string bytes;
    while (bytes.size() < size && readable()) {
      std::string part(size - bytes.size(), '\0');
      const ssize_t got = ::recv(fd_.get(), part.data(), part.size(), 0);
      if (got <= 0) break;
      bytes.append(part, 0, static_cast<std::size_t>(got));
    }
    return bytes;
  }
  [[nodiscard]] bool ended() const { return readable() && read(1).empty(); }
  // One frame; its message is in `message`.
  [[nodiscard]] Result<FrameHeader> read_frame(std::string& message) const {
    const std::string bytes = read(kFrameHeaderSize);
    if (bytes.size() < kFrameHeaderSize) return Status(ErrorCode::kUnavailable, "the stream ended");
    auto header = decode(std::as_bytes(std::span(bytes)).first<kFrameHeaderSize>());
    if (header.ok()) message = read(header->message_length);
    return header;
  }
  void close() { fd_.reset(); }
  // Ends the connection with a reset, as a killed machine's kernel would.
  void reset() {
    const linger hard{1, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    fd_.reset();
  }

 private:
  [[nodiscard]] bool readable() const {
    pollfd entry{fd_.get(), POLLIN, 0};
    return ::poll(&entry, 1, 20000) == 1;
  }
  UniqueFd fd_;
};

// Listens and does nothing: the kernel accepts connections, nobody reads them unless accept() is called.
class RawListener {
 public:
  explicit RawListener(std::uint16_t port = 0) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    fd_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(fd_.get(), 16), 0);
  }
  [[nodiscard]] std::uint16_t port() const { return port_of(local_address_of(fd_.get())); }
  [[nodiscard]] RawSocket accept() const {
    pollfd entry{fd_.get(), POLLIN, 0};
    EXPECT_EQ(::poll(&entry, 1, 20000), 1);
    return RawSocket(UniqueFd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC)));
  }
  // accept() and the server's side of a handshake without a token.
  [[nodiscard]] RawSocket accept_lane() const {
    RawSocket socket = accept();
    std::string message;
    EXPECT_TRUE(socket.read_frame(message).ok());
    wire::HelloReply reply;
    reply.set_version(kWireVersion);
    reply.set_nonce(std::string(32, 'n'));
    reply.set_node_id(NodeId::generate().to_bytes());
    EXPECT_TRUE(socket.send(make_frame({.kind = FrameKind::kHello}, reply.SerializeAsString())));
    return socket;
  }

 private:
  UniqueFd fd_;
};

// A server on a free port of this host, with METHOD_PING answering `term`.
struct TestServer {
  explicit TestServer(ServerOptions options = {}, const Identity& self = identity()) : server(self, std::move(options)) {
    server.handle(wire::METHOD_PING, [](Request&) -> Task<Reply> {
      wire::PingReply reply;
      reply.set_term(7);
      co_return Reply(reply);
    });
  }
  std::uint16_t start() {
    const Status status = server.start();
    EXPECT_TRUE(status.ok()) << status.to_string();
    return server.port();
  }
  Server server;
};

// A bare socket that has shaken hands.
inline RawSocket shaken_socket(std::uint16_t port) {
  RawSocket socket = RawSocket::connect(port);
  const Identity self = identity();
  const ClientHandshake handshake(self, "the test's server");
  EXPECT_TRUE(socket.send(handshake.hello()));
  std::string message;
  EXPECT_TRUE(socket.read_frame(message).ok());
  return socket;
}

inline Status ping(Lane& lane, Deadline deadline = soon()) {
  wire::PingReply reply;
  Status status = lane.call(wire::METHOD_PING, wire::Empty(), reply, deadline);
  EXPECT_TRUE(!status.ok() || reply.term() == 7U);
  return status;
}

}  // namespace moonpool::net::test
