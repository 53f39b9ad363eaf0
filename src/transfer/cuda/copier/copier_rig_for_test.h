// A copier over a fake driver, and what its tests move: pieces scattered over a device's memory, with what has to come of them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "transfer/checksum.h"
#include "transfer/cuda/copier/copier.h"
#include "transfer/cuda/fake/fake_driver.h"

namespace moonpool::transfer::cuda {

inline Deadline soon() { return Deadline::after(std::chrono::seconds(60)); }

inline std::vector<std::byte> random_bytes(std::size_t size, std::uint32_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, std::min<std::size_t>(8, size - i));
  }
  return bytes;
}

inline std::vector<std::uint64_t> checksums_of(ConstBytes bytes) {
  std::vector<std::uint64_t> sums;
  for (std::size_t at = 0; at < bytes.size(); at += kChecksumChunk) {
    sums.push_back(checksum(bytes.subspan(at, std::min(kChecksumChunk, bytes.size() - at))));
  }
  return sums;
}

// Pieces that lie scattered in an allocation of a device: in an order of their own, with gaps between them.
struct Scattered {
  int device = 0;
  std::uint64_t base = 0;
  std::vector<std::byte> image;  // of the whole allocation
  std::vector<AddressRange> pieces;
  std::uint64_t length = 0;

  // What a gather has to give.
  [[nodiscard]] std::vector<std::byte> bytes() const {
    std::vector<std::byte> all;
    for (const auto& piece : pieces) {
      const auto at = image.begin() + static_cast<std::ptrdiff_t>(piece.address - base);
      all.insert(all.end(), at, at + static_cast<std::ptrdiff_t>(piece.length));
    }
    return all;
  }
  // What the allocation has to be after a scatter of `from`.
  [[nodiscard]] std::vector<std::byte> image_with(ConstBytes from) const {
    auto result = image;
    for (const auto& piece : pieces) {
      std::copy_n(from.begin(), piece.length, result.begin() + static_cast<std::ptrdiff_t>(piece.address - base));
      from = from.subspan(piece.length);
    }
    return result;
  }
};

class CopierRig : public ::testing::Test {
 protected:
  void start(const FakeOptions& options = {}, const Settings& settings = {}) {
    driver_ = FakeDriver::create(options);
    regions_ = std::make_unique<HostRegions>(*driver_);
    copier_ = std::make_unique<Copier>(*driver_, *regions_, settings);
  }

  // Pinned, filled with something that is not the answer.
  MutableBytes host(std::size_t size) {
    const auto memory = driver_->allocate_host(std::max<std::size_t>(size, 1));
    EXPECT_TRUE(memory.ok()) << memory.status().to_string();
    regions_->add_pinned(*memory);
    std::ranges::fill(*memory, std::byte{0xEE});
    return memory->first(size);
  }

  std::uint64_t allocate(int device, std::uint64_t size) {
    const auto memory = driver_->allocate(device, size);
    EXPECT_TRUE(memory.ok()) << memory.status().to_string();
    return *memory;
  }

  Scattered scatter_out(int device, const std::vector<std::size_t>& sizes, std::uint32_t seed) {
    Scattered scattered;
    scattered.device = device;
    std::mt19937 random(seed);
    std::vector<std::size_t> order(sizes.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::shuffle(order, random);
    std::vector<std::uint64_t> offsets(sizes.size());
    std::uint64_t end = 0;
    for (const auto index : order) {
      end += random() % 40;
      offsets[index] = end;
      end += sizes[index];
    }
    end += 64;
    scattered.base = allocate(device, end);
    scattered.image = random_bytes(end, seed + 1);
    driver_->poke(scattered.base, scattered.image);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      scattered.pieces.push_back({scattered.base + offsets[i], sizes[i]});
      scattered.length += sizes[i];
    }
    return scattered;
  }

  // `length` bytes in pieces of about `piece` bytes, some of them empty.
  Scattered pieces_of(int device, std::uint64_t length, std::uint64_t piece, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<std::size_t> sizes;
    for (std::uint64_t rest = length; rest > 0;) {
      const std::uint64_t size = std::min<std::uint64_t>(rest, piece / 2 + random() % (piece + 1));
      sizes.push_back(size);
      rest -= size;
      if (random() % 8 == 0) sizes.push_back(0);
    }
    return scatter_out(device, sizes, seed);
  }

  std::vector<std::byte> peek(const Scattered& scattered) {
    std::vector<std::byte> now(scattered.image.size());
    driver_->peek(scattered.base, now);
    return now;
  }

  static CopyJob job_of(const Scattered& scattered, MutableBytes contiguous, std::vector<std::uint64_t>* sums) {
    CopyJob job;
    job.device = scattered.device;
    job.pieces = scattered.pieces;
    job.contiguous = contiguous;
    job.length = scattered.length;
    if (sums != nullptr) {
      sums->assign(chunks_of(scattered.length), 7);
      job.checksums = *sums;
    }
    return job;
  }

  Status run(Direction direction, std::span<const CopyJob> jobs) {
    auto ticket = copier_->submit(direction, jobs, Stream::kLegacyDefault);
    if (!ticket) return ticket.status();
    return copier_->wait(**ticket, soon());
  }

  std::unique_ptr<FakeDriver> driver_;
  std::unique_ptr<HostRegions> regions_;
  std::unique_ptr<Copier> copier_;
};

}  // namespace moonpool::transfer::cuda
