#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "net/http_client.h"
#include "net/http_server.h"
#include "net/http_url.h"
#include "tests/support/test_support.h"

namespace moonpool::net {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::free_port;
using ::testing::HasSubstr;
using ::testing::Not;

Deadline soon() { return Deadline::after(seconds(10)); }

HttpResponse echo(const HttpRequest& request) {
  std::string text = request.method + " " + request.path;
  for (const auto& [name, value] : request.query) text += " " + name + "=" + value;
  if (request.path == "/throw") throw std::runtime_error("as asked");
  return {.status = request.path == "/missing" ? 404 : 200, .body = text + "\n" + request.body, .headers = {{"X-Peer", request.peer}}};
}

std::unique_ptr<HttpServer> serve(HttpServerOptions options = {}, HttpHandler handler = echo) {
  auto server = HttpServer::start(options, std::move(handler));
  EXPECT_TRUE(server.ok()) << server.status().to_string();
  return server ? std::move(*server) : nullptr;
}

std::string url_of(const HttpServer& server, const std::string& target, const std::string& host = "127.0.0.1") {
  return "http://" + host + ":" + std::to_string(server.port()) + target;
}

int raw_socket(std::uint16_t port, bool listening) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const auto* pointer = reinterpret_cast<const sockaddr*>(&address);
  EXPECT_EQ(listening ? ::bind(fd, pointer, sizeof address) : ::connect(fd, pointer, sizeof address), 0);
  if (listening) {
    EXPECT_EQ(::listen(fd, 16), 0);
  }
  return fd;
}

// Sends raw bytes, then reads until the server closes.
std::string talk(std::uint16_t port, const std::string& bytes) {
  const int fd = raw_socket(port, false);
  const timeval patience{10, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  std::size_t sent = 0;
  while (sent < bytes.size()) {
    const auto count = ::send(fd, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (count <= 0) break;
    sent += static_cast<std::size_t>(count);
  }
  ::shutdown(fd, SHUT_WR);
  std::string answer;
  char part[4096];
  for (ssize_t count; (count = ::recv(fd, part, sizeof part, 0)) > 0;) answer.append(part, static_cast<std::size_t>(count));
  ::close(fd);
  return answer;
}

TEST(PercentCodingTest, RoundTripsEveryByte) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const auto encoded = percent_encode(all);
  EXPECT_THAT(encoded, Not(HasSubstr(" ")));
  const auto decoded = percent_decode(encoded);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(*decoded, all);
}

TEST(PercentCodingTest, RefusesAnEscapeThatIsNone) {
  for (const char* bad : {"%", "a%2", "%zz", "100%", "%%41"}) EXPECT_EQ(percent_decode(bad).code(), ErrorCode::kInvalidParams) << bad;
  EXPECT_EQ(*percent_decode("a+b%2B"), "a+b+");
  EXPECT_EQ(*percent_decode("a+b%2B", PlusSign::kSpace), "a b+");
}

TEST(RequestTargetTest, SplitsPathAndParameters) {
  const auto target = parse_request_target("/a%20b?key=x%26y%3D%3F&empty=&flag&&key=2#fragment");
  ASSERT_TRUE(target.ok()) << target.status().to_string();
  EXPECT_EQ(target->path, "/a b");
  const QueryParams expected{{"key", "x&y=?"}, {"empty", ""}, {"flag", ""}, {"key", "2"}};
  EXPECT_EQ(target->query, expected);
  EXPECT_EQ(parse_request_target("http://proxy:80/p?x=1")->path, "/p");
  EXPECT_EQ(parse_request_target("http://proxy?x=1")->path, "/");
  EXPECT_FALSE(parse_request_target("/x?key=%f").ok());
}

TEST(HttpUrlTest, AcceptsNamesAndBothKindsOfAddress) {
  const auto name = parse_http_url("http://meta.example:8080/metadata?x=1");
  ASSERT_TRUE(name.ok());
  EXPECT_EQ(name->endpoint, (Endpoint{"meta.example", 8080}));
  EXPECT_EQ(name->target, "/metadata?x=1");
  EXPECT_EQ(parse_http_url("http://[::1]:9")->endpoint, (Endpoint{"::1", 9}));
  EXPECT_EQ(parse_http_url("http://10.0.0.1")->endpoint.port, 80);
  EXPECT_EQ(parse_http_url("http://10.0.0.1?x=1")->target, "/?x=1");
}

TEST(HttpUrlTest, ABadOneSaysWhatIsRightAndKeepsSecrets) {
  EXPECT_EQ(parse_http_url("https://host/").code(), ErrorCode::kNotSupported);
  for (const char* bad : {"", "host:80", "http://", "http://:80/", "http://h:99999/", "http://h:x/", "http://::1/", "http://h/a b"}) {
    const auto url = parse_http_url(bad);
    ASSERT_EQ(url.code(), ErrorCode::kInvalidParams) << bad;
  }
  const auto secret = parse_http_url("http://me:hunter2@host/x");
  ASSERT_FALSE(secret.ok());
  EXPECT_THAT(secret.status().message(), Not(HasSubstr("hunter2")));
  EXPECT_EQ(redact_url("redis://:p@ss/word@h:1/2"), "redis://***@h:1/2");
  EXPECT_EQ(redact_url("p//a@h"), "p//***@h");
}

TEST(HttpServerTest, AnswersWithWhatTheHandlerReturns) {
  const auto server = serve();
  HttpClient client;
  const auto response = client.request("PUT", url_of(*server, "/a%20b?key=%26"), "body", {{"Content-Type", "text/plain"}}, soon());
  ASSERT_TRUE(response.ok()) << response.status().to_string();
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(response->body, "PUT /a b key=&\nbody");
  EXPECT_THAT(response->content_type, HasSubstr("text/plain"));
  EXPECT_TRUE(find_header(response->headers, "x-peer").has_value());
  EXPECT_EQ(client.get(url_of(*server, "/missing"), soon())->status, 404);
  EXPECT_EQ(client.get(url_of(*server, "/throw"), soon())->status, 500);
  const auto head = client.request("HEAD", url_of(*server, "/x"), {}, {}, soon());
  ASSERT_TRUE(head.ok());
  EXPECT_TRUE(head->body.empty());
  EXPECT_EQ(client.get(url_of(*server, "/x?y=%zz"), soon())->status, 400);
}

TEST(HttpServerTest, ResolvesNamesAndListensOnBothFamilies) {
  const auto server = serve({.host = "localhost"});
  HttpClient client;
  EXPECT_EQ(client.get(url_of(*server, "/", "localhost"), soon())->status, 200);
  EXPECT_EQ(client.get(url_of(*server, "/", "127.0.0.1"), soon())->status, 200);
  const auto v6 = HttpServer::start({.host = "::1"}, echo);
  if (v6.ok()) {
    EXPECT_EQ(client.get(url_of(**v6, "/", "[::1]"), soon())->status, 200);
  }
}

TEST(HttpServerTest, AConnectionIsReusedForSeveralRequests) {
  const auto server = serve();
  HttpClient client;
  const auto first = client.get(url_of(*server, "/"), soon());
  const auto second = client.get(url_of(*server, "/"), soon());
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(find_header(first->headers, "X-Peer"), find_header(second->headers, "X-Peer"));
}

TEST(HttpServerTest, SurvivesGarbageAndSaysNoToTooMuch) {
  const auto server = serve({.max_header_bytes = 4096, .max_body_bytes = 1000});
  EXPECT_THAT(talk(server->port(), "\x01\x02\x03 garbage\r\n\r\n"), HasSubstr("HTTP/1.1 400"));
  EXPECT_THAT(talk(server->port(), "GET / HTTP/1.1\r\nX: " + std::string(10000, 'x') + "\r\n\r\n"), HasSubstr("HTTP/1.1 431"));
  EXPECT_THAT(talk(server->port(), "PUT / HTTP/1.1\r\nContent-Length: 5000\r\n\r\n" + std::string(5000, 'x')), HasSubstr("HTTP/1.1 413"));
  EXPECT_EQ(talk(server->port(), "GET / HT"), "");
  EXPECT_EQ(talk(server->port(), ""), "");
  EXPECT_THAT(talk(server->port(), "GET /one HTTP/1.1\r\n\r\nGET /two HTTP/1.1\r\n\r\n"), HasSubstr("/two"));
  EXPECT_THAT(talk(server->port(), "PUT /c HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab"), HasSubstr("100 Continue"));
  HttpClient client;
  EXPECT_EQ(client.get(url_of(*server, "/"), soon())->status, 200);
}

TEST(HttpServerTest, DropsAnIdlePeerAndRefusesOneTooMany) {
  const auto server = serve({.max_connections = 1, .idle_timeout = milliseconds(200)});
  const int idle = raw_socket(server->port(), false);
  EXPECT_TRUE(test::wait_until(
      [&] { return talk(server->port(), "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").find(" 503 ") != std::string::npos; }, soon()));
  char byte;
  EXPECT_EQ(::recv(idle, &byte, 1, 0), 0);  // the server closes it, and has room again
  ::close(idle);
  HttpClient client;
  EXPECT_TRUE(test::wait_until([&] { return client.get(url_of(*server, "/"), soon())->status == 200; }, soon()));
}

TEST(HttpServerTest, ASlowHandlerDoesNotHoldUpOthers) {
  std::atomic<bool> release{false};
  std::atomic<bool> entered{false};
  const auto server = serve({.threads = 2}, [&](const HttpRequest& request) -> HttpResponse {
    if (request.path == "/slow") {
      entered = true;
      EXPECT_TRUE(test::wait_until([&] { return release.load(); }, soon()));
    }
    return {};
  });
  std::thread slow([&] { EXPECT_TRUE(HttpClient().get(url_of(*server, "/slow"), soon()).ok()); });
  EXPECT_TRUE(test::wait_until([&] { return entered.load(); }, soon()));
  EXPECT_TRUE(HttpClient().get(url_of(*server, "/health"), soon()).ok());
  release = true;
  slow.join();
}

TEST(HttpServerTest, ABindErrorSaysWhereAndWhatToDo) {
  const auto server = serve();
  const auto second = HttpServer::start({.host = "127.0.0.1", .port = server->port()}, echo);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.status().message(), HasSubstr("127.0.0.1:" + std::to_string(server->port())));
  EXPECT_THAT(second.status().message(), HasSubstr("choose another port"));
  const auto foreign = HttpServer::start({.host = "192.0.2.1"}, echo);
  ASSERT_FALSE(foreign.ok());
  EXPECT_THAT(foreign.status().message(), HasSubstr("no such address"));
  const auto nameless = HttpServer::start({.host = "no-such-host.invalid"}, echo);
  ASSERT_FALSE(nameless.ok());
  EXPECT_THAT(nameless.status().message(), HasSubstr("no-such-host.invalid"));
}

TEST(HttpServerTest, StopClosesConnectionsAndFreesThePort) {
  auto server = serve();
  const auto port = server->port();
  const int open = raw_socket(port, false);
  EXPECT_TRUE(HttpClient().get(url_of(*server, "/"), soon()).ok());
  server->stop();
  server->stop();
  char byte;
  EXPECT_LE(::recv(open, &byte, 1, 0), 0);
  ::close(open);
  EXPECT_FALSE(test::accepts_connections("127.0.0.1", port));
  EXPECT_TRUE(HttpServer::start({.port = port}, echo).ok());
}

TEST(HttpClientTest, ASilentServerIsAnErrorAtTheDeadline) {
  const auto port = free_port();
  const int silent = raw_socket(port, true);
  const auto start = Deadline::Clock::now();
  const auto response = HttpClient().get("http://127.0.0.1:" + std::to_string(port) + "/x", Deadline::after(milliseconds(150)));
  const auto waited = Deadline::Clock::now() - start;
  ::close(silent);
  ASSERT_EQ(response.code(), ErrorCode::kRpcTimeout);
  EXPECT_THAT(response.status().message(), HasSubstr("GET http://127.0.0.1:" + std::to_string(port) + "/x"));
  EXPECT_GE(waited, milliseconds(150));
  EXPECT_LT(waited, seconds(2));
}

TEST(HttpClientTest, ATricklingServerDoesNotExtendTheDeadline) {
  const auto port = free_port();
  const int listening = raw_socket(port, true);
  std::atomic<bool> done{false};
  std::thread trickle([&] {
    const int fd = ::accept(listening, nullptr, nullptr);
    ::send(fd, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", 43, MSG_NOSIGNAL);
    while (!done && ::send(fd, "x", 1, MSG_NOSIGNAL) == 1) std::this_thread::sleep_for(milliseconds(1));
    ::close(fd);
  });
  const auto start = Deadline::Clock::now();
  const auto response = HttpClient().get("http://127.0.0.1:" + std::to_string(port) + "/", Deadline::after(milliseconds(150)));
  EXPECT_LT(Deadline::Clock::now() - start, seconds(2));
  EXPECT_EQ(response.code(), ErrorCode::kRpcTimeout);
  done = true;
  trickle.join();
  ::close(listening);
}

TEST(HttpClientTest, NobodyThereIsAnErrorAtOnce) {
  const auto port = free_port();
  const auto response = HttpClient().get("http://127.0.0.1:" + std::to_string(port) + "/", soon());
  ASSERT_EQ(response.code(), ErrorCode::kUnavailable);
  EXPECT_THAT(response.status().message(), HasSubstr("127.0.0.1:" + std::to_string(port)));
  EXPECT_EQ(HttpClient().get("http://no-such-host.invalid/", soon()).code(), ErrorCode::kUnavailable);
}

TEST(HttpClientTest, AnAnswerThatIsNotHttpOrTooLargeIsAnError) {
  const auto port = free_port();
  const int listening = raw_socket(port, true);
  std::thread garbage([&] {
    const int fd = ::accept(listening, nullptr, nullptr);
    char request[4096];
    EXPECT_GT(::recv(fd, request, sizeof request, 0), 0);
    ::send(fd, "SSH-2.0-OpenSSH_9.2\r\n", 21, MSG_NOSIGNAL);
    ::close(fd);
  });
  EXPECT_EQ(HttpClient().get("http://127.0.0.1:" + std::to_string(port) + "/", soon()).code(), ErrorCode::kProtocol);
  garbage.join();
  ::close(listening);
  const auto server = serve({}, [](const HttpRequest&) { return HttpResponse{.body = std::string(5000, 'x')}; });
  EXPECT_EQ(HttpClient({.max_body_bytes = 1000}).get(url_of(*server, "/"), soon()).code(), ErrorCode::kBufferOverflow);
}

TEST(HttpClientTest, ARestartedServerIsReachedOverTheSameClient) {
  HttpClient client;
  const auto port = free_port();
  for (int round = 0; round < 3; ++round) {
    const auto server = serve({.port = port});
    const auto response = client.get(url_of(*server, "/"), soon());
    ASSERT_TRUE(response.ok()) << response.status().to_string();
  }
  EXPECT_FALSE(client.get("http://127.0.0.1:" + std::to_string(port) + "/", soon()).ok());
}

TEST(HttpClientTest, ALineBreakCannotSmuggleAHeader) {
  const auto server = serve();
  EXPECT_EQ(HttpClient().request("GET", url_of(*server, "/"), {}, {{"X", "a\r\nY: b"}}, soon()).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(HttpClient().request("GET / HTTP/1.1\r\nX:", url_of(*server, "/"), {}, {}, soon()).code(), ErrorCode::kInvalidParams);
}

TEST(HttpClientTest, IsSharedByThreads) {
  const auto server = serve();
  HttpClient client;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const auto body = std::to_string(t * 1000 + i);
        const auto response = client.request("PUT", url_of(*server, "/"), body, {}, soon());
        ASSERT_TRUE(response.ok()) << response.status().to_string();
        EXPECT_EQ(response->body, "PUT /\n" + body);
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace moonpool::net
