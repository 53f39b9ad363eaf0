// The kernels' own source, on host threads, against memcpy and the host's checksum().
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "transfer/checksum.h"
#include "transfer/cuda/kernels/emulation.h"
#include "transfer/cuda/kernels/kernel_image.h"

namespace moonpool::transfer::cuda {
namespace {

constexpr auto kAllKernels = {Kernel::kGather, Kernel::kScatter, Kernel::kGatherHash, Kernel::kScatterHash};
constexpr std::uint64_t kUntouched = 0x1122334455667788;
constexpr std::byte kGuard{0xA5};
constexpr std::uint64_t kLargestPiece = 3 * kLargestChunk;

bool gathers(Kernel kernel) { return kernel == Kernel::kGather || kernel == Kernel::kGatherHash; }
bool hashes(Kernel kernel) { return kernel == Kernel::kGatherHash || kernel == Kernel::kScatterHash; }

// Random bytes, made once: the tests move tens of megabytes, and sanitizers make a generator slow.
std::span<const std::byte> random_bytes() {
  static const std::vector<std::byte> bytes = [] {
    std::mt19937_64 random(7);
    std::vector<std::byte> made(1 << 20);
    for (std::size_t i = 0; i < made.size(); i += sizeof(std::uint64_t)) {
      const std::uint64_t word = random();
      std::memcpy(&made[i], &word, sizeof(word));
    }
    return made;
  }();
  return bytes;
}

// Device addresses that are nobody's host address, each with the memory behind it.
class AddressSpace {
 public:
  std::uint64_t map(void* memory, std::uint64_t size) {
    const std::uint64_t address = next_;
    next_ += (size + (1 << 20)) / 4096 * 4096;
    ranges_[address] = {static_cast<std::byte*>(memory), size};
    return address;
  }
  [[nodiscard]] std::byte* translate(std::uint64_t address, std::uint64_t length) const {
    auto range = ranges_.upper_bound(address);
    if (range == ranges_.begin()) return nullptr;
    --range;
    const std::uint64_t offset = address - range->first;
    return offset <= range->second.size && length <= range->second.size - offset ? range->second.memory + offset : nullptr;
  }
  [[nodiscard]] Translate translation() const {
    return [this](std::uint64_t address, std::uint64_t length) { return translate(address, length); };
  }

 private:
  struct Range {
    std::byte* memory;
    std::uint64_t size;
  };
  std::uint64_t next_ = 0x7A00'0000'0000;
  std::map<std::uint64_t, Range> ranges_;
};

using PieceSizes = std::vector<std::uint32_t>;

// Bytes to add to an address so that it is not aligned, one after the other.
using Skews = std::vector<std::uint32_t>;

// Jobs in two memories full of guard bytes: pieces in one, contiguous bytes in the other, at least 32 guard bytes around each.
class Layout {
 public:
  Layout(const std::vector<PieceSizes>& jobs, const Skews& piece_skews, const Skews& contiguous_skews) {
    std::uint64_t piece_space = 64, contiguous_space = 64;
    for (const PieceSizes& sizes : jobs) {
      for (const std::uint32_t size : sizes) {
        const std::uint64_t at = piece_space + piece_skews[pieces_.size() % piece_skews.size()];
        pieces_.push_back({at, size});
        piece_space = (at + size + 48) / 16 * 16;
      }
      const std::uint64_t at = contiguous_space + contiguous_skews[jobs_.size() % contiguous_skews.size()];
      const std::uint64_t length = std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0});
      jobs_.push_back({at, length, pieces_.size() - sizes.size(), sizes.size()});
      contiguous_space = (at + length + 160) / 128 * 128;
    }
    device_.assign(piece_space, kGuard);
    host_.assign(contiguous_space, kGuard);
    device_address_ = space_.map(device_.data(), device_.size());
    host_address_ = space_.map(host_.data(), host_.size());
    for (const Job& job : jobs_) {
      add_tables(job);
    }
    checksums_.assign(chunks_.size(), kUntouched);
    arguments_.pieces = reinterpret_cast<const PieceEntry*>(space_.map(entries_.data(), entries_.size() * sizeof(PieceEntry)));
    arguments_.chunks = reinterpret_cast<const ChunkEntry*>(space_.map(chunks_.data(), chunks_.size() * sizeof(ChunkEntry)));
    arguments_.checksums = reinterpret_cast<std::uint64_t*>(space_.map(checksums_.data(), checksums_.size() * sizeof(std::uint64_t)));
    arguments_.chunk_count = static_cast<std::uint32_t>(chunks_.size());
  }

  // Fills the source with random bytes, runs the kernel and compares every byte of both memories and every checksum.
  void run_and_check(Kernel kernel, const LaunchShape& shape) {
    std::ranges::fill(device_, kGuard);
    std::ranges::fill(host_, kGuard);
    std::ranges::fill(checksums_, kUntouched);
    std::vector<std::byte> expected_device = device_, expected_host = host_;
    std::size_t from = 0;
    for (const Job& job : jobs_) {
      std::uint64_t at = job.contiguous;
      for (std::size_t i = job.first_piece; i < job.first_piece + job.piece_count; ++i) {
        const auto [piece, size] = pieces_[i];
        from = (from + size) % (random_bytes().size() - kLargestPiece);
        ASSERT_LE(size, kLargestPiece);
        std::memcpy(expected_device.data() + piece, random_bytes().data() + from, size);
        std::memcpy(expected_host.data() + at, random_bytes().data() + from, size);
        at += size;
      }
    }
    (gathers(kernel) ? device_ : host_) = gathers(kernel) ? expected_device : expected_host;
    MoveArguments arguments = arguments_;
    if (!hashes(kernel)) arguments.checksums = nullptr;
    const Status status = emulate(kernel, shape, arguments, space_.translation());
    ASSERT_TRUE(status.ok()) << status.to_string();
    EXPECT_EQ(std::memcmp(device_.data(), expected_device.data(), device_.size()), 0);
    EXPECT_EQ(std::memcmp(host_.data(), expected_host.data(), host_.size()), 0);
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      const auto chunk = std::span(host_).subspan(chunks_[i].contiguous - host_address_, chunks_[i].length);
      EXPECT_EQ(checksums_[i], hashes(kernel) && chunk.size() > kLeastHashed ? checksum(chunk) : kUntouched)
          << "chunk " << i << " of " << chunk.size() << " bytes";
    }
  }

  // For tests that break something.
  MoveArguments& arguments() { return arguments_; }
  std::vector<PieceEntry>& entries() { return entries_; }
  std::vector<ChunkEntry>& chunks() { return chunks_; }
  std::vector<std::byte>& device() { return device_; }
  std::vector<std::byte>& host() { return host_; }
  std::vector<std::uint64_t>& checksums() { return checksums_; }
  [[nodiscard]] const AddressSpace& space() const { return space_; }
  [[nodiscard]] std::uint64_t host_address() const { return host_address_; }

 private:
  struct Piece {
    std::uint64_t at, size;
  };
  struct Job {
    std::uint64_t contiguous, length;
    std::size_t first_piece, piece_count;
  };

  void add_tables(const Job& job) {
    std::vector<std::uint64_t> ends;
    std::uint64_t offset = 0;
    for (std::size_t i = job.first_piece; i < job.first_piece + job.piece_count; ++i) {
      const std::uint64_t origin = device_address_ + pieces_[i].at - offset;
      offset += pieces_[i].size;
      entries_.push_back({origin, offset});
      ends.push_back(offset);
    }
    for (std::uint64_t at = 0; at < job.length; at += kLargestChunk) {
      const auto piece = std::ranges::upper_bound(ends, at) - ends.begin();
      chunks_.push_back({host_address_ + job.contiguous + at, at, static_cast<std::uint32_t>(job.first_piece + piece),
                         static_cast<std::uint32_t>(std::min<std::uint64_t>(kLargestChunk, job.length - at))});
    }
  }

  std::vector<Piece> pieces_;
  std::vector<Job> jobs_;
  std::vector<std::byte> device_, host_;
  std::vector<PieceEntry> entries_;
  std::vector<ChunkEntry> chunks_;
  std::vector<std::uint64_t> checksums_;
  AddressSpace space_;
  std::uint64_t device_address_ = 0, host_address_ = 0;
  MoveArguments arguments_{};
};

TEST(PieceKernelsTest, EveryLengthAroundABoundaryIsMovedAndHashed) {
  PieceSizes lengths = {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 239, 240, 241, 242, 255, 256, 257, 319, 320, 321, 1023, 1024, 1025};
  for (const std::uint32_t rows : {1U, 2U, 3U, 7U, 64U, 255U}) {
    for (const std::uint32_t more : {0U, 1U, 15U, 16U, 17U, 48U, 63U, 64U, 65U, 960U, 961U, 1008U}) lengths.push_back(rows * 1024 + more);
  }
  lengths.insert(lengths.end(), {kLargestChunk - 65, kLargestChunk - 64, kLargestChunk - 1, kLargestChunk});
  std::vector<PieceSizes> jobs;
  for (const std::uint32_t length : lengths) jobs.push_back({length});
  for (const Kernel kernel : kAllKernels) {
    Layout(jobs, {0}, {0}).run_and_check(kernel, {.blocks = 2, .threads = 64});
  }
}

TEST(PieceKernelsTest, EveryAlignmentOfBothSidesIsRight) {
  const Skews all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (const std::uint32_t contiguous_skew : all) {
    std::vector<PieceSizes> jobs;
    for (std::size_t i = 0; i < all.size(); ++i) jobs.push_back({3 * 1024 + 100});
    for (const Kernel kernel : kAllKernels) {
      Layout(jobs, all, {contiguous_skew}).run_and_check(kernel, {.blocks = 3, .threads = 32});
    }
  }
}

TEST(PieceKernelsTest, PiecesOfAnySizeAreFoundAndEmptyOnesSkipped) {
  PieceSizes bytes(1500, 1);
  PieceSizes mixed = {0, 1, 0, 0, 15, 16, 17, 96 * 1024, 0, 4096, 4096, 4095, 1, 4097, 2048, 1000, 24, 1024, 0, 70000, 3, 65536, 0};
  PieceSizes rows_and_halves(300, 1536);
  PieceSizes mla(40, 18432);
  PieceSizes odd(200, 577);
  PieceSizes empty = {0, 0, 0};
  for (const Kernel kernel : kAllKernels) {
    Layout({bytes, mixed, empty, rows_and_halves, mla, odd, {0, 300}}, {0}, {0}).run_and_check(kernel, {.blocks = 4, .threads = 64});
    Layout({bytes, mixed, empty, rows_and_halves, mla, odd, {0, 300}}, {0, 8, 4, 1}, {0, 3, 8})
        .run_and_check(kernel, {.blocks = 4, .threads = 64});
  }
}

TEST(PieceKernelsTest, AChunkMayBeginInsideAPieceThatBeginsChunksBefore) {
  for (const Kernel kernel : kAllKernels) {
    Layout({{100, 3 * kLargestChunk, 100}, {2 * kLargestChunk + 4096}}, {0}, {0, 16}).run_and_check(kernel, {.blocks = 2, .threads = 128});
  }
}

TEST(PieceKernelsTest, AnyGridAndAnyNumberOfWarpsGiveTheSame) {
  const std::vector<PieceSizes> jobs = {PieceSizes(40, 4096), {200, 40}, PieceSizes(9, 32768), {240}, PieceSizes(9, 1000)};
  for (const std::uint32_t threads : {32U, 64U, 96U, 512U}) {
    for (const std::uint32_t blocks : {1U, 3U, 9U}) {
      if (threads == kThreads && blocks != 3) continue;  // 512 host threads take their time
      for (const Kernel kernel : kAllKernels) {
        Layout(jobs, {0}, {0}).run_and_check(kernel, {.blocks = blocks, .threads = threads});
      }
    }
  }
}

TEST(PieceKernelsTest, RandomJobsAreMovedAndHashed) {
  std::mt19937 random(20261128);
  const auto below = [&random](std::uint32_t bound) { return static_cast<std::uint32_t>(random() % bound); };
  for (int round = 0; round < 30; ++round) {
    std::vector<PieceSizes> jobs(1 + below(4));
    for (PieceSizes& sizes : jobs) {
      const std::uint32_t largest = 1U << below(17);
      std::uint32_t left = 1U << below(20);
      while (left != 0) {
        const std::uint32_t size = std::min(left, below(8) == 0 ? below(20) : below(3) == 0 ? largest : below(largest + 1));
        if (sizes.size() == 3000) break;
        sizes.push_back(size);
        left -= size;
      }
    }
    Skews piece_skews(1 + below(5)), contiguous_skews(1 + below(3));
    for (std::uint32_t& skew : piece_skews) skew = below(2) == 0 ? 0 : below(16);
    for (std::uint32_t& skew : contiguous_skews) skew = below(2) == 0 ? 0 : below(16);
    const LaunchShape shape{.blocks = 1 + below(4), .threads = 32 * (1 + below(4))};
    SCOPED_TRACE(round);
    Layout(jobs, piece_skews, contiguous_skews).run_and_check(*(kAllKernels.begin() + below(4)), shape);
  }
}

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MOONPOOL_RACES_ARE_REPORTED
#endif
#endif
#if !defined(__SANITIZE_THREAD__) && !defined(MOONPOOL_RACES_ARE_REPORTED)
// ThreadSanitizer would rightly call this a race: it is one, of somebody else's making.
TEST(PieceKernelsTest, TheChecksumIsOfWhatWasStoredEvenIfTheSourceChangesMeanwhile) {
  Layout layout({PieceSizes(256, 4096), PieceSizes(100, 1000)}, {0}, {0});
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (std::uint32_t i = 0; !stop; i += 4099) {
      std::atomic_ref(layout.device()[i % layout.device().size()]).store(static_cast<std::byte>(i >> 3), std::memory_order_relaxed);
    }
  });
  const Status status = emulate(Kernel::kGatherHash, {.blocks = 2, .threads = 64}, layout.arguments(), layout.space().translation());
  stop = true;
  writer.join();
  ASSERT_TRUE(status.ok()) << status.to_string();
  for (std::size_t i = 0; i < layout.chunks().size(); ++i) {
    const ChunkEntry& chunk = layout.chunks()[i];
    EXPECT_EQ(layout.checksums()[i], checksum(std::span(layout.host()).subspan(chunk.contiguous - layout.host_address(), chunk.length)));
  }
}
#endif

TEST(PieceKernelsTest, AnIllegalAddressEndsTheLaunch) {
  const std::vector<PieceSizes> jobs = {PieceSizes(100, 4096), PieceSizes(3, 333)};
  const auto expect_illegal = [](Layout& layout, Kernel kernel) {
    const Status status = emulate(kernel, {.blocks = 2, .threads = 64}, layout.arguments(), layout.space().translation());
    EXPECT_EQ(status.code(), ErrorCode::kInternal);
    EXPECT_NE(status.message().find("illegal address 0x"), std::string::npos) << status.message();
  };
  for (const Kernel kernel : kAllKernels) {
    Layout piece(jobs, {0}, {0});
    piece.entries()[70].origin += std::uint64_t{1} << 40;
    expect_illegal(piece, kernel);
    Layout behind(jobs, {0}, {0});
    behind.entries().back().origin += 333;
    expect_illegal(behind, kernel);
    Layout contiguous(jobs, {0}, {0});
    contiguous.chunks().back().contiguous += 256;
    expect_illegal(contiguous, kernel);
    Layout chunk_table(jobs, {0}, {0});
    ++chunk_table.arguments().chunk_count;
    expect_illegal(chunk_table, kernel);
    Layout piece_table(jobs, {0}, {0});
    piece_table.chunks().back().first_piece += 1000;
    expect_illegal(piece_table, kernel);
    if (hashes(kernel)) {
      Layout checksums(jobs, {0}, {0});
      checksums.arguments().checksums = nullptr;
      expect_illegal(checksums, kernel);
    }
  }
}

TEST(PieceKernelsTest, ALaunchOfNothingIsFineAndAShapeThatNoDeviceTakesIsNot) {
  const Translate nothing = [](std::uint64_t, std::uint64_t) -> std::byte* { return nullptr; };
  EXPECT_TRUE(emulate(Kernel::kGatherHash, {.blocks = 4, .threads = 64}, MoveArguments{}, nothing).ok());
  for (const LaunchShape& shape : {LaunchShape{0, 64}, LaunchShape{1, 0}, LaunchShape{1, 33}, LaunchShape{1, kThreads + 32}}) {
    const Status status = emulate(Kernel::kGather, shape, MoveArguments{}, nothing);
    EXPECT_EQ(status.code(), ErrorCode::kInternal);
    EXPECT_NE(status.message().find("invalid launch"), std::string::npos) << status.message();
  }
}

TEST(KernelImageTest, IsAWholeFatbinWhereKernelsAreBuiltAndEmptyElsewhere) {
  const std::span<const std::byte> image = kernel_image();
#ifdef MOONPOOL_WITH_CUDA_KERNELS
  // A fatbin's header: magic number, version, its own size, and that of what follows.
  struct Header {
    std::uint32_t magic;
    std::uint16_t version, size;
    std::uint64_t following;
  } header{};
  ASSERT_GT(image.size(), sizeof(header));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(image.data()) % 16, 0U);
  std::memcpy(&header, image.data(), sizeof(header));
  EXPECT_EQ(header.magic, 0xBA55ED50U);
  EXPECT_EQ(header.size + header.following, image.size());
#else
  EXPECT_TRUE(image.empty());
#endif
}

}  // namespace
}  // namespace moonpool::transfer::cuda
