// The membership thread against a master whose answers are scripted: what it says, in which order, and what it does when told off.
#include "store/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <utility>

#include "store/master_client.h"
#include "store/testing/pool.h"
#include "store/testing/scripted_master.h"
#include "tests/support/test_support.h"
#include "transfer/local/local_transport.h"

namespace moonpool::store {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::Contains;
using ::testing::ElementsAre;

class MembershipTest : public ::testing::Test {
 protected:
  // What the master has heard, and what it will say.
  struct Heard {
    std::vector<wire::RegisterNodeRequest> registrations;
    std::vector<wire::MountSegmentRequest> mounts;
    std::vector<wire::NodeSyncRequest> syncs;
    int goodbyes = 0;
  };

  void SetUp() override {
    script(wire::METHOD_REGISTER_NODE, &Heard::registrations, register_);
    script(wire::METHOD_MOUNT_SEGMENT, &Heard::mounts, mount_);
    script(wire::METHOD_NODE_SYNC, &Heard::syncs, sync_);
    master_.on(wire::METHOD_DEREGISTER_NODE, [this](net::Request&) {
      const std::scoped_lock lock(mutex_);
      ++heard_.goodbyes;
      return net::Reply(wire::Empty());
    });
    ASSERT_TRUE(master_.start().ok());
    identity_.node_id = NodeId::generate();
  }

  template <typename Request>
  void script(wire::Method method, std::vector<Request> Heard::*log, std::function<net::Reply(const Request&)>& answer) {
    master_.on(method, [this, log, &answer](net::Request& request) -> net::Reply {
      Request message;
      if (const Status status = request.parse(message); !status.ok()) return status;
      const std::scoped_lock lock(mutex_);
      (heard_.*log).push_back(message);
      return answer(message);
    });
  }

  // Ends the thread and the master before what the test's answers refer to goes.
  class Running {
   public:
    explicit Running(MembershipTest& test) : test_(test) {}
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    ~Running() {
      test_.membership_.reset();
      test_.master_.stop();
    }

   private:
    MembershipTest& test_;
  };

  [[nodiscard]] std::unique_ptr<Running> start() {
    MembershipOptions options;
    options.identity = identity_;
    options.name = "127.0.0.1:1";
    options.listen = {"127.0.0.1", 1};
    options.protocol = "tcp";
    options.masters = *parse_master_addresses(master_.address());
    membership_ = std::make_unique<Membership>(std::move(options), owner_, standing_);
    membership_->start();
    const Status status = standing_.wait_registered(Deadline::after(seconds(30)));
    EXPECT_TRUE(status.ok()) << status.to_string();
    return std::make_unique<Running>(*this);
  }
  // Waits for something to hold of what the master has heard.
  bool hears(const std::function<bool(const Heard&)>& condition) {
    return test::wait_until(
        [&] {
          const std::scoped_lock lock(mutex_);
          return condition(heard_);
        },
        Deadline::after(seconds(30)));
  }
  Status write(const transfer::ExtentRef& extent, const std::string& key) {
    const auto value = testing::pattern(key, 1, extent.length);
    const ConstBytes piece = value;
    transfer::WriteOperation operation;
    operation.extent = extent;
    operation.key = key;
    operation.source = {&piece, 1};
    transfer::LocalTransport(owner_, identity_.node_id).write({identity_.node_id, {}}, {&operation, 1}, Deadline::after(seconds(10)));
    return operation.status;
  }

  static net::Reply registered_in(std::uint64_t term) {
    wire::RegisterNodeReply reply;
    reply.set_term(term);
    reply.set_sync_interval_ms(100);
    return net::Reply(reply);
  }
  static wire::NodeSyncReply in_term(std::uint64_t term) {
    wire::NodeSyncReply reply;
    reply.set_term(term);
    return reply;
  }

  std::mutex mutex_;  // guards heard_ and the answers' own state
  Heard heard_;
  std::function<net::Reply(const wire::RegisterNodeRequest&)> register_ = [](const auto&) { return registered_in(5); };
  std::function<net::Reply(const wire::MountSegmentRequest&)> mount_ = [](const auto&) { return net::Reply(wire::MountSegmentReply()); };
  std::function<net::Reply(const wire::NodeSyncRequest&)> sync_ = [](const auto&) { return net::Reply(in_term(5)); };
  testing::ScriptedMaster master_;
  net::Identity identity_;
  transfer::Owner owner_;
  Standing standing_;
  std::unique_ptr<Membership> membership_;
};

TEST_F(MembershipTest, ReportsTheWholeCatalogueInMessagesOfABoundedSize) {
  constexpr std::uint64_t kExtents = 6000;
  const auto incarnation = owner_.mount(std::uint64_t{8} << 20);
  ASSERT_TRUE(incarnation.ok());
  ASSERT_TRUE(owner_.adopt_term(Term{3}, Deadline::after(seconds(5))).ok());
  for (std::uint64_t i = 0; i < kExtents; ++i) {
    const Status status = write({*incarnation, i * 1024, 100, {Term{3}, i + 1}}, std::string(400, 'k') + std::to_string(i));
    ASSERT_TRUE(status.ok()) << status.to_string();
  }
  const auto running = start();
  const std::scoped_lock lock(mutex_);
  ASSERT_EQ(heard_.registrations.size(), 1U);
  EXPECT_EQ(heard_.registrations[0].highest_term(), 3U);
  ASSERT_GE(heard_.mounts.size(), 2U);
  std::set<std::string> keys;
  for (std::size_t i = 0; i < heard_.mounts.size(); ++i) {
    const auto& mount = heard_.mounts[i];
    EXPECT_LT(mount.ByteSizeLong(), std::size_t{2} << 20);
    EXPECT_EQ(mount.last(), i + 1 == heard_.mounts.size());
    EXPECT_EQ(mount.term(), 5U);
    EXPECT_EQ(mount.segment().incarnation(), incarnation->to_bytes());
    keys.insert(mount.key().begin(), mount.key().end());
  }
  EXPECT_EQ(keys.size(), kExtents);
  EXPECT_EQ(owner_.term(), Term{5}) << "adopted before the report";
}

TEST_F(MembershipTest, RegistersAgainWhenTheMasterDoesNotKnowItOrReignsAnew) {
  int syncs = 0;
  std::uint64_t term = 5;
  register_ = [&](const auto&) { return registered_in(term); };
  sync_ = [&](const auto&) -> net::Reply {
    switch (++syncs) {
      case 2:
        return Status{ErrorCode::kNotRegistered, "who are you"};
      case 4:
        return Status{ErrorCode::kStaleTerm, "a new reign"};
      case 6:
        ++term;
        break;  // the reply itself tells
      default:
        break;
    }
    return net::Reply(in_term(term));
  };
  const auto running = start();
  EXPECT_TRUE(hears([](const Heard& heard) { return heard.registrations.size() >= 4; }));
  EXPECT_TRUE(test::wait_until([&] { return standing_.registered() && standing_.term() == Term{6}; }, Deadline::after(seconds(30))));
}

TEST_F(MembershipTest, AFencedSegmentIsEmptiedAndMountedUnderANewIncarnation) {
  const auto old = owner_.mount(std::uint64_t{1} << 20);
  ASSERT_TRUE(old.ok());
  ASSERT_TRUE(owner_.adopt_term(Term{3}, Deadline::after(seconds(5))).ok());
  ASSERT_TRUE(write({*old, 0, 100, {Term{3}, 1}}, "k").ok());
  mount_ = [&](const wire::MountSegmentRequest& request) -> net::Reply {
    if (request.segment().incarnation() == old->to_bytes()) return Status{ErrorCode::kStaleIncarnation, "fenced"};
    return net::Reply(wire::MountSegmentReply());
  };
  const auto running = start();
  const std::scoped_lock lock(mutex_);
  ASSERT_EQ(heard_.mounts.size(), 2U);
  EXPECT_NE(heard_.mounts[1].segment().incarnation(), old->to_bytes());
  EXPECT_EQ(heard_.mounts[1].key_size(), 0);
}

TEST_F(MembershipTest, TellsTheNextMasterWhichIncarnationsAreFenced) {
  const std::string told_at_registration = Incarnation::generate().to_bytes();
  const std::string told_at_sync = Incarnation::generate().to_bytes();
  const std::string told_by_a_call = Incarnation::generate().to_bytes();
  register_ = [&](const auto&) {
    wire::RegisterNodeReply reply;
    reply.set_term(5);
    reply.add_fenced(told_at_registration);
    return net::Reply(reply);
  };
  std::atomic<bool> forget{false};
  sync_ = [&](const auto&) -> net::Reply {
    if (forget.exchange(false)) return Status{ErrorCode::kNotRegistered, "who are you"};
    auto reply = in_term(5);
    reply.add_fenced(told_at_sync);
    return net::Reply(reply);
  };
  const auto running = start();
  ASSERT_TRUE(hears([](const Heard& heard) { return heard.syncs.size() >= 2; }));
  membership_->fenced().remember(std::vector{told_by_a_call});
  forget = true;
  ASSERT_TRUE(hears([](const Heard& heard) { return heard.registrations.size() >= 2; }));
  const std::scoped_lock lock(mutex_);
  const auto& again = heard_.registrations[1].fenced();
  for (const auto& one : {told_at_registration, told_at_sync, told_by_a_call}) EXPECT_THAT(again, Contains(one));
}

TEST_F(MembershipTest, CarriesOutRetirementsAndAcknowledgesThem) {
  const auto incarnation = owner_.mount(std::uint64_t{1} << 20);
  ASSERT_TRUE(incarnation.ok());
  ASSERT_TRUE(owner_.adopt_term(Term{5}, Deadline::after(seconds(5))).ok());
  ASSERT_TRUE(write({*incarnation, 0, 100, {Term{5}, 1}}, "k").ok());
  bool acknowledged = false;
  sync_ = [&](const wire::NodeSyncRequest& request) {
    auto reply = in_term(5);
    for (const auto sequence : request.acknowledged()) acknowledged = acknowledged || sequence == 77;
    if (!acknowledged) {
      auto& order = *reply.add_retirements();
      order.set_sequence(77);
      order.set_incarnation(incarnation->to_bytes());
      order.set_length(100);
      order.mutable_version()->set_term(5);
      order.mutable_version()->set_count(1);
    }
    return net::Reply(reply);
  };
  const auto running = start();
  ASSERT_TRUE(hears([&](const Heard&) { return acknowledged; }));
  EXPECT_TRUE(owner_.catalogue(*incarnation).empty());
}

TEST_F(MembershipTest, TellsOnceThatOnlyReadersHoldUpARetirementAndAcknowledgesItWhenTheyHaveLeft) {
  const auto incarnation = owner_.mount(std::uint64_t{1} << 20);
  ASSERT_TRUE(incarnation.ok());
  ASSERT_TRUE(owner_.adopt_term(Term{5}, Deadline::after(seconds(5))).ok());
  const transfer::ExtentRef ref{*incarnation, 0, 100, {Term{5}, 1}};
  ASSERT_TRUE(write(ref, "k").ok());
  auto reader = owner_.begin_read(ref);
  ASSERT_TRUE(reader.ok());
  bool ordered = false;
  int withdrawn = 0;
  int syncs_since = 0;
  int acknowledged = 0;
  sync_ = [&](const wire::NodeSyncRequest& request) {
    auto reply = in_term(5);
    syncs_since += withdrawn > 0 ? 1 : 0;
    withdrawn += request.withdrawn_size();
    acknowledged += request.acknowledged_size();
    if (!std::exchange(ordered, true)) {
      auto& order = *reply.add_retirements();
      order.set_sequence(77);
      order.set_incarnation(incarnation->to_bytes());
      order.set_length(100);
      order.mutable_version()->set_term(5);
      order.mutable_version()->set_count(1);
    }
    return net::Reply(reply);
  };
  const auto running = start();
  ASSERT_TRUE(hears([&](const Heard&) { return syncs_since >= 3; }));
  {
    const std::scoped_lock lock(mutex_);
    EXPECT_EQ(withdrawn, 1);
    EXPECT_EQ(acknowledged, 0);
  }
  { const auto gone = std::move(*reader); }
  ASSERT_TRUE(hears([&](const Heard&) { return acknowledged == 1; }));
}

TEST_F(MembershipTest, SaysGoodbyeWhenItStops) {
  const auto running = start();
  membership_->stop(Deadline::after(seconds(5)));
  const std::scoped_lock lock(mutex_);
  EXPECT_EQ(heard_.goodbyes, 1);
}

}  // namespace
}  // namespace moonpool::store
