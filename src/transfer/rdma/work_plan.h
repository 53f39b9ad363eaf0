// A batch of blocks as work: units of which each becomes one work request, cut only where it has to be.
//
// A unit is contiguous in the peer's memory and lies within one block and one stripe. Pieces that follow each other in local memory too,
// under one registration, become one. Unregistered pieces make units of their own, of a staging slice at most.
// Threads: a value. The plan keeps the registrations that its pieces lie in, so it lives until the last work request has ended.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "transfer/rdma/memory_map.h"
#include "transfer/rdma/peer_session.h"

namespace moonpool::transfer::rdma {

struct PlanLimits {
  std::uint32_t write_pieces = 1;
  std::uint32_t read_pieces = 1;
  std::uint64_t message = std::uint64_t{1} << 30;
  std::uint64_t staged = std::uint64_t{1} << 20;
};

struct PlannedPiece {
  std::byte* address = nullptr;
  std::uint64_t length = 0;
  const RegisteredRange* range = nullptr;  // null: not registered
};

struct Unit {
  std::uint32_t block = 0;
  std::uint32_t stripe = 0;
  std::uint32_t first_piece = 0;
  std::uint32_t piece_count = 0;
  std::uint64_t remote_address = 0;
  std::uint64_t length = 0;
  bool staged = false;
};

class WorkPlan {
 public:
  // Looks all pieces up. Blocks with a status that is not ok are left out.
  WorkPlan(const MemoryMap& memory, std::span<const Block> blocks);

  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] bool has_unregistered() const { return unregistered_; }
  // The NUMA node on which most of the registered bytes lie; -1: unknown.
  [[nodiscard]] std::int32_t numa_node() const;
  // Cuts it into `stripes` of about equal size.
  void cut(std::uint32_t stripes, const PlanLimits& limits);

  [[nodiscard]] std::span<const Unit> units() const { return units_; }
  [[nodiscard]] std::span<const PlannedPiece> pieces(const Unit& unit) const {
    return std::span(cut_pieces_).subspan(unit.first_piece, unit.piece_count);
  }

 private:
  struct Planned {
    std::uint32_t block = 0;
    std::uint64_t length = 0;
    std::uint32_t first_piece = 0;
    std::uint32_t piece_count = 0;
  };
  const RegisteredRange* find(const MemoryMap& memory, MutableBytes piece);
  void add(PlannedPiece piece, std::uint32_t first_of_block);
  void put(const Planned& planned, std::uint64_t from, std::uint64_t length, std::uint32_t stripe, const PlanLimits& limits);

  std::span<const Block> blocks_;
  std::vector<std::shared_ptr<const RegisteredRange>> ranges_;  // those in use
  std::vector<Planned> planned_;
  std::vector<PlannedPiece> pieces_;
  std::uint64_t bytes_ = 0;
  bool unregistered_ = false;

  std::vector<Unit> units_;
  std::vector<PlannedPiece> cut_pieces_;
};

}  // namespace moonpool::transfer::rdma
