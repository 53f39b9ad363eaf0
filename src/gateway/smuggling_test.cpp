// Requests and answers that two parsers might read in two ways: what instances get is one well-formed request or nothing, and what clients
// get is the answer to their own.
#include <gtest/gtest.h>

#include "gateway/http_message.h"
#include "gateway/testing/gateway_fixture.h"
#include "gateway/testing/raw_upstream.h"

namespace moonpool::gateway::testing {
namespace {

constexpr std::string_view kPost = "POST /v1/completions HTTP/1.1\r\nHost: a\r\n";
constexpr std::string_view kBody = R"({"prompt":"a"})";  // 14 bytes, E in hexadecimal
const std::string kSmuggled = "POST /v1/completions HTTP/1.1\r\nHost: b\r\nX-Smuggled: yes\r\nContent-Length: 2\r\n\r\n{}";

class SmugglingTest : public GatewayTest {
 protected:
  void start(Settings settings = test_settings()) {
    settings.health.check_every = std::chrono::milliseconds(0);
    settings.decode.push_back(InstanceName::parse(upstream.name()).value());
    auto started = Gateway::start(std::move(settings));
    ASSERT_TRUE(started.ok()) << started.status().message();
    gateway = std::move(started).value();
    ASSERT_TRUE(test::wait_until([&] { return upstream.health_checks() >= 2; }, soon()));
  }

  RawUpstream upstream;
};

struct Case {
  const char* name;
  std::string bytes;
  unsigned status = 400;
  std::string body = {};  // what the instance gets, when it gets something
};

void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

std::string post(const std::string& fields, const std::string& rest) { return std::string(kPost) + fields + "\r\n" + rest; }
std::string chunked(const std::string& rest) { return post("Transfer-Encoding: chunked\r\n", rest); }
const std::string kOneChunk = "E\r\n" + std::string(kBody) + "\r\n0\r\n\r\n";
const std::string kLength = "Content-Length: 14\r\n";

class Refused : public SmugglingTest, public ::testing::WithParamInterface<Case> {};

TEST_P(Refused, AndNothingReachesAnInstance) {
  start();
  TestClient client(port());
  ASSERT_TRUE(client.send(GetParam().bytes));
  const auto answer = client.read_answer();
  EXPECT_EQ(answer.status, GetParam().status) << answer.body;
  EXPECT_TRUE(client.sees_close());
  EXPECT_TRUE(upstream.requests().empty()) << upstream.requests()[0].bytes;
}

const Case kRefused[] = {
    {"LengthThenChunked", post(kLength + "Transfer-Encoding: chunked\r\n", kOneChunk + kSmuggled)},
    {"ChunkedThenLength", post("Transfer-Encoding: chunked\r\n" + kLength, kOneChunk + kSmuggled)},
    {"SpaceBeforeColonOfCoding", post("Transfer-Encoding : chunked\r\n" + kLength, kOneChunk)},
    {"TabBeforeColonOfCoding", post("Transfer-Encoding\t: chunked\r\n", kOneChunk)},
    {"UnknownCoding", post("Transfer-Encoding: xchunked\r\n", kOneChunk)},
    {"CodingBesideChunked", post("Transfer-Encoding: chunked, identity\r\n", kOneChunk)},
    {"IdentityWithLength", post("Transfer-Encoding: identity\r\n" + kLength, std::string(kBody))},
    {"CodingBeforeChunked", post("Transfer-Encoding: gzip, chunked\r\n", kOneChunk)},
    {"TwoCodings", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", kOneChunk)},
    {"SecondCodingIdentity", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", kOneChunk)},
    {"QuotedCoding", post("Transfer-Encoding: \"chunked\"\r\n", kOneChunk)},
    {"EmptyCoding", post("Transfer-Encoding:\r\n" + kLength, std::string(kBody))},
    {"VerticalTabInCoding", post("Transfer-Encoding: \vchunked\r\n", kOneChunk)},
    {"FoldedCoding", post("Transfer-Encoding:\r\n chunked\r\n", kOneChunk)},
    {"FoldedCodingWithTab", post("Transfer-Encoding:\r\n\tchunked\r\n" + kLength, kOneChunk)},
    {"FoldedValue", post("X-A: b\r\n Transfer-Encoding: chunked\r\n" + kLength, std::string(kBody))},
    {"FoldBeforeFirstField", "POST /v1/completions HTTP/1.1\r\n X: y\r\n" + kLength + "\r\n" + std::string(kBody)},
    {"ChunkedInHttp10", "POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + kOneChunk},
    {"TwoLengths", post(kLength + "Content-Length: 2\r\n", std::string(kBody))},
    {"TwoEqualLengths", post(kLength + kLength, std::string(kBody))},
    {"ListOfLengths", post("Content-Length: 14, 14\r\n", std::string(kBody))},
    {"NegativeLength", post("Content-Length: -14\r\n", std::string(kBody))},
    {"LengthWithPlus", post("Content-Length: +14\r\n", std::string(kBody))},
    {"HexadecimalLength", post("Content-Length: 0xE\r\n", std::string(kBody))},
    {"LengthWithSpace", post("Content-Length: 1 4\r\n", std::string(kBody))},
    {"LengthWithPoint", post("Content-Length: 14.0\r\n", std::string(kBody))},
    {"EmptyLength", post("Content-Length:\r\n", std::string(kBody))},
    {"LengthBeyond64Bits", post("Content-Length: 18446744073709551630\r\n", std::string(kBody))},
    {"LongestLength", post("Content-Length: 18446744073709551615\r\n", std::string(kBody)), 413},
    {"ChunkSizeBeyond64Bits", chunked("1000000000000000E\r\n" + std::string(kBody) + "\r\n0\r\n\r\n")},
    {"LongestChunkSize", chunked("FFFFFFFFFFFFFFFF\r\n" + std::string(kBody)), 413},
    {"NegativeChunkSize", chunked("-E\r\n" + std::string(kBody) + "\r\n0\r\n\r\n")},
    {"ChunkSizeWithPrefix", chunked("0xE\r\n" + std::string(kBody) + "\r\n0\r\n\r\n")},
    {"EmptyChunkSize", chunked("\r\n" + std::string(kBody) + "\r\n0\r\n\r\n")},
    {"SpaceBeforeChunkSize", chunked(" E\r\n" + std::string(kBody) + "\r\n0\r\n\r\n")},
    {"BareLineFeedAfterChunkSize", chunked("E\n" + std::string(kBody) + "\r\n0\r\n\r\n")},
    {"BareReturnAfterChunkSize", chunked("E\r" + std::string(kBody) + "\r\n0\r\n\r\n")},
    {"LineFeedInChunkExtension", chunked("E;a=\"\n\"\r\n" + std::string(kBody) + "\r\n0\r\n\r\n")},
    {"LineFeedBehindChunkExtension", chunked("E;a\n" + std::string(kBody) + "\r\n0\r\n\r\n")},
    {"LineEndInChunkExtension", chunked("E;a=\"\r\n\"\r\n" + std::string(kBody) + "\r\n0\r\n\r\n")},
    {"EndlessChunkExtension", chunked("E;a=" + std::string(20000, 'x'))},
    {"EndlessQuotedChunkExtension", chunked("E;a=\"\r\n" + std::string(20000, 'x'))},
    {"EndlessTrailers", chunked("E\r\n" + std::string(kBody) + "\r\n0\r\nX: " + std::string(20000, 'x'))},
    {"JunkBehindChunk", chunked("E\r\n" + std::string(kBody) + "XX0\r\n\r\n")},
    {"LineFeedBehindChunk", chunked("E\r\n" + std::string(kBody) + "\n0\r\n\r\n\r\n")},
    {"LengthInTrailers", chunked("E\r\n" + std::string(kBody) + "\r\n0\r\nContent-Length: 3\r\n\r\n")},
    {"BareReturnInName", post("X-A\rB: c\r\n" + kLength, std::string(kBody))},
    {"BareReturnInValue", post("X-A: b\rX-C: d\r\n" + kLength, std::string(kBody))},
    {"BareLineFeedInValue", post("X-A: b\nTransfer-Encoding: chunked\r\n" + kLength, std::string(kBody))},
    {"BareLineFeeds", "GET /v1/models HTTP/1.1\nHost: a\n\n"},
    {"BareLineFeedAtTheEnd", "GET /v1/models HTTP/1.1\r\nHost: a\r\n\nX: y\r\n\r\n"},
    {"ReturnReturnLineFeed", "GET /v1/models HTTP/1.1\r\nHost: a\r\r\n\r\n"},
    {"NulInName", post(std::string("X\0A: b\r\n", 8) + kLength, std::string(kBody))},
    {"NulInValue", post(std::string("X-A: b\0c\r\n", 10) + kLength, std::string(kBody))},
    {"NulInTarget", std::string("GET /v1/\0models HTTP/1.1\r\n\r\n", 29)},
    {"EmptyName", post(": b\r\n" + kLength, std::string(kBody))},
    {"NameWithSpace", post("X A: b\r\n" + kLength, std::string(kBody))},
    {"LineWithoutColon", post("Transfer-Encoding\r\n" + kLength, std::string(kBody))},
    {"TwoHosts", post("Host: b\r\n" + kLength, std::string(kBody))},
    {"Http09", "GET /v1/models\r\n\r\n"},
    {"Http2Preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
    {"Http20", "GET /v1/models HTTP/2.0\r\n\r\n"},
    {"VersionInLowerCase", "GET /v1/models http/1.1\r\n\r\n"},
    {"TextBehindVersion", "GET /v1/models HTTP/1.1 X\r\n\r\n"},
    {"SpaceInTarget", "GET /v1/models x HTTP/1.1\r\n\r\n"},
    {"TabInTarget", "GET /v1/models\tHTTP/1.1\r\n\r\n"},
    {"TwoSpacesBeforeTarget", "GET  /v1/models HTTP/1.1\r\n\r\n"},
    {"SpaceBeforeMethod", " GET /v1/models HTTP/1.1\r\n\r\n"},
    {"LineBeforeMethod", "\r\nGET /v1/models HTTP/1.1\r\n\r\n"},
    {"AuthorityForm", "CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\n" + kSmuggled},
    {"AsteriskForm", "OPTIONS * HTTP/1.1\r\nHost: b\r\n\r\n"},
    {"TargetWithoutSlash", "GET v1/models HTTP/1.1\r\n\r\n"},
    {"FragmentInTarget", "GET /v1/models#x HTTP/1.1\r\n\r\n"},
    {"ForeignBytesInTarget", "GET /v1/m\xC3\xB6 HTTP/1.1\r\n\r\n"},
    {"RequestIdWithReturn", post("X-Request-Id: a\rX-Injected: b\r\n" + kLength, std::string(kBody))},
    {"FoldedRequestId", post("X-Request-Id: a\r\n X-Injected: b\r\n" + kLength, std::string(kBody))},
    {"FoldedTraceparent", post("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n\tX: b\r\n" + kLength, std::string(kBody))},
    {"TooManyFields", [] {
       std::string fields;
       for (int i = 0; i < 300; ++i) fields += "X-" + std::to_string(i) + ": y\r\n";
       return post(fields + kLength, std::string(kBody));
     }(), 431},
    {"HeadTooLong", post("X: " + std::string(70'000, 'x') + "\r\n" + kLength, std::string(kBody)), 431},
    {"TargetTooLong", "GET /v1/" + std::string(70'000, 'x') + " HTTP/1.1\r\n\r\n", 431},
    {"BodyTooLong", post("Content-Length: 67108865\r\n", ""), 413},
    {"ChunkedBodyTooLong", chunked("E\r\n" + std::string(kBody) + "\r\n4000000\r\n"), 413},
};

std::string name_of(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Request, Refused, ::testing::ValuesIn(kRefused), name_of);

class Accepted : public SmugglingTest, public ::testing::WithParamInterface<Case> {};

TEST_P(Accepted, AndTheInstanceGetsExactlyOneRequest) {
  start();
  TestClient client(port());
  ASSERT_TRUE(client.send(GetParam().bytes));
  EXPECT_EQ(client.read_answer().status, 200U);
  ASSERT_EQ(upstream.requests().size(), 1U);
  const std::string bytes = upstream.requests()[0].bytes;
  std::string why_not;
  EXPECT_TRUE(is_one_request(bytes, GetParam().body, why_not)) << why_not << "\n" << bytes;
  for (const char* unwanted : {"X-Trailer", "X-Hop", "X-API-Key", "Expect:", "Upgrade", "http://"}) {
    EXPECT_EQ(bytes.find(unwanted), std::string::npos) << bytes;
  }
}

const Case kAccepted[] = {
    {"Chunked", chunked(kOneChunk), 200, std::string(kBody)},
    {"ChunkedInUpperCase", post("TRANSFER-ENCODING: CHUNKED\r\n", kOneChunk), 200, std::string(kBody)},
    {"ChunkedWithSpaceAround", post("Transfer-Encoding: \t chunked \t\r\n", kOneChunk), 200, std::string(kBody)},
    {"ChunksAndExtensions", chunked("5;a=b\r\n{\"pro\r\n000009;c=\"d\"\r\nmpt\":\"a\"}\r\n0;e\r\n\r\n"), 200, std::string(kBody)},
    {"TrailersAreDropped", chunked("E\r\n" + std::string(kBody) + "\r\n0\r\nX-Trailer: a\r\nAuthorization: b\r\n\r\n"), 200,
     std::string(kBody)},
    {"LengthWithZeros", post("Content-Length: 014\r\n", std::string(kBody)), 200, std::string(kBody)},
    {"AbsoluteForm", "GET http://evil/v1/models?x=1 HTTP/1.1\r\nHost: evil\r\n\r\n", 200, ""},
    {"HopByHopFields",
     post("Connection: keep-alive, X-Hop-A\r\nConnection: X-Hop-B\r\nX-Hop-A: 1\r\nX-Hop-B: 2\r\nUpgrade: h2c\r\nKeep-Alive: 1\r\n" +
              kLength,
          std::string(kBody)),
     200, std::string(kBody)},
    {"AdminKey", post("x-api-key: X-API-Key\r\n" + kLength, std::string(kBody)), 200, std::string(kBody)},
    {"BodyThatLooksLikeARequest",
     post("Content-Length: " + std::to_string(kSmuggled.size() + 4) + "\r\nContent-Type: text/plain\r\n", "{\"\":" + kSmuggled), 200,
     "{\"\":" + kSmuggled},
    {"EncodedLineEnds", "GET /v1/models?a=%0d%0aX: HTTP/1.1\r\nX-Request-Id: a%0d%0aX: b\r\n\r\n", 200, ""},
};

// Two of these are about what no JSON parser would take, so they go where bodies are passed on unread.
Case passed_on(Case one) {
  const std::size_t at = one.bytes.find("/v1/completions");
  if (one.bytes.starts_with("POST") && at < 10) one.bytes.replace(at, 15, "/v1/responses");
  return one;
}

INSTANTIATE_TEST_SUITE_P(Request, Accepted, ::testing::ValuesIn([] {
                           std::vector<Case> cases;
                           for (const Case& one : kAccepted) cases.push_back(passed_on(one));
                           return cases;
                         }()),
                         name_of);

TEST_F(SmugglingTest, PipelinedRequestsAreTwo) {
  start();
  TestClient client(port());
  ASSERT_TRUE(client.send(post(kLength, std::string(kBody)) + chunked(kOneChunk)));
  EXPECT_EQ(client.read_answer().status, 200U);
  EXPECT_EQ(client.read_answer().status, 200U);
  ASSERT_EQ(upstream.requests().size(), 2U);
  std::string why_not;
  for (const auto& request : upstream.requests()) EXPECT_TRUE(is_one_request(request.bytes, kBody, why_not)) << why_not;
}

// --- What instances answer ---

class BadAnswer : public SmugglingTest, public ::testing::WithParamInterface<Case> {};

TEST_P(BadAnswer, IsNotPassedOn) {
  start();
  upstream.answer_with(GetParam().bytes);
  const auto answer = complete(kPlain);
  EXPECT_EQ(answer.status, 502U) << answer.body;
  EXPECT_TRUE(answer.complete);
  EXPECT_EQ(answer.body.find("smuggled"), std::string::npos);
  // And no connection is left that could answer somebody else.
  upstream.answer_with(json_answer(R"({"good":1})"));
  EXPECT_EQ(complete(kPlain).body, R"({"good":1})");
  EXPECT_NE(upstream.requests().front().connection, upstream.requests().back().connection);
}

const std::string kOk = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";

const Case kBadAnswers[] = {
    {"LengthAndChunked", kOk + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"},
    {"ChunkedAndLength", kOk + "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n"},
    {"TwoLengths", kOk + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"},
    {"OtherCoding", kOk + "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"},
    {"UnknownCoding", kOk + "Transfer-Encoding: xchunked\r\n\r\n{}"},
    {"BadChunkSize", kOk + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"},
    {"ChunkSizeBeyond64Bits", kOk + "Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n"},
    {"JunkBehindChunk", kOk + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n"},
    {"EndlessChunkExtension", kOk + "Transfer-Encoding: chunked\r\n\r\n2;" + std::string(20'000, 'x')},
    {"HeadTooLong", kOk + "X: " + std::string(70'000, 'x') + "\r\nContent-Length: 2\r\n\r\n{}"},
    {"TooManyFields",
     [] {
       std::string fields;
       for (int i = 0; i < 300; ++i) fields += "X-" + std::to_string(i) + ": y\r\n";
       return kOk + fields + "Content-Length: 2\r\n\r\n{}";
     }()},
    {"SwitchingProtocols", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + json_answer("{}")},
    {"FloodOfInformation",
     [] {
       std::string flood;
       for (int i = 0; i < 50; ++i) flood += "HTTP/1.1 103 Early Hints\r\n\r\n";
       return flood + json_answer("{}");
     }()},
    {"BareLineFeeds", "HTTP/1.1 200 OK\nContent-Length: 2\n\n{}"},
    {"NoHttp", "SSH-2.0-OpenSSH_9.2\r\n\r\n"},
};

INSTANTIATE_TEST_SUITE_P(Instance, BadAnswer, ::testing::ValuesIn(kBadAnswers), name_of);

TEST_F(SmugglingTest, InformationBeforeTheAnswerIsSkipped) {
  start();
  upstream.answer_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + json_answer(R"({"a":1})"));
  const auto answer = complete(kPlain);
  EXPECT_EQ(answer.status, 200U);
  EXPECT_EQ(answer.body, R"({"a":1})");
  EXPECT_FALSE(answer.fields.contains("link"));
}

TEST_F(SmugglingTest, BytesBehindAnAnswerAnswerNobody) {
  start();
  upstream.answer_with(json_answer(R"({"first":1})") + json_answer(R"({"smuggled":1})"));
  TestClient client(port());
  EXPECT_EQ(client.post("/v1/completions", kPlain).body, R"({"first":1})");
  upstream.answer_with(json_answer(R"({"second":1})"));
  EXPECT_EQ(client.post("/v1/completions", kPlain).body, R"({"second":1})");
  EXPECT_EQ(upstream.requests()[0].connection + 1, upstream.requests()[1].connection);
}

TEST_F(SmugglingTest, BytesOverAnIdleConnectionAnswerNobody) {
  Settings settings = test_settings();
  settings.threads = 1;
  start(settings);
  TestClient client(port());
  EXPECT_EQ(client.post("/v1/completions", kPlain).body, "{}");
  EXPECT_EQ(client.post("/v1/completions", kPlain).body, "{}");
  ASSERT_EQ(upstream.requests()[0].connection, upstream.requests()[1].connection);  // kept alive as long as it is quiet
  upstream.send_to_all(json_answer(R"({"smuggled":1})"));
  upstream.answer_with(json_answer(R"({"third":1})"));
  EXPECT_EQ(client.post("/v1/completions", kPlain).body, R"({"third":1})");
  ASSERT_EQ(upstream.requests().size(), 3U);
  EXPECT_NE(upstream.requests()[1].connection, upstream.requests()[2].connection);
}

TEST_F(SmugglingTest, AnswersWithoutABodyHaveNone) {
  start();
  upstream.answer_with("HTTP/1.1 204 No Content\r\nContent-Length: 14\r\n\r\n{\"smuggled\":1}");
  TestClient client(port());
  ASSERT_TRUE(client.send_request("DELETE", "/v1/x", ""));
  const auto answer = client.read_head();
  EXPECT_EQ(answer.status, 204U);
  EXPECT_FALSE(answer.fields.contains("content-length"));
  upstream.answer_with(json_answer("{}"));
  EXPECT_EQ(client.post("/v1/completions", kPlain).body, "{}");  // the same connection goes on without a stray byte
}

TEST_F(SmugglingTest, HeadIsRefusedBecauseAnAnswerWouldHaveNoBody) {
  start();
  TestClient client(port());
  for (const char* target : {"/v1/x", "/health", "/none"}) {
    ASSERT_TRUE(client.send_request("HEAD", target, ""));
    EXPECT_GE(client.read_head().status, 404U);
    EXPECT_EQ(client.get("/health").status, 200U);  // not the body of the answer before
  }
  EXPECT_TRUE(upstream.requests().empty());
}

TEST_F(SmugglingTest, AnswersTrailersAndHopByHopFieldsAreDropped) {
  start();
  upstream.answer_with(
      kOk + "Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Trailer: 1\r\n\r\n");
  const auto answer = complete(kPlain);
  EXPECT_EQ(answer.status, 200U);
  EXPECT_EQ(answer.body, "{}");
  for (const char* name : {"x-hop", "x-trailer", "keep-alive", "transfer-encoding"}) EXPECT_FALSE(answer.fields.contains(name)) << name;
}

// Beast's own limit is on what it has not taken yet.
TEST(RequestParserTest, AHeadInSmallPiecesHasTheSameLimit) {
  RequestParser parser(2000, 1000);
  boost::system::error_code error;
  std::string bytes = "GET / HTTP/1.1\r\n";
  std::size_t sent = 0;
  while (sent < 4000 && (!error || error == http::error::need_more)) {
    bytes += "X-Header: " + std::string(50, 'x') + "\r\n";
    sent += 62;
    bytes.erase(0, parser.put(boost::asio::buffer(bytes), error));
  }
  EXPECT_EQ(error, http::error::header_limit);
  EXPECT_LT(sent, 2200U);
}

}  // namespace
}  // namespace moonpool::gateway::testing
