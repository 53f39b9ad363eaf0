#include "transfer/rdma/work_plan.h"

#include <algorithm>
#include <map>

namespace moonpool::transfer::rdma {

namespace {

constexpr std::uint64_t kMaxPiece = std::uint64_t{1} << 30;  // a work request's pieces count with 32 bits
constexpr std::uint64_t kCutAlignment = 4096;
// A stripe may be that much longer or shorter when this spares a work request.
constexpr std::uint64_t kMinSlack = 64 * 1024;
constexpr std::uint64_t kSlackPart = 16;

bool holds(const RegisteredRange& range, MutableBytes piece) {
  return piece.data() >= range.memory.data() && piece.data() + piece.size() <= range.memory.data() + range.memory.size();
}

}  // namespace

WorkPlan::WorkPlan(const MemoryMap& memory, std::span<const Block> blocks) : blocks_(blocks) {
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (!blocks[i].status.ok()) continue;
    Planned planned;
    planned.block = static_cast<std::uint32_t>(i);
    planned.first_piece = static_cast<std::uint32_t>(pieces_.size());
    for (const MutableBytes& piece : blocks[i].pieces) {
      if (piece.empty()) continue;
      const RegisteredRange* const range = find(memory, piece);
      unregistered_ = unregistered_ || range == nullptr;
      planned.length += piece.size();
      add({piece.data(), piece.size(), range}, planned.first_piece);
    }
    planned.piece_count = static_cast<std::uint32_t>(pieces_.size()) - planned.first_piece;
    bytes_ += planned.length;
    if (planned.length > 0) planned_.push_back(planned);
  }
}

// Pieces of a batch mostly lie in one range, or a few.
const RegisteredRange* WorkPlan::find(const MemoryMap& memory, MutableBytes piece) {
  for (auto range = ranges_.rbegin(); range != ranges_.rend() && range - ranges_.rbegin() < 4; ++range) {
    if (holds(**range, piece)) return range->get();
  }
  auto found = memory.local(piece);
  if (!found) return nullptr;
  ranges_.push_back(std::move(found));
  return ranges_.back().get();
}

void WorkPlan::add(PlannedPiece piece, std::uint32_t first_of_block) {
  if (pieces_.size() > first_of_block) {
    PlannedPiece& last = pieces_.back();
    if (last.range == piece.range && last.address + last.length == piece.address) {
      last.length += piece.length;
      return;
    }
  }
  pieces_.push_back(piece);
}

std::int32_t WorkPlan::numa_node() const {
  std::map<std::int32_t, std::uint64_t> bytes;
  for (const auto& piece : pieces_) {
    if (piece.range != nullptr && piece.range->numa_node >= 0) bytes[piece.range->numa_node] += piece.length;
  }
  const auto most = std::ranges::max_element(bytes, {}, [](const auto& entry) { return entry.second; });
  return most == bytes.end() ? -1 : most->first;
}

void WorkPlan::cut(std::uint32_t stripes, const PlanLimits& limits) {
  units_.clear();
  cut_pieces_.clear();
  units_.reserve(planned_.size() + stripes);
  cut_pieces_.reserve(pieces_.size() + stripes);
  const std::uint64_t share = stripes > 1 ? (bytes_ + stripes - 1) / stripes : bytes_;
  const std::uint64_t slack = std::max(kMinSlack, share / kSlackPart);
  std::uint32_t stripe = 0;
  std::uint64_t left = share;  // of this stripe
  for (const Planned& planned : planned_) {
    std::uint64_t at = 0;
    while (at < planned.length) {
      const std::uint64_t rest = planned.length - at;
      std::uint64_t take = rest;
      const bool last = stripe + 1 == stripes;
      if (!last && rest > left + slack) {
        take = left / kCutAlignment * kCutAlignment;
        if (take < slack && at == 0) take = 0;  // not worth a work request
      }
      if (take > 0) put(planned, at, take, stripe, limits);
      at += take;
      left -= std::min(left, take);
      if (!last && (take == 0 || left < kCutAlignment || at < planned.length)) {
        ++stripe;
        left = share;
      }
    }
  }
}

// One block's bytes [from, from + length) as units.
void WorkPlan::put(const Planned& planned, std::uint64_t from, std::uint64_t length, std::uint32_t stripe, const PlanLimits& limits) {
  const Block& block = blocks_[planned.block];
  const auto most = block.operation == WorkRequest::Operation::kRead ? limits.read_pieces : limits.write_pieces;
  std::uint64_t position = 0;  // of the piece, within the block
  Unit* unit = nullptr;
  for (std::uint32_t i = 0; i < planned.piece_count; ++i) {
    const PlannedPiece& piece = pieces_[planned.first_piece + i];
    const std::uint64_t begin = std::max(position, from);
    const std::uint64_t end = std::min(position + piece.length, from + length);
    for (std::uint64_t at = begin; at < end;) {
      const bool staged = piece.range == nullptr;
      const std::uint64_t longest = staged ? limits.staged : limits.message;
      if (unit == nullptr || unit->staged != staged || unit->length == longest || (!staged && unit->piece_count == most)) {
        units_.push_back({planned.block, stripe, static_cast<std::uint32_t>(cut_pieces_.size()), 0, block.remote_address + at, 0, staged});
        unit = &units_.back();
      }
      const std::uint64_t part = std::min({end - at, longest - unit->length, kMaxPiece});
      cut_pieces_.push_back({piece.address + (at - position), part, piece.range});
      ++unit->piece_count;
      unit->length += part;
      at += part;
    }
    position += piece.length;
  }
}

}  // namespace moonpool::transfer::rdma
