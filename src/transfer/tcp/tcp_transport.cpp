#include "transfer/tcp/tcp_transport.h"

#include <algorithm>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/run_together.h"
#include "transfer/tcp/exchange.h"

namespace moonpool::transfer {

namespace {

constexpr FrameSize kMostInFrame{TcpTransport::kFrameEntries, TcpTransport::kFrameBytes, TcpTransport::kFrameKeyBytes};

// `exchange(lane)` over a lane of the pool, once more over another if the peer had closed the first before it said a word.
template <typename Exchange>
Status exchange_with_retry(net::LanePool& lanes, const Peer& peer, const Exchange& exchange, Deadline deadline) {
  for (bool again : {true, false}) {
    auto lane = lanes.acquire(peer.endpoint, deadline);
    if (!lane.ok()) return lane.status();
    auto result = exchange(**lane);
    const bool lost = result.path.code() == ErrorCode::kUnavailable && !result.answered;
    if (!lost || !again) return result.path;
  }
  return {};  // not reached
}

// Frame after frame over one lane at a time. Once the path has failed, the rest fails with it rather than waiting for it again.
template <typename Operation, typename Exchange>
void run_stripe(net::LanePool& lanes, const Peer& peer, std::span<Outgoing<Operation>> stripe, const Exchange& exchange,
                Deadline deadline) {
  auto rest = stripe;
  Status path;
  while (!rest.empty() && path.ok()) {
    const auto frame = next_frame(rest, kMostInFrame);
    path = exchange_with_retry(
        lanes, peer, [&](net::Lane& lane) { return exchange(lane, frame); }, deadline);
    rest = rest.subspan(frame.size());
  }
  if (path.ok()) return;
  for (auto& item : stripe) {
    if (!item.settled) item.operation->status = path;
  }
}

// At most `most` consecutive parts of about the same number of bytes.
template <typename Operation>
std::vector<std::span<Outgoing<Operation>>> cut(std::span<Outgoing<Operation>> selected, std::size_t most) {
  std::uint64_t left = 0;
  for (const auto& item : selected) left += size_of(*item.operation).bytes;
  std::size_t parts = std::clamp<std::size_t>(left / TcpTransport::kStripeBytes, 1, most);
  std::vector<std::span<Outgoing<Operation>>> stripes;
  while (parts > 1) {
    const std::uint64_t share = left / parts--;
    std::uint64_t bytes = 0;
    std::size_t count = 0;
    while (count < selected.size() && bytes < share) bytes += size_of(*selected[count++].operation).bytes;
    stripes.push_back(selected.first(count));
    selected = selected.subspan(count);
    left -= bytes;
  }
  stripes.push_back(selected);
  std::erase_if(stripes, [](const auto& stripe) { return stripe.empty(); });
  return stripes;
}

template <typename Operation, typename Exchange>
void run(net::LanePool& lanes, const Peer& peer, std::span<Operation> operations, std::size_t most_stripes, const Exchange& exchange,
         Deadline deadline) {
  auto selected = select(operations);
  if (most_stripes == 1)
    return run_stripe(lanes, peer, std::span(selected), exchange, deadline);  // nothing to weigh, on the small batches' way
  const auto stripes = cut(std::span(selected), most_stripes);
  if (stripes.size() == 1) return run_stripe(lanes, peer, stripes.front(), exchange, deadline);
  std::vector<std::function<void()>> jobs;
  jobs.reserve(stripes.size());
  for (const auto& stripe : stripes) jobs.emplace_back([&, stripe] { run_stripe(lanes, peer, stripe, exchange, deadline); });
  run_together(jobs);
}

// A batch counts while it lives, and gets its share of the stripes.
class Share {
 public:
  Share(std::atomic<std::size_t>& batches, std::size_t stripes)
      : batches_(batches), stripes_(std::max<std::size_t>(1, stripes / (batches.fetch_add(1, std::memory_order_relaxed) + 1))) {}
  ~Share() { batches_.fetch_sub(1, std::memory_order_relaxed); }
  Share(const Share&) = delete;
  Share& operator=(const Share&) = delete;
  [[nodiscard]] std::size_t stripes() const { return stripes_; }

 private:
  std::atomic<std::size_t>& batches_;
  const std::size_t stripes_;
};

}  // namespace

std::size_t TcpTransport::stripes_of_this_machine() {
  return std::clamp<std::size_t>(std::thread::hardware_concurrency() / kCoresPerStripe, 1, kMaxStripes);
}

void TcpTransport::write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) {
  const Share share(batches_, stripes_);
  run(
      lanes_, peer, operations, share.stripes(), [&](net::Lane& lane, auto frame) { return exchange_write(lane, frame, deadline); },
      deadline);
}

void TcpTransport::read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) {
  const Share share(batches_, stripes_);
  run(
      lanes_, peer, operations, share.stripes(), [&](net::Lane& lane, auto frame) { return exchange_read(lane, frame, verify_, deadline); },
      deadline);
}

}  // namespace moonpool::transfer
