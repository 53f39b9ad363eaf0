#include "store/part_pipeline.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <thread>
#include <vector>

namespace moonpool::store {
namespace {

TEST(PartPipelineTest, PartsOfABatchRunAtTheSameTime) {
  PartPipeline pipeline;
  PartPipeline::Batch batch(pipeline);
  std::latch all_there(PartPipeline::kAtOnce);
  std::atomic<std::size_t> ended{0};
  for (std::size_t i = 0; i < PartPipeline::kAtOnce; ++i) {
    batch.add([&] {
      all_there.arrive_and_wait();  // would wait for ever if they ran one after the other
      ++ended;
    });
  }
  batch.wait();
  EXPECT_EQ(ended, PartPipeline::kAtOnce);
}

TEST(PartPipelineTest, RoomIsWaitedForAndNeverMoreThanItsShareRuns) {
  PartPipeline pipeline;
  PartPipeline::Batch batch(pipeline);
  std::atomic<std::size_t> running{0}, most{0}, ended{0};
  for (int i = 0; i < 200; ++i) {
    batch.wait_for_room();
    batch.add([&] {
      const std::size_t now = ++running;
      for (std::size_t seen = most; seen < now && !most.compare_exchange_weak(seen, now);) continue;
      std::this_thread::yield();
      --running;
      ++ended;
    });
  }
  batch.wait();
  EXPECT_EQ(ended, 200U);
  EXPECT_LE(most, PartPipeline::kAtOnce);
}

TEST(PartPipelineTest, AThreadThatFindsAllOthersTakenWorksItself) {
  PartPipeline pipeline;
  std::latch go(1);
  PartPipeline::Batch stuck(pipeline);
  for (std::size_t i = 0; i < PartPipeline::kThreads; ++i) stuck.add([&] { go.wait(); });
  PartPipeline::Batch batch(pipeline);
  std::thread::id ran_on;
  batch.add([&] { ran_on = std::this_thread::get_id(); });
  EXPECT_EQ(ran_on, std::this_thread::get_id());
  go.count_down();
}

TEST(PartPipelineTest, ABatchThatIsLeftWaitsForItsParts) {
  PartPipeline pipeline;
  std::latch go(1);
  std::atomic<bool> ended{false};
  std::jthread releaser;
  {
    PartPipeline::Batch batch(pipeline);
    batch.add([&] {
      go.wait();
      ended = true;
    });
    releaser = std::jthread([&] { go.count_down(); });
  }
  EXPECT_TRUE(ended);
}

TEST(PartPipelineTest, ThreadsThatWentToSleepAreWokenByTheNextBatch) {
  PartPipeline pipeline;
  for (int round = 0; round < 3; ++round) {
    PartPipeline::Batch batch(pipeline);
    std::latch all_there(PartPipeline::kThreads);
    for (std::size_t i = 0; i < PartPipeline::kThreads; ++i) batch.add([&] { all_there.arrive_and_wait(); });
    batch.wait();
    std::this_thread::sleep_for(5 * PartPipeline::kLook);  // nobody looks any more
  }
}

TEST(PartPipelineTest, BatchesOfSeveralThreadsShareIt) {
  PartPipeline pipeline;
  std::atomic<std::size_t> ended{0};
  std::vector<std::jthread> callers;
  for (int caller = 0; caller < 8; ++caller) {
    callers.emplace_back([&] {
      PartPipeline::Batch batch(pipeline);
      for (int i = 0; i < 50; ++i) {
        batch.wait_for_room();
        batch.add([&] { ++ended; });
      }
    });
  }
  callers.clear();
  EXPECT_EQ(ended, 8U * 50U);
}

}  // namespace
}  // namespace moonpool::store
