// One session of SessionPool: a control lane, its rails, and the loan's operations. See peer_session.h.
//
// Threads: its holder's, but cancel() from any. Ownership: the pool's, or the lease's.
#pragma once

#include <atomic>
#include <memory>

#include "net/spin_policy.h"
#include "transfer/rdma/batch.h"
#include "transfer/rdma/rails.h"
#include "transfer/rdma/staging.h"

namespace moonpool::transfer::rdma {

// What all sessions of a pool share; outlives them.
struct SessionShared {
  SessionShared(net::Identity identity, std::shared_ptr<MemoryMap> map, Options chosen)
      : self(std::move(identity)), memory(std::move(map)), options(std::move(chosen)), staging(memory, options.staging_bytes) {}

  const net::Identity self;
  const std::shared_ptr<MemoryMap> memory;
  const Options options;
  Counters counters;
  Staging staging;
};

class Session final : public PeerSession {
 public:
  // `turn`: which of equally near rails its small batches take.
  Session(std::shared_ptr<SessionShared> shared, std::shared_ptr<PeerPaths> paths, std::unique_ptr<net::Lane> lane, std::size_t turn);
  ~Session() override;

  // Before each loan: rails that are missing are opened, when there is hope. kUnavailable when there is none at all.
  [[nodiscard]] Status prepare(Deadline deadline);
  // May be lent again.
  [[nodiscard]] bool usable() const;
  // What its holder does ends with kCancelled soon. Any thread.
  void cancel();

  [[nodiscard]] net::Lane& control() override { return *lane_; }
  [[nodiscard]] Result<std::shared_ptr<const ServedRanges>> served(const Incarnation& incarnation, Deadline deadline) override;
  void forget(const Incarnation& incarnation) override { paths_->forget(incarnation); }
  void move(std::span<Block> blocks, Deadline deadline) override;
  [[nodiscard]] std::vector<std::uint32_t> take_broken() override { return rails_.take_broken(); }
  void end() override;
  [[nodiscard]] bool has_rails() const { return !rails_.all().empty(); }
  // The peer answers, and yet no rail is left.
  [[nodiscard]] bool without_path() const { return !ended_ && !has_rails() && lane_->healthy(); }

 private:
  const std::shared_ptr<SessionShared> shared_;
  const std::shared_ptr<PeerPaths> paths_;
  const std::unique_ptr<net::Lane> lane_;
  const std::size_t turn_;
  Rails rails_;
  net::SpinPolicy spin_;
  std::atomic<bool> cancelled_{false};
  bool ended_ = false;
};

}  // namespace moonpool::transfer::rdma
