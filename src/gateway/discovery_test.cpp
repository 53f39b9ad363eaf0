// Instances found by SRV records (a real dnsmasq), in etcd (a real one) and by Kubernetes' EndpointSlices (an API server's stand-in).
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway/dns_client.h"
#include "gateway/dns_records.h"
#include "gateway/kubernetes_instances.h"
#include "gateway/testing/etcd_server.h"
#include "gateway/testing/gateway_program.h"
#include "gateway/testing/kubernetes_stub.h"

namespace moonpool::gateway::testing {
namespace {

std::string port_of(const UpstreamSimulator& one) { return std::to_string(one.port()); }

class NameServer {
 public:
  void start(const std::vector<std::string>& records) {
    const auto path = test::find_program("dnsmasq", "dnsmasq-base");
    ASSERT_TRUE(path.ok()) << path.status().message();
    test::ChildOptions options;
    options.argv = {path.value(),
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                    "--local=/test/",
                    "--bind-interfaces",
                    "--listen-address=127.0.0.1",
                    "--log-facility=-",
                    "--pid-file=" + folder_.file("pid"),
                    "--user=root",
                    "--port=" + std::to_string(port)};
    options.argv.insert(options.argv.end(), records.begin(), records.end());
    options.log_file = folder_.file("log");
    auto child = test::ChildProcess::start(options);
    ASSERT_TRUE(child.ok()) << child.status().message();
    process_.emplace(std::move(child).value());
    ASSERT_TRUE(test::wait_until([&] { return test::accepts_connections("127.0.0.1", port); }, soon())) << process_->output();
  }
  void kill() { process_->kill(); }
  [[nodiscard]] std::string address() const { return "127.0.0.1:" + std::to_string(port); }

  const std::uint16_t port = test::free_port();

 private:
  const test::TempDir folder_;
  std::optional<test::ChildProcess> process_;
};

std::vector<std::string> texts(const Result<std::vector<InstanceName>>& names) {
  std::vector<std::string> all;
  if (!names.ok()) return {names.status().message()};
  for (const auto& name : *names) all.push_back(name.to_string());
  std::sort(all.begin(), all.end());
  return all;
}

TEST(DnsTest, TargetsOfTheLowestPriorityBecomeAddressesWithTheirPorts) {
  NameServer server;
  server.start({"--srv-host=_vllm._tcp.decode.test,one.test,8100,10,5", "--srv-host=_vllm._tcp.decode.test,two.test,8200,10,1",
                "--srv-host=_vllm._tcp.decode.test,gone.test,8300,10,1", "--srv-host=_vllm._tcp.decode.test,spare.test,8400,20,1",
                "--host-record=one.test,10.1.0.1", "--host-record=one.test,10.1.0.2", "--host-record=two.test,10.2.0.1,fd00::2",
                "--host-record=six.test,fd00::6", "--srv-host=_six._tcp.test,six.test,8600,0,0", "--host-record=spare.test,10.4.0.1"});
  const auto ask = [&](const std::string& name) {
    return look_up_services(name, server.address(), Deadline::after(std::chrono::seconds(5)));
  };
  EXPECT_EQ(texts(ask("_vllm._tcp.decode.test")), (std::vector<std::string>{"10.1.0.1:8100", "10.1.0.2:8100", "10.2.0.1:8200"}));
  EXPECT_EQ(texts(ask("_six._tcp.test.")), (std::vector<std::string>{"[fd00::6]:8600"}));
  EXPECT_EQ(ask("_no._tcp.test").code(), ErrorCode::kObjectNotFound);
  EXPECT_EQ(ask("one.test").code(), ErrorCode::kObjectNotFound);  // has no such record
}

TEST(DnsTest, AnAnswerTooLongForADatagramComesOverTcp) {
  NameServer server;
  std::vector<std::string> records{"--host-record=one.test,10.1.0.1"};
  for (int i = 0; i < 100; ++i) records.push_back("--srv-host=_many._tcp.test,one.test," + std::to_string(9000 + i));
  server.start(records);
  const auto names = look_up_services("_many._tcp.test", server.address(), Deadline::after(std::chrono::seconds(10)));
  EXPECT_EQ(texts(names).size(), 100U) << texts(names)[0];
}

TEST(DnsTest, AServerThatSaysNothingCostsNoMoreThanTheDeadline) {
  const int silent = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(::bind(silent, reinterpret_cast<sockaddr*>(&address), size), 0);
  ::getsockname(silent, reinterpret_cast<sockaddr*>(&address), &size);
  const auto begun = std::chrono::steady_clock::now();
  const auto names =
      look_up_services("a.test", "127.0.0.1:" + std::to_string(ntohs(address.sin_port)), Deadline::after(std::chrono::seconds(2)));
  EXPECT_FALSE(names.ok());
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(6));
  ::close(silent);
}

TEST(DnsTest, BytesThatAreNoAnswerAreAnError) {
  using Bytes = std::vector<unsigned char>;
  const Bytes header{0, 1, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0};
  const auto with = [&](Bytes more) {
    Bytes all = header;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  const Bytes good = with({0, 0, 33, 0, 1, 0, 0, 0, 9, 0, 9, 0, 1, 0, 2, 0, 80, 1, 'a', 0});
  const auto parsed = parse_srv_answer(good);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(*parsed, (std::vector<SrvRecord>{{1, 2, 80, "a"}}));
  for (std::size_t cut = 0; cut < good.size(); ++cut) {
    EXPECT_FALSE(parse_srv_answer({good.data(), cut}).ok()) << cut;
  }
  EXPECT_FALSE(parse_srv_answer(with({0xC0, 12})).ok());      // a name that points to itself
  EXPECT_FALSE(parse_srv_answer(with({0x40, 'a', 0})).ok());  // a label of no known kind
  EXPECT_TRUE(parse_srv_answer(Bytes{0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0})->empty());
}

TEST(DnsTest, AGatewayFollowsSrvRecordsAndKeepsWhatItKnowsWhileTheServerIsAway) {
  UpstreamSimulator one;
  UpstreamSimulator two;
  NameServer server;
  const std::string target = "--srv-host=_vllm._tcp.decode.test,here.test,";
  server.start({target + port_of(one), "--host-record=here.test,127.0.0.1"});
  const test::TempDir folder;
  const std::string file = folder.file("gateway.json");
  replace_file(file, R"({"groups": {"decode": {"dns": {"srv": "_vllm._tcp.decode.test", "server": ")" + server.address() +
                         R"(", "interval_s": 0.05}}}})");
  GatewayProgram gateway({"--config", file, "--check-timeout", "2"});
  EXPECT_TRUE(gateway.gets(one.name())) << gateway.log();
  EXPECT_EQ(TestClient(gateway.port).post("/v1/completions", kPlain).status, 200U);
  server.kill();
  EXPECT_TRUE(gateway.logs("cannot be looked up, those known stay: _vllm._tcp.decode.test")) << gateway.log();
  EXPECT_TRUE(gateway.has(one.name()));
  server.start({target + port_of(two), "--host-record=here.test,127.0.0.1"});
  EXPECT_TRUE(gateway.gets(two.name()));
  EXPECT_TRUE(gateway.loses(one.name()));
  EXPECT_EQ(TestClient(gateway.port).post("/v1/completions", kPlain).status, 200U);
}

TEST(EtcdTest, KeysThatComeAndGoAreInstancesThatJoinAndAreDrained) {
  EtcdServer etcd;
  UpstreamSimulator one;
  UpstreamSimulator two;
  etcd.put("/decode/a", one.name());
  const test::TempDir folder;
  const std::string file = folder.file("gateway.json");
  replace_file(file, R"({"groups": {"decode": {"etcd": {"server": "127.0.0.1:)" + std::to_string(etcd.port) +
                         R"(", "prefix": "/decode/", "interval_s": 0.05}}}})");
  GatewayProgram gateway({"--config", file});
  EXPECT_TRUE(gateway.gets(one.name())) << gateway.log();
  one.hold_tokens();
  one.release_tokens(1);
  TestClient busy(gateway.port);
  ASSERT_TRUE(busy.send_request("POST", "/v1/completions", kStreamed));
  ASSERT_EQ(busy.read_head().status, 200U);
  etcd.put("/decode/" + two.name(), "");  // the key is the name
  EXPECT_TRUE(gateway.gets(two.name()));
  etcd.remove("/decode/a");
  EXPECT_TRUE(test::wait_until([&] { return gateway.state_of(one.name()) == "draining"; }, soon()));
  EXPECT_EQ(TestClient(gateway.port).post("/v1/completions", kPlain).status, 200U);
  EXPECT_EQ(two.completions().size(), 1U);

  etcd.kill();
  EXPECT_TRUE(gateway.logs("cannot be looked up, those known stay: etcd at"));
  one.release_tokens(100);
  while (busy.read_chunk()) {
  }
  EXPECT_FALSE(busy.ended_badly());
  EXPECT_TRUE(gateway.loses(one.name()));
  EXPECT_TRUE(gateway.has(two.name()));
  EXPECT_EQ(TestClient(gateway.port).post("/v1/completions", kPlain).status, 200U);
  etcd.start();
  EXPECT_TRUE(gateway.has(two.name()));
  etcd.put("/decode/b", one.name());
  EXPECT_TRUE(gateway.gets(one.name()));
  EXPECT_TRUE(gateway.has(two.name()));
}

TEST(KubernetesTest, AGatewayFollowsTheReadyEndpointsOfAService) {
  KubernetesStub api;
  UpstreamSimulator one;
  UpstreamSimulator two;
  UpstreamSimulator three;
  const test::TempDir folder;
  const std::string file = folder.file("gateway.json");
  replace_file(folder.file("token"), "first-token\n");
  replace_file(folder.file("namespace"), "models");
  api.require_token("first-token");
  api.set_slice("decode-1", one.port(), {{"127.0.0.1"}});
  replace_file(file, R"({"groups": {"decode": {"kubernetes": {"service": "decode", "port": "http", "interval_s": 0.1, "credentials": ")" +
                         folder.path().string() + R"(", "server": "http://127.0.0.1:)" + std::to_string(api.port()) + R"("}}}})");
  GatewayProgram gateway({"--config", file});
  EXPECT_TRUE(gateway.gets(one.name())) << gateway.log();
  EXPECT_EQ(TestClient(gateway.port).post("/v1/completions", kPlain).status, 200U);
  ASSERT_TRUE(test::wait_until([&] { return api.watches() == 1; }, soon()));

  api.set_slice("decode-2", two.port(), {{"127.0.0.1"}});  // by the watch alone
  EXPECT_TRUE(gateway.gets(two.name()));
  api.set_slice("decode-1", one.port(), {{"127.0.0.1", false}});
  EXPECT_TRUE(gateway.loses(one.name()));
  EXPECT_EQ(api.lists(), 1);

  // A watch that has ended goes on without a list; the token was replaced meanwhile.
  replace_file(folder.file("token"), "second-token");
  api.require_token("second-token");
  api.end_watches();
  ASSERT_TRUE(test::wait_until([&] { return api.watches() == 2; }, soon()));
  api.set_slice("decode-3", three.port(), {{"127.0.0.1"}});
  EXPECT_TRUE(gateway.gets(three.name()));
  EXPECT_EQ(api.lists(), 1);
  EXPECT_EQ(api.refused(), 0);

  api.compact();
  EXPECT_TRUE(test::wait_until([&] { return api.lists() == 2 && api.watches() == 3; }, soon()));
  EXPECT_TRUE(gateway.has(two.name()) && gateway.has(three.name()));
  EXPECT_EQ(gateway.log().find("cannot be looked up"), std::string::npos) << gateway.log();

  api.stop();
  EXPECT_TRUE(gateway.logs("cannot be looked up, those known stay: service decode of http://127.0.0.1"));
  EXPECT_TRUE(gateway.has(two.name()) && gateway.has(three.name()));
  EXPECT_EQ(TestClient(gateway.port).post("/v1/completions", kPlain).status, 200U);
  api.start();
  api.set_slice("decode-2", two.port(), {});
  EXPECT_TRUE(gateway.loses(two.name()));
  EXPECT_TRUE(gateway.has(three.name()));
  EXPECT_EQ(gateway.log().find("-token"), std::string::npos);

  // A reload ends the watch and begins another.
  const int watches = api.watches();
  gateway.process->signal(SIGHUP);
  EXPECT_TRUE(test::wait_until([&] { return api.watches() > watches; }, soon()));
  EXPECT_TRUE(gateway.has(three.name()));
  gateway.process->signal(SIGTERM);
  EXPECT_EQ(gateway.process->wait(soon()), 0);
}

TEST(KubernetesTest, SlicesBecomeInstances) {
  EndpointSlices slices("");
  const auto list = [](const std::string& items) {
    return R"({"kind":"EndpointSliceList","metadata":{"resourceVersion":"7"},"items":[)" + items + "]}";
  };
  const std::string four = R"({"metadata":{"name":"a"},"addressType":"IPv4","ports":[{"port":80}],"endpoints":[)"
                           R"({"addresses":["10.0.0.1"],"targetRef":{"uid":"u1"}},{"addresses":["10.0.0.2"],"conditions":{"ready":false}},)"
                           R"({"addresses":["10.0.0.3","10.0.0.4"],"conditions":{"ready":true}},{"addresses":[]},5]})";
  const std::string six = R"({"metadata":{"name":"b"},"addressType":"IPv6","ports":[{"port":80}],"endpoints":[)"
                          R"({"addresses":["fd00::1"],"targetRef":{"uid":"u1"}},{"addresses":["fd00::9"],"targetRef":{"uid":"u9"}}]})";
  ASSERT_TRUE(slices.replace(list(four + "," + six)).ok());
  EXPECT_EQ(slices.resource_version(), "7");
  EXPECT_EQ(texts(slices.names()), (std::vector<std::string>{"10.0.0.1:80", "10.0.0.3:80", "[fd00::9]:80"}));
  EXPECT_EQ(slices.apply("{}").code(), ErrorCode::kProtocol);
  EXPECT_EQ(slices.replace("[]").code(), ErrorCode::kProtocol);
  EXPECT_EQ(slices.apply(R"({"type":"ERROR","object":{"kind":"Status","code":410,"message":"gone"}})").code(), ErrorCode::kInvalidVersion);
  EXPECT_EQ(slices.apply(R"({"type":"ERROR","object":{"kind":"Status","code":500}})").code(), ErrorCode::kRpcFail);
  EXPECT_EQ(slices.names().size(), 3U);
  const auto deleted = slices.apply(R"({"type":"DELETED","object":{"metadata":{"name":"a","resourceVersion":"9"}}})");
  EXPECT_TRUE(deleted.ok() && *deleted);
  EXPECT_EQ(texts(slices.names()), (std::vector<std::string>{"[fd00::1]:80", "[fd00::9]:80"}));
  EXPECT_EQ(slices.resource_version(), "9");
  EndpointSlices by_number("8100");
  ASSERT_TRUE(by_number.replace(list(four)).ok());
  EXPECT_EQ(texts(by_number.names()), (std::vector<std::string>{"10.0.0.1:8100", "10.0.0.3:8100"}));
  EndpointSlices no_such_port("grpc");
  ASSERT_TRUE(no_such_port.replace(list(four)).ok());
  EXPECT_TRUE(no_such_port.names().empty());
}

}  // namespace
}  // namespace moonpool::gateway::testing
