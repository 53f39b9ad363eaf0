// Whole exchanges between a Lane and a Server over a real connection.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <random>

#include "net/net_test_support.h"

namespace moonpool::net::test {
namespace {

std::vector<std::byte> random_bytes(std::size_t size, std::uint64_t seed = 1) {
  std::vector<std::byte> bytes(size);
  std::mt19937_64 random(seed);
  for (std::size_t i = 0; i < size; i += 8) {
    const std::uint64_t value = random();
    std::memcpy(bytes.data() + i, &value, std::min<std::size_t>(8, size - i));
  }
  return bytes;
}

// Cuts `bytes` into pieces of these sizes, repeated until all is used up.
template <typename Byte>
std::vector<std::span<Byte>> cut(std::span<Byte> bytes, const std::vector<std::size_t>& sizes) {
  std::vector<std::span<Byte>> pieces;
  for (std::size_t i = 0; !bytes.empty(); ++i) {
    const std::size_t size = std::min(sizes[i % sizes.size()], bytes.size());
    pieces.push_back(bytes.first(size));
    bytes = bytes.subspan(size);
  }
  return pieces;
}

// METHOD_WRITE keeps the payload, received in pieces of `sizes`; METHOD_READ sends it back in pieces of `sizes`.
struct EchoServer : TestServer {
  explicit EchoServer(std::vector<std::size_t> piece_sizes, ServerOptions options = {})
      : TestServer(options), sizes(std::move(piece_sizes)) {
    server.handle(wire::METHOD_WRITE, [this](Request& request) -> Task<Reply> {
      kept.resize(request.payload_length());
      const auto pieces = cut(std::span(kept), sizes);
      Status status = co_await request.receive(pieces);
      if (!status.ok()) co_return Reply(status);
      co_return Reply(wire::WriteReply());
    });
    server.handle(wire::METHOD_READ, [this](Request&) -> Task<Reply> {
      Reply reply{wire::ReadReply()};
      reply.payload = cut(std::span<const std::byte>(kept), sizes);
      reply.sent = [this] { ++sent; };
      co_return reply;
    });
  }
  ~EchoServer() { server.stop(); }
  std::vector<std::size_t> sizes;
  std::vector<std::byte> kept;
  std::atomic<int> sent{0};
};

void round_trip(EchoServer& test, std::uint16_t port, std::size_t size, const std::vector<std::size_t>& sizes) {
  const auto lane = lane_to(port);
  const std::vector<std::byte> data = random_bytes(size);
  ASSERT_TRUE(lane->send_request(wire::METHOD_WRITE, wire::WriteRequest(), size, soon()).ok());
  ASSERT_TRUE(lane->send_payload(cut(std::span<const std::byte>(data), sizes), soon()).ok());
  wire::WriteReply written;
  const auto nothing = lane->receive_reply(written, soon());
  ASSERT_TRUE(nothing.ok()) << nothing.status().to_string();
  EXPECT_EQ(*nothing, 0U);
  ASSERT_TRUE(lane->send_request(wire::METHOD_READ, wire::ReadRequest(), 0, soon()).ok());
  wire::ReadReply read;
  const auto length = lane->receive_reply(read, soon());
  ASSERT_TRUE(length.ok()) << length.status().to_string();
  ASSERT_EQ(*length, size);
  std::vector<std::byte> back(size);
  ASSERT_TRUE(lane->receive_payload(cut(std::span(back), sizes), soon()).ok());
  EXPECT_TRUE(back == data);
  EXPECT_TRUE(test.kept == data);
  // Idle again: the next exchange works.
  EXPECT_TRUE(ping(*lane).ok());
  EXPECT_EQ(test.sent, 1);
}

TEST(ExchangeTest, ManyCallsGoOverOneLane) {
  TestServer test;
  const auto lane = lane_to(test.start());
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(ping(*lane).ok());
  EXPECT_TRUE(lane->healthy());
}

TEST(ExchangeTest, PiecesOfOddAndZeroSizesArriveInPlace) {
  EchoServer test({7, 0, 1, 4096, 0, 0, 33333});
  round_trip(test, test.start(), 1'000'003, {0, 13, 1, 65536, 0, 999});
}

TEST(ExchangeTest, MorePiecesThanOneSystemCallTakes) {
  EchoServer test({11, 0, 3});
  round_trip(test, test.start(), 50'000, {5, 17, 0});
}

TEST(ExchangeTest, AVllmBatchOf720Pieces) {
  EchoServer test({96 * 1024});
  round_trip(test, test.start(), std::size_t{720} * 96 * 1024, {96 * 1024});
}

TEST(ExchangeTest, SixtyFourMebibytes) {
  EchoServer test({std::size_t{64} << 20});
  round_trip(test, test.start(), std::size_t{64} << 20, {std::size_t{1} << 20, 12345});
}

TEST(ExchangeTest, APayloadMayBeSentAndReceivedInSeveralCalls) {
  EchoServer test({1000});
  const std::uint16_t port = test.start();
  const auto lane = lane_to(port);
  const std::vector<std::byte> data = random_bytes(100'000);
  ASSERT_TRUE(lane->send_request(wire::METHOD_WRITE, wire::WriteRequest(), data.size(), soon()).ok());
  for (const ConstBytes piece : cut(std::span<const std::byte>(data), {30'000})) {
    ASSERT_TRUE(lane->send_payload(std::vector<ConstBytes>{piece}, soon()).ok());
  }
  wire::WriteReply written;
  ASSERT_TRUE(lane->receive_reply(written, soon()).ok());
  ASSERT_TRUE(lane->send_request(wire::METHOD_READ, wire::ReadRequest(), 0, soon()).ok());
  wire::ReadReply read;
  ASSERT_TRUE(lane->receive_reply(read, soon()).ok());
  std::vector<std::byte> back(data.size());
  for (const MutableBytes piece : cut(std::span(back), {1, 9'999})) {
    ASSERT_TRUE(lane->receive_payload(std::vector<MutableBytes>{piece}, soon()).ok());
  }
  EXPECT_TRUE(back == data);
  EXPECT_TRUE(lane->healthy());
}

TEST(ExchangeTest, MessagesLongerThanTheReadAheadBufferArriveWhole) {
  Server server(identity(), {});
  server.handle(wire::METHOD_EXIST, [](Request& request) -> Task<Reply> {
    wire::ExistRequest asked;
    if (Status status = request.parse(asked); !status.ok()) co_return Reply(status);
    wire::GetReplicasRequest answer;  // any message that holds keys
    answer.mutable_key()->CopyFrom(asked.key());
    co_return Reply(answer);
  });
  ASSERT_TRUE(server.start().ok());
  const auto lane = lane_to(server.port());
  for (const std::size_t size : {10UL, 16'000UL, 16'384UL, 17'000UL, 5'000'000UL, 20UL}) {
    wire::ExistRequest request;
    request.add_key(std::string(size, 'k'));
    wire::GetReplicasRequest reply;
    const Status status = lane->call(wire::METHOD_EXIST, request, reply, soon());
    ASSERT_TRUE(status.ok()) << status.to_string();
    ASSERT_EQ(reply.key_size(), 1);
    EXPECT_EQ(reply.key(0), request.key(0));
  }
}

TEST(ExchangeTest, AnErrorOfTheHandlerComesBackWholeAndTheLaneStaysGood) {
  TestServer test;
  test.server.handle(wire::METHOD_REMOVE,
                     [](Request&) -> Task<Reply> { co_return Reply(Status(ErrorCode::kObjectHasLease, "key k is being read")); });
  const auto lane = lane_to(test.start());
  wire::StatusReply reply;
  const Status status = lane->call(wire::METHOD_REMOVE, wire::RemoveRequest(), reply, soon());
  EXPECT_EQ(status.code(), ErrorCode::kObjectHasLease);
  EXPECT_EQ(status.message(), "key k is being read");
  EXPECT_TRUE(ping(*lane).ok());
}

TEST(ExchangeTest, AnExceptionOfTheHandlerIsAnErrorAndNothingMore) {
  TestServer test;
  test.server.handle(wire::METHOD_REMOVE, [](Request&) -> Task<Reply> {
    throw std::runtime_error("boom");
    co_return Reply();
  });
  const auto lane = lane_to(test.start());
  wire::StatusReply reply;
  const Status status = lane->call(wire::METHOD_REMOVE, wire::RemoveRequest(), reply, soon());
  EXPECT_EQ(status.code(), ErrorCode::kInternal);
  EXPECT_NE(status.message().find("boom"), std::string::npos);
  EXPECT_TRUE(ping(*lane).ok());
}

TEST(ExchangeTest, AnUnknownMethodIsRefusedByNumberAndItsPayloadThrownAway) {
  TestServer test;
  const auto lane = lane_to(test.start());
  const std::vector<std::byte> data = random_bytes(3'000'000);
  ASSERT_TRUE(lane->send_request(static_cast<wire::Method>(999), wire::Empty(), data.size(), soon()).ok());
  ASSERT_TRUE(lane->send_payload(std::vector<ConstBytes>{data}, soon()).ok());
  wire::Empty reply;
  const auto answer = lane->receive_reply(reply, soon());
  EXPECT_EQ(answer.code(), ErrorCode::kNotSupported);
  EXPECT_NE(answer.status().message().find("999"), std::string::npos);
  EXPECT_TRUE(ping(*lane).ok());
}

TEST(ExchangeTest, AHandlerThatLeavesThePayloadUnreadDoesNotConfuseTheNextRequest) {
  TestServer test;
  test.server.handle(wire::METHOD_WRITE, [](Request& request) -> Task<Reply> {
    std::vector<std::byte> some(100);
    const std::vector<MutableBytes> pieces{some};
    Status status = co_await request.receive(pieces);
    if (status.ok()) status = Status(ErrorCode::kStaleIncarnation, "mounted again");
    co_return Reply(status);
  });
  const auto lane = lane_to(test.start());
  const std::vector<std::byte> data = random_bytes(8'000'000);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(lane->send_request(wire::METHOD_WRITE, wire::WriteRequest(), data.size(), soon()).ok());
    ASSERT_TRUE(lane->send_payload(std::vector<ConstBytes>{data}, soon()).ok());
    wire::WriteReply reply;
    EXPECT_EQ(lane->receive_reply(reply, soon()).code(), ErrorCode::kStaleIncarnation);
  }
  EXPECT_TRUE(ping(*lane).ok());
}

TEST(ExchangeTest, AHandlerThatAsksForMoreThanThePayloadGetsAnErrorAndLosesNothing) {
  TestServer test;
  test.server.handle(wire::METHOD_WRITE, [](Request& request) -> Task<Reply> {
    std::vector<std::byte> more(request.payload_length() + 1);
    const std::vector<MutableBytes> pieces{more};
    co_return Reply(co_await request.receive(pieces));
  });
  const auto lane = lane_to(test.start());
  ASSERT_TRUE(lane->send_request(wire::METHOD_WRITE, wire::WriteRequest(), 10, soon()).ok());
  ASSERT_TRUE(lane->send_payload(std::vector<ConstBytes>{random_bytes(10)}, soon()).ok());
  wire::WriteReply reply;
  EXPECT_EQ(lane->receive_reply(reply, soon()).code(), ErrorCode::kInvalidParams);
  EXPECT_TRUE(ping(*lane).ok());
}

TEST(ExchangeTest, AMessageThatDoesNotParseIsAnErrorOfTheRequestAlone) {
  TestServer test;
  test.server.handle(wire::METHOD_EXIST, [](Request& request) -> Task<Reply> {
    wire::ExistRequest asked;
    co_return Reply(request.parse(asked));
  });
  const RawSocket peer = shaken_socket(test.start());
  FrameHeader header{.kind = FrameKind::kRequest, .method = wire::METHOD_EXIST, .request_id = 1, .timeout_ms = 60000};
  ASSERT_TRUE(peer.send(make_frame(header, "\xFF\xFF\xFF")));
  std::string message;
  ASSERT_EQ(peer.read_frame(message)->kind, FrameKind::kError);
  EXPECT_EQ(status_of_error_frame(std::as_bytes(std::span(message))).code(), ErrorCode::kProtocol);
  header.method = wire::METHOD_PING;
  ASSERT_TRUE(peer.send(make_frame(header, {})));
  EXPECT_EQ(peer.read_frame(message)->kind, FrameKind::kResponse);
}

TEST(ExchangeTest, MisuseOfALaneIsAnErrorAndNeverAWrongAnswer) {
  TestServer test;
  const std::uint16_t port = test.start();
  wire::PingReply reply;
  EXPECT_EQ(lane_to(port)->receive_reply(reply, soon()).code(), ErrorCode::kInternal);
  const auto lane = lane_to(port);
  ASSERT_TRUE(lane->send_request(wire::METHOD_WRITE, wire::WriteRequest(), 4, soon()).ok());
  EXPECT_EQ(lane->send_payload(std::vector<ConstBytes>{random_bytes(5)}, soon()).code(), ErrorCode::kInternal);
  EXPECT_FALSE(lane->healthy());
  EXPECT_EQ(ping(*lane).code(), ErrorCode::kInternal);
}

}  // namespace
}  // namespace moonpool::net::test
