// What one launch of the copier has to do: its jobs, their tables, and whether the bytes pass through memory of the device on their way.
//
// Threads: the caller's, who owns it. The slot and the staging memory are given back by the copier when the launch has ended.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "transfer/cuda/copier/copier.h"
#include "transfer/cuda/copier/launch_slots.h"

namespace moonpool::transfer::cuda {

// Consecutive pieces of a job that touch.
struct Run {
  std::uint64_t address = 0;
  std::uint64_t offset = 0;  // in the job's bytes
  std::uint64_t length = 0;
};

// Calls use(Run) for the pieces in order, neighbours joined where join(address) says so; never with an empty one.
template <typename Join, typename Use>
void for_each_run(std::span<const AddressRange> pieces, const Join& join, const Use& use) {
  Run run;
  for (const auto& piece : pieces) {
    if (piece.length == 0) continue;
    if (run.length > 0 && run.address + run.length == piece.address && join(piece.address)) {
      run.length += piece.length;
      continue;
    }
    if (run.length > 0) use(run);
    run = {piece.address, run.offset + run.length, piece.length};
  }
  if (run.length > 0) use(run);
}

struct Part {
  CopyJob job;
  std::uint64_t contiguous = 0;  // as the device sees it
  HostRegions::Use use;          // keeps it pinned
  std::size_t first_chunk = 0;   // of the launch's
  std::uint64_t staged_at = 0;   // in the staging memory, if the launch has any
};

// Of the copy engine, between the host's memory and the staging memory.
struct StagedCopy {
  std::uint64_t host = 0;  // as the device sees it
  std::uint64_t staged_at = 0;
  std::uint64_t length = 0;
};

struct Launch {
  int device = 0;
  std::vector<Part> parts;
  std::size_t pieces = 0;
  std::size_t chunks = 0;
  std::uint64_t bytes = 0;
  bool hash = false;
  std::vector<StagedCopy> copies;    // if it is staged: the host's memory of all parts, neighbours joined
  std::uint64_t staging = 0;         // device memory; 0: the kernel reaches the parts' contiguous memory itself
  std::uint32_t blocks = 0;          // multiprocessors that it has taken
  std::unique_ptr<LaunchSlot> slot;  // until ended
  bool touched = false;              // something was queued on its stream
  bool recorded = false;             // the event behind all of it as well
  bool by_kernel = false;
  bool ended = false;
  Status status;  // valid once ended

  // In the slot's pinned memory: pieces, chunks, checksums.
  [[nodiscard]] std::uint64_t chunks_offset() const;
  [[nodiscard]] std::uint64_t table_bytes() const;
  [[nodiscard]] std::uint64_t pinned_bytes() const;

  // The part's memory is found already.
  void add(Part part);
  // Whether it pays to stage it: large enough, in copies that are, and no larger than a buffer. Plans the copies, in the order of the
  // host's memory, so that what lies there side by side is one copy whatever the order of the jobs: between two copies the link rests some
  // 3 us.
  [[nodiscard]] bool plan_staging(std::uint64_t least_bytes);
  // Writes the tables into the slot's memory.
  void build_tables() const;
};

// Ok, or what is wrong with a job that a caller asks for.
[[nodiscard]] Status check(const CopyJob& job, int devices);
[[nodiscard]] ConstBytes chunk_of(const CopyJob& job, std::size_t index);
// Whether the host hashes the last chunk of a job of this length.
[[nodiscard]] bool short_tail(std::uint64_t length);

}  // namespace moonpool::transfer::cuda
