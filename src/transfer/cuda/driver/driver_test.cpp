// What every implementation of driver.h does (the fake one here, the machine's own where there is a GPU), and what the fake one does
// beyond.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <thread>

#include "transfer/checksum.h"
#include "transfer/cuda/driver/driver_rigs_for_test.h"

namespace moonpool::transfer::cuda {
namespace {

using testing::HasSubstr;

constexpr std::size_t kSize = (std::size_t{3} << 20) + 7;

class DriverContract : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    std::string why_not;
    rig_ = make_rig(GetParam(), why_not);
    if (rig_ == nullptr) GTEST_SKIP() << why_not;
  }
  void TearDown() override {
    for (const auto& [device, stream] : streams_) driver().destroy_stream(device, stream);
    for (const auto& [device, event] : events_) driver().destroy_event(device, event);
    for (const auto& [device, address] : allocations_) driver().free(device, address);
    for (const auto& memory : pinned_) driver().free_host(memory);
  }

  Driver& driver() { return rig_->driver(); }
  std::uint64_t allocate(int device, std::size_t size) {
    auto address = driver().allocate(device, size);
    EXPECT_TRUE(address.ok()) << address.status().to_string();
    return allocations_.emplace_back(device, address.ok() ? *address : 0).second;
  }
  std::span<std::byte> allocate_host(std::size_t size) {
    auto memory = driver().allocate_host(size);
    EXPECT_TRUE(memory.ok()) << memory.status().to_string();
    return pinned_.emplace_back(memory.ok() ? *memory : std::span<std::byte>());
  }
  Stream stream(int device = 0) {
    auto stream = driver().create_stream(device);
    EXPECT_TRUE(stream.ok()) << stream.status().to_string();
    return streams_.emplace_back(device, *stream).second;
  }
  Event event(int device = 0) {
    auto event = driver().create_event(device);
    EXPECT_TRUE(event.ok()) << event.status().to_string();
    return events_.emplace_back(device, *event).second;
  }
  // Device memory with these bytes.
  std::uint64_t filled(int device, const Bytes& bytes) {
    const std::uint64_t address = allocate(device, bytes.size());
    const Status status = upload(driver(), device, address, bytes);
    EXPECT_TRUE(status.ok()) << status.to_string();
    return address;
  }
  Bytes bytes_at(int device, std::uint64_t address, std::size_t size) {
    auto bytes = download(driver(), device, address, size);
    EXPECT_TRUE(bytes.ok()) << bytes.status().to_string();
    return bytes.ok() ? *bytes : Bytes();
  }
  // The other device for tests of two, else the only one.
  int second_device() { return driver().device_count() > 1 ? 1 : 0; }

  std::unique_ptr<DriverRig> rig_;
  std::vector<std::pair<int, std::uint64_t>> allocations_;
  std::vector<std::pair<int, Stream>> streams_;
  std::vector<std::pair<int, Event>> events_;
  std::vector<std::span<std::byte>> pinned_;
};

TEST_P(DriverContract, TellsWhatItsDevicesAre) {
  ASSERT_GT(driver().device_count(), 0);
  std::vector<std::string> uuids;
  for (int device = 0; device < driver().device_count(); ++device) {
    const auto facts = driver().facts(device);
    ASSERT_TRUE(facts.ok()) << facts.status().to_string();
    EXPECT_FALSE(facts->name.empty());
    EXPECT_THAT(facts->pci_bus_id, testing::MatchesRegex("[0-9a-f]+:[0-9a-f]+:[0-9a-f]+[.][0-9a-f]"));
    EXPECT_EQ(facts->uuid.size(), 16U);
    EXPECT_GT(facts->multiprocessors, 0);
    EXPECT_GE(facts->compute_major, 5);
    EXPECT_THAT(uuids, testing::Not(testing::Contains(facts->uuid)));
    uuids.push_back(facts->uuid);
  }
}

TEST_P(DriverContract, ADeviceThatIsNotThereIsAnErrorWithItsNumber) {
  const int none = driver().device_count();
  for (const Status& status : {driver().facts(none).status(), driver().create_stream(none).status(), driver().create_event(-1).status(),
                               driver().allocate(none, 16).status(), driver().copy(none, 0, 0, 1, Stream::kLegacyDefault)}) {
    EXPECT_EQ(status.code(), ErrorCode::kInternal) << status.to_string();
    EXPECT_THAT(status.message(), HasSubstr("CUDA_ERROR_INVALID_DEVICE"));
    EXPECT_THAT(status.message(), testing::ContainsRegex("device (-1|" + std::to_string(none) + ")"));
  }
}

TEST_P(DriverContract, AnAddressIsLocatedFromTheFirstByteOfItsAllocationToTheLast) {
  for (const int device : {0, second_device()}) {
    const std::uint64_t base = allocate(device, kSize);
    for (const std::uint64_t offset : {std::size_t{0}, std::size_t{1}, kSize / 2, kSize - 1}) {
      const auto memory = driver().locate(base + offset);
      ASSERT_TRUE(memory) << offset;
      EXPECT_EQ(memory->device, device);
      EXPECT_EQ(memory->base, base);
      EXPECT_GE(memory->size, kSize);
    }
  }
}

TEST_P(DriverContract, HostMemoryIsNotLocatedPinnedOrNot) {
  Bytes heap(kSize);
  const int on_stack = 0;
  for (const void* address :
       {static_cast<const void*>(heap.data()), static_cast<const void*>(&on_stack), static_cast<const void*>(nullptr)}) {
    EXPECT_FALSE(driver().locate(number_of(address)));
  }
  EXPECT_FALSE(driver().locate(~std::uint64_t{0}));
  EXPECT_FALSE(driver().locate(number_of(allocate_host(kSize).data())));
  ASSERT_TRUE(driver().register_host(heap).ok());
  EXPECT_FALSE(driver().locate(number_of(heap.data()) + 1));
  driver().unregister_host(heap);
  EXPECT_FALSE(driver().locate(number_of(heap.data()) + 1));
}

TEST_P(DriverContract, FreedMemoryIsNotLocatedAnyMore) {
  auto address = driver().allocate(0, std::size_t{64} << 20);
  ASSERT_TRUE(address.ok());
  ASSERT_TRUE(driver().locate(*address));
  driver().free(0, *address);
  EXPECT_FALSE(driver().locate(*address));
}

TEST_P(DriverContract, MoreMemoryThanThereIsIsNoAvailableHandle) {
  const auto address = driver().allocate(0, std::uint64_t{1} << 46);
  ASSERT_EQ(address.code(), ErrorCode::kNoAvailableHandle) << address.status().to_string();
  EXPECT_THAT(address.status().message(), HasSubstr("cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (out of memory), device 0"));
  allocate(0, kSize);  // it goes on
}

TEST_P(DriverContract, CopiesGoBetweenAnyTwoMemories) {
  const int other = second_device();
  const Stream on = stream();
  for (const std::size_t size : {std::size_t{1}, std::size_t{4097}, kSize}) {
    const Bytes bytes = pattern(size, 1);
    const auto source = allocate_host(size);
    const auto target = allocate_host(size);
    std::memcpy(source.data(), bytes.data(), size);
    const std::uint64_t first = allocate(0, size);
    const std::uint64_t second = allocate(0, size);
    const std::uint64_t elsewhere = allocate(other, size);
    ASSERT_TRUE(driver().copy(0, first, number_of(source.data()), size, on).ok());
    ASSERT_TRUE(driver().copy(0, second, first, size, on).ok());
    ASSERT_TRUE(driver().copy(0, elsewhere, second, size, on).ok());
    ASSERT_TRUE(driver().copy(0, number_of(target.data()), elsewhere, size, on).ok());
    ASSERT_TRUE(finish(driver(), 0, on).ok());
    EXPECT_EQ(Bytes(target.begin(), target.end()), bytes);

    std::memset(target.data(), 0, size);
    ASSERT_TRUE(driver().copy(0, number_of(target.data()), number_of(source.data()), size, on).ok());
    ASSERT_TRUE(finish(driver(), 0, on).ok());
    EXPECT_EQ(Bytes(target.begin(), target.end()), bytes);
  }
  EXPECT_TRUE(driver().copy(0, allocate(0, 16), number_of(allocate_host(16).data()), 0, on).ok());
  EXPECT_TRUE(finish(driver(), 0, on).ok());
}

TEST_P(DriverContract, ACopyTouchesNoByteBesideItsOwn) {
  const std::uint64_t memory = filled(0, pattern(kSize, 1));
  const auto pinned = allocate_host(100);
  std::memset(pinned.data(), 0x5a, 100);
  ASSERT_TRUE(driver().copy(0, memory + 1001, number_of(pinned.data()), 100, Stream::kLegacyDefault).ok());
  ASSERT_TRUE(finish(driver(), 0, Stream::kLegacyDefault).ok());
  Bytes wanted = pattern(kSize, 1);
  std::memset(wanted.data() + 1001, 0x5a, 100);
  EXPECT_EQ(bytes_at(0, memory, kSize), wanted);
}

TEST_P(DriverContract, AStreamDoesOneThingAfterTheOther) {
  const Stream on = stream();
  std::array<std::uint64_t, 5> stages{};
  stages[0] = filled(0, pattern(kSize, 3));
  for (std::size_t at = 1; at < stages.size(); ++at) {
    stages[at] = allocate(0, kSize);
    ASSERT_TRUE(driver().copy(0, stages[at], stages[at - 1], kSize, on).ok());
  }
  ASSERT_TRUE(finish(driver(), 0, on).ok());
  EXPECT_EQ(bytes_at(0, stages.back(), kSize), pattern(kSize, 3));
}

TEST_P(DriverContract, AStreamWaitsForAnEventOfAnotherOneAlsoOfAnotherDevice) {
  const int other = second_device();
  for (int round = 0; round < 20; ++round) {
    const Stream first = stream(0);
    const Stream second = stream(other);
    const Event copied = event(0);
    const std::uint64_t source = filled(0, pattern(kSize, unsigned(round)));
    const std::uint64_t between = allocate(0, kSize);
    const std::uint64_t target = allocate(other, kSize);
    ASSERT_TRUE(driver().copy(0, between, source, kSize, first).ok());
    ASSERT_TRUE(driver().record(0, copied, first).ok());
    ASSERT_TRUE(driver().wait(other, second, copied).ok());
    ASSERT_TRUE(driver().copy(other, target, between, kSize, second).ok());
    ASSERT_TRUE(finish(driver(), other, second).ok());
    ASSERT_EQ(bytes_at(other, target, kSize), pattern(kSize, unsigned(round)));
    TearDown();
    streams_.clear(), events_.clear(), allocations_.clear(), pinned_.clear();
  }
}

TEST_P(DriverContract, AnEventThatWasNeverRecordedIsDoneAndHoldsNobodyUp) {
  const Event never = event();
  const Stream on = stream();
  const auto done = driver().done(0, never);
  ASSERT_TRUE(done.ok());
  EXPECT_TRUE(*done);
  ASSERT_TRUE(driver().wait(0, on, never).ok());
  EXPECT_TRUE(finish(driver(), 0, on).ok());
}

TEST_P(DriverContract, HandlesMayGoWhileTheirWorkIsUnderWay) {
  const auto target = allocate_host(kSize);
  const std::uint64_t source = filled(0, pattern(kSize, 4));
  const Stream watch = stream();
  auto on = driver().create_stream(0);
  auto copied = driver().create_event(0);
  ASSERT_TRUE(on.ok() && copied.ok());
  ASSERT_TRUE(driver().copy(0, number_of(target.data()), source, kSize, *on).ok());
  ASSERT_TRUE(driver().record(0, *copied, *on).ok());
  ASSERT_TRUE(driver().wait(0, watch, *copied).ok());
  driver().destroy_event(0, *copied);
  driver().destroy_stream(0, *on);
  ASSERT_TRUE(finish(driver(), 0, watch).ok());
  EXPECT_EQ(Bytes(target.begin(), target.end()), pattern(kSize, 4));
}

TEST_P(DriverContract, ManyThreadsUseADeviceAtOnce) {
  constexpr int kThreads = 4;
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int number = 0; number < kThreads; ++number) {
    threads.emplace_back([&, number] {
      const int device = number % 2 == 0 ? 0 : second_device();
      for (unsigned round = 0; round < 5; ++round) {
        const Bytes bytes = pattern(100'000, round * kThreads + unsigned(number));
        auto address = driver().allocate(device, bytes.size());
        if (!address.ok() || !upload(driver(), device, *address, bytes).ok()) return;
        const auto back = download(driver(), device, *address, bytes.size());
        driver().free(device, *address);
        if (back.ok() && *back == bytes) ++right;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(right, kThreads * 5);
}

TEST_P(DriverContract, SharedMemoryThatIsPinnedIsReachedByEveryDevice) {
  const SharedHostMemory shared(std::size_t{4} << 20);
  ASSERT_TRUE(driver().register_host(shared.get()).ok());
  for (const int device : {0, second_device()}) {
    const std::uint64_t source = filled(device, pattern(kSize, unsigned(device)));
    const auto inside = driver().device_address(device, shared.get().data() + 100);
    ASSERT_TRUE(inside.ok()) << inside.status().to_string();
    const Stream on = stream(device);
    ASSERT_TRUE(driver().copy(device, *inside, source, kSize, on).ok());
    ASSERT_TRUE(finish(driver(), device, on).ok());
    EXPECT_EQ(std::memcmp(shared.get().data() + 100, pattern(kSize, unsigned(device)).data(), kSize), 0);
  }
  driver().unregister_host(shared.get());
}

TEST_P(DriverContract, MemoryIsPinnedOnceAndMayBePinnedAgainAfterwards) {
  const SharedHostMemory shared(std::size_t{4} << 20);
  const auto part = shared.get().subspan(std::size_t{1} << 20, std::size_t{1} << 20);
  for (int round = 0; round < 2; ++round) {
    ASSERT_TRUE(driver().register_host(shared.get()).ok());
    const Status again = driver().register_host(shared.get());
    EXPECT_EQ(again.code(), ErrorCode::kSegmentAlreadyExists) << again.to_string();
    EXPECT_THAT(again.message(), HasSubstr("cuMemHostRegister: CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"));
    EXPECT_EQ(driver().register_host(part).code(), ErrorCode::kSegmentAlreadyExists);
    driver().unregister_host(shared.get());
    driver().unregister_host(shared.get());  // quiet
  }
  ASSERT_TRUE(driver().register_host(part).ok());
  EXPECT_EQ(driver().register_host(shared.get()).code(), ErrorCode::kSegmentAlreadyExists);
  driver().unregister_host(part);
}

TEST_P(DriverContract, MemoryThatIsNotPinnedHasNoDeviceAddress) {
  const SharedHostMemory shared(std::size_t{1} << 20);
  EXPECT_EQ(driver().device_address(0, shared.get().data()).code(), ErrorCode::kInternal);
  ASSERT_TRUE(driver().register_host(shared.get()).ok());
  EXPECT_TRUE(driver().device_address(0, shared.get().data() + shared.get().size() - 1).ok());
  driver().unregister_host(shared.get());
  EXPECT_EQ(driver().device_address(0, shared.get().data()).code(), ErrorCode::kInternal);
}

TEST_P(DriverContract, AnotherProcessReadsAndWritesAnExportedAllocation) {
  const std::uint64_t address = filled(0, pattern(kSize, 7));
  const auto handle = driver().export_ipc(0, address);
  ASSERT_TRUE(handle.ok()) << handle.status().to_string();
  EXPECT_EQ(rig_->exchange_in_another_process(*handle, kSize, 7), "");
  EXPECT_EQ(bytes_at(0, address, kSize), pattern(kSize, 8));
}

TEST_P(DriverContract, AHandleIsNotForTheProcessThatMadeIt) {
  const std::uint64_t address = allocate(0, kSize);
  const auto handle = driver().export_ipc(0, address);
  ASSERT_TRUE(handle.ok());
  const auto opened = driver().open_ipc(0, *handle);
  ASSERT_EQ(opened.code(), ErrorCode::kInternal) << opened.status().to_string();
  EXPECT_THAT(opened.status().message(), HasSubstr("cuIpcOpenMemHandle"));
}

TEST_P(DriverContract, HostMemoryIsNotExported) { EXPECT_FALSE(driver().export_ipc(0, number_of(allocate_host(4096).data())).ok()); }

TEST_P(DriverContract, PeerAccessMayBeAskedForTwice) {
  EXPECT_TRUE(driver().enable_peer_access(0, 0).ok());
  if (driver().device_count() < 2) GTEST_SKIP() << "one device";
  const Status first = driver().enable_peer_access(0, 1);
  if (first.code() == ErrorCode::kNotSupported) GTEST_SKIP() << first.to_string();
  EXPECT_TRUE(first.ok()) << first.to_string();
  EXPECT_TRUE(driver().enable_peer_access(0, 1).ok());
}

TEST_P(DriverContract, ADmaBufIsADescriptorOrNotSupported) {
  constexpr std::size_t kTwoMiB = std::size_t{2} << 20;
  const std::uint64_t address = allocate(0, kTwoMiB);
  const auto facts = driver().facts(0);
  ASSERT_TRUE(facts.ok());
  const auto exported = driver().export_dma_buf(0, address, kTwoMiB);
  if (facts->no_dma_buf.empty()) {
    ASSERT_TRUE(exported.ok()) << exported.status().to_string();
    EXPECT_TRUE(*exported);
  } else {
    EXPECT_EQ(exported.code(), ErrorCode::kNotSupported) << exported.status().to_string();
  }
}

TEST_P(DriverContract, ALaunchGathersPiecesWithTheirChecksumsAndScattersThem) {
  const Bytes bytes = pattern(PiecesAndTables::kLength, 11);
  std::array<std::uint64_t, 3> pieces{};
  std::size_t begin = 0;
  for (std::size_t at = 0; at < pieces.size(); ++at) {
    const std::size_t end = PiecesAndTables::kEnds[at];
    pieces[at] = filled(0, Bytes(bytes.begin() + std::ptrdiff_t(begin), bytes.begin() + std::ptrdiff_t(end)));
    begin = end;
  }
  const auto target = allocate_host(bytes.size());
  const PiecesAndTables gather(allocate_host(4096), pieces, number_of(target.data()));
  const Stream on = stream();
  const LaunchShape shape{.blocks = 2, .threads = 64};
  const Status launched = driver().launch(0, Kernel::kGatherHash, shape, gather.arguments(), on);
  if (launched.code() == ErrorCode::kNotSupported) GTEST_SKIP() << launched.to_string();
  ASSERT_TRUE(launched.ok()) << launched.to_string();
  ASSERT_TRUE(finish(driver(), 0, on).ok());
  EXPECT_EQ(Bytes(target.begin(), target.end()), bytes);
  for (std::size_t chunk = 0; chunk < gather.checksums().size(); ++chunk) {
    const std::size_t at = chunk * kLargestChunk;
    const std::size_t size = std::min<std::size_t>(kLargestChunk, bytes.size() - at);
    EXPECT_EQ(gather.checksums()[chunk], checksum(std::span(bytes).subspan(at, size))) << chunk;
  }

  const Bytes others = pattern(bytes.size(), 12);
  std::memcpy(target.data(), others.data(), others.size());
  ASSERT_TRUE(driver().launch(0, Kernel::kScatter, shape, gather.arguments(), on).ok());
  ASSERT_TRUE(finish(driver(), 0, on).ok());
  begin = 0;
  for (std::size_t at = 0; at < pieces.size(); ++at) {
    const std::size_t end = PiecesAndTables::kEnds[at];
    EXPECT_EQ(bytes_at(0, pieces[at], end - begin), Bytes(others.begin() + std::ptrdiff_t(begin), others.begin() + std::ptrdiff_t(end)));
    begin = end;
  }
}

TEST_P(DriverContract, AnErrorOfWorkThatWasAcceptedComesOutOfDone) {
  const Status status = rig_->illegal_launch_in_another_process();
  if (status.code() == ErrorCode::kNotSupported) GTEST_SKIP() << status.to_string();
  EXPECT_EQ(status.code(), ErrorCode::kInternal) << status.to_string();
  EXPECT_THAT(status.message(), HasSubstr("CUDA_ERROR_ILLEGAL_ADDRESS"));
  EXPECT_THAT(status.message(), HasSubstr("device 0"));
}

INSTANTIATE_TEST_SUITE_P(All, DriverContract, testing::Values("fake", "real"), [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace moonpool::transfer::cuda

int main(int argc, char** argv) {
  if (const auto status = moonpool::transfer::cuda::run_as_other_process(argc, argv)) return *status;
  testing::InitGoogleTest(&argc, argv);
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // streams are threads
  return RUN_ALL_TESTS();
}
