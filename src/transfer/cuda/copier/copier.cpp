#include "transfer/cuda/copier/copier.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include "base/logging.h"
#include "base/pauses.h"
#include "base/spin_lock.h"
#include "transfer/checksum.h"
#include "transfer/cuda/copier/device_staging.h"
#include "transfer/cuda/copier/launch_plan.h"
#include "transfer/cuda/copier/launch_slots.h"

namespace moonpool::transfer::cuda {

namespace {

// The hardware spreads a launch's blocks over idle multiprocessors before it gives any a second one. So one block for each that may be
// taken is what keeps to the number; 512 threads have enough bytes under way for the link.
constexpr std::uint32_t kBlocksPerMultiprocessor = 1;
// A launch that finds the multiprocessors taken by others of its direction gets so large a share of the bound all the same.
constexpr std::uint32_t kShares = 4;
// Tables up to this size stay in pinned memory: a block reads its few entries from there in one or two round trips of the bus, about 1 us
// each, where the copy would cost a call, the start of a copy engine and the hand-over to the kernel, some 5 us. Larger ones are read again
// and again by all blocks, and go to the device once. (64 pieces of a 2 MiB block have 1.2 KiB.)
constexpr std::uint64_t kReadInPlace = 4096;
// CU_STREAM_LEGACY and CU_STREAM_PER_THREAD: names of a stream that each device has.
constexpr std::uintptr_t kLastImplicitStream = 2;

Status named(int device, const Status& status) {
  return {status.code(), "copying memory of GPU " + std::to_string(device) + ": " + status.message()};
}

}  // namespace

struct Copier::Ticket::Work {
  Copier::Impl* copier = nullptr;
  Direction direction = Direction::kGather;
  std::vector<Launch> launches;
  bool ended = false;
  Status status;  // valid once ended: the first error
};

class Copier::Impl {
 public:
  using Work = Ticket::Work;

  Impl(Driver& driver, HostRegions& regions, const Settings& settings) : driver_(driver), regions_(regions), settings_(settings) {
    for (int device = 0; device < driver.device_count(); ++device) {
      devices_.push_back(std::make_unique<Device>(driver, device, settings.device_staging_bytes));
    }
  }

  Result<std::unique_ptr<Work>> submit(Direction direction, std::span<const CopyJob> jobs, Stream after) {
    auto work = std::make_unique<Work>();
    work->copier = this;
    work->direction = direction;
    MOONPOOL_RETURN_IF_ERROR(plan(*work, jobs));
    work->ended = work->launches.empty();
    Status status = prepare(*work);
    if (status.ok()) status = order(*work, after);
    for (auto launch = work->launches.begin(); status.ok() && launch != work->launches.end(); ++launch) {
      status = queue(direction, *launch);
      if (!status.ok()) status = named(launch->device, status);
    }
    if (status.ok()) return work;
    abandon(*work);
    return status;
  }

  Status wait(Work& work, std::optional<Deadline> deadline) {
    if (work.ended) return work.status;
    host_waits_.fetch_add(1, std::memory_order_relaxed);
    for (Pauses pauses; !look(work);) pauses.next();
    if (!work.status.ok() || !deadline || !deadline->expired()) return work.status;
    return {ErrorCode::kRpcTimeout,
            "the copy of device memory ended after its deadline: the GPU, or the stream that it had to wait for, is busy"};
  }

  // Whether all has ended; takes what has.
  bool look(Work& work) {
    if (work.ended) return true;
    bool all = true;
    for (auto& launch : work.launches) {
      if (!launch.ended) look(work.direction, launch);
      all = all && launch.ended;
    }
    if (!all) return false;
    for (const auto& launch : work.launches) {
      if (work.status.ok()) work.status = launch.status;
    }
    work.ended = true;
    return true;
  }

  bool hashes_what_it_moves(int number, std::uint64_t length) {
    return device(number).has_kernels.load(std::memory_order_relaxed) && !short_tail(length);
  }

  Counters counters() const { return {launches_.load(), staged_.load(), copies_.load(), bytes_.load(), host_waits_.load()}; }

 private:
  struct Device {
    Device(Driver& driver, int device, std::uint64_t staging_bytes) : slots(driver, device), staging(driver, device, staging_bytes) {}
    LaunchSlots slots;
    DeviceStaging staging;
    // One call of the driver's at a time: threads that met at its own lock would sleep there, and a submission took 100 us in place of 5.
    // Who only looks for the end of its work does not wait for it.
    SpinLock calls;
    std::atomic<bool> no_kernels{false};                       // launch() has said so
    std::atomic<bool> has_kernels{false};                      // launch() has taken one
    std::atomic<std::uint32_t> blocks{0};                      // that a launch may have; 0: not known yet
    std::array<std::atomic<std::uint32_t>, 2> blocks_taken{};  // by launches in flight, by direction
  };

  Device& device(int number) { return *devices_[static_cast<std::size_t>(number)]; }

  // Sorts the jobs by device and finds their memory. Queues nothing.
  Status plan(Work& work, std::span<const CopyJob> jobs) {
    const int devices = driver_.device_count();
    for (const auto& job : jobs) MOONPOOL_RETURN_IF_ERROR(check(job, devices));
    for (const auto& job : jobs) {
      if (job.length == 0) continue;
      Part part{job, job.device_address, nullptr, 0, 0};
      if (part.contiguous == 0) {
        auto found = regions_.device_address(job.device, job.contiguous);
        if (!found) {
          return {ErrorCode::kUnavailable,
                  std::to_string(job.length) + " bytes of host memory are not pinned for GPU " + std::to_string(job.device) + " (yet)"};
        }
        part.contiguous = found->address;
        part.use = std::move(found->use);
      }
      auto launch = std::ranges::find(work.launches, job.device, &Launch::device);
      if (launch == work.launches.end()) {
        launch = work.launches.emplace(work.launches.end());
        launch->device = job.device;
        launch->parts.reserve(jobs.size());
      }
      launch->add(std::move(part));
    }
    return {};
  }

  // Slots and tables. Queues nothing.
  Status prepare(Work& work) {
    for (auto& launch : work.launches) {
      auto& where = device(launch.device);
      launch.by_kernel = !where.no_kernels.load(std::memory_order_relaxed);
      auto slot = where.slots.take(launch.by_kernel ? launch.pinned_bytes() : 0);
      if (!slot) return named(launch.device, slot.status());
      launch.slot = std::move(slot).value();
      if (!launch.by_kernel) continue;
      if (launch.plan_staging(settings_.least_staged)) launch.staging = where.staging.take();
      launch.build_tables();
    }
    return {};
  }

  // Has all launches wait for what is queued on `after` now.
  Status order(Work& work, Stream after) {
    if (work.launches.empty() || (after == Stream::kLegacyDefault && !settings_.after_default_stream)) return {};
    if (static_cast<std::uintptr_t>(after) <= kLastImplicitStream) {
      for (auto& launch : work.launches) {
        const std::scoped_lock one_at_a_time(device(launch.device).calls);
        Status status = driver_.record(launch.device, launch.slot->before(), after);
        if (status.ok()) status = let_wait(launch, launch.slot->before());
        if (!status.ok()) return named(launch.device, status);
      }
      return {};
    }
    // A stream is one device's, and records only events of that device; most often it is the first job's.
    Status refused;
    for (const auto& launch : work.launches) {
      refused = driver_.record(launch.device, launch.slot->before(), after);
      if (refused.ok()) return all_wait(work, launch.slot->before());
    }
    for (int number = 0; number < driver_.device_count(); ++number) {
      if (std::ranges::find(work.launches, number, &Launch::device) != work.launches.end()) continue;
      const auto event = driver_.create_event(number);
      if (!event) continue;
      const bool recorded = driver_.record(number, *event, after).ok();
      const Status status = recorded ? all_wait(work, *event) : Status();
      driver_.destroy_event(number, *event);
      if (recorded) return status;
    }
    return Status(refused.code(), "the stream that a copy of device memory is ordered after: " + refused.message());
  }

  Status let_wait(Launch& launch, Event event) {
    launch.touched = true;
    return driver_.wait(launch.device, launch.slot->stream(), event);
  }

  Status all_wait(Work& work, Event event) {
    for (auto& launch : work.launches) {
      if (Status status = let_wait(launch, event); !status.ok()) return named(launch.device, status);
    }
    return {};
  }

  Status queue(Direction direction, Launch& launch) {
    launch.touched = true;
    std::unique_lock one_at_a_time(device(launch.device).calls);
    if (launch.by_kernel) {
      const Status status = queue_kernel(direction, launch);
      if (status.code() == ErrorCode::kNotSupported) {
        launch.by_kernel = false;
        if (!device(launch.device).no_kernels.exchange(true)) {
          log::info("cuda: GPU {} gets one copy a piece, and the host computes checksums: {}", launch.device, status.message());
        }
      } else if (!status.ok()) {
        return status;
      }
    }
    if (!launch.by_kernel) {
      one_at_a_time.unlock();  // it may hash on the way
      const auto out_of_reach = [](const Part& part) { return part.job.device_address != 0 && !part.job.checksums.empty(); };
      if (std::ranges::any_of(launch.parts, out_of_reach)) {
        return {ErrorCode::kNotSupported, "the host cannot compute checksums of device memory, and there are no kernels"};
      }
      MOONPOOL_RETURN_IF_ERROR(queue_copies(direction, launch));
    }
    MOONPOOL_RETURN_IF_ERROR(driver_.record(launch.device, launch.slot->end(), launch.slot->stream()));
    launch.recorded = true;
    bytes_.fetch_add(launch.bytes, std::memory_order_relaxed);
    return {};
  }

  Status queue_kernel(Direction direction, Launch& launch) {
    auto& slot = *launch.slot;
    std::uint64_t table = slot.pinned_address();
    if (launch.table_bytes() > kReadInPlace) {
      if (const auto memory = device(launch.device).slots.table_of(slot, launch.table_bytes()); memory != 0) {
        MOONPOOL_RETURN_IF_ERROR(driver_.copy(launch.device, memory, table, launch.table_bytes(), slot.stream()));
        table = memory;
      }
    }
    if (direction == Direction::kScatter) {
      for (const auto& part : launch.parts) {
        if (!part.job.checksums.empty() && short_tail(part.job.length)) hash(part.job, part.job.checksums.size() - 1);
      }
    }
    const bool gather = direction == Direction::kGather;
    if (!gather) MOONPOOL_RETURN_IF_ERROR(queue_staged(direction, launch));
    const Kernel kernel =
        launch.hash ? (gather ? Kernel::kGatherHash : Kernel::kScatterHash) : (gather ? Kernel::kGather : Kernel::kScatter);
    // NOLINTBEGIN(performance-no-int-to-ptr): the driver's addresses are integers
    const MoveArguments arguments{
        reinterpret_cast<const PieceEntry*>(table), reinterpret_cast<const ChunkEntry*>(table + launch.chunks_offset()),
        reinterpret_cast<std::uint64_t*>(slot.pinned_address() + launch.table_bytes()), static_cast<std::uint32_t>(launch.chunks)};
    // NOLINTEND(performance-no-int-to-ptr)
    take_blocks(direction, launch);
    MOONPOOL_RETURN_IF_ERROR(driver_.launch(launch.device, kernel, {launch.blocks, kThreads}, arguments, slot.stream()));
    device(launch.device).has_kernels.store(true, std::memory_order_relaxed);
    launches_.fetch_add(1, std::memory_order_relaxed);
    if (launch.staging != 0) staged_.fetch_add(1, std::memory_order_relaxed);
    return gather ? queue_staged(direction, launch) : Status();
  }

  // The copies between the host and a launch's staging memory, if it has any.
  Status queue_staged(Direction direction, const Launch& launch) {
    if (launch.staging == 0) return {};
    for (const auto& copy : launch.copies) {
      const std::uint64_t staged = launch.staging + copy.staged_at;
      const bool gather = direction == Direction::kGather;
      MOONPOOL_RETURN_IF_ERROR(
          driver_.copy(launch.device, gather ? copy.host : staged, gather ? staged : copy.host, copy.length, launch.slot->stream()));
    }
    return {};
  }

  // What other launches of the direction have left of the bound, or a share of it that keeps the launch from waiting for them: they end
  // soon, and together they keep the link busy. The kernel of a staged launch may have all: it runs for a quarter of the time that the
  // copies take.
  void take_blocks(Direction direction, Launch& launch) {
    const std::uint32_t most = most_blocks(launch.device);
    auto& taken = device(launch.device).blocks_taken[static_cast<std::size_t>(direction)];
    const std::uint32_t others = taken.load(std::memory_order_relaxed);
    const std::uint32_t left = std::max({others < most ? most - others : 0, most / kShares, 1U});
    const std::uint32_t share = launch.staging != 0 ? most : left;
    launch.blocks = static_cast<std::uint32_t>(std::min<std::size_t>(launch.chunks, share));
    taken.fetch_add(launch.blocks, std::memory_order_relaxed);
  }

  // All that a launch has taken. `ended`: without error.
  void give_back(Direction direction, Launch& launch, bool ended) {
    auto& where = device(launch.device);
    where.blocks_taken[static_cast<std::size_t>(direction)].fetch_sub(launch.blocks, std::memory_order_relaxed);
    launch.blocks = 0;
    where.staging.give_back(std::exchange(launch.staging, 0), ended);
    where.slots.give_back(std::move(launch.slot), ended);
  }

  std::uint32_t most_blocks(int number) {
    auto& known = device(number).blocks;
    if (const auto blocks = known.load(std::memory_order_relaxed); blocks != 0) return blocks;
    std::uint32_t multiprocessors = std::max<std::uint32_t>(settings_.multiprocessors, 1);
    if (const auto facts = driver_.facts(number); facts && facts->multiprocessors > 0) {
      multiprocessors = std::min(multiprocessors, static_cast<std::uint32_t>(facts->multiprocessors));
    }
    known.store(multiprocessors * kBlocksPerMultiprocessor, std::memory_order_relaxed);
    return multiprocessors * kBlocksPerMultiprocessor;
  }

  Status queue_copies(Direction direction, Launch& launch) {
    Status status;
    for (const auto& part : launch.parts) {
      if (direction == Direction::kScatter) {
        for (std::size_t i = 0; i < part.job.checksums.size(); ++i) hash(part.job, i);
      }
      // A copy must not reach from one allocation into the next one, even where their addresses touch.
      const auto same_allocation = [&](std::uint64_t address) {
        const auto memory = driver_.locate(address);
        return memory && memory->base < address;
      };
      for_each_run(part.job.pieces, same_allocation, [&](const Run& run) {
        if (!status.ok()) return;
        const std::uint64_t contiguous = part.contiguous + run.offset;
        const bool gather = direction == Direction::kGather;
        status = driver_.copy(launch.device, gather ? contiguous : run.address, gather ? run.address : contiguous, run.length,
                              launch.slot->stream());
        if (status.ok()) copies_.fetch_add(1, std::memory_order_relaxed);
      });
    }
    return status;
  }

  static void hash(const CopyJob& job, std::size_t chunk) { job.checksums[chunk] = checksum(chunk_of(job, chunk)); }

  void look(Direction direction, Launch& launch) {
    std::unique_lock not_now(device(launch.device).calls, std::try_to_lock);
    if (!not_now.owns_lock()) return;
    const auto done = driver_.done(launch.device, launch.slot->end());
    not_now.unlock();
    if (done && !*done) return;
    launch.ended = true;
    if (!done) launch.status = named(launch.device, done.status());
    if (done) take_checksums(direction, launch);
    for (auto& part : launch.parts) part.use.reset();
    give_back(direction, launch, done.ok());
  }

  static void take_checksums(Direction direction, const Launch& launch) {
    const bool gather = direction == Direction::kGather;
    const std::byte* const sums = launch.by_kernel ? launch.slot->pinned().data() + launch.table_bytes() : nullptr;
    for (const auto& part : launch.parts) {
      const auto& job = part.job;
      if (job.checksums.empty()) continue;
      if (launch.by_kernel) {
        // The tail's of a scatter is there already.
        const std::size_t hashed = job.checksums.size() - (short_tail(job.length) ? 1 : 0);
        std::memcpy(job.checksums.data(), sums + part.first_chunk * sizeof(std::uint64_t), hashed * sizeof(std::uint64_t));
        if (gather && short_tail(job.length)) hash(job, hashed);
      } else if (gather) {
        for (std::size_t i = 0; i < job.checksums.size(); ++i) hash(job, i);
      }
    }
  }

  // Ends a call that could not be queued whole. What was queued cannot be taken back and touches the caller's memory, so it is waited for.
  void abandon(Work& work) {
    bool waits = false;
    for (auto& launch : work.launches) {
      if (launch.slot == nullptr) continue;
      if (launch.touched && !launch.recorded)
        launch.recorded = driver_.record(launch.device, launch.slot->end(), launch.slot->stream()).ok();
      if (launch.recorded) {
        waits = true;
        for (Pauses pauses;; pauses.next()) {
          const auto done = driver_.done(launch.device, launch.slot->end());
          if (!done || *done) break;
        }
      }
      give_back(work.direction, launch, !launch.touched);
    }
    if (waits) host_waits_.fetch_add(1, std::memory_order_relaxed);
  }

  Driver& driver_;
  HostRegions& regions_;
  const Settings settings_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::atomic<std::uint64_t> launches_{0};
  std::atomic<std::uint64_t> staged_{0};
  std::atomic<std::uint64_t> copies_{0};
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<std::uint64_t> host_waits_{0};
};

Copier::Ticket::Ticket(std::unique_ptr<Work> work) : work_(std::move(work)) {}

Copier::Ticket::~Ticket() { static_cast<void>(work_->copier->wait(*work_, std::nullopt)); }

Copier::Copier(Driver& driver, HostRegions& regions, const Settings& settings) : impl_(std::make_unique<Impl>(driver, regions, settings)) {}
Copier::~Copier() = default;

Result<std::unique_ptr<Copier::Ticket>> Copier::submit(Direction direction, std::span<const CopyJob> jobs, Stream after) {
  auto work = impl_->submit(direction, jobs, after);
  if (!work) return work.status();
  return std::unique_ptr<Ticket>(new Ticket(std::move(work).value()));
}

Status Copier::wait(Ticket& ticket, Deadline deadline) { return impl_->wait(*ticket.work_, deadline); }

Result<bool> Copier::done(Ticket& ticket) {
  auto& work = *ticket.work_;
  if (!impl_->look(work)) return false;
  if (!work.status.ok()) return work.status;
  return true;
}

bool Copier::hashes_what_it_moves(int device, std::uint64_t length) const { return impl_->hashes_what_it_moves(device, length); }

Copier::Counters Copier::counters() const { return impl_->counters(); }

}  // namespace moonpool::transfer::cuda
