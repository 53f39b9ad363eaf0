#include "transfer/rdma/batch.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "base/sync_point.h"

namespace moonpool::transfer::rdma {

namespace {

using Operation = WorkRequest::Operation;

// So much staged memory is worth a doorbell of its own: the NIC begins while the next is copied.
constexpr std::uint64_t kStagedPerDoorbell = 256 * 1024;
constexpr std::uint64_t kStagedAlignment = 64;
// A NIC that reports nothing: so many times the time in which it has to give a dead path up, some seconds for hiccups, and what its bytes
// take on the slowest link worth using.
constexpr int kPatience = 4;
constexpr std::chrono::seconds kGrace{4};
constexpr std::uint64_t kSlowestBytesPerMicrosecond = 4;

void count(std::atomic<std::uint64_t>& counter, std::uint64_t more) { counter.fetch_add(more, std::memory_order_relaxed); }

Status check(const Block& block, std::uint64_t length) {
  if (block.range == nullptr) return {ErrorCode::kInternal, "RDMA: a block without a range of the peer's"};
  const ServedRange& range = *block.range;
  if (block.remote_address >= range.address && length <= range.length && block.remote_address - range.address <= range.length - length)
    return {};
  return {ErrorCode::kInternal, "RDMA: a block of " + std::to_string(length) + " bytes is not inside the peer's range"};
}

}  // namespace

Batch::Batch(const BatchContext& context, std::span<Block> blocks, Deadline deadline)
    : context_(context), blocks_(blocks), deadline_(deadline), block_states_(blocks.size()) {}

Batch::~Batch() {
  for (SliceUse& slice : slices_) {
    if (!slice.memory.empty()) context_.staging.give_back(slice.memory);
  }
}

// ---------------------------------------------------------------- planning

bool Batch::check_blocks() {
  bool any = false;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    Block& block = blocks_[i];
    std::uint64_t length = 0;
    for (const auto& piece : block.pieces) length += piece.size();
    block.status = check(block, length);
    block_states_[i].ended = !block.status.ok() || length == 0;
    if (!block_states_[i].ended) ++blocks_left_;
    any = any || !block_states_[i].ended;
  }
  return any;
}

PlanLimits Batch::limits() const {
  const Devices& devices = context_.memory.devices();
  PlanLimits limits;
  limits.staged = Staging::kSlice;
  bool first = true;
  for (std::size_t i = 0; i < devices.size(); ++i) {
    const NicInfo& info = devices[i].info();
    limits.write_pieces = std::max(1U, first ? info.max_pieces : std::min(limits.write_pieces, info.max_pieces));
    limits.read_pieces = std::max(1U, first ? info.max_read_pieces : std::min(limits.read_pieces, info.max_read_pieces));
    limits.message = std::max<std::uint64_t>(1, std::min(limits.message, info.max_message));
    first = false;
  }
  limits.staged = std::min(limits.staged, limits.message);
  return limits;
}

// The rail whose NIC is on the node of most of the memory; among several, or when none is, the turn decides.
std::size_t Batch::nearest() const {
  const std::int32_t node = plan_->numa_node();
  std::vector<std::size_t> near;
  for (std::size_t i = 0; i < tracks_.size(); ++i) {
    if (node >= 0 && context_.memory.devices()[tracks_[i].rail->nic].info().numa_node == node) near.push_back(i);
  }
  return near.empty() ? context_.turn % tracks_.size() : near[context_.turn % near.size()];
}

void Batch::make_tracks() {
  for (const auto& rail : context_.rails.all()) {
    const bool known = std::ranges::any_of(tracks_, [&](const Track& track) { return track.rail == rail.get(); });
    if (!known) tracks_.push_back({rail.get(), {}, {}, 0});
  }
}

void Batch::plan() {
  plan_ = std::make_unique<WorkPlan>(context_.memory, blocks_);
  if (plan_->has_unregistered()) {
    const Status prepared = context_.staging.prepare();
    staging_range_ = context_.staging.range();
    if (!prepared.ok()) unstageable_ = prepared;
  }
  make_tracks();
  const bool stripes = plan_->bytes() >= context_.options.stripe_bytes && tracks_.size() > 1;
  plan_->cut(stripes ? static_cast<std::uint32_t>(tracks_.size()) : 1, limits());
  unit_states_.resize(plan_->units().size());
  for (const Unit& unit : plan_->units()) ++block_states_[unit.block].units_left;
}

std::uint32_t Batch::remote_key(const Unit& unit, const Rail& rail) const {
  const auto& keys = blocks_[unit.block].range->remote_keys;
  return rail.peer_nic < keys.size() ? keys[rail.peer_nic] : 0;
}

bool Batch::eligible(const Unit& unit, const Rail& rail) const {
  if (remote_key(unit, rail) == 0) return false;
  const auto registered = [&](const RegisteredRange* range) {
    return range != nullptr && rail.nic < range->by_nic.size() && range->by_nic[rail.nic];
  };
  if (unit.staged) return registered(staging_range_.get());
  return std::ranges::all_of(plan_->pieces(unit), [&](const PlannedPiece& piece) { return registered(piece.range); });
}

// To the rail with the least to do.
bool Batch::place(std::uint32_t number) {
  Track* best = nullptr;
  for (Track& track : tracks_) {
    if (!eligible(plan_->units()[number], *track.rail)) continue;
    if (best == nullptr || track.todo.size() + track.posted.size() < best->todo.size() + best->posted.size()) best = &track;
  }
  if (best != nullptr) best->todo.push_back(number);
  return best != nullptr;
}

Batch::Fate Batch::place_all(std::vector<std::uint32_t> units) {
  std::vector<std::uint32_t> homeless;
  for (const auto number : units) {
    const Unit& unit = plan_->units()[number];
    if (unit.staged && !staging_range_) end_block(unit.block, unstageable_);
    if (!block_states_[unit.block].ended && !place(number)) homeless.push_back(number);
  }
  return homeless.empty() ? Fate::kGoesOn : place_elsewhere(std::move(homeless));
}

// No rail can take them: over rails opened now, to other NICs of the peer than those that failed; once in a batch.
Batch::Fate Batch::place_elsewhere(std::vector<std::uint32_t> units) {
  if (!went_elsewhere_ && !context_.cancelled.load() && !deadline_.expired()) {
    went_elsewhere_ = true;
    const Status status = context_.rails.open_elsewhere(context_.lane, deadline_);
    if (!status.ok()) reason_ = status.message();
    make_tracks();
  }
  for (const auto number : units) {
    const std::uint32_t block = plan_->units()[number].block;
    if (block_states_[block].ended || place(number)) continue;
    end_block(block, context_.cancelled.load() ? cancelled() : no_path());
  }
  return Fate::kGoesOn;
}

// ---------------------------------------------------------------- running

bool Batch::run() {
  if (!check_blocks()) return true;
  plan();
  if (deadline_.expired() || context_.cancelled.load()) {
    give_up(context_.cancelled.load() ? cancelled() : timed_out());
    return true;
  }
  if (tracks_.empty()) {
    std::vector<std::uint32_t> all(plan_->units().size());
    for (std::uint32_t i = 0; i < all.size(); ++i) all[i] = i;
    if (place_all(std::move(all)) == Fate::kOver) return false;
  } else {
    const bool striped = plan_->units().back().stripe > 0;
    const std::size_t one = striped ? 0 : nearest();
    std::vector<std::uint32_t> others;
    for (std::uint32_t i = 0; i < plan_->units().size(); ++i) {
      const Unit& unit = plan_->units()[i];
      Track& track = tracks_[striped ? unit.stripe : one];
      if (eligible(unit, *track.rail)) {
        track.todo.push_back(i);
      } else {
        others.push_back(i);
      }
    }
    if (place_all(std::move(others)) == Fate::kOver) return false;
  }
  while (!over_ && (blocks_left_ > 0 || outstanding())) {
    bool posted = false;
    if (post_all(posted) == Fate::kOver) break;
    if (posted && waiting_units()) {  // more can be copied or posted: look only at what is there
      bool any = false;
      if (poll_all(any) == Fate::kOver) break;
      continue;
    }
    if (wait() == Fate::kOver) break;
  }
  return !over_;
}

bool Batch::outstanding() const {
  return std::ranges::any_of(tracks_, [](const Track& track) { return !track.posted.empty(); });
}

bool Batch::waiting_units() const {
  return std::ranges::any_of(tracks_, [](const Track& track) { return !track.todo.empty(); });
}

Batch::Fate Batch::post_all(bool& posted) {
  for (std::size_t i = 0; i < tracks_.size();) {
    const std::size_t before = tracks_.size();
    if (post_some(i, posted) == Fate::kOver) return Fate::kOver;
    if (tracks_.size() >= before) ++i;  // else it was lost, and another has its place
  }
  return Fate::kGoesOn;
}

Batch::Fate Batch::post_some(std::size_t index, bool& posted) {
  Track& track = tracks_[index];
  const Rail& rail = *track.rail;
  const std::size_t half = std::max(1U, rail.capacity / 2);
  // A queue that is more than half full waits for the signal of its first half: one doorbell for half a queue.
  if (track.todo.empty() || (!track.posted.empty() && track.posted.size() > rail.capacity - half)) return Fate::kGoesOn;
  chain_.clear();
  chain_pieces_.clear();
  std::size_t room = rail.capacity - track.posted.size();
  std::uint64_t staged = 0;
  std::uint32_t unsignalled = track.unsignalled;
  std::size_t taken = 0;
  for (; taken < track.todo.size() && room > 0 && staged < kStagedPerDoorbell; ++taken) {
    const std::uint32_t number = track.todo[taken];
    const Unit& unit = plan_->units()[number];
    if (block_states_[unit.block].ended) continue;
    if (unit.staged && !stage(number)) break;
    if (unit.staged) staged += unit.length;
    WorkRequest request;
    request.id = number;
    request.operation = blocks_[unit.block].operation;
    request.remote_address = unit.remote_address;
    request.remote_key = remote_key(unit, rail);
    request.signalled = ++unsignalled >= half;
    if (request.signalled) unsignalled = 0;
    if (unit.staged) {
      const UnitState& state = unit_states_[number];
      const auto* const memory = slices_[state.slice].memory.data() + state.slice_offset;
      chain_pieces_.push_back({reinterpret_cast<std::uint64_t>(memory), static_cast<std::uint32_t>(unit.length),
                               staging_range_->by_nic[rail.nic]->local_key()});
    } else {
      for (const PlannedPiece& piece : plan_->pieces(unit)) {
        chain_pieces_.push_back({reinterpret_cast<std::uint64_t>(piece.address), static_cast<std::uint32_t>(piece.length),
                                 piece.range->by_nic[rail.nic]->local_key()});
      }
    }
    chain_.push_back(request);
    --room;
  }
  if (!chain_.empty()) {
    if (!chain_.back().signalled) {
      chain_.back().signalled = true;
      unsignalled = 0;
    }
    std::size_t at = 0;  // now that the pieces do not move any more
    for (WorkRequest& request : chain_) {
      const Unit& unit = plan_->units()[request.id];
      const std::size_t pieces = unit.staged ? 1 : unit.piece_count;
      request.pieces = std::span(chain_pieces_).subspan(at, pieces);
      at += pieces;
    }
    const Status status = rail.queue_pair->post(chain_);
    posted = true;
    if (!status.ok()) {
      for (const WorkRequest& request : chain_) unstage(static_cast<std::uint32_t>(request.id), false);
      if (!context_.cancelled.load()) return lose(index, Rails::Cause::kPath, status.message());
      quit(cancelled());
      return Fate::kOver;
    }
    if (track.posted.empty()) track.heard = Deadline::Clock::now();
    count(context_.counters.doorbells, 1);
    count(context_.counters.work_requests, chain_.size());
    for (const WorkRequest& request : chain_) {
      const auto number = static_cast<std::uint32_t>(request.id);
      if (std::exchange(unit_states_[number].posted_before, true)) count(context_.counters.redone, 1);
      track.posted.push_back(number);
    }
    track.unsignalled = unsignalled;
  }
  track.todo.erase(track.todo.begin(), track.todo.begin() + static_cast<std::ptrdiff_t>(taken));
  return Fate::kGoesOn;
}

// ---------------------------------------------------------------- staging

// Gives the unit its part of a slice, with a write's bytes in it; false when no slice is free.
bool Batch::stage(std::uint32_t number) {
  const Unit& unit = plan_->units()[number];
  if (current_slice_ == kNoSlice || slices_[current_slice_].memory.size() - slices_[current_slice_].used < unit.length) {
    if (current_slice_ != kNoSlice && slices_[current_slice_].units == 0) {
      slices_[current_slice_].used = 0;
    } else {
      const MutableBytes memory = context_.staging.try_take();
      if (memory.empty()) return false;
      const auto reusable = std::ranges::find_if(slices_, [](const SliceUse& slice) { return slice.memory.empty(); });
      current_slice_ = static_cast<std::uint32_t>(reusable - slices_.begin());
      if (reusable == slices_.end()) slices_.emplace_back();
      slices_[current_slice_] = {memory, 0, 0};
    }
  }
  SliceUse& slice = slices_[current_slice_];
  UnitState& state = unit_states_[number];
  state.slice = current_slice_;
  state.slice_offset = slice.used;
  slice.used =
      std::min<std::uint64_t>(slice.memory.size(), (slice.used + unit.length + kStagedAlignment - 1) / kStagedAlignment * kStagedAlignment);
  ++slice.units;
  if (blocks_[unit.block].operation != Operation::kWrite) return true;
  std::byte* to = slice.memory.data() + state.slice_offset;
  for (const PlannedPiece& piece : plan_->pieces(unit)) {
    std::memcpy(to, piece.address, piece.length);
    to += piece.length;
  }
  count(context_.counters.staged_bytes, unit.length);
  return true;
}

// The unit needs its part of the slice no longer; a read's bytes go where they belong.
void Batch::unstage(std::uint32_t number, bool arrived) {
  const Unit& unit = plan_->units()[number];
  UnitState& state = unit_states_[number];
  if (state.slice == kNoSlice) return;
  SliceUse& slice = slices_[state.slice];
  if (arrived && blocks_[unit.block].operation == Operation::kRead && !block_states_[unit.block].ended) {
    const std::byte* from = slice.memory.data() + state.slice_offset;
    for (const PlannedPiece& piece : plan_->pieces(unit)) {
      std::memcpy(piece.address, from, piece.length);
      from += piece.length;
    }
    count(context_.counters.staged_bytes, unit.length);
  }
  if (--slice.units == 0 && state.slice != current_slice_) {
    context_.staging.give_back(slice.memory);
    slice.memory = {};
  }
  state.slice = kNoSlice;
}

// ---------------------------------------------------------------- completions

Batch::Fate Batch::poll_all(bool& any) {
  for (std::size_t i = 0; i < tracks_.size();) {
    const std::size_t before = tracks_.size();
    if (poll_once(i, any) == Fate::kOver) return Fate::kOver;
    if (tracks_.size() >= before) ++i;
  }
  return Fate::kGoesOn;
}

Batch::Fate Batch::poll_once(std::size_t index, bool& any) {
  Track& track = tracks_[index];
  if (track.posted.empty()) return Fate::kGoesOn;
  std::array<Completion, 16> completions;
  const std::size_t got = track.rail->queue_pair->poll(completions);
  count(context_.counters.completions, got);
  if (got > 0) {
    any = true;
    track.heard = Deadline::Clock::now();
  }
  for (std::size_t i = 0; i < got; ++i) {
    if (completions[i].outcome != Completion::Outcome::kDone) return failed(index, completions[i]);
    done_up_to(track, completions[i].id, true);
    context_.rails.works(*track.rail);
  }
  return Fate::kGoesOn;
}

void Batch::done_up_to(Track& track, std::uint64_t id, bool inclusive) {
  while (!track.posted.empty()) {
    const std::uint32_t number = track.posted.front();
    if (number == id && !inclusive) return;
    track.posted.pop_front();
    unit_done(number);
    if (number == id) return;
  }
}

void Batch::unit_done(std::uint32_t number) {
  const Unit& unit = plan_->units()[number];
  unstage(number, true);
  unit_states_[number].done = true;
  count(context_.counters.bytes, unit.length);
  BlockState& block = block_states_[unit.block];
  if (!block.ended && --block.units_left == 0) end_block(unit.block, Status());
}

// The first that failed on this queue pair: all before it were carried out, all after it were not.
Batch::Fate Batch::failed(std::size_t index, const Completion& completion) {
  Track& track = tracks_[index];
  const auto number = static_cast<std::uint32_t>(completion.id);
  const std::string name = context_.memory.devices()[track.rail->nic].info().name;
  const std::string peer_nic = track.rail->peer_nic_name;
  done_up_to(track, number, false);
  const std::uint32_t block = plan_->units()[number].block;
  switch (completion.outcome) {
    case Completion::Outcome::kRefused:
      end_those_with_key_of(block, Status(ErrorCode::kStaleIncarnation, what() + " was refused: " + peer_nic +
                                                                            " does not serve this memory under its key any more (" +
                                                                            completion.reason + "): look it up again"));
      return lose(index, Rails::Cause::kRefused, completion.reason);
    case Completion::Outcome::kLocal:
      end_block(block, Status(ErrorCode::kInternal, what() + " was refused by " + name + " itself: " + completion.reason));
      return lose(index, Rails::Cause::kRefused, completion.reason);
    default:
      if (context_.cancelled.load()) {
        quit(cancelled());
        return Fate::kOver;
      }
      return lose(index, Rails::Cause::kPath, completion.reason);
  }
}

// The rail is gone when this returns; what was on it is placed on others.
Batch::Fate Batch::lose(std::size_t index, Rails::Cause cause, const std::string& reason) {
  MOONPOOL_SYNC_POINT("rdma.batch.rail_lost");
  const Track track = std::move(tracks_[index]);
  tracks_.erase(tracks_.begin() + static_cast<std::ptrdiff_t>(index));
  reason_ = reason;
  context_.rails.lose(track.rail, cause, reason);
  std::vector<std::uint32_t> units;
  for (const auto number : track.posted) {
    unstage(number, false);
    units.push_back(number);
  }
  units.insert(units.end(), track.todo.begin(), track.todo.end());
  if (cause == Rails::Cause::kRefused) went_elsewhere_ = false;  // no fault of the path's, and at least one block ended by it
  return place_all(std::move(units));
}

// ---------------------------------------------------------------- waiting

Batch::Time Batch::patience_ends(const Track& track) const {
  std::uint64_t bytes = 0;
  for (const auto number : track.posted) bytes += plan_->units()[number].length;
  const auto retries = std::chrono::nanoseconds(4096) * (std::int64_t{1} << context_.options.ack_timeout) * (context_.options.retries + 1);
  const auto moving = std::chrono::microseconds(bytes / kSlowestBytesPerMicrosecond);
  return track.heard + std::chrono::duration_cast<Deadline::Clock::duration>(kPatience * retries + kGrace + moving);
}

Batch::Time Batch::patience_ends() const {
  Time first = deadline_.time();
  for (const Track& track : tracks_) {
    if (!track.posted.empty()) first = std::min(first, patience_ends(track));
  }
  return first;
}

Batch::Fate Batch::lose_silent() {
  const auto now = Deadline::Clock::now();
  for (std::size_t i = 0; i < tracks_.size(); ++i) {
    if (tracks_[i].posted.empty() || patience_ends(tracks_[i]) > now) continue;
    const auto silent = std::chrono::duration_cast<std::chrono::milliseconds>(now - tracks_[i].heard);
    return lose(i, Rails::Cause::kPath,
                "the NIC reported nothing for " + std::to_string(silent.count()) + " ms, neither success nor failure");
  }
  return Fate::kGoesOn;
}

Batch::Fate Batch::wait() {
  if (!outstanding()) {
    if (!waiting_units()) return Fate::kGoesOn;
    // Other batches have all the staging memory; they give it back.
    if (context_.staging.wait_for_one(deadline_)) return Fate::kGoesOn;
    give_up(context_.cancelled.load() ? cancelled() : timed_out());
    return Fate::kGoesOn;
  }
  const auto begun = Deadline::Clock::now();
  bool any = false;
  if (poll_all(any) == Fate::kOver) return Fate::kOver;
  if (any) return Fate::kGoesOn;
  const auto until = patience_ends();
  const bool poll_on = context_.options.waiting == Waiting::kPoll;
  const auto budget = context_.options.waiting == Waiting::kAdaptive ? context_.spin.budget() : net::SpinPolicy::Duration::zero();
  if (poll_on || budget.count() > 0) {
    std::optional<net::SpinPolicy::Turn> turn;
    if (!poll_on) turn.emplace();
    while (!any && (poll_on ? Deadline::Clock::now() < until : turn->granted() && Deadline::Clock::now() - begun < budget)) {
      net::SpinPolicy::relax();
      if (poll_all(any) == Fate::kOver) return Fate::kOver;
    }
  }
  while (!any) {
    if (deadline_.expired()) {
      quit(timed_out());
      return Fate::kOver;
    }
    if (Deadline::Clock::now() >= until) return lose_silent();
    if (sleep(any, until) == Fate::kOver) return Fate::kOver;
  }
  context_.spin.record(Deadline::Clock::now() - begun);
  return Fate::kGoesOn;
}

// Until something happened on a rail, or that time.
Batch::Fate Batch::sleep(bool& any, Time until) {
  for (std::size_t i = 0; i < tracks_.size(); ++i) {
    if (tracks_[i].posted.empty()) continue;
    const Status status = tracks_[i].rail->queue_pair->arm();
    if (status.ok()) continue;
    any = true;
    return lose(i, Rails::Cause::kPath, status.message());
  }
  if (poll_all(any) == Fate::kOver) return Fate::kOver;
  if (any) return Fate::kGoesOn;
  std::vector<pollfd> waiting;
  std::vector<QueuePair*> queue_pairs;
  for (const Track& track : tracks_) {
    if (track.posted.empty()) continue;
    waiting.push_back({track.rail->queue_pair->event_fd(), POLLIN, 0});
    queue_pairs.push_back(track.rail->queue_pair.get());
  }
  static_cast<void>(::poll(waiting.data(), waiting.size(), Deadline::at(until).left_ms()));
  for (std::size_t i = 0; i < waiting.size(); ++i) {
    if (waiting[i].revents != 0) queue_pairs[i]->clear_event();
  }
  return poll_all(any);
}

// ---------------------------------------------------------------- outcomes

void Batch::end_block(std::uint32_t block, Status status) {
  BlockState& state = block_states_[block];
  if (state.ended) return;
  state.ended = true;
  --blocks_left_;
  blocks_[block].status = std::move(status);
}

void Batch::end_those_with_key_of(std::uint32_t block, const Status& status) {
  const ServedRange* const range = blocks_[block].range;
  for (std::uint32_t i = 0; i < blocks_.size(); ++i) {
    if (block_states_[i].ended) continue;
    if (blocks_[i].range == range || blocks_[i].range->remote_keys == range->remote_keys) end_block(i, status);
  }
}

void Batch::give_up(const Status& status) {
  for (std::uint32_t i = 0; i < blocks_.size(); ++i) end_block(i, status);
  for (Track& track : tracks_) track.todo.clear();
}

void Batch::quit(const Status& status) {
  context_.rails.destroy_all();
  over_ = true;
  tracks_.clear();
  give_up(status);
}

std::string Batch::what() const {
  const bool read = !blocks_.empty() && blocks_.front().operation == Operation::kRead;
  return std::string("RDMA ") + (read ? "read from " : "write to ") + context_.rails.paths().peer();
}

Status Batch::cancelled() const { return {ErrorCode::kCancelled, what() + " was cancelled"}; }

Status Batch::timed_out() const {
  const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(Deadline::Clock::now() - begun_);
  return {ErrorCode::kRpcTimeout, what() + ": " + std::to_string(plan_->bytes()) + " bytes were not through within the deadline, " +
                                      std::to_string(waited.count()) + " ms after they began: the peer or the network is stopped or slow"};
}

Status Batch::no_path() const {
  const std::string trouble = context_.rails.paths().trouble(context_.memory.devices());
  return {ErrorCode::kUnavailable, what() + ": no path is left (" + (trouble.empty() ? reason_ : trouble) + ")"};
}

}  // namespace moonpool::transfer::rdma
