// A reliable connected queue pair on libibverbs, with a completion queue and a completion channel of its own.
//
// Work requests carry a sequence number, and a ring of that length keeps the caller's ids: so the room that unsignalled work gives back is
// known exactly, and a list that does not fit is refused before any of it is posted.
//
// iWARP is different in two ways. Queue pairs are connected by rdma_cm alone (connection_manager.h). And a write is complete there when the
// peer's TCP has it, not when it is in the peer's memory: so a read of one byte follows each signalled write and is reported in its place;
// the peer answers it after it has placed what came before (RFC 5040, section 5.5). It costs one work request for each signalled write.
// When the connection ends, all that was posted since the last read that was answered is reported as failed: writes without a signal among
// it are complete for the NIC, and may never have arrived.
//
// Fencing: ~VerbsQueuePair destroys the queue pair; the kernel returns from that once the NIC neither sends for it nor takes packets for
// it. Threads: as nic.h says; mark_broken() from any.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "net/unique_fd.h"
#include "transfer/rdma/nic.h"
#include "transfer/rdma/verbs/connection_manager.h"
#include "transfer/rdma/verbs/port.h"

namespace moonpool::transfer::rdma {

class VerbsQueuePair final : public QueuePair {
 public:
  // `manager`: null unless it is connected through rdma_cm.
  [[nodiscard]] static Result<std::unique_ptr<QueuePair>> make(Port& port, const QueuePairOptions& options, ConnectionManager* manager);
  ~VerbsQueuePair() override;
  VerbsQueuePair(const VerbsQueuePair&) = delete;
  VerbsQueuePair& operator=(const VerbsQueuePair&) = delete;

  [[nodiscard]] QueuePairAddress address() const override;
  [[nodiscard]] Status connect(const QueuePairAddress& peer, const Gid& from) override;
  [[nodiscard]] Status post(std::span<const WorkRequest> requests) override;
  [[nodiscard]] std::size_t poll(std::span<Completion> into) override;
  [[nodiscard]] Status arm() override;
  [[nodiscard]] int event_fd() const override { return waiting_.get() >= 0 ? waiting_.get() : channel_->fd; }
  void clear_event() override;
  void break_off() override;

  // The NIC's event thread: this queue pair is in error, whoever began it.
  void mark_broken() { broken_.store(true, std::memory_order_release); }

 private:
  struct Posted {
    std::uint64_t id = 0;
    bool reported = true;  // false: the caller does not hear of it: its list was refused half-way
    bool has_follow_up = false;
  };

  VerbsQueuePair(Port& port, const QueuePairOptions& options);
  Status create();
  Status make_end_audible();
  // Into the error state; any thread. iWARP: what the NIC does not report from now on, poll() does.
  void end();
  Status modify(ibv_qp_attr& attributes, int mask, const char* step);
  Status initialise();
  Status connect_directly(const QueuePairAddress& peer, const Gid& from);
  Status check(std::span<const WorkRequest> requests) const;
  // Appends one work request to the chain that is being built.
  void add(const WorkRequest& request, bool signalled, std::uint64_t id);
  // iWARP: the first failure, or the connection's end; nothing is asked of the NIC any more.
  void cut_off(const ibv_wc& work);
  // What it concerns: all that is not known to have been placed.
  std::size_t report_cut_off(std::span<Completion> into);
  std::size_t slots(const WorkRequest& request) const { return follows_by_read_ && wants_follow_up(request) ? 2 : 1; }
  static bool wants_follow_up(const WorkRequest& request) {
    return request.signalled && request.operation == WorkRequest::Operation::kWrite;
  }

  Port& port_;
  QueuePairOptions options_;
  const bool follows_by_read_;
  const std::uint32_t first_packet_;
  ibv_comp_channel* channel_ = nullptr;
  ibv_cq* completions_ = nullptr;
  ibv_qp* queue_pair_ = nullptr;
  std::unique_ptr<ManagedConnection> connection_;  // rdma_cm's end, when it is used

  std::atomic<bool> connected_{false};
  std::atomic<bool> broken_{false};
  std::atomic<bool> broken_off_{false};  // by this side's own will
  std::atomic<bool> ended_{false};       // end() is through
  // iWARP: readable once it is, for work that was posted too late to be flushed has no completion that could wake anybody (seen with
  // soft-iWARP). And what sleepers wait for: completions or that.
  net::UniqueFd end_event_;
  net::UniqueFd waiting_;
  bool failure_reported_ = false;
  bool cut_off_ = false;
  Completion cut_off_by_;  // for the next one that is reported

  std::vector<Posted> ring_;  // by sequence number, modulo its size
  std::uint64_t posted_ = 0;
  std::uint64_t done_ = 0;  // known to have been carried out, or to have failed
  // The chain under construction; kept, so that post() allocates nothing.
  std::vector<ibv_send_wr> chain_;
  std::vector<ibv_sge> pieces_;
};

}  // namespace moonpool::transfer::rdma
