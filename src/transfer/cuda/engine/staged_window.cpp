#include "transfer/cuda/engine/staged_window.h"

namespace moonpool::transfer::cuda {

MutableBytes StagedWindow::put(int device, const AddressRange& range) {
  if (runs_.empty() || runs_.back().device != device) runs_.push_back({device, 0, 0});
  auto& run = runs_.back();
  pieces_.push_back(range);
  ++run.pieces;
  run.length += range.length;
  const auto part = staging_.subspan(used_, range.length);
  used_ += range.length;
  return part;
}

Result<std::unique_ptr<Copier::Ticket>> StagedWindow::submit(Copier& copier, Direction direction, Stream after) {
  jobs_.clear();
  std::size_t first = 0;
  std::uint64_t offset = 0;
  for (const auto& run : runs_) {
    CopyJob job;
    job.device = run.device;
    job.pieces = std::span(pieces_).subspan(first, run.pieces);
    job.contiguous = staging_.subspan(offset, run.length);
    job.length = run.length;
    jobs_.push_back(job);
    first += run.pieces;
    offset += run.length;
  }
  if (jobs_.empty()) return std::unique_ptr<Copier::Ticket>();
  return copier.submit(direction, jobs_, after);
}

void StagedWindow::clear() {
  used_ = 0;
  pieces_.clear();
  runs_.clear();
  jobs_.clear();
}

}  // namespace moonpool::transfer::cuda
