// A pool that is too small for what is put: eviction under concurrent puts, gets and removes, with every byte verified.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "store/client.h"
#include "store/testing/pool.h"
#include "tests/support/test_support.h"

namespace moonpool::store {
namespace {

using testing::Bytes;
using testing::pattern;
using testing::Pool;

constexpr std::size_t kHeader = 8;

// The version stands in the first bytes, so that a reader knows which pattern has to follow.
Bytes versioned(const std::string& key, std::uint64_t version, std::size_t size) {
  Bytes value = pattern(key, version, size);
  for (std::size_t i = 0; i < kHeader; ++i) value[i] = static_cast<std::byte>(version >> (8 * i));
  return value;
}

bool whole(const std::string& key, const Bytes& value) {
  if (value.size() < kHeader) return false;
  std::uint64_t version = 0;
  for (std::size_t i = 0; i < kHeader; ++i) version |= std::to_integer<std::uint64_t>(value[i]) << (8 * i);
  return value == versioned(key, version, value.size());
}

TEST(Pressure, NoReadIsEverWrongWhileTheMasterEvicts) {
  auto config = testing::test_master_config();
  config.lease_ttl = std::chrono::milliseconds(20);
  Pool pool(config);
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 3; ++i) clients.push_back(pool.client(std::uint64_t{8} << 20));
  std::atomic<int> wrong{0};
  std::atomic<int> hits{0};
  std::atomic<int> puts{0};
  std::atomic<int> unexpected{0};
  std::atomic<std::uint64_t> next_version{1};
  std::vector<std::jthread> threads;
  for (unsigned t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      std::minstd_rand random(t + 1);
      for (int i = 0; i < 150; ++i) {
        Client& client = *clients[random() % clients.size()];
        const std::string key = "key " + std::to_string(random() % 80);
        switch (random() % 8) {
          case 0:
          case 1:
          case 2: {
            const auto code = testing::put_one(client, key, versioned(key, next_version++, 1000 + random() % 700'000));
            if (code == 0) ++puts;
            if (code != 0 && code != -200) ++unexpected;
            break;
          }
          case 3: {
            const auto code = testing::upsert_one(client, key, versioned(key, next_version++, 1000 + random() % 700'000));
            if (code != 0 && code != -200) ++unexpected;
            break;
          }
          case 4: {
            const auto code = testing::remove_one(client, key, true);
            if (code != 0 && code != -704) ++unexpected;
            break;
          }
          default: {
            const auto got = testing::get_fresh(client, key);
            if (got.ok()) {
              ++hits;
              if (!whole(key, *got)) ++wrong;
            } else if (got.code() != ErrorCode::kObjectNotFound) {
              ++unexpected;
              ADD_FAILURE() << key << ": " << got.status().to_string();
            }
          }
        }
      }
    });
  }
  threads.clear();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(unexpected, 0);
  EXPECT_GT(hits, 0);
  EXPECT_GT(puts, 0);
  RecordProperty("hits", hits.load());
}

}  // namespace
}  // namespace moonpool::store
