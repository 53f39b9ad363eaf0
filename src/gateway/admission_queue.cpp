#include "gateway/admission_queue.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace moonpool::gateway {

namespace {

constexpr double kRateMemoryS = 30;
constexpr double kLongestEstimateS = 1e6;
constexpr std::size_t kIdleFlowsKept = 16;

double seconds(AdmissionQueue::Clock::duration duration) { return std::max(0.0, std::chrono::duration<double>(duration).count()); }

}  // namespace

std::string_view name_of(Shed cause) {
  constexpr std::string_view kNames[kShedCauses] = {"queue_full",    "over_share",   "displaced", "deadline",
                                                    "queue_timeout", "request_rate", "token_rate"};
  return kNames[static_cast<std::size_t>(cause)];
}

void AdmissionQueue::ServiceRate::finished(double cost, Time now) {
  const double elapsed = seconds(now - last_);
  const double kept = std::exp(-elapsed / kRateMemoryS);
  work_ = work_ * kept + cost;
  count_ = count_ * kept + 1;
  seconds_ = seconds_ * kept + elapsed;
  last_ = std::max(last_, now);
  ++ended_;
}

// A silence longer than usual counts too: what does not end slows the rate down.
double AdmissionQueue::ServiceRate::per_second(Time now) const {
  const double silence = seconds(now - last_);
  const double overdue = std::max(0.0, silence - seconds_ / count_);
  return work_ / std::max(1e-3, seconds_ + overdue);
}

void AdmissionQueue::change(QueueLimits limits, Time now) {
  const bool before = saturated();
  limits_ = limits;
  if (!before && saturated()) rate_.saturated_since(now);
}

AdmissionQueue::Arrival AdmissionQueue::arrive(Request& request, Time now) {
  Arrival arrival;
  request.charged = false;
  if (limits_.running == 0 || (!saturated() && waiting_ == 0)) {
    run(request, now);
    return arrival;
  }
  arrival.wait = estimate(request, now);
  if (request.deadline <= now || (arrival.wait && now + *arrival.wait > request.deadline)) {
    arrival.refused = Shed::kDeadline;
    return arrival;
  }
  const bool over_share = request.bytes <= limits_.waiting_bytes && !fits(request) && would_be_over_share(request);
  auto displaced = make_room(request);
  if (!displaced) {
    arrival.refused = over_share ? Shed::kOverShare : Shed::kQueueFull;
    return arrival;
  }
  arrival.displaced = std::move(*displaced);
  push(request);
  return arrival;
}

void AdmissionQueue::run(Request& request, Time now) {
  request.state = Request::State::kRunning;
  ++running_;
  if (saturated() && running_ == limits_.running) rate_.saturated_since(now);
}

void AdmissionQueue::push(Request& request) {
  Class& its_class = classes_[request.priority];
  Flow& flow = its_class.flows[request.flow];
  if (flow.waiting.empty()) {
    line_up(its_class, flow, std::max(its_class.now, flow.finish));
  }
  flow.weight = request.weight;
  request.place = flow.waiting.insert(flow.waiting.end(), &request);
  request.state = Request::State::kWaiting;
  flow.cost += request.cost;
  flow.bytes += request.bytes;
  ++waiting_;
  waiting_bytes_ += request.bytes;
}

void AdmissionQueue::line_up(Class& its_class, Flow& flow, double start) {
  flow.start = {start, turns_++};
  its_class.order.emplace(flow.start, &flow);
}

void AdmissionQueue::leave(Request& request) {
  const auto its_class = classes_.find(request.priority);
  Flow& flow = its_class->second.flows.find(request.flow)->second;
  flow.waiting.erase(request.place);
  request.state = Request::State::kOutside;
  flow.cost -= request.cost;
  flow.bytes -= request.bytes;
  --waiting_;
  waiting_bytes_ -= request.bytes;
  if (!flow.waiting.empty()) return;
  flow.cost = 0;  // without what rounding left
  its_class->second.order.erase(flow.start);
  if (its_class->second.order.empty()) {
    classes_.erase(its_class);  // nobody competes: nobody owes
  } else {
    forget_idle(its_class->second);
  }
}

AdmissionQueue::Request* AdmissionQueue::next(Time now) {
  if (waiting_ == 0 || saturated()) return nullptr;
  // A class is there only while something waits in it.
  Class& its_class = classes_.begin()->second;
  Flow& flow = *its_class.order.begin()->second;
  Request& request = *flow.waiting.front();
  its_class.now = flow.start.first;
  flow.finish = its_class.now + request.cost / flow.weight;
  if (flow.waiting.size() > 1) {
    its_class.order.erase(flow.start);
    line_up(its_class, flow, flow.finish);
  }
  leave(request);
  request.charged = true;
  run(request, now);
  return &request;
}

void AdmissionQueue::ended(Request& request, double actual_cost, Time now) {
  if (saturated()) rate_.finished(request.cost, now);
  --running_;
  request.state = Request::State::kOutside;
  if (!request.charged) return;
  const auto its_class = classes_.find(request.priority);
  if (its_class == classes_.end()) return;
  const auto found = its_class->second.flows.find(request.flow);
  if (found == its_class->second.flows.end()) return;
  Flow& flow = found->second;
  const double more = (actual_cost - request.cost) / flow.weight;
  flow.finish += more;
  if (flow.waiting.empty()) return;
  its_class->second.order.erase(flow.start);
  line_up(its_class->second, flow, std::max(its_class->second.now, flow.start.first + more));
}

std::size_t AdmissionQueue::waiting_of(const std::string& flow) const {
  std::size_t count = 0;
  for (const auto& [priority, its_class] : classes_) {
    const auto found = its_class.flows.find(flow);
    if (found != its_class.flows.end()) count += found->second.waiting.size();
  }
  return count;
}

std::optional<std::chrono::nanoseconds> AdmissionQueue::estimate(const Request& request, Time now) const {
  if (!rate_.known()) return std::nullopt;
  double ahead = rate_.mean_cost();  // until the first place is free
  for (const auto& [priority, its_class] : classes_) {
    if (priority > request.priority) break;
    if (priority < request.priority) {
      for (const auto& [start, flow] : its_class.order) ahead += flow->cost;
      continue;
    }
    const auto own = its_class.flows.find(request.flow);
    double tag = its_class.now;
    if (own != its_class.flows.end()) {
      const Flow& flow = own->second;
      tag = flow.waiting.empty() ? std::max(tag, flow.finish) : flow.start.first + flow.cost / flow.weight;
    }
    for (const auto& [start, flow] : its_class.order) {
      if (start.first > tag) break;
      const bool is_own = own != its_class.flows.end() && flow == &own->second;
      ahead += is_own ? flow->cost : std::min(flow->cost, (tag - start.first) * flow->weight + flow->waiting.front()->cost);
    }
  }
  return std::chrono::nanoseconds(static_cast<std::int64_t>(std::min(kLongestEstimateS, ahead / rate_.per_second(now)) * 1e9));
}

bool AdmissionQueue::fits(const Request& request) const {
  return waiting_ < limits_.waiting && request.bytes <= limits_.waiting_bytes && waiting_bytes_ <= limits_.waiting_bytes - request.bytes;
}

std::optional<AdmissionQueue::Displaced> AdmissionQueue::make_room(const Request& request) {
  Displaced displaced;
  if (limits_.waiting == 0 || request.bytes > limits_.waiting_bytes) return std::nullopt;
  while (!fits(request)) {
    const auto victim = victim_for(request);
    if (!victim) {
      // Back to where they were: each was the newest of its flow.
      for (auto one = displaced.rbegin(); one != displaced.rend(); ++one) push(*one->first);
      return std::nullopt;
    }
    leave(*victim->first);
    displaced.push_back(*victim);
  }
  return displaced;
}

std::optional<std::pair<AdmissionQueue::Request*, Shed>> AdmissionQueue::victim_for(const Request& request) {
  if (classes_.empty()) return std::nullopt;
  const auto lowest = std::prev(classes_.end());
  if (lowest->first < request.priority) return std::nullopt;
  const bool same = lowest->first == request.priority;
  if (same && would_be_over_share(request)) return std::nullopt;
  const Class& its_class = lowest->second;
  const double all = same ? weights(its_class, request) : 1;  // in another class the order alone counts
  const Flow* most = nullptr;
  double most_used = 0;
  for (const auto& [start, flow] : its_class.order) {
    const double used = use_of_share(flow->waiting.size(), flow->bytes, flow->weight, all);
    if (used > most_used) {
      most = flow;
      most_used = used;
    }
  }
  if (most == nullptr || (same && most_used <= 1)) return std::nullopt;
  return std::pair(most->waiting.back(), same ? Shed::kOverShare : Shed::kDisplaced);
}

double AdmissionQueue::use_of_share(std::size_t requests, std::size_t bytes, double weight, double weights) const {
  const double share = weight / weights;
  const auto part = [share](std::size_t used, std::size_t limit) {
    return static_cast<double>(used) / (static_cast<double>(std::max<std::size_t>(1, limit)) * share);
  };
  return std::max(part(requests, limits_.waiting), part(bytes, limits_.waiting_bytes));
}

double AdmissionQueue::weights(const Class& its_class, const Request& request) {
  double all = request.weight;
  for (const auto& [start, flow] : its_class.order) {
    if (flow->waiting.front()->flow != request.flow) all += flow->weight;
  }
  return all;
}

bool AdmissionQueue::would_be_over_share(const Request& request) const {
  const auto its_class = classes_.find(request.priority);
  if (its_class == classes_.end()) return false;
  const auto own = its_class->second.flows.find(request.flow);
  const std::size_t count = own == its_class->second.flows.end() ? 0 : own->second.waiting.size();
  const std::size_t bytes = own == its_class->second.flows.end() ? 0 : own->second.bytes;
  return use_of_share(count + 1, bytes + request.bytes, request.weight, weights(its_class->second, request)) > 1;
}

void AdmissionQueue::forget_idle(Class& its_class) {
  if (its_class.flows.size() <= 2 * its_class.order.size() + kIdleFlowsKept) return;
  std::erase_if(its_class.flows, [&](const auto& entry) { return entry.second.waiting.empty() && entry.second.finish <= its_class.now; });
}

}  // namespace moonpool::gateway
