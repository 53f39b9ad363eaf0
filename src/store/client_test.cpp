// What callers see, key by key: the real master and clients over the real wire, in this process.
#include "store/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>

#include "store/testing/pool.h"
#include "tests/support/test_support.h"

namespace moonpool::store {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::Bytes;
using ::testing::Each;
using ::testing::ElementsAre;
using testing::pattern;
using testing::Pool;

constexpr std::uint64_t kMiB = 1U << 20;

std::int32_t number(ErrorCode code) { return static_cast<std::int32_t>(code); }

class ClientTest : public ::testing::Test {
 protected:
  Pool pool_;
};

TEST_F(ClientTest, WhatOneClientPutsAnotherGets) {
  const auto writer = pool_.client();
  const auto reader = pool_.client(std::uint64_t{0});
  for (const std::size_t size :
       {std::size_t{1}, std::size_t{4096}, std::size_t{256 * 1024}, std::size_t{256 * 1024 + 1}, std::size_t{5'000'001}}) {
    const std::string key = "object of " + std::to_string(size);
    const Bytes value = pattern(key, 1, size);
    ASSERT_EQ(testing::put_one(*writer, key, value), 0) << key;
    for (Client* client : {writer.get(), reader.get()}) {
      Bytes got(size);
      EXPECT_EQ(testing::get_one(*client, key, got), static_cast<std::int64_t>(size)) << key;
      EXPECT_TRUE(got == value) << key;
    }
  }
}

TEST_F(ClientTest, EveryOperationAnswersWithTheCodesThatMooncakeUsersExpect) {
  const auto client = pool_.client();
  const Bytes value = pattern("k", 1, 1000);
  Bytes room(1000);
  // Before the put.
  EXPECT_EQ(testing::exist_one(*client, "k"), 0);
  EXPECT_EQ(testing::get_one(*client, "k", room), number(ErrorCode::kObjectNotFound));
  EXPECT_EQ(testing::get_fresh(*client, "k").code(), ErrorCode::kObjectNotFound);
  EXPECT_EQ(testing::remove_one(*client, "k"), number(ErrorCode::kObjectNotFound));
  const std::string_view key = "k";
  EXPECT_EQ(client->sizes({&key, 1}).at(0).code(), ErrorCode::kObjectNotFound);
  // Present.
  EXPECT_EQ(testing::put_one(*client, "k", value), 0);
  EXPECT_EQ(testing::put_one(*client, "k", pattern("k", 2, 500)), 0) << "a second put succeeds and keeps the first value";
  EXPECT_EQ(testing::get_one(*client, "k", room), 1000);
  EXPECT_TRUE(room == value);
  EXPECT_EQ(client->sizes({&key, 1}).at(0).value(), 1000U);
  EXPECT_EQ(testing::exist_one(*client, "k"), 1);
  EXPECT_EQ(testing::remove_one(*client, "k"), number(ErrorCode::kObjectHasLease)) << "leased by the get and the exist";
  EXPECT_EQ(testing::remove_one(*client, "k", true), 0);
  // After the remove.
  EXPECT_EQ(testing::exist_one(*client, "k"), 0);
  EXPECT_EQ(testing::get_one(*client, "k", room), number(ErrorCode::kObjectNotFound));
}

TEST_F(ClientTest, DestinationsOfTheWrongSizeAreRefused) {
  const auto client = pool_.client();
  const Bytes value = pattern("k", 1, 1000);
  ASSERT_EQ(testing::put_one(*client, "k", value), 0);
  Bytes small(999);
  Bytes large(1500, std::byte{7});
  EXPECT_EQ(testing::get_one(*client, "k", small, true), -600);
  EXPECT_EQ(testing::get_one(*client, "k", small, false), -600);
  EXPECT_EQ(testing::get_one(*client, "k", large, true), -600);
  EXPECT_EQ(testing::get_one(*client, "k", large, false), 1000);
  EXPECT_TRUE(std::equal(value.begin(), value.end(), large.begin()));
  EXPECT_THAT(std::span(large).subspan(1000), Each(std::byte{7})) << "bytes beyond the object are not touched";
}

TEST_F(ClientTest, UpsertReplacesTheValue) {
  const auto client = pool_.client();
  ASSERT_EQ(testing::put_one(*client, "k", pattern("k", 1, 1000)), 0);
  ASSERT_EQ(testing::upsert_one(*client, "k", pattern("k", 2, 2000)), 0);
  const auto got = testing::get_fresh(*client, "k");
  ASSERT_TRUE(got.ok()) << got.status().to_string();
  EXPECT_TRUE(*got == pattern("k", 2, 2000));
  ASSERT_EQ(testing::upsert_one(*client, "new", pattern("new", 1, 10)), 0) << "an upsert of a new key is a put";
  EXPECT_EQ(testing::exist_one(*client, "new"), 1);
}

TEST_F(ClientTest, InvalidKeysAndValuesAreAnsweredKeyByKey) {
  const auto client = pool_.client();
  const std::string longest(64 * 1024, 'x');
  const std::string too_long(64 * 1024 + 1, 'x');
  const std::string megabyte(1 << 20, 'y');
  const Bytes value = pattern("v", 1, 10);
  const ConstBytes piece = value;
  const std::span<const ConstBytes> source(&piece, 1);
  const std::span<const ConstBytes> nothing;
  const std::vector<std::string_view> keys = {"", longest, too_long, "empty value", megabyte, "good"};
  const std::vector<std::span<const ConstBytes>> sources = {source, source, source, nothing, source, source};
  EXPECT_THAT(client->put(keys, sources), ElementsAre(-600, 0, -400, -600, -400, 0));
  EXPECT_THAT(client->exist(keys), ElementsAre(0, 1, 0, 0, 0, 1)) << "never negative for what is absent";
  EXPECT_THAT(client->remove(keys, true), ElementsAre(-600, 0, -400, -704, -400, 0));
  std::vector<Bytes> memory(keys.size(), Bytes(10));
  std::vector<MutableBytes> pieces(memory.begin(), memory.end());
  std::vector<std::span<const MutableBytes>> destinations;
  for (auto& one : pieces) destinations.emplace_back(&one, 1);
  EXPECT_THAT(client->get_into(keys, destinations, true), ElementsAre(-600, -704, -400, -704, -400, -704));
}

TEST_F(ClientTest, MismatchedLengthsAndPoliciesAreRefusedForEveryKey) {
  const auto client = pool_.client();
  const std::vector<std::string_view> keys = {"a", "b"};
  const Bytes value = pattern("v", 1, 10);
  const ConstBytes piece = value;
  const std::vector<std::span<const ConstBytes>> sources(2, std::span<const ConstBytes>(&piece, 1));
  EXPECT_THAT(client->put(keys, std::span(sources).first(1)), ElementsAre(-600, -600));
  ReplicaPolicy none;
  none.replica_num = 0;
  EXPECT_THAT(client->put(keys, sources, none), ElementsAre(-600, -600));
  ReplicaPolicy one_group;
  one_group.groups = {"g"};
  EXPECT_THAT(client->put(keys, sources, one_group), ElementsAre(-600, -600));
  EXPECT_THAT(client->get_into(keys, {}, true), ElementsAre(-600, -600));
  EXPECT_TRUE(client->put({}, {}).empty());
  EXPECT_TRUE(client->exist({}).empty());
}

TEST_F(ClientTest, DuplicateKeysOfABatchShareTheFirstOnesResult) {
  const auto client = pool_.client();
  const Bytes first = pattern("first", 1, 100);
  const Bytes second = pattern("second", 1, 200);
  const std::array<ConstBytes, 2> pieces = {first, second};
  const std::vector<std::string_view> keys = {"k", "other", "k", ""};
  const std::vector<std::span<const ConstBytes>> sources = {{&pieces[0], 1}, {&pieces[1], 1}, {&pieces[1], 1}, {&pieces[0], 1}};
  EXPECT_THAT(client->put(keys, sources), ElementsAre(0, 0, 0, -600));
  EXPECT_TRUE(*testing::get_fresh(*client, "k") == first);
  // In a read each place gets its bytes.
  Bytes a(100);
  Bytes b(100);
  const std::array<MutableBytes, 2> rooms = {a, b};
  const std::vector<std::string_view> twice = {"k", "k"};
  const std::vector<std::span<const MutableBytes>> destinations = {{&rooms[0], 1}, {&rooms[1], 1}};
  EXPECT_THAT(client->get_into(twice, destinations, true), ElementsAre(100, 100));
  EXPECT_TRUE(a == first && b == first);
}

// A vLLM batch: 24 blocks of 30 layers, each layer elsewhere in memory.
TEST_F(ClientTest, ScattersAndGathersABatchOfBlocks) {
  constexpr std::size_t kBlocks = 24;
  constexpr std::size_t kPieces = 30;
  constexpr std::size_t kPieceSize = 9973;
  const auto writer = pool_.client();
  const auto reader = pool_.client();
  std::vector<std::string> names;
  std::vector<Bytes> layers;
  for (std::size_t i = 0; i < kBlocks * kPieces; ++i) layers.push_back(pattern("layer", i, kPieceSize));
  std::vector<std::vector<ConstBytes>> sources(kBlocks);
  for (std::size_t block = 0; block < kBlocks; ++block) {
    names.push_back("model@tp_rank:0@block " + std::to_string(block));
    for (std::size_t piece = 0; piece < kPieces; ++piece) sources[block].push_back(layers[piece * kBlocks + block]);
  }
  const std::vector<std::string_view> keys(names.begin(), names.end());
  const std::vector<std::span<const ConstBytes>> source_spans(sources.begin(), sources.end());
  EXPECT_THAT(writer->put(keys, source_spans), Each(0));
  for (Client* client : {writer.get(), reader.get()}) {
    std::vector<Bytes> rooms(kBlocks * kPieces, Bytes(kPieceSize));
    std::vector<std::vector<MutableBytes>> destinations(kBlocks);
    for (std::size_t block = 0; block < kBlocks; ++block) {
      for (std::size_t piece = 0; piece < kPieces; ++piece) destinations[block].push_back(rooms[piece * kBlocks + block]);
    }
    const std::vector<std::span<const MutableBytes>> spans(destinations.begin(), destinations.end());
    EXPECT_THAT(client->get_into(keys, spans, true), Each(static_cast<std::int64_t>(kPieces * kPieceSize)));
    EXPECT_TRUE(rooms == layers);
  }
}

TEST_F(ClientTest, RangesOfAnObjectAreRead) {
  const auto writer = pool_.client();
  const auto reader = pool_.client(std::uint64_t{0});
  const Bytes value = pattern("k", 1, 3 * kMiB + 17);
  ASSERT_EQ(testing::put_one(*writer, "k", value), 0);
  for (Client* client : {writer.get(), reader.get()}) {
    Bytes head(10);
    Bytes middle(700'001);
    Bytes tail(17);
    Bytes beyond(18);
    std::vector<RangeRead> reads(2);
    reads[0] = {"k", {head, middle, tail}, {0, kMiB - 3, 3 * kMiB}};
    reads[1] = {"k", {beyond}, {3 * kMiB}};
    EXPECT_THAT(client->get_ranges(reads), ElementsAre(10 + 700'001 + 17, -600));
    EXPECT_TRUE(std::equal(head.begin(), head.end(), value.begin()));
    EXPECT_TRUE(std::equal(middle.begin(), middle.end(), value.begin() + kMiB - 3));
    EXPECT_TRUE(std::equal(tail.begin(), tail.end(), value.begin() + 3 * kMiB));
  }
}

TEST_F(ClientTest, TenantsDoNotSeeEachOther) {
  auto blue_options = pool_.options();
  blue_options.tenant = "blue";
  const auto blue = pool_.client(blue_options);
  const auto standard = pool_.client();
  ASSERT_EQ(testing::put_one(*blue, "k", pattern("blue", 1, 100)), 0);
  EXPECT_EQ(testing::exist_one(*standard, "k"), 0);
  ASSERT_EQ(testing::put_one(*standard, "k", pattern("default", 1, 100)), 0);
  EXPECT_TRUE(*testing::get_fresh(*blue, "k") == pattern("blue", 1, 100));
  EXPECT_TRUE(*testing::get_fresh(*standard, "k") == pattern("default", 1, 100));
}

TEST_F(ClientTest, RemovesWhatMatchesAndRemovesAll) {
  const auto client = pool_.client();
  for (const char* key : {"apple", "apricot", "banana"}) ASSERT_EQ(testing::put_one(*client, key, pattern(key, 1, 100)), 0);
  const auto some = client->remove_matching("^ap", true);
  ASSERT_TRUE(some.ok()) << some.status().to_string();
  EXPECT_EQ(*some, 2U);
  EXPECT_EQ(testing::exist_one(*client, "apple"), 0);
  EXPECT_EQ(testing::exist_one(*client, "banana"), 1);
  EXPECT_EQ(client->remove_matching("(", true).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(*client->remove_all(true), 1U);
  EXPECT_EQ(testing::exist_one(*client, "banana"), 0);
}

TEST_F(ClientTest, PlacesReplicasOnTwoNodesAndSaysWhere) {
  const auto a = pool_.client();
  const auto b = pool_.client();
  ReplicaPolicy two;
  two.replica_num = 2;
  const std::string_view key = "k";
  ASSERT_EQ(testing::put_one(*a, key, pattern(key, 1, 1000), two), 0);
  const auto replicas = a->replicas({&key, 1}).at(0);
  ASSERT_TRUE(replicas.ok());
  std::vector<std::string> names;
  for (const auto& replica : *replicas) {
    names.push_back(replica.segment_name);
    EXPECT_EQ(replica.size, 1000U);
  }
  EXPECT_THAT(names, ::testing::UnorderedElementsAre(a->hostname(), b->hostname()));
}

TEST_F(ClientTest, AFullPoolAnswersThatItIsFull) {
  const auto client = pool_.client(4 * kMiB);
  EXPECT_EQ(testing::put_one(*client, "too large", pattern("x", 1, 8 * kMiB)), number(ErrorCode::kNoAvailableHandle));
  EXPECT_EQ(testing::put_one(*client, "small", pattern("x", 1, 1000)), 0);
}

TEST_F(ClientTest, WithoutALocalBufferAClientIsAPureServer) {
  auto options = pool_.options();
  options.local_buffer_size = 0;
  const auto server = pool_.client(options);
  EXPECT_EQ(testing::put_one(*server, "k", pattern("k", 1, 10)), number(ErrorCode::kInvalidParams));
  EXPECT_EQ(testing::exist_one(*server, "k"), 0);
}

TEST_F(ClientTest, SixteenThreadsPutGetAndRemoveTheirOwn) {
  const auto a = pool_.client();
  const auto b = pool_.client();
  std::vector<std::jthread> threads;
  std::atomic<int> failures{0};
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      Client& client = t % 2 == 0 ? *a : *b;
      Client& other = t % 2 == 0 ? *b : *a;
      for (int round = 0; round < 20; ++round) {
        const std::string key = std::to_string(t) + "/" + std::to_string(round);
        const Bytes value = pattern(key, 1, 1000 + static_cast<std::size_t>(t) * 4096);
        Bytes got(value.size());
        if (testing::put_one(client, key, value) != 0) ++failures;
        if (testing::exist_one(other, key) != 1) ++failures;
        if (testing::get_one(other, key, got) != static_cast<std::int64_t>(value.size()) || got != value) ++failures;
        if (testing::remove_one(client, key, true) != 0) ++failures;
        if (testing::exist_one(other, key) != 0) ++failures;
      }
    });
  }
  threads.clear();
  EXPECT_EQ(failures, 0);
}

TEST_F(ClientTest, ManyWritersOfOneKeyAllSucceedAndOneValueWins) {
  const auto client = pool_.client();
  const auto other = pool_.client();
  std::atomic<int> failures{0};
  std::vector<std::jthread> threads;
  for (std::uint64_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 5; ++round) {
        if (testing::put_one(t % 2 == 0 ? *client : *other, "shared " + std::to_string(round), pattern("v", t, 300'000)) != 0) ++failures;
      }
    });
  }
  threads.clear();
  EXPECT_EQ(failures, 0);
  for (int round = 0; round < 5; ++round) {
    const auto got = testing::get_fresh(*client, "shared " + std::to_string(round));
    ASSERT_TRUE(got.ok());
    bool somebodys = false;
    for (std::uint64_t t = 0; t < 8; ++t) somebodys = somebodys || *got == pattern("v", t, 300'000);
    EXPECT_TRUE(somebodys);
  }
}

TEST_F(ClientTest, RegistersBuffers) {
  const auto client = pool_.client();
  Bytes memory(100);
  EXPECT_TRUE(client->register_buffer(memory.data(), memory.size()).ok());
  EXPECT_TRUE(client->unregister_buffer(memory.data()).ok());
  EXPECT_EQ(client->unregister_buffer(memory.data()).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(client->register_buffer(nullptr, 10).code(), ErrorCode::kInvalidParams);
  EXPECT_EQ(client->register_buffer(memory.data(), 0).code(), ErrorCode::kInvalidParams);
}

TEST_F(ClientTest, PingsTheMaster) {
  auto options = pool_.options();
  options.operation_timeout = milliseconds(1000);
  const auto client = pool_.client(options);
  EXPECT_TRUE(client->ping().ok());
  pool_.stop_master();
  EXPECT_EQ(client->ping().code(), ErrorCode::kRpcFail);
}

// Far more callers than lanes: they wait for one another, and none of them fails.
TEST_F(ClientTest, NoNumberOfThreadsMakesACallFail) {
  const auto node = pool_.client();
  const auto client = pool_.client(std::uint64_t{0});
  constexpr int kThreads = 64;
  constexpr int kRounds = 6;
  std::atomic<int> failures{0};
  std::vector<std::jthread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        const std::string key = "of thread " + std::to_string(t) + ", " + std::to_string(round);
        const Bytes value = pattern(key, 1, 4096);
        Bytes got(value.size());
        const bool fine = testing::put_one(*client, key, value) == 0 && testing::exist_one(*client, key) == 1 &&
                          testing::get_one(*client, key, got) == static_cast<std::int64_t>(got.size()) && got == value;
        if (!fine) ++failures;
      }
    });
  }
  threads.clear();
  EXPECT_EQ(failures, 0);
}

}  // namespace
}  // namespace moonpool::store
