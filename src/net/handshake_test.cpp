#include <gtest/gtest.h>

#include "net/handshake_steps.h"
#include "net/net_test_support.h"

namespace moonpool::net::test {
namespace {

wire::Hello sample_hello() {
  wire::Hello hello;
  hello.set_min_version(1);
  hello.set_max_version(1);
  hello.set_node_id(NodeId::generate().to_bytes());
  hello.set_nonce(std::string(32, 'c'));
  return hello;
}

std::string hello_frame(const google::protobuf::MessageLite& message) {
  return make_frame({.kind = FrameKind::kHello}, message.SerializeAsString());
}

// What a server says to this first frame: the code of its error frame, or ok.
Status greet(std::uint16_t port, const wire::Hello& hello) {
  const RawSocket peer = RawSocket::connect(port);
  EXPECT_TRUE(peer.send(hello_frame(hello)));
  std::string message;
  const auto header = peer.read_frame(message);
  if (!header.ok()) return header.status();
  return header->kind == FrameKind::kError ? status_of_error_frame(std::as_bytes(std::span(message))) : Status();
}

TEST(HandshakeTest, TheSameTokenOrNoneOnBothSidesConnects) {
  for (const std::string& token : {std::string(), std::string("s3cret"), std::string(200, 'x')}) {
    TestServer test({}, identity(token));
    const auto lane = lane_to(test.start(), identity(token));
    ASSERT_NE(lane, nullptr);
    EXPECT_TRUE(ping(*lane).ok());
  }
}

TEST(HandshakeTest, BothSidesLearnTheOthersNode) {
  const Identity server_identity = identity();
  const Identity client_identity = identity();
  Server server(server_identity, {});
  NodeId seen;
  server.handle(wire::METHOD_PING, [&](Request& request) -> Task<Reply> {
    seen = request.session()->peer_node();
    co_return Reply(wire::PingReply());
  });
  ASSERT_TRUE(server.start().ok());
  const auto lane = lane_to(server.port(), client_identity);
  EXPECT_EQ(lane->peer_node(), server_identity.node_id);
  wire::PingReply reply;
  ASSERT_TRUE(lane->call(wire::METHOD_PING, wire::Empty(), reply, soon()).ok());
  EXPECT_EQ(seen, client_identity.node_id);
}

TEST(HandshakeTest, EveryMismatchOfTokensIsRefusedAndSaysWhoseFaultItIs) {
  const struct {
    const char* server;
    const char* client;
    const char* text;
  } cases[] = {{"right", "wrong", "does not know this process's cluster token"},
               {"right", "", "the client has none"},
               {"", "right", "does not ask for the token that you configured"}};
  for (const auto& c : cases) {
    TestServer test({}, identity(c.server));
    const auto lane = Lane::connect({"127.0.0.1", test.start()}, identity(c.client), soon());
    ASSERT_EQ(lane.code(), ErrorCode::kUnauthenticated) << c.text;
    EXPECT_NE(lane.status().message().find(c.text), std::string::npos) << lane.status().message();
    EXPECT_EQ(lane.status().message().find("right"), std::string::npos) << "a token must not be in an error";
  }
}

TEST(HandshakeTest, AClientThatCannotProveTheTokenIsRefused) {
  TestServer test({}, identity("right"));
  const std::uint16_t port = test.start();
  const RawSocket peer = RawSocket::connect(port);
  wire::Hello hello = sample_hello();
  hello.set_has_token(true);
  ASSERT_TRUE(peer.send(hello_frame(hello)));
  std::string message;
  ASSERT_EQ(peer.read_frame(message)->kind, FrameKind::kHello);
  wire::HelloReply reply;
  ASSERT_TRUE(reply.ParseFromString(message));
  // The server's own proof sent back is no proof of ours.
  wire::Prove prove;
  prove.set_proof(reply.proof());
  ASSERT_TRUE(peer.send(hello_frame(prove)));
  ASSERT_EQ(peer.read_frame(message)->kind, FrameKind::kError);
  EXPECT_EQ(status_of_error_frame(std::as_bytes(std::span(message))).code(), ErrorCode::kUnauthenticated);
  EXPECT_TRUE(peer.ended());
}

TEST(HandshakeTest, ARequestInsteadOfTheProofReachesNoHandler) {
  TestServer test({}, identity("right"));
  bool served = false;
  test.server.handle(wire::METHOD_REMOVE, [&](Request&) -> Task<Reply> {
    served = true;
    co_return Reply(wire::Empty());
  });
  const RawSocket peer = RawSocket::connect(test.start());
  wire::Hello hello = sample_hello();
  hello.set_has_token(true);
  const FrameHeader request{.kind = FrameKind::kRequest, .method = wire::METHOD_REMOVE, .request_id = 1, .timeout_ms = 1000};
  ASSERT_TRUE(peer.send(hello_frame(hello) + make_frame(request, {})));
  std::string message;
  ASSERT_EQ(peer.read_frame(message)->kind, FrameKind::kHello);
  EXPECT_EQ(peer.read_frame(message)->kind, FrameKind::kError);
  EXPECT_TRUE(peer.ended());
  test.server.stop();
  EXPECT_FALSE(served);
}

TEST(HandshakeTest, ANewerClientThatStillSpeaksOurVersionIsWelcome) {
  TestServer test;
  const std::uint16_t port = test.start();
  wire::Hello hello = sample_hello();
  hello.set_max_version(9);
  hello.set_features(~0ULL);
  EXPECT_TRUE(greet(port, hello).ok());
}

TEST(HandshakeTest, ClientsWithoutACommonVersionAreToldBothRanges) {
  TestServer test;
  const std::uint16_t port = test.start();
  wire::Hello newer = sample_hello();
  newer.set_min_version(2);
  newer.set_max_version(3);
  newer.set_product("moonpool 9.9");
  const Status status = greet(port, newer);
  EXPECT_EQ(status.code(), ErrorCode::kProtocol);
  EXPECT_NE(status.message().find("versions 2 to 3"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("moonpool 9.9"), std::string::npos) << status.message();
  wire::Hello older = sample_hello();
  older.set_min_version(0);
  older.set_max_version(0);
  EXPECT_EQ(greet(port, older).code(), ErrorCode::kProtocol);
}

TEST(HandshakeTest, MalformedHellosAreRefused) {
  TestServer test;
  const std::uint16_t port = test.start();
  wire::Hello short_nonce = sample_hello();
  short_nonce.set_nonce("short");
  EXPECT_EQ(greet(port, short_nonce).code(), ErrorCode::kProtocol);
  wire::Hello short_node = sample_hello();
  short_node.set_node_id("x");
  EXPECT_EQ(greet(port, short_node).code(), ErrorCode::kProtocol);
  wire::Hello huge = sample_hello();
  huge.set_product(std::string(kMaxHandshakeLength, 'p'));
  EXPECT_EQ(greet(port, huge).code(), ErrorCode::kUnavailable) << "closed without a word";
}

TEST(HandshakeTest, AServerOfAnUnknownVersionIsRefusedByTheClient) {
  const RawListener listener;
  std::thread peer([&] {
    const RawSocket socket = listener.accept();
    std::string message;
    EXPECT_TRUE(socket.read_frame(message).ok());
    wire::HelloReply reply;
    reply.set_version(2);
    reply.set_nonce(std::string(32, 'n'));
    reply.set_node_id(NodeId::generate().to_bytes());
    EXPECT_TRUE(socket.send(hello_frame(reply)));
    EXPECT_TRUE(socket.ended());
  });
  const auto lane = Lane::connect({"127.0.0.1", listener.port()}, identity(), soon());
  EXPECT_EQ(lane.code(), ErrorCode::kProtocol);
  EXPECT_NE(lane.status().message().find("version 2"), std::string::npos) << lane.status().message();
  peer.join();
}

}  // namespace
}  // namespace moonpool::net::test
