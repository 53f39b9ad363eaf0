// Gathers and scatters of paged caches on every device, with and without checksums, several at once: what compute-sanitizer watches.
//
// Small on purpose, since a sanitizer slows a kernel down by orders of magnitude, but with what kernels get wrong: pieces of odd sizes and
// alignments, pieces that end within a chunk and chunks that end within a piece, empty pieces, last chunks shorter than a hash's blocks.
// Usage: device_moves [--fake]. Exit status: 0; 1 when a byte or a checksum is wrong or a call fails, with one line.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "transfer/checksum.h"
#include "transfer/cuda/copier/copier.h"
#include "transfer/cuda/driver/loaded_driver.h"
#include "transfer/cuda/fake/fake_driver.h"
#include "transfer/cuda/host_regions.h"

namespace moonpool::transfer::cuda {
namespace {

constexpr std::uint64_t kDeviceBytes = std::uint64_t{3} << 20;
constexpr std::uint64_t kGap = 48;  // between pieces: bytes that no scatter may touch
constexpr std::byte kUntouched{0xA5};

void require(const Status& status, std::string_view what) {
  if (status.ok()) return;
  std::fprintf(stderr, "device_moves: %.*s: %s\n", static_cast<int>(what.size()), what.data(), status.to_string().c_str());
  std::exit(1);
}

template <typename T>
T require(Result<T> result, std::string_view what) {
  require(result.status(), what);
  return std::move(result).value();
}

void require(bool holds, std::string_view what) {
  if (holds) return;
  std::fprintf(stderr, "device_moves: %.*s\n", static_cast<int>(what.size()), what.data());
  std::exit(1);
}

// One way of cutting a stretch of memory into pieces.
struct Cut {
  const char* name;
  std::vector<std::uint64_t> sizes;
};

std::vector<Cut> cuts() {
  std::vector<Cut> all;
  all.push_back({"pages of 4 KiB", std::vector<std::uint64_t>(100, 4096)});
  all.push_back({"layers of 96 KiB", std::vector<std::uint64_t>(8, 98304)});
  all.push_back({"one piece of three chunks and a bit", {3 * kChecksumChunk + 17}});
  all.push_back({"odd sizes", {1, 0, 15, 16, 17, 255, 4097, 0, 65537, 240, 241, 1024, 7, kChecksumChunk + 1, 3}});
  all.push_back({"less than is hashed on the device", {100, 140}});
  return all;
}

// A device with memory of its own and pinned memory beside it.
class Stage {
 public:
  Stage(Driver& driver, HostRegions& regions, int device) : driver_(driver), regions_(regions), device_(device) {
    memory_ = require(driver.allocate(device, kDeviceBytes), "allocate");
    pinned_ = require(driver.allocate_host(kDeviceBytes), "allocate_host");
    regions.add_pinned(pinned_);
    stream_ = require(driver.create_stream(device), "create_stream");
    event_ = require(driver.create_event(device), "create_event");
  }
  ~Stage() {
    driver_.destroy_event(device_, event_);
    driver_.destroy_stream(device_, stream_);
    regions_.forget(pinned_.data());
    driver_.free_host(pinned_);
    driver_.free(device_, memory_);
  }
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  [[nodiscard]] int device() const { return device_; }
  [[nodiscard]] std::uint64_t memory() const { return memory_; }
  [[nodiscard]] MutableBytes pinned() const { return pinned_; }
  // All device memory from and to the pinned memory, in one copy each.
  void fill_device() { copy(memory_, reinterpret_cast<std::uint64_t>(pinned_.data())); }
  void fetch_device() { copy(reinterpret_cast<std::uint64_t>(pinned_.data()), memory_); }

 private:
  void copy(std::uint64_t to, std::uint64_t from) {
    require(driver_.copy(device_, to, from, kDeviceBytes, stream_), "copy");
    require(driver_.record(device_, event_, stream_), "record");
    while (!require(driver_.done(device_, event_), "copying")) std::this_thread::yield();
  }

  Driver& driver_;
  HostRegions& regions_;
  const int device_;
  std::uint64_t memory_ = 0;
  MutableBytes pinned_;
  Stream stream_{};
  Event event_{};
};

std::vector<AddressRange> pieces_of(const Cut& cut, std::uint64_t base) {
  std::vector<AddressRange> pieces;
  std::uint64_t offset = kGap;
  for (const std::uint64_t size : cut.sizes) {
    pieces.push_back({base + offset, size});
    offset += size + kGap;
  }
  require(offset <= kDeviceBytes, "a cut is larger than the memory");
  return pieces;
}

void move(Copier& copier, Direction direction, std::span<const CopyJob> jobs) {
  const auto ticket = require(copier.submit(direction, jobs, Stream::kLegacyDefault), "submit");
  require(copier.wait(*ticket, Deadline::after(std::chrono::minutes(2))), "wait");
}

void check_checksums(ConstBytes bytes, std::span<const std::uint64_t> sums, const char* name) {
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const auto chunk = bytes.subspan(i * kChecksumChunk, std::min<std::uint64_t>(kChecksumChunk, bytes.size() - i * kChecksumChunk));
    require(sums[i] == checksum(chunk), std::string(name) + ": a checksum differs from the host's");
  }
}

// Gathers a device's pieces, compares, spreads other bytes over them, and compares all of the device's memory.
void round_trip(Copier& copier, Stage& stage, const Cut& cut, bool hashed, std::mt19937_64& random) {
  std::vector<std::byte> image(kDeviceBytes);
  std::generate(image.begin(), image.end(), [&] { return static_cast<std::byte>(random()); });
  std::copy(image.begin(), image.end(), stage.pinned().begin());
  stage.fill_device();
  std::fill(stage.pinned().begin(), stage.pinned().end(), kUntouched);

  const std::vector<AddressRange> pieces = pieces_of(cut, stage.memory());
  std::uint64_t length = 0;
  for (const AddressRange& piece : pieces) length += piece.length;
  std::vector<std::uint64_t> sums(hashed ? chunks_of(length) : 0);
  CopyJob job{.device = stage.device(), .pieces = pieces, .contiguous = stage.pinned().first(length), .length = length, .checksums = sums};
  move(copier, Direction::kGather, {&job, 1});

  std::vector<std::byte> expected;
  for (const AddressRange& piece : pieces) {
    const auto start = image.begin() + static_cast<std::ptrdiff_t>(piece.address - stage.memory());
    expected.insert(expected.end(), start, start + static_cast<std::ptrdiff_t>(piece.length));
  }
  require(std::equal(expected.begin(), expected.end(), stage.pinned().begin()), std::string(cut.name) + ": gathered bytes are wrong");
  require(std::all_of(stage.pinned().begin() + static_cast<std::ptrdiff_t>(length), stage.pinned().end(),
                      [](std::byte byte) { return byte == kUntouched; }),
          std::string(cut.name) + ": a gather wrote behind its end");
  check_checksums(expected, sums, cut.name);

  for (std::byte& byte : expected) byte = static_cast<std::byte>(random());
  std::copy(expected.begin(), expected.end(), stage.pinned().begin());
  std::fill(sums.begin(), sums.end(), 0);
  move(copier, Direction::kScatter, {&job, 1});
  check_checksums(expected, sums, cut.name);
  stage.fetch_device();
  std::size_t taken = 0;
  for (const AddressRange& piece : pieces) {
    std::copy_n(expected.begin() + static_cast<std::ptrdiff_t>(taken), piece.length,
                image.begin() + static_cast<std::ptrdiff_t>(piece.address - stage.memory()));
    taken += piece.length;
  }
  require(std::equal(image.begin(), image.end(), stage.pinned().begin()),
          std::string(cut.name) + ": device memory is wrong after a scatter");
}

// Both ways in one device's memory from several threads at once, each in its own part: races between launches would show here.
void several_at_once(Copier& copier, Stage& stage) {
  constexpr std::size_t kThreads = 3;
  constexpr std::uint64_t kPart = kDeviceBytes / kThreads / 4096 * 4096;
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::vector<AddressRange> pieces;
      for (std::uint64_t at = 0; at < kPart; at += 8192) pieces.push_back({stage.memory() + t * kPart + at, 4096});
      const std::uint64_t length = pieces.size() * 4096;
      const MutableBytes contiguous = stage.pinned().subspan(t * kPart, length);
      std::vector<std::uint64_t> sums(chunks_of(length));
      const CopyJob job{.device = stage.device(), .pieces = pieces, .contiguous = contiguous, .length = length, .checksums = sums};
      for (int round = 0; round < 4; ++round) {
        std::fill(contiguous.begin(), contiguous.end(), static_cast<std::byte>(16 * t + static_cast<unsigned>(round)));
        move(copier, Direction::kScatter, {&job, 1});
        std::fill(contiguous.begin(), contiguous.end(), kUntouched);
        move(copier, Direction::kGather, {&job, 1});
        check_checksums(contiguous, sums, "several at once");
        require(contiguous.front() == static_cast<std::byte>(16 * t + static_cast<unsigned>(round)), "several at once: bytes are wrong");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

int run(Driver& driver) {
  const Settings settings;
  HostRegions regions(driver);
  Copier copier(driver, regions, settings);
  std::mt19937_64 random(20261128);
  const int devices = driver.device_count();
  for (int device = 0; device < devices; ++device) {
    Stage stage(driver, regions, device);
    for (const Cut& cut : cuts()) {
      for (const bool hashed : {false, true}) round_trip(copier, stage, cut, hashed, random);
    }
    several_at_once(copier, stage);
  }
  const Copier::Counters counted = copier.counters();
  std::printf("device_moves: %d devices, %llu launches, %llu copies, %llu bytes: all right\n", devices,
              static_cast<unsigned long long>(counted.launches), static_cast<unsigned long long>(counted.copies),
              static_cast<unsigned long long>(counted.bytes));
  return 0;
}

}  // namespace
}  // namespace moonpool::transfer::cuda

int main(int count, char** arguments) {
  namespace cuda = moonpool::transfer::cuda;
  if (count > 1 && std::string_view(arguments[1]) == "--fake") return cuda::run(*cuda::FakeDriver::create());
  const auto driver = cuda::require(cuda::open_driver(), "open_driver");
  return cuda::run(*driver);
}
