// A piece of staging memory, and the copies between it and the devices: what is put into it one after the other is gathered or scattered
// by one call of the copier.
//
// Threads: one at a time. Moving bytes keeps the window in use: it must live, and stay as it is, until the ticket is done.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "transfer/cuda/copier/copier.h"

namespace moonpool::transfer::cuda {

class StagedWindow {
 public:
  StagedWindow() = default;
  explicit StagedWindow(MutableBytes staging) : staging_(staging) {}
  StagedWindow(const StagedWindow&) = delete;
  StagedWindow& operator=(const StagedWindow&) = delete;
  StagedWindow(StagedWindow&&) = default;
  StagedWindow& operator=(StagedWindow&&) = default;

  [[nodiscard]] bool empty() const { return runs_.empty(); }
  // Of the first that was put; not when it is empty.
  [[nodiscard]] int device() const { return runs_.front().device; }
  [[nodiscard]] std::uint64_t left() const { return staging_.size() - used_; }
  // The next part of the staging memory, which stands for this device memory from now on; at most left() bytes.
  MutableBytes put(int device, const AddressRange& range);
  // Copies all that was put, after what is queued on `after`. Null when nothing was.
  [[nodiscard]] Result<std::unique_ptr<Copier::Ticket>> submit(Copier& copier, Direction direction, Stream after);
  // Empty again.
  void clear();

 private:
  struct Run {
    int device = 0;
    std::size_t pieces = 0;
    std::uint64_t length = 0;
  };

  MutableBytes staging_;
  std::uint64_t used_ = 0;
  std::vector<AddressRange> pieces_;
  std::vector<Run> runs_;  // of pieces on one device
  std::vector<CopyJob> jobs_;
};

}  // namespace moonpool::transfer::cuda
