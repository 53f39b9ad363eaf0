// How the frames of a staged transfer (engine_staged.cpp) travel: on lanes to a peer, by the engine's own way between host memories, or
// within this process. Part of EngineMoves, of one transfer each; threads: that transfer's.
#pragma once

#include <array>
#include <cstring>
#include <functional>
#include <span>
#include <utility>

#include "transfer/cuda/engine/engine_moves.h"
#include "transfer/tcp/raw_lanes.h"

namespace moonpool::transfer::cuda {

// Brings frames of host memory to the other end or from there. At most two are under way.
class EngineMoves::Carrier {
 public:
  virtual ~Carrier() = default;
  [[nodiscard]] virtual Status begin(std::span<const Piece> frame) = 0;
  // Of the oldest.
  [[nodiscard]] virtual Status finish() = 0;
};

class EngineMoves::LaneCarrier final : public Carrier {
 public:
  LaneCarrier(net::LanePool& first, net::LanePool& second, const RemoteSegment& peer, Opcode opcode, Deadline deadline)
      : lanes_(first, second, peer, opcode, deadline) {}
  Status begin(std::span<const Piece> frame) override { return lanes_.begin(frame); }
  Status finish() override { return lanes_.finish(); }

 private:
  RawLanes lanes_;
};

class EngineMoves::HostCarrier final : public Carrier {
 public:
  explicit HostCarrier(const std::function<Status(std::span<const Piece>)>& move) : move_(move) {}
  Status begin(std::span<const Piece> frame) override {
    frames_[begun_++ % frames_.size()] = frame;
    return {};
  }
  Status finish() override { return move_(frames_[finished_++ % frames_.size()]); }

 private:
  const std::function<Status(std::span<const Piece>)>& move_;
  std::array<std::span<const Piece>, 2> frames_;
  std::size_t begun_ = 0;
  std::size_t finished_ = 0;
};

class EngineMoves::MemoryCarrier final : public Carrier {
 public:
  explicit MemoryCarrier(Opcode opcode) : opcode_(opcode) {}
  Status begin(std::span<const Piece> frame) override {
    for (const auto& piece : frame) {
      const auto near = bytes_at({piece.local, piece.length});
      const auto far = bytes_at({piece.remote, piece.length});
      const auto [to, from] = opcode_ == Opcode::kWrite ? std::pair(far, near) : std::pair(near, far);
      std::memmove(to.data(), from.data(), to.size());
    }
    return {};
  }
  Status finish() override { return {}; }

 private:
  const Opcode opcode_;
};

}  // namespace moonpool::transfer::cuda
