#include "transfer/rdma/verbs/verbs_queue_pair.h"

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/logging.h"
#include "transfer/rdma/gid_choice.h"
#include "transfer/rdma/verbs/error_text.h"
#include "transfer/rdma/verbs/mtu.h"
#include "transfer/rdma/verbs/outcome.h"

namespace moonpool::transfer::rdma {
namespace {

constexpr std::size_t kPollAtOnce = 16;
constexpr std::uint8_t kHopLimit = 64;
constexpr std::uint8_t kReceiverNotReadyRetries = 6;  // one-sided work never waits for a receive
constexpr std::uint8_t kReceiverNotReadyTimer = 12;   // 0.64 ms
constexpr const char* kEnded = "the connection was broken by the peer, or by the NIC";

// Sequence numbers that start anywhere keep packets of an earlier queue pair of the same number out.
std::uint32_t random_packet_number() {
  std::uint32_t number = 0;
  [[maybe_unused]] const ssize_t got = ::getrandom(&number, sizeof number, 0);
  return number & 0xffffff;
}

ibv_gid gid_of(const Gid& gid) {
  ibv_gid raw{};
  std::copy(gid.bytes.begin(), gid.bytes.end(), raw.raw);
  return raw;
}

// The kernel numbers completion vectors by interrupt; queue pairs take turns.
int next_completion_vector(const ibv_context& context) {
  static std::atomic<unsigned> turn{0};
  return context.num_comp_vectors <= 1 ? 0 : static_cast<int>(turn.fetch_add(1) % static_cast<unsigned>(context.num_comp_vectors));
}

}  // namespace

Result<std::unique_ptr<QueuePair>> VerbsQueuePair::make(Port& port, const QueuePairOptions& options, ConnectionManager* manager) {
  std::unique_ptr<VerbsQueuePair> made(new VerbsQueuePair(port, options));
  MOONPOOL_RETURN_IF_ERROR(made->create());
  if (manager == nullptr) {
    MOONPOOL_RETURN_IF_ERROR(made->initialise());
    return std::unique_ptr<QueuePair>(std::move(made));
  }
  const ManagedQueuePair managed{made->queue_pair_, &made->options_, &made->connected_, [own = made.get()] { own->end(); }};
  if (options.role == Role::kPassive) {
    auto expected = manager->expect(managed, options.gid);
    if (!expected.ok()) return expected.status();
    made->connection_ = std::move(*expected);
  } else {
    made->connection_ = manager->prepare(managed);
  }
  return std::unique_ptr<QueuePair>(std::move(made));
}

VerbsQueuePair::VerbsQueuePair(Port& port, const QueuePairOptions& options)
    : port_(port),
      options_(options),
      follows_by_read_(port.info.iwarp),
      first_packet_(random_packet_number()),
      ring_(std::clamp<std::uint32_t>(options.work_requests, 1, port.info.max_work_requests) * (follows_by_read_ ? 2U : 1U)) {
  chain_.reserve(ring_.size());
}

Status VerbsQueuePair::create() {
  const Verbs& verbs = *port_.verbs;
  channel_ = verbs.create_comp_channel(port_.context);
  if (channel_ == nullptr) {
    return {ErrorCode::kUnavailable, fmt::format("{}: no completion channel: {}", port_.info.name, error_text(errno))};
  }
  ::fcntl(channel_->fd, F_SETFL, ::fcntl(channel_->fd, F_GETFL) | O_NONBLOCK);
  if (follows_by_read_) MOONPOOL_RETURN_IF_ERROR(make_end_audible());
  const int entries = static_cast<int>(ring_.size()) + 1;  // as many as there can be failures, and one for the receive queue
  completions_ = verbs.create_cq(port_.context, entries, nullptr, channel_, next_completion_vector(*port_.context));
  if (completions_ == nullptr) {
    return {ErrorCode::kUnavailable, fmt::format("{}: no completion queue of {} entries: {}", port_.info.name, entries, error_text(errno))};
  }
  ibv_qp_init_attr attributes{};
  attributes.qp_context = this;
  attributes.send_cq = completions_;
  attributes.recv_cq = completions_;
  attributes.cap.max_send_wr = static_cast<std::uint32_t>(ring_.size());
  attributes.cap.max_recv_wr = 1;  // never posted; some drivers refuse a queue of none
  attributes.cap.max_send_sge = std::max(port_.info.max_pieces, port_.info.max_read_pieces);
  attributes.cap.max_recv_sge = 1;
  attributes.qp_type = IBV_QPT_RC;
  queue_pair_ = verbs.create_qp(port_.domain, &attributes);
  if (queue_pair_ == nullptr) {
    return {ErrorCode::kUnavailable, fmt::format("{}: no queue pair for {} work requests of {} pieces: {}", port_.info.name, ring_.size(),
                                                 port_.info.max_pieces, error_text(errno))};
  }
  return {};
}

Status VerbsQueuePair::make_end_audible() {
  end_event_ = net::UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  waiting_ = net::UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  for (const int descriptor : {channel_->fd, end_event_.get()}) {
    epoll_event readable{};
    readable.events = EPOLLIN;
    if (::epoll_ctl(waiting_.get(), EPOLL_CTL_ADD, descriptor, &readable) == 0) continue;
    return {ErrorCode::kUnavailable, fmt::format("{}: no descriptors for a queue pair: {}", port_.info.name, error_text(errno))};
  }
  return {};
}

VerbsQueuePair::~VerbsQueuePair() {
  const Verbs& verbs = *port_.verbs;
  if (connection_) connection_->let_go();
  if (queue_pair_ != nullptr) {
    if (const int error = verbs.destroy_qp(queue_pair_); error != 0) {
      // Never seen. In the error state it takes no packet either.
      log::error("{}: queue pair {} could not be destroyed: {}", port_.info.name, queue_pair_->qp_num, error_text(error));
      break_off();
    }
  }
  clear_event();
  if (completions_ != nullptr) verbs.destroy_cq(completions_);
  if (channel_ != nullptr) verbs.destroy_comp_channel(channel_);
}

QueuePairAddress VerbsQueuePair::address() const {
  QueuePairAddress address;
  address.number = queue_pair_->qp_num;
  address.first_packet = first_packet_;
  address.lid = port_.lid;
  address.mtu = options_.mtu != 0 ? std::min(options_.mtu, port_.info.mtu) : port_.info.mtu;
  address.reads_in = port_.info.max_reads_in;
  address.gid = options_.gid;
  if (connection_) connection_->describe(address);
  return address;
}

Status VerbsQueuePair::modify(ibv_qp_attr& attributes, int mask, const char* step) {
  const int error = port_.verbs->modify_qp(queue_pair_, &attributes, mask);
  if (error == 0) return {};
  return {ErrorCode::kUnavailable, fmt::format("{}: a queue pair cannot become {}: {}", port_.info.name, step, error_text(error))};
}

Status VerbsQueuePair::initialise() {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_INIT;
  attributes.pkey_index = 0;
  attributes.port_num = static_cast<std::uint8_t>(port_.info.port);
  // A user of memory serves none: the peer has no right over this queue pair, whatever keys it knows.
  attributes.qp_access_flags = options_.role == Role::kPassive ? IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE : 0;
  return modify(attributes, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS, "ready to be connected");
}

Status VerbsQueuePair::connect(const QueuePairAddress& peer, const Gid& from) {
  if (broken_) return {ErrorCode::kUnavailable, port_.info.name + ": the queue pair is broken"};
  if (!connection_) return connect_directly(peer, from);
  if (options_.role == Role::kPassive) return {};
  return connection_->connect(peer, from);
}

Status VerbsQueuePair::connect_directly(const QueuePairAddress& peer, const Gid& from) {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_RTR;
  attributes.path_mtu = mtu_of_bytes(std::min(address().mtu, peer.mtu == 0 ? address().mtu : peer.mtu));
  attributes.dest_qp_num = peer.number;
  attributes.rq_psn = peer.first_packet;
  attributes.max_dest_rd_atomic = static_cast<std::uint8_t>(std::min(port_.info.max_reads_in, 255U));
  attributes.min_rnr_timer = kReceiverNotReadyTimer;
  attributes.ah_attr.port_num = static_cast<std::uint8_t>(port_.info.port);
  attributes.ah_attr.sl = static_cast<std::uint8_t>(options_.service_level);
  attributes.ah_attr.dlid = static_cast<std::uint16_t>(peer.lid);
  // InfiniBand needs a global route only between subnets, or where the port asks for it.
  const bool other_subnet = !std::equal(from.bytes.begin(), from.bytes.begin() + 8, peer.gid.bytes.begin());
  if (!port_.info.infiniband || port_.needs_global_route || other_subnet || peer.lid == 0) {
    attributes.ah_attr.is_global = 1;
    attributes.ah_attr.grh.dgid = gid_of(peer.gid);
    attributes.ah_attr.grh.sgid_index = static_cast<std::uint8_t>(from.index);
    attributes.ah_attr.grh.hop_limit = kHopLimit;
    attributes.ah_attr.grh.traffic_class = static_cast<std::uint8_t>(options_.traffic_class);
  }
  Status status = modify(
      attributes,
      IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER,
      "ready to receive");
  if (!status.ok()) {
    return {status.code(), fmt::format("{} (from {} to {})", status.message(), text_of(from), text_of(peer.gid))};
  }
  attributes = {};
  attributes.qp_state = IBV_QPS_RTS;
  attributes.sq_psn = first_packet_;
  attributes.timeout = static_cast<std::uint8_t>(options_.ack_timeout);
  attributes.retry_cnt = static_cast<std::uint8_t>(options_.retries);
  attributes.rnr_retry = kReceiverNotReadyRetries;
  attributes.max_rd_atomic = static_cast<std::uint8_t>(std::min({port_.info.max_reads_out, std::max(peer.reads_in, 1U), 255U}));
  MOONPOOL_RETURN_IF_ERROR(
      modify(attributes, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC,
             "ready to send"));
  connected_ = true;
  return {};
}

Status VerbsQueuePair::check(std::span<const WorkRequest> requests) const {
  if (broken_) return {ErrorCode::kUnavailable, port_.info.name + ": the queue pair is broken"};
  if (!connected_) return {ErrorCode::kUnavailable, port_.info.name + ": the queue pair is not connected"};
  std::size_t needed = 0;
  for (const WorkRequest& request : requests) {
    const std::size_t most = request.operation == WorkRequest::Operation::kRead ? port_.info.max_read_pieces : port_.info.max_pieces;
    if (request.pieces.size() > most) {
      return {ErrorCode::kInternal,
              fmt::format("{}: {} pieces in one work request, {} are allowed", port_.info.name, request.pieces.size(), most)};
    }
    needed += slots(request);
  }
  if (const std::size_t room = ring_.size() - static_cast<std::size_t>(posted_ - done_); needed > room) {
    return {ErrorCode::kInternal, fmt::format("{}: the queue has room for {} work requests, not for {}", port_.info.name, room, needed)};
  }
  return {};
}

void VerbsQueuePair::add(const WorkRequest& request, bool signalled, std::uint64_t id) {
  const std::uint64_t sequence = posted_ + chain_.size();
  ring_[sequence % ring_.size()] = {id, true, false};
  ibv_send_wr& work = chain_.emplace_back();
  work = {};
  work.wr_id = sequence;
  work.opcode = request.operation == WorkRequest::Operation::kRead ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE;
  if (signalled) work.send_flags = IBV_SEND_SIGNALED;
  work.wr.rdma.remote_addr = request.remote_address;
  work.wr.rdma.rkey = request.remote_key;
  work.sg_list = pieces_.data() + pieces_.size();
  work.num_sge = static_cast<int>(request.pieces.size());
  for (const WorkRequest::Piece& piece : request.pieces) pieces_.push_back({piece.address, piece.length, piece.local_key});
  if (chain_.size() > 1) chain_[chain_.size() - 2].next = &work;
}

Status VerbsQueuePair::post(std::span<const WorkRequest> requests) {
  if (requests.empty()) return {};
  MOONPOOL_RETURN_IF_ERROR(check(requests));
  chain_.clear();
  pieces_.clear();
  std::size_t pieces = 0;
  for (const WorkRequest& request : requests) pieces += request.pieces.size() + 1;
  pieces_.reserve(pieces);  // so that its address holds
  for (const WorkRequest& request : requests) {
    if (!follows_by_read_ || !wants_follow_up(request)) {
      add(request, request.signalled, request.id);
      continue;
    }
    add(request, false, request.id);
    const WorkRequest::Piece sink{reinterpret_cast<std::uint64_t>(port_.sink.data()), 1, port_.sink_registration->local_key()};
    add({request.id, WorkRequest::Operation::kRead, true, request.remote_address, request.remote_key, {&sink, 1}}, true, request.id);
    ring_[(posted_ + chain_.size() - 2) % ring_.size()].has_follow_up = true;
  }
  ibv_send_wr* refused = nullptr;
  const int error = ::ibv_post_send(queue_pair_, chain_.data(), &refused);
  if (error == 0) {
    posted_ += chain_.size();
    return {};
  }
  const auto taken = refused == nullptr ? std::size_t{0} : static_cast<std::size_t>(refused - chain_.data());
  for (std::size_t i = 0; i < taken; ++i) ring_[(posted_ + i) % ring_.size()].reported = false;
  posted_ += taken;
  if (taken > 0) break_off();
  const bool broken = taken > 0 || broken_ || error == ENOTCONN || error == EIO;
  if (broken) mark_broken();
  return {broken ? ErrorCode::kUnavailable : ErrorCode::kInternal,
          fmt::format("{}: work request {} of {} was refused: {}", port_.info.name, taken + 1, chain_.size(), error_text(error))};
}

std::size_t VerbsQueuePair::poll(std::span<Completion> into) {
  std::size_t count = 0;
  const bool ended = follows_by_read_ && ended_.load(std::memory_order_acquire);  // before the completions are taken, which it follows
  while (count < into.size() && !cut_off_) {
    std::array<ibv_wc, kPollAtOnce> some;
    const int wanted = static_cast<int>(std::min(some.size(), into.size() - count));
    const int got = ::ibv_poll_cq(completions_, wanted, some.data());
    if (got < 0) {
      mark_broken();
      return count;
    }
    for (int i = 0; i < got && !cut_off_; ++i) {
      const ibv_wc& work = some[static_cast<std::size_t>(i)];
      if (follows_by_read_ && work.status != IBV_WC_SUCCESS) {
        cut_off(work);
        break;
      }
      const Posted posted = ring_[work.wr_id % ring_.size()];
      done_ = work.wr_id + 1;
      Completion completion{posted.id, outcome_of(work.status), ""};
      if (completion.outcome != Completion::Outcome::kDone) {
        // What broke it was said by the first failure; without one, the connection ended under it.
        completion.reason = port_.verbs->wc_status_str(work.status);
        if (completion.outcome == Completion::Outcome::kFlushed && !failure_reported_ && !broken_off_) {
          completion = {posted.id, Completion::Outcome::kPath, kEnded};
        }
        failure_reported_ = true;
        mark_broken();
      }
      if (posted.reported) into[count++] = completion;
    }
    if (got == wanted) continue;
    if (ended && !cut_off_) {
      ibv_wc none{};
      none.wr_id = done_;
      none.status = IBV_WC_WR_FLUSH_ERR;
      cut_off(none);
    }
    break;
  }
  return count + report_cut_off(into.subspan(count));
}

void VerbsQueuePair::cut_off(const ibv_wc& work) {
  cut_off_ = true;
  mark_broken();
  // iWARP's word for work that was under way when the connection ended, for whatever reason (seen with soft-iWARP).
  const bool cut_short = work.status == IBV_WC_LOC_QP_OP_ERR || work.status == IBV_WC_WR_FLUSH_ERR;
  const bool of_the_first = work.wr_id == done_ || (work.wr_id == done_ + 1 && ring_[done_ % ring_.size()].has_follow_up);
  if (cut_short && broken_off_) {
    cut_off_by_ = {0, Completion::Outcome::kFlushed, port_.verbs->wc_status_str(IBV_WC_WR_FLUSH_ERR)};
  } else if (cut_short || !of_the_first) {
    cut_off_by_ = {0, Completion::Outcome::kPath, kEnded};
  } else {
    cut_off_by_ = {0, outcome_of(work.status), port_.verbs->wc_status_str(work.status)};
  }
}

std::size_t VerbsQueuePair::report_cut_off(std::span<Completion> into) {
  std::size_t count = 0;
  while (cut_off_ && count < into.size() && done_ < posted_) {
    const Posted posted = ring_[done_ % ring_.size()];
    done_ = std::min(posted_, done_ + (posted.has_follow_up ? 2 : 1));
    if (!posted.reported) continue;
    into[count++] = {posted.id, cut_off_by_.outcome, cut_off_by_.reason};
    cut_off_by_ = {0, Completion::Outcome::kFlushed, port_.verbs->wc_status_str(IBV_WC_WR_FLUSH_ERR)};
  }
  return count;
}

Status VerbsQueuePair::arm() {
  const int error = ::ibv_req_notify_cq(completions_, 0);
  if (error == 0) return {};
  return {ErrorCode::kUnavailable, fmt::format("{}: the completion queue cannot be armed: {}", port_.info.name, error_text(error))};
}

void VerbsQueuePair::clear_event() {
  if (channel_ == nullptr || completions_ == nullptr) return;
  ibv_cq* queue = nullptr;
  void* context = nullptr;
  unsigned events = 0;
  while (port_.verbs->get_cq_event(channel_, &queue, &context) == 0) ++events;
  if (events > 0) port_.verbs->ack_cq_events(completions_, events);
}

void VerbsQueuePair::break_off() {
  if (!broken_off_.exchange(true)) end();
}

void VerbsQueuePair::end() {
  mark_broken();
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_ERR;
  // Refused where it is in error already, or has never left the reset state: then there is nothing to flush.
  [[maybe_unused]] const int error = port_.verbs->modify_qp(queue_pair_, &attributes, IBV_QP_STATE);
  ended_.store(true, std::memory_order_release);
  const std::uint64_t one = 1;
  if (end_event_.get() >= 0) [[maybe_unused]]
    const ssize_t written = ::write(end_event_.get(), &one, sizeof one);  // fails only when it is readable already
}

}  // namespace moonpool::transfer::rdma
