#include "transfer/cuda/paths/staged.h"

#include <algorithm>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/sync_point.h"
#include "transfer/checksum.h"

namespace moonpool::transfer::cuda {

namespace {

constexpr std::uint64_t kAlignment = 256;  // of what is staged; wide accesses need less

std::uint64_t aligned(std::uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

void set_pieces(WriteOperation& operation, std::span<const ConstBytes> pieces) { operation.source = pieces; }
void set_pieces(ReadOperation& operation, std::span<const MutableBytes> pieces) { operation.destination = pieces; }

// Consecutive pieces of an operation in one memory.
struct Run {
  int device = kHostMemory;
  std::size_t first = 0;  // of the operation's pieces
  std::size_t count = 0;
  std::uint64_t length = 0;
};

template <typename Operation>
std::vector<Run> runs_of(const Runtime& runtime, const Operation& operation, int memory) {
  const auto pieces = pieces_of(operation);
  std::vector<Run> runs;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].empty()) continue;
    const int device = memory != kSeveralMemories ? memory : runtime.device_of(pieces[i].data()).value_or(kHostMemory);
    if (runs.empty() || runs.back().device != device) runs.push_back({device, i, 0, 0});
    runs.back().count = i + 1 - runs.back().first;
    runs.back().length += pieces[i].size();
  }
  return runs;
}

// The memory by which operations go.
struct Passage {
  Staging& ring;
  bool by_nic = false;  // the ring is the operations' device's own
};

bool another_way(const WriteOperation& operation) { return of_the_path(operation.status); }
// What read_device() may not be able to tell from an object that is gone.
bool another_way(const ReadOperation& operation) {
  const auto code = operation.status.code();
  return code != ErrorCode::kOk && code != ErrorCode::kRpcTimeout && code != ErrorCode::kCancelled;
}

// Some of the operations, and the memory by which they go.
template <typename Operation>
class Window {
 public:
  Window(const DeviceWay& way, const Passage& passage) : way_(way), passage_(passage) {}

  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] bool has_memory() const { return !lease_.memory().empty(); }
  [[nodiscard]] const Status& status() const { return status_; }

  void add(const Operation& operation, const DeviceOperation& one, std::span<const Run> runs, std::uint64_t size) {
    for (const auto& run : runs) {
      const std::size_t first = ranges_.size();
      if (run.device != kHostMemory) add_ranges(pieces_of(operation).subspan(run.first, run.count), ranges_);
      parts_.push_back({run, wire_.size(), first, ranges_.size() - first, {}});
      if (passage_.by_nic) parts_.back().checksums.resize(chunks_of(run.length));
    }
    wire_.push_back(operation);
    chosen_.push_back(one);
    size_ += size;
  }

  // Memory for it. Not `patient`: only what is to be had at once.
  void acquire(bool patient) {
    const std::uint64_t size = std::max<std::uint64_t>(size_, 1);
    if (!patient && size > passage_.ring.capacity()) return;  // memory of its own is pinned for one at a time
    auto lease = patient ? passage_.ring.acquire(size, way_.deadline) : passage_.ring.try_acquire(size);
    if (lease.ok()) {
      lease_ = std::move(*lease);
      if (has_memory()) bind();
    } else if (patient) {
      status_ = prefixed("staging " + std::to_string(size_) + " bytes of device memory", lease.status());
    }
  }

  // Queues the copies between devices and the window's memory, of those operations that are fine.
  void start(Direction direction) {
    jobs_.clear();
    std::uint64_t at = 0;
    for (auto& part : parts_) {
      if (part.run.device == kHostMemory) continue;
      const auto memory = lease_.memory().subspan(at, part.run.length);
      at += aligned(part.run.length);
      if (direction == Direction::kScatter && !wire_[part.operation].status.ok()) continue;
      jobs_.push_back({.device = part.run.device,
                       .pieces = std::span(ranges_).subspan(part.first_range, part.ranges),
                       .contiguous = passage_.by_nic ? MutableBytes() : memory,
                       .device_address = passage_.by_nic ? reinterpret_cast<std::uint64_t>(memory.data()) : 0,
                       .length = part.run.length,
                       .checksums = part.checksums});
    }
    if (jobs_.empty()) return;
    auto ticket = way_.runtime.copier().submit(direction, jobs_, Stream::kLegacyDefault);
    if (ticket.ok()) {
      ticket_ = std::move(*ticket);
    } else {
      status_ = prefixed("device memory", ticket.status());
    }
  }

  // The end of what start() queued, whenever that is.
  void wait() {
    if (ticket_ == nullptr) return;
    status_ = prefixed("device memory", way_.runtime.copier().wait(*ticket_, way_.deadline));
    ticket_.reset();
  }

  // What was gathered, to the path below.
  void write() {
    MOONPOOL_SYNC_POINT("cuda.staged.write");
    if (!passage_.by_nic) return way_.paths.write(way_.peer, wire_, way_.deadline);
    for (const auto& part : parts_) wire_[part.operation].checksums = part.checksums;
    way_.paths.write_device(way_.peer, wire_, way_.deadline);
  }
  void read() {
    MOONPOOL_SYNC_POINT("cuda.staged.read");
    if (!passage_.by_nic) return way_.paths.read(way_.peer, wire_, way_.deadline);
    way_.paths.read_device(way_.peer, wire_, way_.deadline);
  }

  // The outcomes, to where the operations came from; those that another way may do better have none, but a place in `rest`. An error of the
  // window's is that of all its operations that have none of their own.
  void settle(std::span<Operation> operations, std::vector<DeviceOperation>& rest) {
    if (passage_.by_nic) leave_to_others(rest);
    for (std::size_t i = 0; i < wire_.size(); ++i) {
      if (left_.size() > i && left_[i]) continue;
      auto& original = operations[chosen_[i].index];
      original.status = !status_.ok() && wire_[i].status.ok() ? status_ : std::move(wire_[i].status);
      if constexpr (std::is_same_v<Operation, WriteOperation>) original.checksum = wire_[i].checksum;
    }
    for (const auto& part : parts_) {
      if (part.run.device == kHostMemory || (left_.size() > part.operation && left_[part.operation])) continue;
      if (operations[chosen_[part.operation].index].status.ok()) way_.bytes += part.run.length;
    }
  }

  // Before anything has become of any.
  void fail(Status status, std::span<Operation> operations, std::vector<DeviceOperation>& rest) {
    status_ = std::move(status);
    for (auto& operation : wire_) operation.status = {};
    settle(operations, rest);
  }

 private:
  using Piece = typename std::remove_cvref_t<decltype(pieces_of(std::declval<Operation&>()))>::value_type;

  struct Part {
    Run run;
    std::size_t operation = 0;    // in wire_
    std::size_t first_range = 0;  // in ranges_
    std::size_t ranges = 0;
    std::vector<std::uint64_t> checksums;  // by NIC: the device's, of the run
  };

  void leave_to_others(std::vector<DeviceOperation>& rest) {
    left_.assign(wire_.size(), false);
    const bool no_ring = of_the_path(status_) || status_.code() == ErrorCode::kNoAvailableHandle;
    for (const auto& part : parts_) {
      const Operation& operation = wire_[part.operation];
      bool left = operation.status.ok() ? no_ring : another_way(operation);
      if constexpr (std::is_same_v<Operation, ReadOperation>) {
        left = left || (operation.status.ok() && status_.ok() && root_of(part.checksums) != operation.checksum);
      }
      left_[part.operation] = left;
      if (left) rest.push_back(chosen_[part.operation]);
    }
  }

  // Puts the leased memory in the place of the runs that are on devices.
  void bind() {
    std::vector<std::size_t> ends(wire_.size());
    std::uint64_t at = 0;
    for (const auto& part : parts_) {
      if (part.run.device == kHostMemory) {
        const auto pieces = pieces_of(wire_[part.operation]).subspan(part.run.first, part.run.count);
        pieces_.insert(pieces_.end(), pieces.begin(), pieces.end());
      } else {
        pieces_.push_back(lease_.memory().subspan(at, part.run.length));
        at += aligned(part.run.length);
      }
      ends[part.operation] = pieces_.size();
    }
    std::size_t first = 0;
    for (std::size_t i = 0; i < wire_.size(); ++i) {
      set_pieces(wire_[i], std::span<const Piece>(pieces_).subspan(first, ends[i] - first));
      first = ends[i];
    }
  }

  const DeviceWay& way_;
  const Passage& passage_;
  std::uint64_t size_ = 0;               // of the memory that it needs
  std::vector<Operation> wire_;          // as the path below sees them
  std::vector<DeviceOperation> chosen_;  // those of wire_, in the caller's batch
  std::vector<bool> left_;               // by NIC: of wire_, to another way
  std::vector<Part> parts_;              // in the order of wire_
  std::vector<AddressRange> ranges_;
  std::vector<Piece> pieces_;
  std::vector<CopyJob> jobs_;
  Status status_;
  Staging::Lease lease_;
  std::unique_ptr<Copier::Ticket> ticket_;  // the last member: its end waits for the device
};

template <typename Operation>
class Windows {
 public:
  Windows(const DeviceWay& way, const Passage& passage, std::span<Operation> operations, std::span<const DeviceOperation> chosen)
      : way_(way), passage_(passage), operations_(operations), chosen_(chosen), most_(window_size(passage.ring)) {}

  // The next operations that fit a window; null when there are no more.
  std::unique_ptr<Window<Operation>> next() {
    if (next_ == chosen_.size()) return nullptr;
    auto window = std::make_unique<Window<Operation>>(way_, passage_);
    for (; next_ < chosen_.size(); ++next_) {
      const auto& [index, memory] = chosen_[next_];
      const auto runs = runs_of(way_.runtime, operations_[index], memory);
      std::uint64_t size = 0;
      for (const auto& run : runs) size += run.device == kHostMemory ? 0 : aligned(run.length);
      if (window->size() > 0 && window->size() + size > most_) break;
      window->add(operations_[index], chosen_[next_], runs, size);
    }
    return window;
  }

  // Ready to be moved, or failed with a status. `patient`: as Window::acquire().
  [[nodiscard]] bool acquire(Window<Operation>& window, bool patient) {
    if (way_.deadline.expired()) {
      window.fail({ErrorCode::kRpcTimeout, "the deadline passed before device memory was staged"}, operations_, rest_);
      return false;
    }
    window.acquire(patient);
    if (!window.status().ok()) window.fail(window.status(), operations_, rest_);
    return window.has_memory();
  }

  void settle(Window<Operation>& window) { window.settle(operations_, rest_); }
  void fail(Window<Operation>& window) { window.fail(window.status(), operations_, rest_); }
  [[nodiscard]] std::vector<DeviceOperation> take_rest() { return std::move(rest_); }

 private:
  static std::uint64_t window_size(Staging& staging) {
    static_cast<void>(staging.try_acquire(1));  // makes the ring, which may be smaller than it should be
    return std::max<std::uint64_t>(staging.capacity() / kWindowsOfRing, 1);
  }

  const DeviceWay& way_;
  const Passage& passage_;
  const std::span<Operation> operations_;
  const std::span<const DeviceOperation> chosen_;
  const std::uint64_t most_;
  std::size_t next_ = 0;
  std::vector<DeviceOperation> rest_;
};

std::vector<DeviceOperation> write_windows(const DeviceWay& way, const Passage& passage, std::span<WriteOperation> operations,
                                           std::span<const DeviceOperation> chosen) {
  Windows<WriteOperation> windows(way, passage, operations, chosen);
  std::unique_ptr<Window<WriteOperation>> ahead;  // queued already
  while (true) {
    auto now = ahead != nullptr ? std::move(ahead) : windows.next();
    if (now == nullptr) return windows.take_rest();
    if (!now->has_memory()) {
      if (!windows.acquire(*now, true)) continue;
      now->start(Direction::kGather);
    }
    now->wait();
    ahead = windows.next();
    if (ahead != nullptr) {
      ahead->acquire(false);
      if (ahead->has_memory()) ahead->start(Direction::kGather);
    }
    if (now->status().ok()) {
      now->write();
      windows.settle(*now);
    } else {
      windows.fail(*now);
    }
  }
}

std::vector<DeviceOperation> read_windows(const DeviceWay& way, const Passage& passage, std::span<ReadOperation> operations,
                                          std::span<const DeviceOperation> chosen) {
  Windows<ReadOperation> windows(way, passage, operations, chosen);
  std::unique_ptr<Window<ReadOperation>> before;  // on its way to the device
  const auto finish = [&] {
    if (before == nullptr) return;
    before->wait();
    windows.settle(*before);
    before.reset();
  };
  while (auto now = windows.next()) {
    if (before != nullptr) now->acquire(false);
    if (!now->has_memory()) {
      finish();
      if (!windows.acquire(*now, true)) continue;
    }
    now->read();
    finish();
    now->start(Direction::kScatter);
    before = std::move(now);
  }
  finish();
  return windows.take_rest();
}

}  // namespace

void write_staged(const DeviceWay& way, std::span<WriteOperation> operations, std::span<const DeviceOperation> chosen) {
  if (!chosen.empty()) static_cast<void>(write_windows(way, {way.runtime.staging()}, operations, chosen));
}

void read_staged(const DeviceWay& way, std::span<ReadOperation> operations, std::span<const DeviceOperation> chosen) {
  if (!chosen.empty()) static_cast<void>(read_windows(way, {way.runtime.staging()}, operations, chosen));
}

std::vector<DeviceOperation> write_by_nic(const DeviceWay& way, Staging& ring, std::span<WriteOperation> operations,
                                          std::span<const DeviceOperation> chosen) {
  return write_windows(way, {ring, true}, operations, chosen);
}

std::vector<DeviceOperation> read_by_nic(const DeviceWay& way, Staging& ring, std::span<ReadOperation> operations,
                                         std::span<const DeviceOperation> chosen) {
  return read_windows(way, {ring, true}, operations, chosen);
}

}  // namespace moonpool::transfer::cuda
