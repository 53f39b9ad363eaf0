// The retries of MasterClient, against a master whose moods are scripted.
#include "store/master_client.h"

#include <gtest/gtest.h>

#include <thread>

#include "store/testing/scripted_master.h"
#include "tests/support/test_support.h"

namespace moonpool::store {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class MasterClientTest : public ::testing::Test {
 protected:
  static std::unique_ptr<MasterClient> client_of(const std::string& addresses, const Standing& standing) {
    net::Identity self;
    self.node_id = NodeId::generate();
    return std::make_unique<MasterClient>(*parse_master_addresses(addresses), self, standing);
  }

  static lean::ExistRequest question() {
    lean::ExistRequest request;
    request.key.push_back("k");
    return request;
  }

  Standing standing_;
};

net::Reply yes() {
  wire::ExistReply reply;
  reply.add_status(1);
  return net::Reply(reply);
}

TEST_F(MasterClientTest, AsksAgainWhileTheMasterRecoversOrDoesNotKnowUsYet) {
  std::atomic<int> asked{0};
  testing::ScriptedMaster master;
  master.on(wire::METHOD_EXIST, [&](net::Request&) -> net::Reply {
    switch (asked++) {
      case 0:
        return Status{ErrorCode::kRecovering, "hearing from owners"};
      case 1:
        return Status{ErrorCode::kNotRegistered, "who are you"};
      default:
        return yes();
    }
  });
  ASSERT_TRUE(master.start().ok());
  const auto reply = client_of(master.address(), standing_)->exist(question(), Deadline::after(seconds(20)));
  ASSERT_TRUE(reply.ok()) << reply.status().to_string();
  EXPECT_EQ(asked, 3);
}

TEST_F(MasterClientTest, DoesNotAskAgainAfterARefusal) {
  std::atomic<int> asked{0};
  testing::ScriptedMaster master;
  master.on(wire::METHOD_EXIST, [&](net::Request&) -> net::Reply {
    ++asked;
    return Status{ErrorCode::kInvalidParams, "no"};
  });
  ASSERT_TRUE(master.start().ok());
  EXPECT_EQ(client_of(master.address(), standing_)->exist(question(), Deadline::after(seconds(20))).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(asked, 1);
}

TEST_F(MasterClientTest, NamesAddressOperationTimeAndRemedyWhenNobodyAnswers) {
  const std::string address = "127.0.0.1:" + std::to_string(test::free_port());
  const auto start = Deadline::Clock::now();
  const auto reply = client_of(address, standing_)->exist(question(), Deadline::after(milliseconds(200)));
  EXPECT_LT(Deadline::Clock::now() - start, seconds(5));
  EXPECT_EQ(reply.code(), ErrorCode::kRpcFail);
  for (const char* part : {address.c_str(), "Exist", " s ", "moonpool master --port"}) {
    EXPECT_NE(reply.status().message().find(part), std::string::npos) << reply.status().message();
  }
}

TEST_F(MasterClientTest, AMasterThatIsSilentIsATimeOut) {
  std::atomic<bool> release{false};
  testing::ScriptedMaster master;
  master.on(wire::METHOD_EXIST, [&](net::Request&) -> net::Reply {
    static_cast<void>(test::wait_until([&] { return release.load(); }, Deadline::after(seconds(20))));
    return yes();
  });
  ASSERT_TRUE(master.start().ok());
  EXPECT_EQ(client_of(master.address(), standing_)->exist(question(), Deadline::after(milliseconds(150))).code(), ErrorCode::kRpcTimeout);
  release = true;
}

TEST_F(MasterClientTest, WaitsForAMasterThatComesBack) {
  const std::uint16_t port = test::free_port();
  auto client = client_of("127.0.0.1:" + std::to_string(port), standing_);
  testing::ScriptedMaster master(port);
  master.on(wire::METHOD_EXIST, [](net::Request&) { return yes(); });
  Result<Received<lean::ExistReply>> reply = Status{ErrorCode::kInternal, "not asked"};
  std::jthread caller([&] { reply = client->exist(question(), Deadline::after(seconds(20))); });
  ASSERT_TRUE(master.start().ok());
  caller.join();
  EXPECT_TRUE(reply.ok()) << reply.status().to_string();
}

TEST_F(MasterClientTest, GoesOnToTheNextAddress) {
  testing::ScriptedMaster master;
  master.on(wire::METHOD_EXIST, [](net::Request&) { return yes(); });
  ASSERT_TRUE(master.start().ok());
  const auto client = client_of("127.0.0.1:" + std::to_string(test::free_port()) + ", " + master.address(), standing_);
  EXPECT_TRUE(client->exist(question(), Deadline::after(seconds(20))).ok());
  EXPECT_TRUE(client->exist(question(), Deadline::after(seconds(20))).ok());
}

TEST_F(MasterClientTest, ClosingEndsACallThatWaits) {
  auto client = client_of("127.0.0.1:" + std::to_string(test::free_port()), standing_);
  Result<Received<lean::ExistReply>> reply = Status{ErrorCode::kInternal, "not asked"};
  const auto start = Deadline::Clock::now();
  std::jthread caller([&] { reply = client->exist(question(), Deadline::after(seconds(60))); });
  standing_.stop();
  client->close();
  caller.join();
  EXPECT_EQ(reply.code(), ErrorCode::kCancelled);
  EXPECT_LT(Deadline::Clock::now() - start, seconds(10));
}

TEST(MasterAddresses, DefaultToTheMastersPortAndRefuseNonsense) {
  const auto two = parse_master_addresses("10.0.0.1, [::1]:7");
  ASSERT_TRUE(two.ok());
  EXPECT_EQ(two->at(0), (net::Endpoint{"10.0.0.1", 50051}));
  EXPECT_EQ(two->at(1), (net::Endpoint{"::1", 7}));
  for (const char* text : {"", " , ", "host:port", "a b:1"})
    EXPECT_EQ(parse_master_addresses(text).code(), ErrorCode::kInvalidParams) << text;
}

}  // namespace
}  // namespace moonpool::store
