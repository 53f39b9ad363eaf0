// The checks that ask servers, over real ones: etcd, Redis, the HTTP metadata service, a master, a node; and over such that are away,
// silent, of another kind or have another token.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/version.h"
#include "cli/doctor/findings_for_test.h"
#include "cli/doctor/metadata_check.h"
#include "cli/doctor/server_checks.h"
#include "metadata/metadata_servers_for_test.h"
#include "metadata/redis_connection.h"
#include "net/endpoint.h"
#include "net/server.h"
#include "store/testing/pool.h"
#include "tests/support/test_support.h"

namespace moonpool::cli::doctor {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::Not;

Deadline soon() { return Deadline::after(seconds(20)); }
std::string local(std::uint16_t port) { return "127.0.0.1:" + std::to_string(port); }
std::uint16_t port_of(const std::string& endpoint) { return net::Endpoint::parse(endpoint)->port; }

// ------------------------------------------------------------------------------------------------ metadata

class MetadataCheck : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { ASSERT_TRUE(server_->start().ok()); }
  const std::unique_ptr<metadata::ServerForTest> server_ = metadata::make_server_for_test(GetParam());
};

TEST_P(MetadataCheck, WritesReadsAndRemovesAKeyAndTellsTheTimes) {
  const Findings found = check_metadata_server(metadata::url_for_test(GetParam(), port_of(server_->endpoint())), soon());
  EXPECT_THAT(found, ElementsAre(finds(Level::kOk, "round trip")));
  EXPECT_THAT(found[0].what, AllOf(HasSubstr(server_->endpoint()), HasSubstr("written"), HasSubstr("removed"), Not(HasSubstr("p@ss"))));
}

TEST_P(MetadataCheck, AServerThatIsGoneIsAnErrorThatNamesItWithinTheTime) {
  server_->kill();
  const auto start = Deadline::Clock::now();
  const Findings found =
      check_metadata_server(metadata::url_for_test(GetParam(), port_of(server_->endpoint())), Deadline::after(seconds(2)));
  EXPECT_THAT(found, ElementsAre(finds(Level::kError, server_->endpoint())));
  EXPECT_NE(found[0].remedy, "");
  EXPECT_LT(Deadline::Clock::now() - start, seconds(20));
}

INSTANTIATE_TEST_SUITE_P(Servers, MetadataCheck, testing::Values("http", "etcd", "redis", "redis_with_password"));

TEST(MetadataCheckOnRedis, LeavesNothingBehind) {
  const auto server = metadata::make_server_for_test("redis");
  ASSERT_TRUE(server->start().ok());
  EXPECT_THAT(check_metadata_server(metadata::url_for_test("redis", port_of(server->endpoint())), soon()), no_errors());
  auto connection = metadata::RedisConnection::connect(*net::Endpoint::parse(server->endpoint()), soon());
  ASSERT_TRUE(connection.ok()) << connection.status().to_string();
  const auto count = (*connection)->call({"DBSIZE"}, soon());
  ASSERT_TRUE(count.ok()) << count.status().to_string();
  EXPECT_EQ(count->number, 0);
}

TEST(MetadataCheckOnRedis, AWrongPasswordIsAnErrorThatDoesNotShowIt) {
  const auto server = metadata::make_server_for_test("redis_with_password");
  ASSERT_TRUE(server->start().ok());
  const Findings found = check_metadata_server("redis://:wrong-one@" + server->endpoint(), soon());
  EXPECT_THAT(found, Contains(finds(Level::kError, server->endpoint())));
  EXPECT_THAT(found, Each(Field(&Finding::what, Not(HasSubstr("wrong-one")))));
}

TEST(MetadataCheckOnEtcd, ADeadOneOfSeveralIsAWarning) {
  const auto server = metadata::make_server_for_test("etcd");
  ASSERT_TRUE(server->start().ok());
  const std::string dead = local(test::free_port());
  const Findings found = check_metadata_server("etcd://" + dead + "," + server->endpoint(), soon());
  EXPECT_THAT(found, ElementsAre(finds(Level::kOk, "removed"), finds(Level::kWarning, dead)));
}

TEST(MetadataUrls, NoServerIsWellAndNonsenseIsAnError) {
  EXPECT_THAT(check_metadata_server("P2PHANDSHAKE", soon()), ElementsAre(finds(Level::kOk, "P2PHANDSHAKE")));
  EXPECT_THAT(check_metadata_server("ectd://h:1", soon()), ElementsAre(finds(Level::kError, "ectd")));
}

// ------------------------------------------------------------------------------------------------ master and nodes

master::MasterConfig with_token(const std::string& token) {
  auto config = store::testing::test_master_config();
  config.cluster_token = token;
  return config;
}

TEST(MasterCheck, ARunningOneTellsVersionTimeAndTerm) {
  const store::testing::Pool pool;
  const Findings found = check_master(local(pool.port()), "", true, soon());
  EXPECT_THAT(found, Contains(finds(Level::kOk, product_name() + ", as here")));
  EXPECT_THAT(found, Contains(finds(Level::kNote, "asks for no cluster token")));
  EXPECT_THAT(found, Contains(finds(Level::kOk, "term ")));
  EXPECT_THAT(found, no_errors());
}

TEST(MasterCheck, TheRightTokenIsAccepted) {
  const store::testing::Pool pool(with_token("s3cret"));
  const Findings found = check_master(local(pool.port()), "s3cret", true, soon());
  EXPECT_THAT(found, Contains(finds(Level::kOk, "accepts the cluster token")));
  EXPECT_THAT(found, no_errors());
}

TEST(MasterCheck, AWrongTokenIsAnErrorAndTheVersionIsToldAllTheSame) {
  const store::testing::Pool pool(with_token("s3cret"));
  const Findings found = check_master(local(pool.port()), "another", true, soon());
  EXPECT_THAT(found, Contains(finds(Level::kOk, product_name())));
  EXPECT_THAT(found, Contains(finds(Level::kError, "cluster token")));
  EXPECT_THAT(found, Each(Field(&Finding::what, Not(HasSubstr("another")))));
}

TEST(MasterCheck, AMissingOrNeedlessTokenIsAnError) {
  const store::testing::Pool closed(with_token("s3cret"));
  const Findings refused = check_master(local(closed.port()), "", true, soon());
  EXPECT_THAT(refused, Contains(finds(Level::kError, "asks for a cluster token")));
  EXPECT_THAT(refused, Contains(finds(Level::kOk, product_name()))) << "the version is told all the same";
  const store::testing::Pool open;
  EXPECT_THAT(check_master(local(open.port()), "s3cret", true, soon()), Contains(finds(Level::kError, "does not ask for the token")));
}

TEST(MasterCheck, OneOfSeveralThatIsAwayIsAWarning) {
  const std::string dead = local(test::free_port());
  EXPECT_THAT(check_master(dead, "", true, soon()), ElementsAre(finds(Level::kError, dead)));
  EXPECT_THAT(check_master(dead, "", false, soon()), ElementsAre(finds(Level::kWarning, dead)));
}

TEST(MasterCheck, AnHttpPortIsNotItsWirePort) {
  store::testing::Pool pool;
  const Findings found = check_master(local(pool.master().metrics_port()), "", true, soon());
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].level, Level::kError);
}

TEST(MasterCheck, ANodeIsNoMaster) {
  const store::testing::Pool pool;
  const auto client = pool.client();
  EXPECT_THAT(check_master(client->hostname(), "", true, soon()), Contains(finds(Level::kError, "this is no master")));
}

TEST(MasterCheck, AServerThatSaysNothingIsAnErrorWithinTheTime) {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(socket, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(socket, 5), 0);
  ASSERT_EQ(::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const auto start = Deadline::Clock::now();
  EXPECT_THAT(check_master(local(ntohs(address.sin_port)), "", true, Deadline::after(milliseconds(400))),
              ElementsAre(finds(Level::kError, "no answer within the time")));
  EXPECT_LT(Deadline::Clock::now() - start, seconds(20));
  ::close(socket);
}

TEST(PeerCheck, ANodeOfThisHostIsReachedThroughSharedMemory) {
  const store::testing::Pool pool;
  const auto client = pool.client();
  const Findings found = check_peer(client->hostname(), "", false, soon());
  EXPECT_THAT(found, no_errors());
  EXPECT_THAT(found, Contains(finds(Level::kOk, product_name() + ", as here")));
  EXPECT_THAT(found, Contains(finds(Level::kOk, "from 127.0.0.1 on lo, path MTU 655")));
  EXPECT_THAT(found, Contains(finds(Level::kOk, "shared memory")));
  EXPECT_THAT(found, Contains(finds(Level::kOk, "the path over the network: TCP")));
}

TEST(PeerCheck, OneWithoutRdmaIsAWarningWhereRdmaIsWanted) {
  const store::testing::Pool pool;
  const auto client = pool.client();
  EXPECT_THAT(check_peer(client->hostname(), "", true, soon()), Contains(finds(Level::kWarning, "it serves no RDMA")));
}

TEST(PeerCheck, OneThatServesRdmaIsToldByItsAnswerAboutKeys) {
  net::Identity owner;
  owner.node_id = NodeId::generate();
  net::Server server(owner, {});
  server.handle_quickly(wire::METHOD_RDMA_KEYS, [](net::Request&, net::Reply& reply) -> std::optional<net::Task<net::Reply>> {
    reply = net::Reply(Status(ErrorCode::kStaleIncarnation, "nothing is served under this incarnation"));
    return std::nullopt;
  });
  ASSERT_TRUE(server.start().ok());
  const Findings found = check_peer(local(server.port()), "", true, soon());
  EXPECT_THAT(found, Contains(finds(Level::kOk, "it serves RDMA")));
  EXPECT_THAT(found, Contains(finds(Level::kOk, "serves no shared memory"))) << "this server has no socket for it";
  EXPECT_THAT(found, no_errors());
  server.stop();
}

TEST(PeerCheck, AnAddressWithoutAPortIsAnError) {
  EXPECT_THAT(check_peer("10.0.0.1", "", false, soon()), ElementsAre(finds(Level::kError, "the port is missing")));
}

TEST(Greetings, OfAnotherReleaseAreANoteThatNamesBoth) {
  Greeting greeting;
  greeting.product = "moonpool 9.9.9";
  EXPECT_THAT(
      judge_greeting("master m:1", greeting, "moonpool 1.0.0", true),
      ElementsAre(finds(Level::kNote, "moonpool 9.9.9, and this is moonpool 1.0.0"), finds(Level::kOk, "accepts the cluster token")));
}

}  // namespace
}  // namespace moonpool::cli::doctor
