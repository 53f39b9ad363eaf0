// Carries out one batch of blocks over a session's rails: posts, polls and waits on the caller's thread, and does again over another rail
// what was on one that broke.
//
// Which rail: a batch below Options::stripe_bytes goes over the rail nearest to its memory, a larger one in stripes over all. A chain of
// work requests is posted with one doorbell, its last one signalled; longer chains are posted in halves of the queue. What is not
// registered goes through staging slices: copied while the NIC works on the one before. A unit is done when a completion at or after its
// own says so. A broken rail's queue pair is destroyed before its units are posted again, and all queue pairs are before a batch gives up
// with work outstanding. A NIC has to report a path that is dead within its retries; one of which nothing was heard for several times as
// long, and longer than its bytes may take, counts as broken too, so that a NIC which hangs costs seconds and not the caller's deadline.
// Threads: the caller's. Lives for one call.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "net/spin_policy.h"
#include "transfer/rdma/rails.h"
#include "transfer/rdma/staging.h"
#include "transfer/rdma/work_plan.h"

namespace moonpool::transfer::rdma {

// What a batch uses; all of it outlives the batch.
struct BatchContext {
  const MemoryMap& memory;
  const Options& options;
  Counters& counters;
  Staging& staging;
  Rails& rails;
  net::Lane& lane;
  net::SpinPolicy& spin;
  const std::atomic<bool>& cancelled;
  std::size_t turn = 0;  // among rails that are equally near
};

class Batch {
 public:
  Batch(const BatchContext& context, std::span<Block> blocks, Deadline deadline);
  ~Batch();

  // Each block has its outcome then. False when all queue pairs were destroyed with work outstanding: the session is over.
  [[nodiscard]] bool run();

 private:
  static constexpr std::uint32_t kNoSlice = ~0U;
  using Time = Deadline::Clock::time_point;

  struct UnitState {
    bool done = false;
    bool posted_before = false;
    std::uint32_t slice = kNoSlice;
    std::uint64_t slice_offset = 0;
  };
  struct SliceUse {
    MutableBytes memory;
    std::uint64_t used = 0;
    std::uint32_t units = 0;  // that have not ended
  };
  struct Track {  // one rail's part
    Rail* rail = nullptr;
    std::deque<std::uint32_t> todo;    // units
    std::deque<std::uint32_t> posted;  // in order
    std::uint32_t unsignalled = 0;     // since the last signalled one
    Time heard{};                      // the last completion, or the first posting to an idle queue
  };
  struct BlockState {
    std::uint32_t units_left = 0;
    bool ended = false;
  };
  enum class Fate { kGoesOn, kOver };

  [[nodiscard]] bool check_blocks();
  void plan();
  [[nodiscard]] std::size_t nearest() const;
  [[nodiscard]] PlanLimits limits() const;

  [[nodiscard]] std::uint32_t remote_key(const Unit& unit, const Rail& rail) const;
  [[nodiscard]] bool eligible(const Unit& unit, const Rail& rail) const;
  void make_tracks();
  [[nodiscard]] bool place(std::uint32_t unit);
  [[nodiscard]] Fate place_all(std::vector<std::uint32_t> units);
  [[nodiscard]] Fate place_elsewhere(std::vector<std::uint32_t> units);

  [[nodiscard]] bool outstanding() const;
  [[nodiscard]] bool waiting_units() const;
  [[nodiscard]] Fate post_all(bool& posted);
  // One doorbell at most. kOver: see lose().
  [[nodiscard]] Fate post_some(std::size_t track, bool& posted);
  [[nodiscard]] bool stage(std::uint32_t unit);
  void unstage(std::uint32_t unit, bool arrived);

  [[nodiscard]] Fate poll_all(bool& any);
  [[nodiscard]] Fate poll_once(std::size_t track, bool& any);
  [[nodiscard]] Fate failed(std::size_t track, const Completion& completion);
  void done_up_to(Track& track, std::uint64_t id, bool inclusive);
  void unit_done(std::uint32_t unit);
  [[nodiscard]] Fate lose(std::size_t track, Rails::Cause cause, const std::string& reason);

  // When this rail counts as broken if nothing is heard of it.
  [[nodiscard]] Time patience_ends(const Track& track) const;
  [[nodiscard]] Time patience_ends() const;  // of the first, or the deadline
  [[nodiscard]] Fate lose_silent();
  [[nodiscard]] Fate wait();
  [[nodiscard]] Fate sleep(bool& any, Time until);
  void end_block(std::uint32_t block, Status status);
  void end_those_with_key_of(std::uint32_t block, const Status& status);
  void give_up(const Status& status);
  void quit(const Status& status);  // with work outstanding
  [[nodiscard]] std::string what() const;
  [[nodiscard]] Status cancelled() const;
  [[nodiscard]] Status timed_out() const;
  [[nodiscard]] Status no_path() const;

  const BatchContext& context_;
  const std::span<Block> blocks_;
  const Deadline deadline_;
  const Deadline::Clock::time_point begun_ = Deadline::Clock::now();
  std::string reason_;  // of the last failure

  std::vector<BlockState> block_states_;
  std::unique_ptr<WorkPlan> plan_;
  std::shared_ptr<const RegisteredRange> staging_range_;
  Status unstageable_;
  std::vector<UnitState> unit_states_;
  std::vector<SliceUse> slices_;
  std::uint32_t current_slice_ = kNoSlice;
  std::vector<Track> tracks_;
  std::size_t blocks_left_ = 0;
  bool went_elsewhere_ = false;
  bool over_ = false;

  // Reused from one posting to the next.
  std::vector<WorkRequest> chain_;
  std::vector<WorkRequest::Piece> chain_pieces_;
};

}  // namespace moonpool::transfer::rdma
