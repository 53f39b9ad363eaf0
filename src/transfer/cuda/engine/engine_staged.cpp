// The staged way of EngineMoves: windows of pinned memory, of which one is copied while the one before it is on the wire.
#include <algorithm>
#include <array>
#include <utility>

#include "transfer/cuda/engine/engine_moves.h"
#include "transfer/cuda/engine/frame_carriers.h"
#include "transfer/tcp/raw_client.h"

namespace moonpool::transfer::cuda {

namespace {

constexpr std::uint64_t kPage = 4096;  // windows begin and end well aligned

}  // namespace

// ---------------------------------------------------------------- windows

// Cuts pieces into frames, each of at most `bytes`; what is device memory is replaced by its place in a window.
class EngineMoves::Frames {
 public:
  Frames(const LocatedPieces& pieces, std::uint64_t bytes) : pieces_(pieces), bytes_(bytes) {}

  // False: there is none any more.
  bool fill(StagedWindow& window, std::vector<Piece>& frame) {
    window.clear();
    frame.clear();
    std::uint64_t left = bytes_;
    while (index_ < pieces_.size() && left > 0 && frame.size() < kRawFramePieces) {
      const auto& [piece, device, local, remote] = pieces_[index_];
      const std::uint64_t part = std::min(piece.length - used_, left);
      std::uint64_t address = piece.local + used_;
      if (device != kHost) address = reinterpret_cast<std::uint64_t>(window.put(device, {address, part}).data());
      append(frame, {address, piece.remote + used_, part}, remote);
      left -= part;
      used_ += part;
      if (used_ < piece.length) continue;
      ++index_;
      used_ = 0;
    }
    return !frame.empty();
  }

 private:
  // Neighbours at both ends are one piece on the wire.
  void append(std::vector<Piece>& frame, const Piece& next, const void* remote) {
    Piece* const last = frame.empty() || last_remote_ != remote ? nullptr : &frame.back();
    if (last != nullptr && last->local + last->length == next.local && last->remote + last->length == next.remote) {
      last->length += next.length;
    } else {
      frame.push_back(next);
    }
    last_remote_ = remote;
  }

  const LocatedPieces& pieces_;
  const std::uint64_t bytes_;
  std::size_t index_ = 0;
  std::uint64_t used_ = 0;  // of the piece at index_
  const void* last_remote_ = nullptr;
};

// Three: one is copied, one on its way, one answered.
class EngineMoves::Windows {
 public:
  struct Window {
    StagedWindow staged;
    std::vector<Piece> frame;
    std::unique_ptr<Copier::Ticket> ticket;  // goes first, and waits
  };
  static constexpr std::size_t kCount = 3;

  void use(Staging::Lease lease, std::uint64_t bytes) {
    lease_ = std::move(lease);
    const auto memory = lease_.memory();
    for (std::size_t i = 0; i < kCount && i * bytes < memory.size(); ++i) {
      windows_[i].staged = StagedWindow(memory.subspan(i * bytes, std::min<std::uint64_t>(bytes, memory.size() - i * bytes)));
    }
  }
  Window& operator[](std::size_t index) { return windows_[index % kCount]; }

  static Status wait(Runtime* runtime, Window& window, Deadline deadline) {
    if (window.ticket == nullptr) return {};
    Status status = runtime->copier().wait(*window.ticket, deadline);
    window.ticket.reset();
    return wrapped("copy between device and staging memory", status);
  }
  static Status submit(Runtime* runtime, Window& window, Direction direction, Stream after) {
    if (window.staged.empty()) return {};
    auto ticket = window.staged.submit(runtime->copier(), direction, after);
    if (!ticket.ok()) return wrapped("copy between device and staging memory", ticket.status());
    window.ticket = std::move(*ticket);
    return {};
  }

 private:
  Staging::Lease lease_;
  std::array<Window, kCount> windows_;
};

// ---------------------------------------------------------------- moving

Status EngineMoves::staged(Opcode opcode, const LocatedPieces& pieces, Stream after, Carrier& carrier, Deadline deadline) {
  std::uint64_t total = 0;
  std::uint64_t on_devices = 0;
  for (const auto& piece : pieces) {
    total += piece.piece.length;
    if (piece.device != kHost) on_devices += piece.piece.length;
  }
  std::uint64_t window = kWindowBytes;
  Runtime* const runtime = on_devices == 0 ? nullptr : find_();
  Windows windows;
  if (on_devices > 0) {
    if (runtime == nullptr) return no_cuda();
    Staging& staging = runtime->staging();
    window = std::min(window, std::max<std::uint64_t>(kPage, staging.capacity() / Windows::kCount / kPage * kPage));
    const bool one = total <= window && pieces.size() <= kRawFramePieces;
    auto lease = staging.acquire(one ? on_devices : Windows::kCount * window, deadline);
    if (!lease.ok()) return wrapped("staging memory for device data", lease.status());
    windows.use(std::move(*lease), one ? on_devices : window);
  }
  Frames frames(pieces, window);
  Status moved = opcode == Opcode::kWrite ? write_staged(runtime, frames, windows, after, carrier, deadline)
                                          : read_staged(runtime, frames, windows, after, carrier, deadline);
  if (moved.ok()) counters_.staged_bytes += on_devices;
  return moved;
}

Status EngineMoves::write_staged(Runtime* runtime, Frames& frames, Windows& windows, Stream after, Carrier& carrier, Deadline deadline) {
  const auto gather = [&](Windows::Window& window) { return Windows::submit(runtime, window, Direction::kGather, after); };
  if (!frames.fill(windows[0].staged, windows[0].frame)) return {};
  MOONPOOL_RETURN_IF_ERROR(gather(windows[0]));
  std::size_t under_way = 0;
  bool more = true;
  for (std::size_t i = 0; more; ++i) {
    if (under_way == 2) {
      MOONPOOL_RETURN_IF_ERROR(carrier.finish());
      --under_way;
    }
    auto& next = windows[i + 1];
    more = frames.fill(next.staged, next.frame);
    if (more) MOONPOOL_RETURN_IF_ERROR(gather(next));
    MOONPOOL_RETURN_IF_ERROR(Windows::wait(runtime, windows[i], deadline));
    MOONPOOL_RETURN_IF_ERROR(carrier.begin(windows[i].frame));
    ++under_way;
  }
  for (; under_way > 0; --under_way) MOONPOOL_RETURN_IF_ERROR(carrier.finish());
  return {};
}

Status EngineMoves::read_staged(Runtime* runtime, Frames& frames, Windows& windows, Stream after, Carrier& carrier, Deadline deadline) {
  if (!frames.fill(windows[0].staged, windows[0].frame)) return {};
  MOONPOOL_RETURN_IF_ERROR(carrier.begin(windows[0].frame));
  bool more = true;
  for (std::size_t i = 0; more; ++i) {
    auto& next = windows[i + 1];
    MOONPOOL_RETURN_IF_ERROR(Windows::wait(runtime, next, deadline));
    more = frames.fill(next.staged, next.frame);
    if (more) MOONPOOL_RETURN_IF_ERROR(carrier.begin(next.frame));
    MOONPOOL_RETURN_IF_ERROR(carrier.finish());
    MOONPOOL_RETURN_IF_ERROR(Windows::submit(runtime, windows[i], Direction::kScatter, after));
  }
  for (std::size_t i = 0; i < Windows::kCount; ++i) MOONPOOL_RETURN_IF_ERROR(Windows::wait(runtime, windows[i], deadline));
  return {};
}

}  // namespace moonpool::transfer::cuda
