#include "transfer/cuda/copier/launch_plan.h"

#include <algorithm>
#include <string>
#include <utility>

#include "transfer/checksum.h"
#include "transfer/cuda/copier/device_staging.h"
#include "transfer/cuda/kernels/piece_kernels.h"

namespace moonpool::transfer::cuda {

namespace {

static_assert(kChecksumChunk == kLargestChunk);

// A copy costs the host some 3 us, in which the link moves 160 KB.
constexpr std::uint64_t kLeastCopy = 256 * 1024;
constexpr std::uint64_t kAlignment = 16;  // of what the kernels move in wide words

constexpr auto kAlways = [](std::uint64_t) { return true; };

Status invalid(const std::string& what) { return {ErrorCode::kInvalidParams, "a copy of device memory: " + what}; }

}  // namespace

Status check(const CopyJob& job, int devices) {
  if (job.device < 0 || job.device >= devices) {
    return invalid("there is no GPU " + std::to_string(job.device) + ", this process has " + std::to_string(devices));
  }
  std::uint64_t rest = job.length;
  for (const auto& piece : job.pieces) {
    if (piece.length > rest) return invalid("the pieces have more than its " + std::to_string(job.length) + " bytes");
    rest -= piece.length;
  }
  if (rest != 0)
    return invalid("the pieces have " + std::to_string(job.length - rest) + " of its " + std::to_string(job.length) + " bytes");
  if (job.device_address == 0 && job.contiguous.size() != job.length) {
    return invalid("the contiguous memory has " + std::to_string(job.contiguous.size()) + " of its " + std::to_string(job.length) +
                   " bytes");
  }
  if (job.checksums.empty()) return {};
  if (job.device_address != 0 && short_tail(job.length)) {
    return invalid("the last chunk of " + std::to_string(job.length) + " bytes is too short for a device to hash it");
  }
  if (job.checksums.size() == chunks_of(job.length)) return {};
  return invalid("room for " + std::to_string(job.checksums.size()) + " checksums was given, for " + std::to_string(chunks_of(job.length)) +
                 " chunks");
}

ConstBytes chunk_of(const CopyJob& job, std::size_t index) {
  const std::size_t offset = index * kChecksumChunk;
  return ConstBytes(job.contiguous).subspan(offset, std::min<std::size_t>(kChecksumChunk, job.contiguous.size() - offset));
}

bool short_tail(std::uint64_t length) {
  const std::uint64_t tail = length % kChecksumChunk;
  return tail != 0 && tail <= kLeastHashed;
}

std::uint64_t Launch::chunks_offset() const { return pieces * sizeof(PieceEntry); }
std::uint64_t Launch::table_bytes() const { return chunks_offset() + chunks * sizeof(ChunkEntry); }
std::uint64_t Launch::pinned_bytes() const { return table_bytes() + chunks * sizeof(std::uint64_t); }

void Launch::add(Part part) {
  part.first_chunk = chunks;
  for_each_run(part.job.pieces, kAlways, [&](const Run&) { ++pieces; });
  chunks += chunks_of(part.job.length);
  bytes += part.job.length;
  hash = hash || !part.job.checksums.empty();
  parts.push_back(std::move(part));
}

bool Launch::plan_staging(std::uint64_t least_bytes) {
  if (bytes < least_bytes || bytes > DeviceStaging::kBufferBytes) return false;
  if (std::ranges::any_of(parts, [](const Part& part) { return part.job.device_address != 0; })) return false;
  std::vector<Part*> by_address;
  by_address.reserve(parts.size());
  for (auto& part : parts) by_address.push_back(&part);
  std::ranges::sort(by_address, {}, [](const Part* part) { return part->contiguous; });
  std::uint64_t end = 0;  // of what is staged
  const Part* last = nullptr;
  for (Part* const part : by_address) {
    const bool neighbours = last != nullptr && last->use == part->use && last->contiguous + last->job.length == part->contiguous;
    if (neighbours && end % kAlignment == 0) {
      copies.back().length += part->job.length;
    } else {
      end = (end + kAlignment - 1) / kAlignment * kAlignment;
      copies.push_back({part->contiguous, end, part->job.length});
    }
    part->staged_at = end;
    end += part->job.length;
    last = part;
  }
  const bool pays = end <= DeviceStaging::kBufferBytes && bytes / copies.size() >= kLeastCopy;
  if (!pays) copies.clear();
  return pays;
}

void Launch::build_tables() const {
  std::byte* const memory = slot->pinned().data();
  auto* const piece_entries = reinterpret_cast<PieceEntry*>(memory);
  auto* const chunk_entries = reinterpret_cast<ChunkEntry*>(memory + chunks_offset());
  std::size_t piece = 0;
  std::size_t chunk = 0;
  for (const auto& part : parts) {
    const std::uint64_t contiguous = staging != 0 ? staging + part.staged_at : part.contiguous;
    std::uint64_t offset = 0;  // of the next chunk
    for_each_run(part.job.pieces, kAlways, [&](const Run& run) {
      const std::uint64_t end = run.offset + run.length;
      for (; offset < end; offset += kChecksumChunk) {
        const auto length = static_cast<std::uint32_t>(std::min<std::uint64_t>(kChecksumChunk, part.job.length - offset));
        chunk_entries[chunk++] = {contiguous + offset, offset, static_cast<std::uint32_t>(piece), length};
      }
      piece_entries[piece++] = {run.address - run.offset, end};
    });
  }
}

}  // namespace moonpool::transfer::cuda
