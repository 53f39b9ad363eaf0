#include "transfer/cuda/copier/copier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <thread>

#include "tests/support/test_support.h"
#include "transfer/cuda/copier/copier_rig_for_test.h"

namespace moonpool::transfer::cuda {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

class CopierTest : public CopierRig {
 protected:
  // All lengths at which something changes, as jobs of one call.
  void gathers_bit_for_bit();
  void scatters_bit_for_bit();
};

constexpr std::uint64_t kChunk = kChecksumChunk;
constexpr std::array<std::pair<std::uint64_t, std::uint64_t>, 12> kShapes = {{{0, 1},
                                                                              {1, 1},
                                                                              {240, 17},
                                                                              {241, 100},
                                                                              {5000, 4096},
                                                                              {kChunk, 32768},
                                                                              {kChunk + 1, 1000},
                                                                              {kChunk + 240, kChunk},
                                                                              {kChunk + 241, 77},
                                                                              {2 * kChunk - 1, 2 * kChunk},
                                                                              {3 * kChunk, 98304},
                                                                              {4 * kChunk + 12345, 4096}}};

void CopierTest::gathers_bit_for_bit() {
  std::deque<Scattered> scattered;
  std::deque<std::vector<std::uint64_t>> sums;
  std::vector<CopyJob> jobs;
  for (const auto& [length, piece] : kShapes) {
    scattered.push_back(pieces_of(0, length, piece, static_cast<std::uint32_t>(length)));
    // From an odd address on, so that nothing is aligned as a machine would like it.
    jobs.push_back(job_of(scattered.back(), host(length + 3).subspan(3), &sums.emplace_back()));
  }
  ASSERT_TRUE(run(Direction::kGather, jobs).ok());
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const auto expected = scattered[i].bytes();
    EXPECT_TRUE(std::ranges::equal(jobs[i].contiguous, expected)) << "length " << jobs[i].length;
    EXPECT_EQ(sums[i], checksums_of(expected)) << "length " << jobs[i].length;
    EXPECT_EQ(root_of(sums[i]), root_of(checksums_of(expected)));
    EXPECT_EQ(*(jobs[i].contiguous.data() - 1), std::byte{0xEE}) << "the byte before";
  }
}

void CopierTest::scatters_bit_for_bit() {
  std::deque<Scattered> scattered;
  std::deque<std::vector<std::uint64_t>> sums;
  std::vector<CopyJob> jobs;
  for (const auto& [length, piece] : kShapes) {
    scattered.push_back(pieces_of(1, length, piece, static_cast<std::uint32_t>(length) + 5));
    const auto from = random_bytes(length, static_cast<std::uint32_t>(length) + 9);
    const auto memory = host(length + 1).subspan(1);
    std::ranges::copy(from, memory.begin());
    jobs.push_back(job_of(scattered.back(), memory, &sums.emplace_back()));
  }
  ASSERT_TRUE(run(Direction::kScatter, jobs).ok());
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    EXPECT_EQ(peek(scattered[i]), scattered[i].image_with(jobs[i].contiguous)) << "length " << jobs[i].length;
    EXPECT_EQ(sums[i], checksums_of(jobs[i].contiguous)) << "length " << jobs[i].length;
  }
}

TEST_F(CopierTest, GathersBitForBitWithTheHostsChecksums) {
  start();
  gathers_bit_for_bit();
  EXPECT_EQ(copier_->counters().launches, 1U);
  EXPECT_EQ(copier_->counters().copies, 0U);
}

TEST_F(CopierTest, ScattersBitForBitAndTouchesNothingBetweenThePieces) {
  start();
  scatters_bit_for_bit();
  EXPECT_EQ(copier_->counters().launches, 1U);
}

TEST_F(CopierTest, WithoutKernelsItDoesTheSameByCopies) {
  FakeOptions options;
  options.kernels = false;
  start(options);
  gathers_bit_for_bit();
  scatters_bit_for_bit();
  EXPECT_EQ(copier_->counters().launches, 0U);
  EXPECT_EQ(driver_->counts().launches, 0U);
  EXPECT_GT(copier_->counters().copies, 100U);
}

TEST_F(CopierTest, WithoutKernelsNeighboursAreOneCopyButNotAcrossAllocations) {
  FakeOptions options;
  options.kernels = false;
  start(options);
  Scattered row;
  row.base = allocate(0, 3000);
  row.image = random_bytes(3000, 1);
  driver_->poke(row.base, row.image);
  row.length = 3000;
  row.pieces = {{row.base, 1000}, {row.base + 1000, 0}, {row.base + 1000, 500}, {row.base + 2000, 1000}, {row.base + 1500, 500}};
  const auto memory = host(3000);
  const std::vector jobs = {job_of(row, memory, nullptr)};
  ASSERT_TRUE(run(Direction::kGather, jobs).ok());
  EXPECT_TRUE(std::ranges::equal(memory, row.bytes()));
  EXPECT_EQ(copier_->counters().copies, 3U);

  Scattered two;
  two.base = allocate(0, 4096);
  const std::uint64_t next = allocate(0, 4096);
  ASSERT_EQ(next, two.base + 4096) << "the fake puts allocations side by side";
  two.pieces = {{two.base, 4096}, {next, 4096}};
  two.length = 8192;
  const std::vector across = {job_of(two, host(8192), nullptr)};
  ASSERT_TRUE(run(Direction::kGather, across).ok());
  EXPECT_EQ(copier_->counters().copies, 5U);
}

TEST_F(CopierTest, TenThousandPiecesAreOneLaunchAndOneCopyOfTheTable) {
  Settings settings;
  settings.device_staging_bytes = 0;  // whose copies would be counted too
  start({}, settings);
  const auto scattered = scatter_out(0, std::vector<std::size_t>(10'000, 512), 3);
  const auto memory = host(scattered.length);
  std::vector<std::uint64_t> sums;
  const std::vector jobs = {job_of(scattered, memory, &sums)};
  for (std::uint64_t round = 1; round <= 3; ++round) {
    std::ranges::fill(memory, std::byte{0});
    const auto allocations = driver_->counts().allocations;
    ASSERT_TRUE(run(Direction::kGather, jobs).ok());
    EXPECT_TRUE(std::ranges::equal(memory, scattered.bytes()));
    EXPECT_EQ(driver_->counts().launches, round);
    EXPECT_EQ(driver_->counts().copies, round);
    if (round > 1) {
      EXPECT_EQ(driver_->counts().allocations, allocations) << "the slot's memory is used again";
    }
  }
  EXPECT_EQ(copier_->counters().launches, 3U);
  EXPECT_EQ(copier_->counters().host_waits, 3U);
  EXPECT_EQ(copier_->counters().bytes, 3 * scattered.length);
}

TEST_F(CopierTest, ASmallTableIsReadWhereItLies) {
  start();
  const auto scattered = scatter_out(0, std::vector<std::size_t>(64, 32768), 4);
  const auto memory = host(scattered.length);
  const std::vector jobs = {job_of(scattered, memory, nullptr)};
  ASSERT_TRUE(run(Direction::kGather, jobs).ok());
  EXPECT_TRUE(std::ranges::equal(memory, scattered.bytes()));
  EXPECT_EQ(driver_->counts().launches, 1U);
  EXPECT_EQ(driver_->counts().copies, 0U);
}

TEST_F(CopierTest, JobsOfTwoDevicesAreALaunchEachAndOneTicket) {
  start();
  const auto first = pieces_of(0, 700'000, 5000, 1);
  const auto second = pieces_of(1, 900'000, 5000, 2);
  const auto third = pieces_of(0, 100, 50, 3);
  std::array<std::vector<std::uint64_t>, 3> sums;
  const std::vector jobs = {job_of(first, host(first.length), &sums[0]), job_of(second, host(second.length), &sums[1]),
                            job_of(third, host(third.length), &sums[2])};
  ASSERT_TRUE(run(Direction::kGather, jobs).ok());
  EXPECT_EQ(driver_->counts().launches, 2U);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const auto expected = std::array{&first, &second, &third}[i]->bytes();
    EXPECT_TRUE(std::ranges::equal(jobs[i].contiguous, expected));
    EXPECT_EQ(sums[i], checksums_of(expected));
  }
}

TEST_F(CopierTest, ContiguousMemoryMayBeAnotherDevices) {
  start();
  ASSERT_TRUE(driver_->enable_peer_access(0, 1).ok());
  const auto scattered = pieces_of(0, 500'000, 3000, 8);
  const std::uint64_t there = allocate(1, scattered.length);
  CopyJob job = job_of(scattered, {}, nullptr);
  job.device_address = there;
  ASSERT_TRUE(run(Direction::kGather, std::span(&job, 1)).ok());
  std::vector<std::byte> arrived(scattered.length);
  driver_->peek(there, arrived);
  EXPECT_EQ(arrived, scattered.bytes());

  std::vector<std::uint64_t> sums(2);
  job.checksums = sums;
  ASSERT_TRUE(run(Direction::kGather, std::span(&job, 1)).ok());
  EXPECT_EQ(sums, checksums_of(scattered.bytes()));
}

TEST_F(CopierTest, OfContiguousMemoryThatIsADevicesOnlyItsKernelsComputeChecksums) {
  start();
  const auto long_enough = pieces_of(0, 2 * kChecksumChunk, 3000, 8);
  const auto short_tail = pieces_of(0, kChecksumChunk + 3, 3000, 9);
  const std::uint64_t there = allocate(0, long_enough.length);
  std::vector<std::uint64_t> sums(2);
  CopyJob job = job_of(short_tail, {}, &sums);
  job.device_address = there;
  EXPECT_EQ(run(Direction::kGather, std::span(&job, 1)).code(), ErrorCode::kInvalidParams) << "the host would have to";
  start({.kernels = false});
  const auto without_kernels = pieces_of(0, 2 * kChecksumChunk, 3000, 8);
  job = job_of(without_kernels, {}, &sums);
  job.device_address = allocate(0, without_kernels.length);
  for (const auto direction : {Direction::kGather, Direction::kScatter}) {
    EXPECT_EQ(run(direction, std::span(&job, 1)).code(), ErrorCode::kNotSupported);
  }
}

// A stream's queue of work that ends with the bytes that a gather has to see.
class CopierOrderTest : public CopierTest {
 protected:
  static constexpr std::size_t kSize = 1 << 20;
  static constexpr int kRounds = 40;

  void expect_order(Stream producer, int producers_device, Stream after) {
    Scattered whole;
    whole.base = allocate(0, kSize);
    whole.pieces = {{whole.base, kSize}};
    whole.length = kSize;
    driver_->poke(whole.base, std::vector<std::byte>(kSize, std::byte{0}));
    const auto source = host(kSize * 2);
    const auto arrived = host(kSize);
    const auto last = random_bytes(kSize, 77);
    std::ranges::copy(last, source.begin() + kSize);

    driver_->hold_streams();
    for (int i = 0; i < kRounds; ++i) {
      const auto from = reinterpret_cast<std::uint64_t>(source.data()) + (i == kRounds - 1 ? kSize : 0);
      ASSERT_TRUE(driver_->copy(producers_device, whole.base, from, kSize, producer).ok());
    }
    const std::vector jobs = {job_of(whole, arrived, nullptr)};
    auto ticket = copier_->submit(Direction::kGather, jobs, after);
    ASSERT_TRUE(ticket.ok()) << ticket.status().to_string();
    const auto done = copier_->done(**ticket);
    EXPECT_TRUE(done.ok() && !*done);
    driver_->release_streams();
    ASSERT_TRUE(copier_->wait(**ticket, soon()).ok());
    EXPECT_TRUE(std::ranges::equal(arrived, last));
  }
};

TEST_F(CopierOrderTest, WorkComesAfterTheDefaultStreams) {
  start();
  expect_order(Stream::kLegacyDefault, 0, Stream::kLegacyDefault);
}

TEST_F(CopierOrderTest, WorkComesAfterTheStreamThatIsNamed) {
  start();
  const auto stream = driver_->create_stream(0);
  ASSERT_TRUE(stream.ok());
  expect_order(*stream, 0, *stream);
  driver_->destroy_stream(0, *stream);
}

TEST_F(CopierOrderTest, TheStreamMayBeAnotherDevices) {
  start();
  ASSERT_TRUE(driver_->enable_peer_access(1, 0).ok());
  const auto stream = driver_->create_stream(1);
  ASSERT_TRUE(stream.ok());
  const auto handles = driver_->counts().live_handles;
  expect_order(*stream, 1, *stream);
  EXPECT_EQ(driver_->counts().live_handles, handles + 3) << "a slot's, and no event that is left";
  driver_->destroy_stream(1, *stream);
}

TEST_F(CopierOrderTest, EnginesThatSynchroniseThemselvesAreNotOrdered) {
  Settings settings;
  settings.after_default_stream = false;
  start({}, settings);
  const auto scattered = pieces_of(0, 1000, 100, 1);
  const std::vector jobs = {job_of(scattered, host(scattered.length), nullptr)};
  const Status fault(ErrorCode::kInternal, "cuStreamWaitEvent: a fault");
  driver_->fail("wait", fault);
  EXPECT_TRUE(run(Direction::kGather, jobs).ok()) << "it does not wait for an event";
  const auto stream = driver_->create_stream(0);
  ASSERT_TRUE(stream.ok());
  EXPECT_EQ(copier_->submit(Direction::kGather, jobs, *stream).code(), ErrorCode::kInternal) << "a stream that is named is waited for";
  driver_->destroy_stream(0, *stream);
}

TEST_F(CopierTest, MemoryThatIsNotPinnedIsSaidAndNothingIsQueued) {
  start();
  const auto good = pieces_of(0, 100'000, 3000, 1);
  const auto bad = pieces_of(0, 100'000, 3000, 2);
  std::vector<std::byte> pageable(100'000);
  const std::vector jobs = {job_of(good, host(good.length), nullptr), job_of(bad, pageable, nullptr)};
  EXPECT_EQ(copier_->submit(Direction::kGather, jobs, Stream::kLegacyDefault).code(), ErrorCode::kUnavailable);
  EXPECT_EQ(driver_->counts().launches, 0U);
  EXPECT_EQ(copier_->counters().host_waits, 0U);
}

TEST_F(CopierTest, WrongJobsAreRefused) {
  start();
  const auto scattered = pieces_of(0, 1000, 100, 1);
  const auto memory = host(1000);
  const auto code = [&](const auto& change) {
    CopyJob job = job_of(scattered, memory, nullptr);
    change(job);
    return copier_->submit(Direction::kGather, std::span(&job, 1), Stream::kLegacyDefault).code();
  };
  std::uint64_t sums[2];
  const std::vector<AddressRange> endless = {{scattered.base, 900}, {scattered.base, ~std::uint64_t{0} - 100}};
  EXPECT_EQ(code([](CopyJob& job) { job.device = 2; }), ErrorCode::kInvalidParams);
  EXPECT_EQ(code([](CopyJob& job) { job.device = -1; }), ErrorCode::kInvalidParams);
  EXPECT_EQ(code([](CopyJob& job) { job.length = 999; }), ErrorCode::kInvalidParams);
  EXPECT_EQ(code([](CopyJob& job) { job.length = 1001; }), ErrorCode::kInvalidParams);
  EXPECT_EQ(code([&](CopyJob& job) { job.pieces = endless; }), ErrorCode::kInvalidParams);
  EXPECT_EQ(code([&](CopyJob& job) { job.contiguous = memory.first(999); }), ErrorCode::kInvalidParams);
  EXPECT_EQ(code([&](CopyJob& job) { job.checksums = sums; }), ErrorCode::kInvalidParams);
  EXPECT_EQ(driver_->counts().launches, 0U);
}

TEST_F(CopierTest, NothingToDoIsDone) {
  start();
  auto none = copier_->submit(Direction::kGather, {}, Stream::kLegacyDefault);
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(copier_->wait(**none, soon()).ok());
  const CopyJob empty;
  auto ticket = copier_->submit(Direction::kScatter, std::span(&empty, 1), Stream::kLegacyDefault);
  ASSERT_TRUE(ticket.ok());
  EXPECT_TRUE(*copier_->done(**ticket));
  EXPECT_EQ(copier_->counters().host_waits, 0U);
}

TEST_F(CopierTest, AnErrorOfTheLaunchIsTheCalls) {
  start();
  const auto first = pieces_of(0, 300'000, 3000, 1);
  const auto second = pieces_of(1, 300'000, 3000, 2);
  const std::vector jobs = {job_of(first, host(first.length), nullptr), job_of(second, host(second.length), nullptr)};
  driver_->fail("launch", {ErrorCode::kInternal, "cuLaunchKernel: a fault"}, 1);
  const auto ticket = copier_->submit(Direction::kGather, jobs, Stream::kLegacyDefault);
  EXPECT_EQ(ticket.code(), ErrorCode::kInternal);
  EXPECT_THAT(ticket.status().message(), HasSubstr("GPU 1"));
  // The first device's work had been queued, and has ended.
  EXPECT_TRUE(std::ranges::equal(jobs[0].contiguous, first.bytes()));
  EXPECT_TRUE(run(Direction::kGather, jobs).ok());
  EXPECT_TRUE(std::ranges::equal(jobs[1].contiguous, second.bytes()));
}

TEST_F(CopierTest, AnErrorInFlightComesOutAtTheEndAndItsSlotIsNotUsedAgain) {
  start();
  const auto scattered = pieces_of(1, 300'000, 3000, 1);
  std::vector<std::uint64_t> sums;
  const std::vector jobs = {job_of(scattered, host(scattered.length), &sums)};
  ASSERT_TRUE(run(Direction::kGather, jobs).ok());
  const auto handles = driver_->counts().live_handles;
  EXPECT_EQ(handles, 3U);
  driver_->fail("launch", {ErrorCode::kInternal, "CUDA_ERROR_ILLEGAL_ADDRESS: a fault"}, 0, true);
  auto ticket = copier_->submit(Direction::kGather, jobs, Stream::kLegacyDefault);
  ASSERT_TRUE(ticket.ok()) << ticket.status().to_string();
  const Status status = copier_->wait(**ticket, soon());
  EXPECT_EQ(status.code(), ErrorCode::kInternal);
  EXPECT_THAT(status.message(), HasSubstr("GPU 1"));
  EXPECT_THAT(status.message(), HasSubstr("CUDA_ERROR_ILLEGAL_ADDRESS"));
  EXPECT_EQ(copier_->wait(**ticket, soon()).code(), ErrorCode::kInternal) << "it stays the answer";
  EXPECT_EQ(copier_->done(**ticket).code(), ErrorCode::kInternal);
  EXPECT_EQ(driver_->counts().live_handles, 0U);
  ticket = copier_->submit(Direction::kGather, jobs, Stream::kLegacyDefault);
  ASSERT_TRUE(ticket.ok());
  EXPECT_TRUE(copier_->wait(**ticket, soon()).ok());
  EXPECT_EQ(sums, checksums_of(scattered.bytes()));
}

TEST_F(CopierTest, ACopyThatFailsInFlightIsFoundWithoutKernelsToo) {
  FakeOptions options;
  options.kernels = false;
  start(options);
  const auto scattered = scatter_out(0, {1000, 1000, 1000}, 1);
  const std::vector jobs = {job_of(scattered, host(scattered.length), nullptr)};
  driver_->fail("copy", {ErrorCode::kInternal, "a fault"}, 1, true);
  EXPECT_EQ(run(Direction::kGather, jobs).code(), ErrorCode::kInternal);
  driver_->fail("copy", {ErrorCode::kInternal, "a fault"}, 2);
  EXPECT_EQ(run(Direction::kGather, jobs).code(), ErrorCode::kInternal);
  EXPECT_TRUE(run(Direction::kGather, jobs).ok());
  EXPECT_TRUE(std::ranges::equal(jobs[0].contiguous, scattered.bytes()));
}

TEST_F(CopierTest, WithoutDeviceMemoryATableIsReadFromTheHosts) {
  start();
  const auto scattered = scatter_out(0, std::vector<std::size_t>(3000, 100), 3);
  const std::vector jobs = {job_of(scattered, host(scattered.length), nullptr)};
  driver_->fail("allocate", {ErrorCode::kNoAvailableHandle, "CUDA_ERROR_OUT_OF_MEMORY"});
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(run(Direction::kGather, jobs).ok());
  EXPECT_TRUE(std::ranges::equal(jobs[0].contiguous, scattered.bytes()));
  EXPECT_EQ(driver_->counts().launches, 2U);
  EXPECT_EQ(driver_->counts().copies, 0U) << "nor is the memory asked for again at once";
}

TEST_F(CopierTest, WithoutPinnedMemoryForTablesTheCallFailsAndALaterOneDoesNot) {
  start();
  const auto scattered = scatter_out(0, std::vector<std::size_t>(3000, 100), 3);
  const std::vector jobs = {job_of(scattered, host(scattered.length), nullptr)};
  driver_->fail("allocate_host", {ErrorCode::kNoAvailableHandle, "CUDA_ERROR_OUT_OF_MEMORY"});
  EXPECT_EQ(run(Direction::kGather, jobs).code(), ErrorCode::kNoAvailableHandle);
  EXPECT_EQ(driver_->counts().launches, 0U);
  EXPECT_TRUE(run(Direction::kGather, jobs).ok());
  for (const auto* function : {"create_stream", "create_event"}) {
    driver_->fail(function, {ErrorCode::kInternal, "a fault"});
    copier_ = std::make_unique<Copier>(*driver_, *regions_, Settings{});
    EXPECT_EQ(driver_->counts().live_handles, 0U);
    EXPECT_EQ(run(Direction::kGather, jobs).code(), ErrorCode::kInternal);
    EXPECT_TRUE(run(Direction::kGather, jobs).ok());
  }
}

TEST_F(CopierTest, AfterTheDeadlineItGoesOnWaitingUntilTheWorkHasEnded) {
  start();
  const auto scattered = pieces_of(0, 400'000, 3000, 1);
  std::vector<std::uint64_t> sums;
  const std::vector jobs = {job_of(scattered, host(scattered.length), &sums)};
  driver_->hold_streams();
  auto ticket = copier_->submit(Direction::kGather, jobs, Stream::kLegacyDefault);
  ASSERT_TRUE(ticket.ok());
  const auto deadline = Deadline::after(milliseconds(20));
  std::atomic<bool> returned{false};
  Status status;
  std::thread waiter([&] {
    status = copier_->wait(**ticket, deadline);
    returned = true;
  });
  EXPECT_TRUE(test::wait_until([&] { return deadline.expired(); }, soon()));
  // Long after it: a wait that gives up at its deadline is seen here.
  EXPECT_FALSE(test::wait_until([&] { return returned.load(); }, Deadline::after(milliseconds(100))));
  driver_->release_streams();
  waiter.join();
  EXPECT_EQ(status.code(), ErrorCode::kRpcTimeout);
  EXPECT_TRUE(std::ranges::equal(jobs[0].contiguous, scattered.bytes()));
  EXPECT_EQ(sums, checksums_of(scattered.bytes()));
  EXPECT_TRUE(copier_->wait(**ticket, Deadline::after(milliseconds(0))).ok()) << "by now it has ended";
}

TEST_F(CopierTest, ATicketsEndWaitsForTheWork) {
  start();
  const auto scattered = pieces_of(0, 400'000, 3000, 1);
  const std::vector jobs = {job_of(scattered, host(scattered.length), nullptr)};
  driver_->hold_streams();
  auto ticket = copier_->submit(Direction::kGather, jobs, Stream::kLegacyDefault);
  ASSERT_TRUE(ticket.ok());
  std::atomic<bool> gone{false};
  std::thread owner([&, owned = std::move(ticket).value()]() mutable {
    owned.reset();
    gone = true;
  });
  EXPECT_FALSE(test::wait_until([&] { return gone.load(); }, Deadline::after(milliseconds(50))));
  driver_->release_streams();
  owner.join();
  EXPECT_TRUE(std::ranges::equal(jobs[0].contiguous, scattered.bytes()));
}

TEST_F(CopierTest, MemoryStaysPinnedAsLongAsWorkUsesIt) {
  start();
  const auto scattered = pieces_of(0, 400'000, 3000, 1);
  auto keeper = std::make_shared<std::vector<std::byte>>(scattered.length);
  const MutableBytes memory(*keeper);
  regions_->want(memory, keeper, "a region");
  ASSERT_TRUE(regions_->wait_settled(soon()));
  const std::vector jobs = {job_of(scattered, memory, nullptr)};
  driver_->hold_streams();
  auto ticket = copier_->submit(Direction::kGather, jobs, Stream::kLegacyDefault);
  ASSERT_TRUE(ticket.ok()) << ticket.status().to_string();
  const std::weak_ptr<std::vector<std::byte>> alive = keeper;
  keeper.reset();
  EXPECT_FALSE(test::wait_until([&] { return driver_->counts().unregistered > 0; }, Deadline::after(milliseconds(300))));
  driver_->release_streams();
  EXPECT_TRUE(copier_->wait(**ticket, soon()).ok());
  EXPECT_EQ(driver_->counts().touched_unpinned, 0U);
  EXPECT_TRUE(test::wait_until([&] { return driver_->counts().unregistered == 1 && alive.expired(); }, soon()));
}

TEST_F(CopierTest, CallersAtTheSameTimeDoNotMeet) {
  start();
  constexpr int kThreads = 6;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    const auto scattered = pieces_of(t % 2, 300'000 + static_cast<std::uint64_t>(t), 2000, static_cast<std::uint32_t>(t));
    const auto memory = host(scattered.length);
    threads.emplace_back([this, scattered, memory] {
      const auto expected = scattered.bytes();
      std::vector<std::uint64_t> sums;
      for (int round = 0; round < 8; ++round) {
        std::ranges::fill(memory, std::byte{1});
        const std::vector jobs = {job_of(scattered, memory, &sums)};
        ASSERT_TRUE(run(Direction::kGather, jobs).ok());
        ASSERT_TRUE(std::ranges::equal(memory, expected));
        ASSERT_EQ(sums, checksums_of(expected));
        ASSERT_TRUE(run(Direction::kScatter, jobs).ok());
        ASSERT_EQ(peek(scattered), scattered.image);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(copier_->counters().launches, static_cast<std::uint64_t>(kThreads) * 16);
  EXPECT_LE(driver_->counts().live_handles, 3U * kThreads);
}

TEST_F(CopierTest, TicketsInFlightHaveSlotsOfTheirOwnAndAFewOfThemAreKept) {
  start();
  const auto scattered = pieces_of(0, 5000, 500, 1);
  std::vector<std::unique_ptr<Copier::Ticket>> tickets;
  std::vector<std::vector<CopyJob>> jobs;
  driver_->hold_streams();
  for (int i = 0; i < 40; ++i) {
    jobs.push_back({job_of(scattered, host(scattered.length), nullptr)});
    auto ticket = copier_->submit(Direction::kGather, jobs.back(), Stream::kLegacyDefault);
    ASSERT_TRUE(ticket.ok()) << ticket.status().to_string();
    tickets.push_back(std::move(ticket).value());
  }
  EXPECT_EQ(driver_->counts().live_handles, 120U);
  driver_->release_streams();
  for (const auto& ticket : tickets) EXPECT_TRUE(copier_->wait(*ticket, soon()).ok());
  for (const auto& job : jobs) EXPECT_TRUE(std::ranges::equal(job[0].contiguous, scattered.bytes()));
  EXPECT_EQ(driver_->counts().live_handles, 48U);
  tickets.clear();
  copier_.reset();
  EXPECT_EQ(driver_->counts().live_handles, 0U);
}

TEST_F(CopierTest, ALaunchTakesNoMoreBlocksThanItMay) {
  // One multiprocessor: all chunks pass through one block, and are right all the same.
  Settings settings;
  settings.multiprocessors = 1;
  start({}, settings);
  gathers_bit_for_bit();
  EXPECT_EQ(driver_->counts().last_blocks, 1U);
  scatters_bit_for_bit();
  EXPECT_EQ(driver_->counts().last_blocks, 1U);
}

// Launches that are held, on devices of eight multiprocessors.
class CopierBlocksTest : public CopierRig {
 protected:
  static FakeOptions eight() {
    FakeOptions options;
    options.multiprocessors = 8;
    return options;
  }
  // Blocks that the next launch, of so many chunks, gets.
  std::uint32_t launch(Direction direction, std::uint64_t chunks, int device = 0) {
    const auto& scattered = scattered_.emplace_back(pieces_of(device, chunks * kChunk, kChunk, 1));
    jobs_.push_back(job_of(scattered, host(scattered.length), nullptr));
    auto ticket = copier_->submit(direction, {&jobs_.back(), 1}, Stream::kLegacyDefault);
    EXPECT_TRUE(ticket.ok()) << ticket.status().to_string();
    if (ticket.ok()) tickets_.push_back(std::move(ticket).value());
    return driver_->counts().last_blocks;
  }
  void end_all() {
    driver_->release_streams();
    for (const auto& ticket : tickets_) EXPECT_TRUE(copier_->wait(*ticket, soon()).ok());
    tickets_.clear();
  }

  std::deque<Scattered> scattered_;
  std::deque<CopyJob> jobs_;
  std::vector<std::unique_ptr<Copier::Ticket>> tickets_;
};

TEST_F(CopierBlocksTest, LaunchesOfADirectionThatOverlapGetWhatIsLeftOrAQuarter) {
  start(eight());
  driver_->hold_streams();
  EXPECT_EQ(launch(Direction::kGather, 3), 3U) << "no more than it has chunks";
  EXPECT_EQ(launch(Direction::kGather, 8), 5U) << "what the first one has left";
  EXPECT_EQ(launch(Direction::kGather, 8), 2U) << "a quarter, so that it need not wait";
  EXPECT_EQ(launch(Direction::kGather, 1), 1U);
  EXPECT_EQ(launch(Direction::kGather, 8), 2U);
  EXPECT_EQ(launch(Direction::kScatter, 7), 7U) << "the other direction has a bound of its own";
  EXPECT_EQ(launch(Direction::kScatter, 8), 2U) << "a quarter is more than what is left";
  EXPECT_EQ(launch(Direction::kGather, 8, 1), 8U) << "as each device has";
  end_all();
  for (const auto direction : {Direction::kGather, Direction::kScatter}) {
    EXPECT_EQ(launch(direction, 10), 8U) << "all have given back what they took";
    end_all();
  }
}

TEST_F(CopierBlocksTest, WhatFailsGivesItsBlocksBack) {
  start(eight());
  const auto scattered = pieces_of(0, 8 * kChunk, kChunk, 1);
  const std::vector jobs = {job_of(scattered, host(scattered.length), nullptr)};
  for (const bool late : {false, true}) {
    driver_->fail("launch", {ErrorCode::kInternal, "a fault"}, 0, late);
    EXPECT_EQ(run(Direction::kGather, jobs).code(), ErrorCode::kInternal);
    EXPECT_TRUE(run(Direction::kGather, jobs).ok());
    EXPECT_EQ(driver_->counts().last_blocks, 8U);
  }
}

TEST_F(CopierTest, TheDeviceHashesWhatItMovesWhereItHasKernelsAndTheLastChunkIsNotShort) {
  for (const bool kernels : {true, false}) {
    FakeOptions options;
    options.kernels = kernels;
    start(options);
    EXPECT_FALSE(copier_->hashes_what_it_moves(0, kChunk)) << "nobody knows yet whether there are kernels";
    const auto scattered = pieces_of(0, 1000, 100, 1);
    const std::vector jobs = {job_of(scattered, host(scattered.length), nullptr)};
    ASSERT_TRUE(run(Direction::kScatter, jobs).ok());
    for (const auto length : {kChunk, kChunk + 241, std::uint64_t{241}}) {
      EXPECT_EQ(copier_->hashes_what_it_moves(0, length), kernels) << length;
    }
    for (const auto length : {kChunk + 1, kChunk + 240, std::uint64_t{1}}) EXPECT_FALSE(copier_->hashes_what_it_moves(0, length)) << length;
    EXPECT_FALSE(copier_->hashes_what_it_moves(1, kChunk)) << "another device";
    copier_.reset();
  }
}

}  // namespace
}  // namespace moonpool::transfer::cuda
