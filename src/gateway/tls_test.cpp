// TLS on both sides of the gateway: who is let in, what is said to those who are not, and that nothing else changes.
#include <gtest/gtest.h>

#include "gateway/config_file.h"
#include "gateway/testing/gateway_fixture.h"
#include "gateway/testing/tls_support.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MOONPOOL_TEST_IS_SLOW 1
#endif
#endif

namespace moonpool::gateway::testing {
namespace {

#ifdef MOONPOOL_TEST_IS_SLOW
constexpr std::chrono::milliseconds kAtMost{500};
#else
constexpr std::chrono::milliseconds kAtMost{100};
#endif

using Side = TlsTunnel::Side;
using Ending = TlsTunnel::Ending;

class TlsTest : public GatewayTest {
 protected:
  TlsTest() : ca(folder.path().string(), "ca"), other_ca(folder.path().string(), "other-ca"), own(ca.issue("gateway", "localhost")) {}

  Settings secure_settings() const {
    Settings settings = test_settings();
    settings.tls.certificate = own.certificate;
    settings.tls.key = own.key;
    settings.health.check_every = std::chrono::milliseconds(0);
    return settings;
  }
  // How a client gets in: plain HTTP to the tunnel, TLS from there.
  [[nodiscard]] std::unique_ptr<TlsTunnel> way_in(const TestCa::Pair& shown = {}, Ending ending = Ending::kCloseNotify) const {
    return std::make_unique<TlsTunnel>(TlsTunnel::Options{Side::kConnecting, port(), shown, ca.file(), ending});
  }
  // A gateway before one instance that speaks TLS with that certificate and trusts clients of `client_ca`.
  void start_before_secure_instance(const TestCa::Pair& shown, const std::string& client_ca, Settings settings,
                                    const std::string& scheme = "https://") {
    instance = std::make_unique<UpstreamSimulator>();
    front = std::make_unique<TlsTunnel>(TlsTunnel::Options{Side::kAccepting, instance->port(), shown, client_ca, Ending::kCloseNotify});
    settings.health.check_every = std::chrono::milliseconds(0);
    settings.decode.push_back(InstanceName::parse(scheme + "localhost:" + std::to_string(front->port())).value());
    if (settings.upstream_tls.ca.empty()) settings.upstream_tls.ca = ca.file();
    auto started = Gateway::start(std::move(settings));
    ASSERT_TRUE(started.ok()) << started.status().message();
    gateway = std::move(started).value();
  }
  // Why the one instance could not be asked.
  std::string failure() const {
    const auto answer = complete(kPlain);
    EXPECT_EQ(answer.status, 502U) << answer.body;
    EXPECT_TRUE(instance == nullptr || instance->completions().empty());
    return message_of(answer);
  }

  test::TempDir folder;
  TestCa ca;
  TestCa other_ca;
  TestCa::Pair own;
  std::unique_ptr<UpstreamSimulator> instance;
  std::unique_ptr<TlsTunnel> front;
};

TEST_F(TlsTest, ClientsSpeakHttpsWithHttp11ByAlpn) {
  start_gateway(1, 1, secure_settings());
  const auto tunnel = way_in();
  TestClient client(tunnel->port());
  EXPECT_EQ(client.post("/v1/completions", kPlain).status, 200U);
  const auto streamed = client.post("/v1/completions", kStreamed);
  EXPECT_TRUE(streamed.complete);
  EXPECT_TRUE(streamed.body.ends_with("data: [DONE]\n\n")) << streamed.body;
  EXPECT_EQ(tunnel->secured(), 1);
  EXPECT_EQ(tunnel->last_protocol(), "http/1.1");
}

TEST_F(TlsTest, LargeBodiesPassInBothDirections) {
  start_gateway(0, 1, secure_settings());
  const auto tunnel = way_in();
  Behaviour talks;
  talks.tokens = {std::string(300'000, 'x'), std::string(16 * 1024, 'y'), "z"};
  decode[0]->set(talks);
  const std::string prompt(2'000'000, 'p');
  TestClient client(tunnel->port());
  for (int i = 0; i < 3; ++i) {
    const auto answer = client.post("/v1/completions", R"({"prompt":")" + prompt + "\"}");
    ASSERT_TRUE(answer.complete);
    EXPECT_NE(answer.body.find(talks.tokens[0] + talks.tokens[1] + "z"), std::string::npos);
    EXPECT_EQ(decode[0]->completions().back().body.size(), prompt.size() + 13);
  }
}

TEST_F(TlsTest, AnswersThatEndWithTheConnectionAreWhole) {
  start_gateway(0, 1, secure_settings());
  const auto tunnel = way_in();
  TestClient once(tunnel->port());
  EXPECT_TRUE(once.get("/health", "Connection: close\r\n").complete);
  EXPECT_TRUE(once.sees_close());
  TestClient old(tunnel->port());
  ASSERT_TRUE(old.send("POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(kStreamed.size()) + "\r\n\r\n" +
                       std::string(kStreamed)));
  EXPECT_TRUE(old.read_answer().body.ends_with("data: [DONE]\n\n"));
  EXPECT_EQ(tunnel->ended_by_close_notify(), 2);
}

TEST_F(TlsTest, FlagsAndTheConfigurationFileSayWhoSpeaksTls) {
  const auto from_file = apply_config(R"({"tls": {"cert": "c", "key": "k", "client_ca": "a"},
    "upstream_tls": {"all": true, "ca": "u", "cert": "v", "key": "w", "server_name": "n"},
    "groups": {"prefill": {"tls": false, "instances": ["a:1"]}}})",
                                      "file", Settings());
  ASSERT_TRUE(from_file.ok()) << from_file.status().message();
  EXPECT_EQ(from_file->tls, (ServerTls{"c", "k", "a"}));
  EXPECT_EQ(from_file->upstream_tls, (UpstreamTls{true, "u", "v", "w", "n"}));
  const auto name = InstanceName::parse("a:1").value();
  EXPECT_FALSE(from_file->instance_of("prefill", name).is_secure());
  EXPECT_TRUE(from_file->instance_of("decode", name).is_secure());
  EXPECT_FALSE(apply_config(R"({"upstream_tls": {"verify": false}})", "file", Settings()).ok());

  const char* flags[] = {"gateway", "--model", "m", "--prefill", "a:1", "http://b:1", "--decode", "https://c:1", "--upstream-tls"};
  const auto from_flags = parse_command_line(std::size(flags), flags);
  ASSERT_TRUE(from_flags.ok()) << from_flags.status().message();
  EXPECT_EQ(from_flags->settings->prefill[0].to_string(), "https://a:1");
  EXPECT_EQ(from_flags->settings->prefill[1].to_string(), "b:1");
  EXPECT_EQ(from_flags->settings->decode[0].to_string(), "https://c:1");
  const char* incomplete[] = {"gateway", "--model", "m", "--tls-key", "k"};
  EXPECT_FALSE(parse_command_line(std::size(incomplete), incomplete).ok());
}

TEST_F(TlsTest, ClientsWithoutAGoodCertificateStayOutside) {
  Settings settings = secure_settings();
  settings.tls.client_ca = ca.file();
  start_gateway(0, 1, settings);
  EXPECT_EQ(TestClient(way_in()->port()).get("/health").status, 0U);
  EXPECT_EQ(TestClient(way_in(other_ca.issue("stranger", "client"))->port()).get("/health").status, 0U);
  EXPECT_EQ(TestClient(way_in(ca.issue("late", "client", -1))->port()).get("/health").status, 0U);
  const auto tunnel = way_in(ca.issue("client", "client"));
  EXPECT_EQ(TestClient(tunnel->port()).post("/v1/completions", kPlain).status, 200U);
}

TEST_F(TlsTest, PlainHttpToTheTlsPortIsToldSo) {
  start_gateway(0, 1, secure_settings());
  const auto answer = complete(kPlain);
  EXPECT_EQ(answer.status, 400U);
  EXPECT_NE(message_of(answer).find("https://"), std::string::npos);
  EXPECT_TRUE(decode[0]->completions().empty());
  TestClient garbage(port());
  ASSERT_TRUE(garbage.send(std::string("\x16\x03\x01\x00\x05\x01\xff\xff", 8) + std::string(100, '\xff')));
  static_cast<void>(garbage.read_answer());
  EXPECT_EQ(TestClient(way_in()->port()).get("/health").status, 200U);
}

TEST_F(TlsTest, TlsToThePlainPortIsToldSo) {
  start_gateway(0, 1);
  TestClient client(port());
  ASSERT_TRUE(client.send(std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + std::string(50, '\0')));
  const auto answer = client.read_answer();
  EXPECT_EQ(answer.status, 400U);
  EXPECT_NE(message_of(answer).find("--tls-cert"), std::string::npos);
}

TEST_F(TlsTest, HandshakesHaveADeadline) {
  Settings settings = secure_settings();
  settings.timeouts.client_header = std::chrono::milliseconds(200);
  start_gateway(0, 1, settings);
  TestClient silent(port());
  EXPECT_TRUE(silent.sees_close());
  TestClient half(port());
  ASSERT_TRUE(half.send(std::string("\x16\x03\x01\x02\x00\x01", 6)));
  EXPECT_TRUE(half.sees_close());
  const auto begun = std::chrono::steady_clock::now();
  TestClient slow(port());
  ASSERT_TRUE(slow.send(std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11)));
  for (int i = 0; i < 400 && !slow.readable_within(10); ++i) slow.send("x");
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(3));
}

TEST_F(TlsTest, CertificatesAreReadAgainWhenTheirFilesChange) {
  start_gateway(0, 1, secure_settings());
  const auto before = way_in();
  TestClient old_client(before->port());
  ASSERT_EQ(old_client.get("/health").status, 200U);
  const std::string serial = before->last_serial();
  // Files that cannot be used change nothing.
  std::FILE* file = std::fopen(own.key.c_str(), "w");
  std::fputs("no key", file);
  std::fclose(file);
  static_cast<void>(ca.issue("gateway", "localhost"));
  EXPECT_TRUE(test::wait_until(
      [&] {
        const auto tunnel = way_in();
        return TestClient(tunnel->port()).get("/health").status == 200 && tunnel->last_serial() != serial;
      },
      soon()));
  EXPECT_EQ(old_client.get("/health").status, 200U);
  EXPECT_EQ(before->secured(), 1);
}

TEST_F(TlsTest, ReloadedSettingsTakeEffectForNewConnections) {
  Settings settings = secure_settings();
  start_gateway(0, 1, settings);
  const auto serial = [&] {
    const auto tunnel = way_in();
    return TestClient(tunnel->port()).get("/health").status == 200 ? tunnel->last_serial() : "";
  };
  const std::string before = serial();
  settings.tls.certificate = folder.file("none");
  gateway->reload(settings);  // cannot be used
  const auto other = ca.issue("other", "localhost");
  settings.tls = {other.certificate, other.key, ""};
  EXPECT_EQ(serial(), before);
  gateway->reload(settings);
  EXPECT_TRUE(test::wait_until([&] { return serial() != before; }, soon()));
  settings.tls = {};
  gateway->reload(settings);
  EXPECT_TRUE(test::wait_until([&] { return TestClient(port()).get("/health").status == 200; }, soon()));
}

TEST_F(TlsTest, CertificatesThatCannotBeUsedAreAClearError) {
  const auto other = ca.issue("other", "localhost");
  const std::pair<ServerTls, std::string> cases[] = {
      {{folder.file("none"), "", ""}, "--tls-cert " + folder.file("none") + ": No such file"},
      {{own.certificate, other.key, ""}, "--tls-key " + other.key},
      {{own.certificate, "", ""}, "private key"},
      {{own.key, own.key, ""}, "--tls-cert " + own.key},
      {{own.certificate, own.key, own.key}, "--tls-client-ca " + own.key},
  };
  for (const auto& [files, expected] : cases) {
    Settings settings = test_settings();
    settings.tls = files;
    const auto started = Gateway::start(std::move(settings));
    ASSERT_FALSE(started.ok());
    EXPECT_NE(started.status().message().find(expected), std::string::npos) << started.status().message();
  }
}

TEST_F(TlsTest, InstancesSpeakTlsAndConnectionsAreReused) {
  start_before_secure_instance(ca.issue("instance", "localhost"), "", test_settings());
  TestClient client(port());
  ASSERT_EQ(client.post("/v1/completions", kPlain).status, 200U);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client.post("/v1/completions", kPlain).status, 200U);
  EXPECT_TRUE(client.post("/v1/completions", kStreamed).complete);
  ASSERT_EQ(instance->completions().size(), 5U);
  EXPECT_EQ(instance->completions().front().connection, instance->completions().back().connection);
  EXPECT_EQ(instance->completions()[0].fields.at("host"), "localhost:" + std::to_string(front->port()));
  EXPECT_EQ(status().at("decode_nodes").at(0).as_string(), "https://localhost:" + std::to_string(front->port()));
}

TEST_F(TlsTest, APooledConnectionThatTheInstanceClosedIsNoFailure) {
  start_before_secure_instance(ca.issue("instance", "localhost"), "", test_settings());
  TestClient client(port());
  ASSERT_EQ(client.post("/v1/completions", kPlain).status, 200U);
  instance->close_idle_connections();
  EXPECT_EQ(client.post("/v1/completions", kPlain).status, 200U);
  EXPECT_EQ(status().at("instances").at(0).at("errors").to_number<int>(), 0);
}

TEST_F(TlsTest, AnInstanceMayBeAnAddress) {
  start_before_secure_instance(ca.issue("instance", "127.0.0.1"), "", test_settings());
  EXPECT_NE(failure().find("certificate is for 127.0.0.1"), std::string::npos);
  Settings settings = test_settings();
  settings.upstream_tls = {false, ca.file(), "", "", ""};
  settings.decode.push_back(InstanceName::parse("https://127.0.0.1:" + std::to_string(front->port())).value());
  auto started = Gateway::start(std::move(settings));
  ASSERT_TRUE(started.ok()) << started.status().message();
  EXPECT_EQ(TestClient(started.value()->port()).post("/v1/completions", kPlain).status, 200U);
}

TEST_F(TlsTest, AnInstanceOfAnotherCaIsNotAsked) {
  start_before_secure_instance(other_ca.issue("instance", "localhost"), "", test_settings());
  EXPECT_NE(failure().find("unknown issuer: pass the file of that CA as --upstream-ca"), std::string::npos);
}

TEST_F(TlsTest, AnInstanceOfAnotherHostIsNotAsked) {
  start_before_secure_instance(ca.issue("instance", "other.example"), "", test_settings());
  const std::string message = failure();
  EXPECT_NE(message.find("is for other.example"), std::string::npos) << message;
  EXPECT_NE(message.find("--upstream-server-name"), std::string::npos) << message;
}

TEST_F(TlsTest, TheNameThatInstancesShareCanBeGiven) {
  Settings settings = test_settings();
  settings.upstream_tls.server_name = "other.example";
  start_before_secure_instance(ca.issue("instance", "other.example"), "", settings);
  EXPECT_EQ(complete(kPlain).status, 200U);
}

TEST_F(TlsTest, AnExpiredInstanceIsNotAsked) {
  start_before_secure_instance(ca.issue("instance", "localhost", -1), "", test_settings());
  EXPECT_NE(failure().find("has expired"), std::string::npos);
}

TEST_F(TlsTest, AnInstanceThatSpeaksPlainHttpIsExplained) {
  const auto plain = Gateway::start(test_settings());  // answers a handshake as any server of plain HTTP does
  ASSERT_TRUE(plain.ok()) << plain.status().message();
  Settings settings = test_settings();
  settings.decode.push_back(InstanceName::parse("https://127.0.0.1:" + std::to_string(plain.value()->port())).value());
  auto started = Gateway::start(std::move(settings));
  ASSERT_TRUE(started.ok()) << started.status().message();
  gateway = std::move(started).value();
  EXPECT_NE(failure().find("does not speak TLS there: name the instance without https://"), std::string::npos);
}

TEST_F(TlsTest, AnInstanceThatSpeaksTlsIsExplained) {
  start_before_secure_instance(ca.issue("instance", "localhost"), "", test_settings());
  const std::string name = "localhost:" + std::to_string(front->port());
  const auto answer =
      TestClient(port()).post("/instances/add", R"({"type": "decode", "instance": ")" + name + "\"}", "X-API-Key: top-secret-key\r\n");
  EXPECT_EQ(answer.status, 502U);
  EXPECT_NE(answer.body.find("name it https://" + name), std::string::npos) << answer.body;
}

TEST_F(TlsTest, AnInstanceMayWantACertificate) {
  start_before_secure_instance(ca.issue("instance", "localhost"), ca.file(), test_settings());
  const std::string message = failure();
  EXPECT_NE(message.find("--upstream-cert"), std::string::npos) << message;
  Settings settings = test_settings();
  const auto shown = ca.issue("client", "gateway");
  settings.upstream_tls.certificate = shown.certificate;
  settings.upstream_tls.key = shown.key;
  start_before_secure_instance(ca.issue("instance", "localhost"), ca.file(), settings);
  EXPECT_EQ(complete(kPlain).status, 200U);
}

TEST_F(TlsTest, InstancesThatAreAddedSpeakWhatTheSettingsSay) {
  Settings settings = test_settings();
  settings.upstream_tls.all = true;
  start_before_secure_instance(ca.issue("instance", "localhost"), "", settings);
  const std::string name = "localhost:" + std::to_string(front->port());
  const auto administer = [&](const std::string& action, const std::string& instance_name) {
    return TestClient(port()).post("/instances/" + action, R"({"type": "prefill", "instance": ")" + instance_name + "\"}",
                                   "X-API-Key: top-secret-key\r\n");
  };
  EXPECT_NE(administer("add", name).body.find("Added https://" + name), std::string::npos);
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(instance->completions().size(), 2U);
  EXPECT_EQ(administer("remove", name).status, 200U);
  UpstreamSimulator plain;
  EXPECT_EQ(administer("add", "http://" + plain.name()).status, 200U);
}

class GoneOverTls : public TlsTest, public ::testing::WithParamInterface<Ending> {};

TEST_P(GoneOverTls, ClosesTheConnectionToTheInstanceAtOnce) {
  for (const bool streamed : {false, true}) {
    Settings settings = secure_settings();
    start_before_secure_instance(ca.issue("instance", "localhost"), "", settings);
    Behaviour silent;
    silent.point = streamed ? Point::kBetweenTokens : Point::kRequestRead;
    silent.how = How::kStall;
    instance->set(silent);
    const auto tunnel = way_in({}, GetParam());
    TestClient client(tunnel->port());
    ASSERT_TRUE(client.send_request("POST", "/v1/completions", streamed ? kStreamed : kPlain));
    ASSERT_TRUE(test::wait_until([&] { return instance->stalled() == 1; }, soon()));
    const auto closed = std::chrono::steady_clock::now();
    client.close();
    ASSERT_TRUE(test::wait_until([&] { return instance->abandoned() == 1; }, soon()));
    EXPECT_LT(instance->last_abandoned() - closed, kAtMost);
  }
}

std::string name_of(const ::testing::TestParamInfo<Ending>& info) {
  if (info.param == Ending::kCloseNotify) return "CloseNotify";
  return info.param == Ending::kFin ? "Fin" : "Reset";
}

INSTANTIATE_TEST_SUITE_P(By, GoneOverTls, ::testing::Values(Ending::kCloseNotify, Ending::kFin, Ending::kReset), name_of);

TEST_F(TlsTest, StreamsContinueAtAnotherInstanceOverTls) {
  start_before_secure_instance(ca.issue("instance", "localhost"), "", secure_settings());
  UpstreamSimulator second;
  TlsTunnel second_front({Side::kAccepting, second.port(), ca.issue("second", "localhost"), "", Ending::kCloseNotify});
  gateway.reset();
  Settings settings = secure_settings();
  settings.upstream_tls.ca = ca.file();
  for (const TlsTunnel* one : {front.get(), &second_front}) {
    settings.decode.push_back(InstanceName::parse("https://localhost:" + std::to_string(one->port())).value());
  }
  auto started = Gateway::start(std::move(settings));
  ASSERT_TRUE(started.ok()) << started.status().message();
  gateway = std::move(started).value();
  Behaviour dies;
  dies.point = Point::kBetweenTokens;
  instance->set_next(dies);
  const auto tunnel = way_in();
  for (int i = 0; i < 2; ++i) {
    const auto answer =
        TestClient(tunnel->port())
            .post("/v1/completions", R"({"prompt":"Tell","max_tokens":4,"stream":true,"temperature":0,"return_token_ids":true})");
    EXPECT_TRUE(answer.complete);
    EXPECT_TRUE(answer.body.ends_with("data: [DONE]\n\n")) << answer.body;
  }
  EXPECT_EQ(instance->completions().size() + second.completions().size(), 3U);
}

TEST_F(TlsTest, InstanceNamesSayWhetherTlsIsSpoken) {
  const auto secure = InstanceName::parse("https://Host:1/").value();
  EXPECT_EQ(secure.to_string(), "https://host:1");
  EXPECT_EQ(secure.authority(), "host:1");
  EXPECT_EQ(secure.host(), "host");
  EXPECT_TRUE(secure.is_secure());
  const auto plain = InstanceName::parse("http://host:1").value();
  EXPECT_EQ(plain.to_string(), "host:1");
  EXPECT_FALSE(plain.secured().is_secure());
  EXPECT_EQ(InstanceName::parse("host:1").value().secured(), secure);
  EXPECT_EQ(InstanceName::parse("https://[FD00::2]:1").value().authority(), "[fd00::2]:1");
  for (const char* wrong : {"https://http://a:1", "ftp://a:1", "https://", "https://a", "https://a:1/v1", "HTTPS://a:1"}) {
    EXPECT_FALSE(InstanceName::parse(wrong).ok()) << wrong;
  }
}

}  // namespace
}  // namespace moonpool::gateway::testing
