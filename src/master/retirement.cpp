#include "master/retirement.h"

#include <algorithm>
#include <boost/container/small_vector.hpp>

#include "master/segment.h"

namespace moonpool::master {

void Outbox::add(Segment& segment, Retirement order) {
  bool first_unsent = false;
  {
    const std::scoped_lock lock(mutex_);
    // A fence marks the segment first and sweeps this outbox next, so an order is either seen by that sweep or refused here.
    if (!segment.alive()) {
      if (order.ticket) order.ticket->fenced_ = true;
      return;
    }
    order.sequence = ++last_sequence_;
    order.segment = segment.shared_from_this();
    if (order.ticket) ++order.ticket->outstanding_;
    if (order.holds_space) segment.quarantine_.fetch_add(segment.rounded(order.length), std::memory_order_relaxed);
    orders_.emplace_hint(orders_.end(), order.sequence, std::move(order));
    first_unsent = unsent_++ == 0;
  }
  if (first_unsent && on_added_) on_added_();
}

std::vector<Retirement> Outbox::collect(TimeMs now, TimeMs resend_after, std::size_t limit) {
  std::vector<Retirement> due;
  {
    const std::scoped_lock lock(mutex_);
    for (auto it = orders_.begin(); it != orders_.end() && it->first <= sent_up_to_ && due.size() < limit; ++it) {
      if (it->second.withdrawn || it->second.sent + resend_after > now) continue;
      it->second.sent = now;
      due.push_back(it->second);
    }
  }
  for (bool more = true; more && due.size() < limit;) {
    const std::scoped_lock lock(mutex_);
    const auto slice = std::min(limit, due.size() + kSlice);
    auto it = orders_.upper_bound(sent_up_to_);
    for (; it != orders_.end() && due.size() < slice; ++it) {
      it->second.sent = now;
      sent_up_to_ = it->first;
      --unsent_;
      due.push_back(it->second);
    }
    more = it != orders_.end();
  }
  return due;
}

std::size_t Outbox::acknowledge(std::span<const std::uint64_t> sequences) {
  std::size_t over = 0;
  while (!sequences.empty()) {
    const auto slice = sequences.first(std::min(kSlice, sequences.size()));
    over += acknowledge_slice(slice);
    sequences = sequences.subspan(slice.size());
  }
  return over;
}

std::size_t Outbox::acknowledge_slice(std::span<const std::uint64_t> sequences) {
  boost::container::small_vector<Retirement, kSlice> over;
  {
    const std::scoped_lock lock(mutex_);
    for (const auto sequence : sequences) {
      const auto found = orders_.find(sequence);
      // What was never sent cannot have been carried out: the number is of another reign, or made up.
      if (found == orders_.end() || sequence > sent_up_to_) continue;
      over.push_back(std::move(found->second));
      orders_.erase(found);
    }
  }
  boost::container::small_vector<Segment::Extent, kSlice> extents;
  for (std::size_t i = 0; i < over.size(); ++i) {
    Segment& segment = *over[i].segment;
    if (over[i].holds_space) extents.push_back({over[i].offset, over[i].length});
    if (i + 1 < over.size() && over[i + 1].segment.get() == &segment) continue;
    if (!extents.empty()) segment.release(extents);
    extents.clear();
  }
  for (auto& order : over) {
    if (order.holds_space && order.withdrawn) order.segment->viewed_ -= order.segment->rounded(order.length);
    if (order.ticket) --order.ticket->outstanding_;
  }
  return over.size();
}

std::size_t Outbox::withdraw(std::span<const std::uint64_t> sequences) {
  std::size_t count = 0;
  const std::scoped_lock lock(mutex_);
  for (const auto sequence : sequences) {
    const auto found = orders_.find(sequence);
    if (found == orders_.end() || sequence > sent_up_to_ || found->second.withdrawn) continue;
    Retirement& order = found->second;
    order.withdrawn = true;
    if (order.holds_space) order.segment->viewed_ += order.segment->rounded(order.length);
    if (order.ticket) --order.ticket->outstanding_;
    order.ticket.reset();
    ++count;
  }
  return count;
}

void Outbox::drop(const Segment& segment) {
  std::vector<Retirement> over;
  {
    const std::scoped_lock lock(mutex_);
    for (auto it = orders_.begin(); it != orders_.end();) {
      if (it->second.segment.get() != &segment) {
        ++it;
        continue;
      }
      if (it->first > sent_up_to_) --unsent_;
      over.push_back(std::move(it->second));
      it = orders_.erase(it);
    }
  }
  for (auto& order : over) {
    if (!order.ticket) continue;
    order.ticket->fenced_ = true;
    --order.ticket->outstanding_;
  }
}

void Outbox::lose_all() {
  const std::scoped_lock lock(mutex_);
  for (auto& [sequence, order] : orders_) {
    if (order.ticket) order.ticket->lost_ = true;
  }
  orders_.clear();
  unsent_ = 0;
  sent_up_to_ = last_sequence_;
}

std::uint64_t Outbox::last_sequence() const {
  const std::scoped_lock lock(mutex_);
  return last_sequence_;
}

bool Outbox::all_over_up_to(std::uint64_t sequence) const {
  const std::scoped_lock lock(mutex_);
  const auto end = orders_.upper_bound(sequence);
  return std::all_of(orders_.begin(), end, [](const auto& order) { return order.second.withdrawn; });
}

std::size_t Outbox::outstanding() const {
  const std::scoped_lock lock(mutex_);
  return orders_.size();
}

}  // namespace moonpool::master
