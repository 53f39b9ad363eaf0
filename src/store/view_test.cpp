// Looks at objects where they lie: what is pinned, what is copied, and what happens when the object goes or rots meanwhile.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "master/coordinator.h"
#include "store/client_runtime.h"
#include "store/testing/pool.h"
#include "tests/support/test_support.h"

namespace moonpool::store {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::Bytes;
using testing::pattern;
using testing::Pool;

constexpr std::size_t kKiB = 1024;

Result<View> view_one(Client& client, std::string_view key) { return std::move(client.view({&key, 1}).at(0)); }

bool shows(const Result<View>& view, const Bytes& value) { return view.ok() && std::ranges::equal(view->bytes(), value); }

bool soon(const std::function<bool()>& condition) { return test::wait_until(condition, Deadline::after(seconds(30))); }

void flip(std::uint64_t address) {
  auto* const byte = reinterpret_cast<volatile unsigned char*>(address);
  *byte = static_cast<unsigned char>(*byte ^ 0x10U);
}

std::vector<Replica> replicas_of(Client& client, std::string_view key) {
  auto found = client.replicas({&key, 1}).at(0);
  EXPECT_TRUE(found.ok()) << found.status().to_string();
  return found.ok() ? *std::move(found) : std::vector<Replica>{};
}

class ViewTest : public ::testing::Test {
 protected:
  std::unique_ptr<Client> client_over(std::string paths) const {
    auto options = pool_.options(0);
    options.paths = std::move(paths);
    return pool_.client(options);
  }
  // Of the pool's memory, as its master sees it: by objects and by what is still viewed of them.
  std::uint64_t used() {
    std::uint64_t used = 0;
    const auto segments = pool_.master().coordinator().membership().segments();
    for (const auto& segment : *segments) used += segment->used();
    return used;
  }

  Pool pool_;
  std::unique_ptr<Client> owner_ = pool_.client();
};

TEST_F(ViewTest, ItsOwnMemoryIsPinnedAndStaysAfterTheClient) {
  const Bytes value = pattern("k", 1, 700'001);
  ASSERT_EQ(testing::put_one(*owner_, "k", value), 0);
  const auto view = view_one(*owner_, "k");
  ASSERT_TRUE(shows(view, value)) << view.status().to_string();
  EXPECT_TRUE(view->pinned());
  EXPECT_EQ(reinterpret_cast<std::uint64_t>(view->bytes().data()), replicas_of(*owner_, "k").at(0).address);
  const auto start = Deadline::Clock::now();
  owner_.reset();
  EXPECT_LT(Deadline::Clock::now() - start, seconds(4)) << "nobody waits for a view";
  EXPECT_TRUE(shows(view, value));
}

TEST_F(ViewTest, AnotherNodesMemoryIsPinnedWhereItIsSharedAndCopiedOverTcp) {
  const Bytes value = pattern("k", 1, 3'000'001);
  ASSERT_EQ(testing::put_one(*owner_, "k", value), 0);
  for (const auto& [paths, pinned] : {std::pair("", true), {"shm,tcp", true}, {"shm", true}, {"local,tcp", false}, {"tcp", false}}) {
    const auto reader = client_over(paths);
    const auto view = view_one(*reader, "k");
    EXPECT_TRUE(shows(view, value)) << paths << ": " << view.status().to_string();
    EXPECT_TRUE(view.ok() && view->pinned() == pinned) << paths;
  }
}

TEST_F(ViewTest, ABatchIsPinnedWhenItIsWorthIt) {
  const auto reader = client_over("");
  std::vector<std::string> names;
  for (int i = 0; i < 8; ++i) {
    names.push_back("k" + std::to_string(i));
    ASSERT_EQ(testing::put_one(*owner_, names.back(), pattern(names.back(), 1, ViewPath::kWorthAPin / 8)), 0);
  }
  std::vector<std::string_view> keys(names.begin(), names.end());
  keys.insert(keys.begin() + 2, {"absent", "", "k0"});
  for (const std::size_t count : {keys.size(), std::size_t{3}}) {
    const auto views = reader->view(std::span(keys).first(count));
    ASSERT_EQ(views.size(), count);
    for (std::size_t i = 0; i < count; ++i) {
      if (keys[i].empty() || keys[i] == "absent") {
        EXPECT_FALSE(views[i].ok());
        continue;
      }
      EXPECT_TRUE(shows(views[i], pattern(keys[i], 1, ViewPath::kWorthAPin / 8))) << keys[i];
      EXPECT_EQ(views[i]->pinned(), count == keys.size()) << keys[i];
    }
    if (count > 3) {
      EXPECT_EQ(views[3].code(), ErrorCode::kInvalidParams);
    }
    EXPECT_EQ(views[2].code(), ErrorCode::kObjectNotFound);
  }
}

TEST_F(ViewTest, AViewedObjectIsRemovedAtOnceAndItsSpaceUsedAgainWhenTheViewIsGone) {
  const auto reader = client_over("");
  const Bytes value = pattern("k", 1, 1'000'000);
  ASSERT_EQ(testing::put_one(*owner_, "k", value), 0);
  auto view = std::make_unique<Result<View>>(view_one(*reader, "k"));
  ASSERT_TRUE(shows(*view, value) && (*view)->pinned());
  const auto start = Deadline::Clock::now();
  EXPECT_EQ(testing::remove_one(*owner_, "k", true), 0);
  EXPECT_LT(Deadline::Clock::now() - start, seconds(4));
  EXPECT_EQ(testing::exist_one(*owner_, "k"), 0);
  EXPECT_EQ(view_one(*reader, "k").code(), ErrorCode::kObjectNotFound);
  EXPECT_GE(used(), value.size());
  EXPECT_TRUE(shows(*view, value));
  view.reset();
  EXPECT_TRUE(soon([&] { return used() == 0; }));
}

// The object goes between the look-up and the pin.
class MeddledViewTest : public ViewTest {
 protected:
  class Meddler final : public transfer::Transport {
   public:
    Meddler(ClientRuntime& runtime, const std::function<void()>& before) : before_(before) {
      ClientRuntime::add_real_paths(real_, runtime);
    }
    [[nodiscard]] std::string_view name() const override { return "meddler"; }
    [[nodiscard]] bool reaches(const transfer::Peer& peer) const override { return real_.reaches(peer); }
    void write(const transfer::Peer& peer, std::span<transfer::WriteOperation> operations, Deadline deadline) override {
      real_.write(peer, operations, deadline);
    }
    void read(const transfer::Peer& peer, std::span<transfer::ReadOperation> operations, Deadline deadline) override {
      real_.read(peer, operations, deadline);
    }
    void view(const transfer::Peer& peer, std::span<transfer::ViewOperation> operations, Deadline deadline) override {
      if (before_) before_();
      real_.view(peer, operations, deadline);
    }

   private:
    const std::function<void()>& before_;
    transfer::PathSelector real_;
  };

  void SetUp() override {
    runtime_ = std::make_unique<ClientRuntime>(pool_.options(0), [this](transfer::PathSelector& paths, ClientRuntime& runtime) {
      paths.add(std::make_unique<Meddler>(runtime, before_view_));
    });
    const Status status = runtime_->open();
    ASSERT_TRUE(status.ok()) << status.to_string();
  }
  Result<View> view(std::string_view key) { return std::move(runtime_->views().view({&key, 1}, Deadline::after(seconds(5))).at(0)); }

  std::function<void()> before_view_;
  std::unique_ptr<ClientRuntime> runtime_;
};

TEST_F(MeddledViewTest, AnObjectThatWentMeanwhileIsAMiss) {
  ASSERT_EQ(testing::put_one(*owner_, "k", pattern("k", 1, 500'000)), 0);
  before_view_ = [&] { EXPECT_EQ(testing::remove_one(*owner_, "k", true), 0); };
  EXPECT_EQ(view("k").code(), ErrorCode::kObjectNotFound);
}

TEST_F(MeddledViewTest, AnObjectThatWasReplacedMeanwhileShowsOneOfItsValuesWhole) {
  ASSERT_EQ(testing::put_one(*owner_, "k", pattern("k", 1, 500'000)), 0);
  before_view_ = [&] { EXPECT_EQ(testing::upsert_one(*owner_, "k", pattern("k", 2, 400'000)), 0); };
  // The old value as long as its owner has not heard of the retirement: the view began before the replacement.
  const auto shown = view("k");
  EXPECT_TRUE(shows(shown, pattern("k", 2, 400'000)) || shows(shown, pattern("k", 1, 500'000)));
  before_view_ = {};
  EXPECT_TRUE(shows(view("k"), pattern("k", 2, 400'000)));
}

TEST_F(MeddledViewTest, AnObjectWhosePlaceIsAnothersByNowIsNeverTakenForIt) {
  owner_ = pool_.client(std::uint64_t{1} << 20);  // room for one of them
  ASSERT_EQ(testing::put_one(*owner_, "k", pattern("k", 1, 800 * kKiB)), 0);
  before_view_ = [&] {
    EXPECT_EQ(testing::remove_one(*owner_, "k", true), 0);
    EXPECT_EQ(testing::put_one(*owner_, "l", pattern("l", 1, 800 * kKiB)), 0);
  };
  EXPECT_EQ(view("k").code(), ErrorCode::kObjectNotFound);
  before_view_ = {};
  EXPECT_TRUE(shows(view("l"), pattern("l", 1, 800 * kKiB)));
}

TEST_F(ViewTest, BytesThatRotAreNeverShownAndPinNothing) {
  const auto reader = client_over("");
  const Bytes value = pattern("k", 1, 700'000);
  ASSERT_EQ(testing::put_one(*owner_, "k", value), 0);
  const auto address = replicas_of(*owner_, "k").at(0).address;  // the owner lives in this process
  for (const std::size_t at : {std::size_t{0}, std::size_t{300'000}, std::size_t{699'999}}) {
    flip(address + at);
    EXPECT_EQ(view_one(*owner_, "k").code(), ErrorCode::kTransferFail) << "byte " << at;
    EXPECT_EQ(view_one(*reader, "k").code(), ErrorCode::kTransferFail) << "byte " << at;
    flip(address + at);
  }
  EXPECT_TRUE(shows(view_one(*reader, "k"), value));
  EXPECT_EQ(testing::remove_one(*owner_, "k", true), 0);
  EXPECT_TRUE(soon([&] { return used() == 0; })) << "no pin is left";
}

TEST_F(ViewTest, AnotherReplicaIsShownWhenOneHasRotted) {
  const auto second = pool_.client();
  const auto reader = client_over("");
  const Bytes value = pattern("k", 1, 700'000);
  ReplicaPolicy two;
  two.replica_num = 2;
  ASSERT_EQ(testing::put_one(*owner_, "k", value, two), 0);
  const auto replicas = replicas_of(*owner_, "k");
  ASSERT_EQ(replicas.size(), 2U);
  for (const auto& rotten : replicas) {
    flip(rotten.address + 1234);
    for (Client* client : {owner_.get(), second.get(), reader.get()}) {
      const auto view = view_one(*client, "k");
      EXPECT_TRUE(shows(view, value)) << view.status().to_string();
    }
    flip(rotten.address + 1234);
  }
}

TEST_F(ViewTest, WithoutChecksumsAViewIsStillPinned) {
  const Bytes value = pattern("k", 1, 700'000);
  ASSERT_EQ(testing::put_one(*owner_, "k", value), 0);
  auto options = pool_.options(0);
  options.checksums = false;
  const auto reader = pool_.client(options);
  const auto view = view_one(*reader, "k");
  EXPECT_TRUE(shows(view, value));
  EXPECT_TRUE(view.ok() && view->pinned());
}

TEST_F(ViewTest, TheBytesOfARemovedObjectStayWhenTheMasterIsANewOne) {
  // Room for little more than what is viewed: a master that took it for free would have it written over.
  owner_ = pool_.client(std::uint64_t{4} << 20);
  const auto reader = client_over("");
  const Bytes value = pattern("k", 1, 1 << 20);
  ASSERT_EQ(testing::put_one(*owner_, "k", value), 0);
  auto view = std::make_unique<Result<View>>(view_one(*reader, "k"));
  ASSERT_TRUE(shows(*view, value) && (*view)->pinned());
  ASSERT_EQ(testing::remove_one(*owner_, "k", true), 0);
  pool_.stop_master();
  pool_.start_master();
  for (int i = 0; i < 12; ++i) {
    const std::string key = "over it " + std::to_string(i);
    EXPECT_EQ(testing::put_one(i % 2 == 0 ? *owner_ : *reader, key, pattern(key, 1, 700'000)), 0) << key;
    EXPECT_TRUE(shows(*view, value)) << "after " << key;
  }
  EXPECT_EQ(testing::exist_one(*owner_, "k"), 0) << "nothing removed comes back";
  ASSERT_TRUE(owner_->remove_all(true).ok());
  EXPECT_TRUE(soon([&] { return used() <= (1 << 20) + 4096; }));
  EXPECT_GE(used(), value.size());
  view.reset();
  EXPECT_TRUE(soon([&] { return used() == 0; })) << "the new master has its owner's word in the end";
}

}  // namespace
}  // namespace moonpool::store
