// Paths that lie, break or hang: what a put and a get make of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <thread>

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

// Stands before the real paths and hands each batch on, unless the test wants something else of it.
class MeddlingTransport final : public transfer::Transport {
 public:
  struct Script {
    // True: the batch is dealt with; false: it goes to the real paths.
    std::function<bool(const transfer::Peer&, std::span<transfer::WriteOperation>)> write;
    std::function<bool(const transfer::Peer&, std::span<transfer::ReadOperation>)> read;
  };
  MeddlingTransport(ClientRuntime& runtime, std::shared_ptr<Script> script) : script_(std::move(script)) {
    ClientRuntime::add_real_paths(real_, runtime);
  }
  [[nodiscard]] std::string_view name() const override { return "meddling"; }
  [[nodiscard]] bool reaches(const transfer::Peer& peer) const override { return real_.reaches(peer); }
  void write(const transfer::Peer& peer, std::span<transfer::WriteOperation> operations, Deadline deadline) override {
    if (!script_->write || !script_->write(peer, operations)) real_.write(peer, operations, deadline);
  }
  void read(const transfer::Peer& peer, std::span<transfer::ReadOperation> operations, Deadline deadline) override {
    if (!script_->read || !script_->read(peer, operations)) real_.read(peer, operations, deadline);
  }

 private:
  const std::shared_ptr<Script> script_;
  transfer::PathSelector real_;
};

// Rot, seen by threads that have read these bytes before over a socket: an order that ThreadSanitizer cannot know.
__attribute__((no_sanitize("thread"))) void flip(std::byte& byte) {
  auto* const raw = reinterpret_cast<volatile unsigned char*>(&byte);
  *raw = static_cast<unsigned char>(*raw ^ 0x10U);
}

class FaultyPathsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto options = pool_.options(0);
    options.operation_timeout = seconds(5);
    runtime_ = std::make_unique<ClientRuntime>(options, [this](transfer::PathSelector& paths, ClientRuntime& runtime) {
      paths.add(std::make_unique<MeddlingTransport>(runtime, script_));
    });
    const Status status = runtime_->open();
    ASSERT_TRUE(status.ok()) << status.to_string();
  }

  std::int32_t put(std::string_view key, const Bytes& value, const ReplicaPolicy& policy = {}) {
    const ConstBytes piece = value;
    const std::span<const ConstBytes> source(&piece, 1);
    return runtime_->puts().put({{&key, 1}, {&source, 1}, policy, false}, Deadline::after(runtime_->options().operation_timeout)).at(0);
  }
  Result<std::uint64_t> get(std::string_view key, Bytes& room) {
    const auto plan = [&](std::size_t, std::uint64_t size) -> Result<GetPath::Parts> {
      room.resize(size);
      return GetPath::Parts{{0, size, {room}}};
    };
    return runtime_->gets().get({&key, 1}, plan, Deadline::after(runtime_->options().operation_timeout)).at(0);
  }
  template <typename Operation>
  static bool fail(std::span<Operation> operations, ErrorCode code) {
    for (auto& operation : operations) operation.status = {code, "as the test wants it"};
    return true;
  }

  Pool pool_;
  std::unique_ptr<Client> a_ = pool_.client();
  std::unique_ptr<Client> b_ = pool_.client();
  std::shared_ptr<MeddlingTransport::Script> script_ = std::make_shared<MeddlingTransport::Script>();
  std::unique_ptr<ClientRuntime> runtime_;
};

TEST_F(FaultyPathsTest, BytesThatRotInTheOwnersMemoryAreNeverDelivered) {
  const Bytes value = pattern("k", 1, 700'000);
  ASSERT_EQ(put("k", value), 0);
  const std::string_view key = "k";
  const auto replicas = a_->replicas({&key, 1}).at(0);
  ASSERT_TRUE(replicas.ok());
  auto* const memory = reinterpret_cast<std::byte*>(replicas->at(0).address);  // the owner lives in this process
  ASSERT_EQ(std::memcmp(memory, value.data(), value.size()), 0);
  for (const std::size_t at : {std::size_t{0}, std::size_t{300'000}, std::size_t{699'999}}) {
    flip(memory[at]);
    Bytes room;
    EXPECT_EQ(get("k", room).code(), ErrorCode::kTransferFail) << "byte " << at;
    for (Client* client : {a_.get(), b_.get()}) EXPECT_FALSE(testing::get_fresh(*client, "k").ok()) << "byte " << at;
    flip(memory[at]);
  }
  Bytes room;
  EXPECT_TRUE(get("k", room).ok());
  EXPECT_TRUE(room == value);
}

TEST_F(FaultyPathsTest, AnotherReplicaServesWhatOneHasSpoiled) {
  ReplicaPolicy two;
  two.replica_num = 2;
  const Bytes value = pattern("k", 1, 300'000);
  ASSERT_EQ(put("k", value, two), 0);
  const std::string_view key = "k";
  const auto replicas = a_->replicas({&key, 1}).at(0);
  ASSERT_TRUE(replicas.ok());
  ASSERT_EQ(replicas->size(), 2U);
  reinterpret_cast<std::byte*>(replicas->at(0).address)[1234] ^= std::byte{1};
  for (int i = 0; i < 10; ++i) {
    Bytes room;
    const auto bytes = get("k", room);
    ASSERT_TRUE(bytes.ok()) << bytes.status().to_string();
    EXPECT_TRUE(room == value);
  }
}

TEST_F(FaultyPathsTest, OneReplicaThatWasWrittenIsEnough) {
  script_->write = [this](const transfer::Peer& peer, std::span<transfer::WriteOperation> operations) {
    const bool to_a = net::Endpoint{peer.endpoint.host, peer.endpoint.port}.to_string() == a_->hostname();
    return to_a && fail(operations, ErrorCode::kTransferFail);
  };
  ReplicaPolicy two;
  two.replica_num = 2;
  ASSERT_EQ(put("k", pattern("k", 1, 1000), two), 0);
  const std::string_view key = "k";
  const auto replicas = a_->replicas({&key, 1}).at(0);
  ASSERT_TRUE(replicas.ok());
  ASSERT_EQ(replicas->size(), 1U);
  EXPECT_EQ(replicas->at(0).segment_name, b_->hostname());
}

TEST_F(FaultyPathsTest, AFailedWriteStartsOverWithANewGrant) {
  for (const ErrorCode code :
       {ErrorCode::kStaleTerm, ErrorCode::kStaleIncarnation, ErrorCode::kUnavailable, ErrorCode::kTransferFail, ErrorCode::kRpcTimeout}) {
    int attempts = 0;
    script_->write = [&](const transfer::Peer&, std::span<transfer::WriteOperation> operations) {
      return ++attempts <= 2 && fail(operations, code);
    };
    const std::string key(name_of(code));
    EXPECT_EQ(put(key, pattern(key, 1, 1000)), 0) << key;
    EXPECT_EQ(attempts, 3) << key;
    EXPECT_TRUE(*testing::get_fresh(*a_, key) == pattern(key, 1, 1000));
  }
}

TEST_F(FaultyPathsTest, WritesThatAllFailGiveTheirSpaceBackAndAnErrorInTime) {
  script_->write = [](const transfer::Peer&, std::span<transfer::WriteOperation> operations) {
    return fail(operations, ErrorCode::kUnavailable);
  };
  const auto start = Deadline::Clock::now();
  EXPECT_EQ(put("k", pattern("k", 1, 1000)), -800);
  EXPECT_LT(Deadline::Clock::now() - start, seconds(9));
  script_->write = {};
  EXPECT_EQ(testing::exist_one(*a_, "k"), 0);
  EXPECT_EQ(put("k", pattern("k", 2, 1000)), 0) << "nothing of the failed put is in the way";
}

TEST_F(FaultyPathsTest, ACopyThatIsGoneIsAMissAfterASecondLook) {
  ASSERT_EQ(put("k", pattern("k", 1, 1000)), 0);
  int attempts = 0;
  script_->read = [&](const transfer::Peer&, std::span<transfer::ReadOperation> operations) {
    ++attempts;
    return fail(operations, ErrorCode::kReplicaGone);
  };
  Bytes room;
  EXPECT_EQ(get("k", room).code(), ErrorCode::kObjectNotFound);
  EXPECT_EQ(attempts, 2);
}

TEST_F(FaultyPathsTest, AnOwnerThatCannotBeReachedIsAnErrorSoonAndNamed) {
  ASSERT_EQ(put("k", pattern("k", 1, 1000)), 0);
  script_->read = [](const transfer::Peer&, std::span<transfer::ReadOperation> operations) {
    return fail(operations, ErrorCode::kUnavailable);
  };
  const auto start = Deadline::Clock::now();
  Bytes room;
  const auto got = get("k", room);
  EXPECT_EQ(got.code(), ErrorCode::kTransferFail);
  EXPECT_LT(Deadline::Clock::now() - start, seconds(4)) << "a dead owner's bytes are lost: no use in waiting for the whole deadline";
  EXPECT_THAT(got.status().message(), ::testing::AnyOf(::testing::HasSubstr(a_->hostname()), ::testing::HasSubstr(b_->hostname())));
}

TEST_F(FaultyPathsTest, AReadThatFailsForAMomentIsTriedAgain) {
  ASSERT_EQ(put("k", pattern("k", 1, 1000)), 0);
  int attempts = 0;
  script_->read = [&](const transfer::Peer&, std::span<transfer::ReadOperation> operations) {
    return ++attempts <= 3 && fail(operations, ErrorCode::kTransferFail);
  };
  Bytes room;
  EXPECT_TRUE(get("k", room).ok());
  EXPECT_TRUE(room == pattern("k", 1, 1000));
}

TEST_F(FaultyPathsTest, TheKeysOfABatchFailOneByOne) {
  ASSERT_EQ(put("good", pattern("good", 1, 1000)), 0);
  ASSERT_EQ(put("bad", pattern("bad", 1, 1000)), 0);
  script_->read = [](const transfer::Peer& peer, std::span<transfer::ReadOperation> operations) {
    static_cast<void>(peer);
    for (auto& operation : operations) {
      // The first byte's destination tells which one it is: good comes first in each batch of the first round.
      operation.status = &operation == &operations.back() ? Status{ErrorCode::kChecksumMismatch, "as the test wants it"} : Status{};
    }
    return true;
  };
  const std::vector<std::string_view> keys = {"good", "absent", "bad"};
  std::vector<Bytes> rooms(3);
  const auto plan = [&](std::size_t index, std::uint64_t size) -> Result<GetPath::Parts> {
    rooms[index].resize(size);
    return GetPath::Parts{{0, size, {rooms[index]}}};
  };
  const auto results = runtime_->gets().get(keys, plan, Deadline::after(seconds(5)));
  EXPECT_EQ(results[1].code(), ErrorCode::kObjectNotFound);
  EXPECT_EQ(results[2].code(), ErrorCode::kTransferFail);
}

}  // namespace
}  // namespace moonpool::store
