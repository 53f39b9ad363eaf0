#include "gateway/admission.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <set>

namespace moonpool::gateway {

namespace {

constexpr const char* kNoKey = "-";  // no key is called that
constexpr std::int64_t kLongestRetryAfterS = 3600;

std::string retry_after(std::chrono::nanoseconds wait) {
  const auto whole = std::clamp<std::int64_t>(std::chrono::ceil<std::chrono::seconds>(wait).count(), 1, kLongestRetryAfterS);
  return "Retry-After: " + std::to_string(whole) + "\r\n";
}

std::string message_of(Shed cause, const std::string& key, std::chrono::nanoseconds wait) {
  const std::string later = fmt::format(": try again in {:.1f} s", std::max(0.1, std::chrono::duration<double>(wait).count()));
  switch (cause) {
    case Shed::kQueueFull:
      return "the gateway has as many requests waiting as it takes (--queue-requests, --queue-bytes)" + later;
    case Shed::kOverShare:
      return "the queue is full, and the key " + key + " has more than its share of it" + later;
    case Shed::kDisplaced:
      return "the queue is full, and a request of a higher priority took this one's place" + later;
    case Shed::kDeadline:
      return "this request would wait longer than it may (--queue-timeout, X-Request-Timeout-Ms)" + later;
    case Shed::kQueueTimeout:
      return "this request has waited as long as it may (--queue-timeout, X-Request-Timeout-Ms)" + later;
    case Shed::kRequestRate:
      return "the key " + key + " has used up its requests per minute" + later;
    case Shed::kTokenRate:
      return "the key " + key + " has used up its tokens per minute" + later;
  }
  return {};
}

bool is_rate(Shed cause) { return cause == Shed::kRequestRate || cause == Shed::kTokenRate; }

}  // namespace

struct Admission::Ticket final : AdmissionQueue::Request, Abortable, std::enable_shared_from_this<Ticket> {
  explicit Ticket(const Executor& the_executor) : executor(the_executor), alarm(the_executor) {}
  void abort() override { alarm.cancel(); }
  // From any thread; the request looks again.
  void wake() {
    asio::post(executor, [self = shared_from_this()] { self->alarm.cancel(); });
  }

  const Executor executor;
  Timer alarm;
  std::atomic<bool> decided{false};  // it runs, or `refusal` says why it does not; set with the mutex held
  std::optional<Refusal> refusal;
  Time arrived{};
  double prompt_tokens = 1;
  bool counted = false;  // its key's limits were charged
};

void Admission::configure(const Settings& settings) {
  const std::lock_guard lock(mutex_);
  const Time now = Clock::now();
  limits_ = settings.overload;
  std::set<std::string> names{kNoKey};
  for (const ApiKey& key : settings.keys.all()) {
    if (key.role != KeyRole::kClient) continue;
    names.insert(key.name);
    const auto [place, is_new] = keys_.try_emplace(key.name, key, now);
    if (!is_new) place->second.limit.change(key.requests_per_minute, key.tokens_per_minute, key.burst_s, now);
  }
  keys_.try_emplace(kNoKey, ApiKey{}, now);
  std::erase_if(keys_, [&](const auto& entry) { return !names.contains(entry.first); });
  apply_limits(now);
  active_.store(settings.keys.has(KeyRole::kClient) || limits_.concurrent != 0 || limits_.per_instance != 0, std::memory_order_relaxed);
}

void Admission::set_instances(std::size_t usable) {
  if (!active()) return;
  const std::lock_guard lock(mutex_);
  if (usable == instances_) return;
  instances_ = usable;
  apply_limits(Clock::now());
}

void Admission::apply_limits(Time now) {
  std::size_t running = limits_.concurrent;
  const std::size_t of_instances = limits_.per_instance * instances_;  // none: the request itself will say that there is none
  if (of_instances != 0) running = running == 0 ? of_instances : std::min(running, of_instances);
  queue_.change({running, limits_.queue_requests, limits_.queue_bytes}, now);
  wake_next(now);
}

void Admission::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

Admission::KeyUse* Admission::use_of(const std::string& key) {
  const auto found = keys_.find(key);
  return found == keys_.end() ? nullptr : &found->second;
}

Admission::Refusal Admission::refuse(const Ticket& ticket, Shed cause, std::chrono::nanoseconds retry_in, Time now) {
  if (cause == Shed::kOverShare && ticket.flow == kNoKey) cause = Shed::kQueueFull;  // all that come without a key share one
  shed_[static_cast<std::size_t>(cause)].fetch_add(1, std::memory_order_relaxed);
  Refusal refusal{cause, is_rate(cause) || cause == Shed::kOverShare ? 429U : 503U, message_of(cause, ticket.flow, retry_in),
                  retry_after(retry_in)};
  if (KeyUse* use = use_of(ticket.flow); use != nullptr) {
    ++(is_rate(cause) ? use->rate_limited : use->shed);
    if (ticket.counted) use->limit.give_back(ticket.prompt_tokens, now);
    refusal.fields += use->limit.fields(now);
  }
  return refusal;
}

std::optional<Admission::Refusal> Admission::arrive(Ticket& ticket, Time now) {
  KeyUse* use = use_of(ticket.flow);
  if (use != nullptr) {
    const auto taken = use->limit.take(ticket.prompt_tokens, now);
    if (taken.exceeded != RateLimit::Limit::kNone) {
      return refuse(ticket, taken.exceeded == RateLimit::Limit::kRequests ? Shed::kRequestRate : Shed::kTokenRate, taken.retry_in, now);
    }
    ticket.counted = true;
  }
  const auto arrival = queue_.arrive(ticket, now);
  for (const auto& [victim, cause] : arrival.displaced) decide(static_cast<Ticket&>(*victim), cause, now);
  if (arrival.refused) {
    auto refusal = refuse(ticket, *arrival.refused, arrival.wait.value_or(std::chrono::seconds(1)), now);
    ticket.counted = false;
    return refusal;
  }
  if (ticket.state == AdmissionQueue::Request::State::kRunning) {
    ticket.decided = true;
    if (use != nullptr) ++use->started;
    waits.record(std::chrono::nanoseconds(0));
  }
  return std::nullopt;
}

// One that waited and is not in the queue any more.
void Admission::decide(Ticket& ticket, Shed cause, Time now) {
  ticket.refusal = refuse(ticket, cause, queue_.estimate(ticket, now).value_or(std::chrono::seconds(1)), now);
  ticket.counted = false;
  ticket.decided = true;
  ticket.wake();
}

void Admission::wake_next(Time now) {
  while (!closed_) {
    auto* next = static_cast<Ticket*>(queue_.next(now));
    if (next == nullptr) return;
    if (KeyUse* use = use_of(next->flow); use != nullptr) ++use->started;
    waits.record(now - next->arrived);
    next->decided = true;
    next->wake();
  }
}

Task<Admission::Entry> Admission::enter(const ApiKey* key, std::string_view body, Time deadline, Cancellation& cancellation) {
  const Executor executor = co_await asio::this_coro::executor;
  const auto ticket = std::make_shared<Ticket>(executor);
  const RequestCost cost = request_cost(body);
  ticket->flow = key == nullptr ? kNoKey : key->name;
  ticket->weight = key == nullptr ? 1 : key->weight;
  const int allowed = key == nullptr ? 0 : key->priority;
  ticket->priority = std::max(cost.priority.value_or(allowed), allowed);
  ticket->bytes = body.size();
  ticket->prompt_tokens = static_cast<double>(cost.prompt_tokens);
  ticket->cost = static_cast<double>(std::max<std::uint64_t>(1, cost.prompt_tokens + cost.answer_tokens));
  Entry entry;
  entry.place.reset(new Place(*this, ticket));
  {
    const std::lock_guard lock(mutex_);
    ticket->arrived = Clock::now();
    ticket->deadline = ticket->arrived + limits_.queue_timeout;
    if (deadline != Time{}) ticket->deadline = std::min(ticket->deadline, deadline);
    entry.refusal = arrive(*ticket, ticket->arrived);
    if (const KeyUse* use = use_of(ticket->flow); use != nullptr && !entry.refusal)
      entry.place->fields_ = use->limit.fields(ticket->arrived);
  }
  if (entry.refusal) {
    entry.place.reset();
    co_return entry;
  }
  {
    const Cancellation::Scope scope(cancellation, *ticket);
    ticket->alarm.expires_at(ticket->deadline);
    while (!ticket->decided && !cancellation.cancelled() && Clock::now() < ticket->deadline) co_await ticket->alarm.async_wait(kAwait);
  }
  entry.refusal = settle(*ticket, cancellation.cancelled());
  if (entry.refusal || cancellation.cancelled()) {
    entry.place->end(0);
    entry.place.reset();
  }
  co_return entry;
}

std::optional<Admission::Refusal> Admission::settle(Ticket& ticket, bool client_gone) {
  const std::lock_guard lock(mutex_);
  if (ticket.decided) return std::move(ticket.refusal);
  if (client_gone) return std::nullopt;  // its place takes it out
  const Time now = Clock::now();
  auto refusal = refuse(ticket, Shed::kQueueTimeout, queue_.estimate(ticket, now).value_or(std::chrono::seconds(1)), now);
  queue_.leave(ticket);
  ticket.counted = false;
  return refusal;
}

void Admission::end(Ticket& ticket, std::optional<std::uint64_t> tokens) {
  const std::lock_guard lock(mutex_);
  const Time now = Clock::now();
  using State = AdmissionQueue::Request::State;
  KeyUse* use = use_of(ticket.flow);
  if (ticket.state == State::kWaiting) {
    queue_.leave(ticket);
    if (use != nullptr && ticket.counted) use->limit.give_back(ticket.prompt_tokens, now);
    return;
  }
  if (ticket.state != State::kRunning) return;
  const double actual = tokens ? static_cast<double>(*tokens) : ticket.prompt_tokens;
  queue_.ended(ticket, tokens ? std::max(1.0, actual) : ticket.cost, now);
  if (use != nullptr && ticket.counted) {
    use->limit.correct(actual - ticket.prompt_tokens, now);
    use->tokens += static_cast<std::uint64_t>(actual);
  }
  wake_next(now);
}

void Admission::Place::end(std::optional<std::uint64_t> tokens) {
  if (ticket_ == nullptr) return;
  admission_->end(*ticket_, tokens);
  ticket_.reset();
}

std::uint64_t Admission::Place::prompt_tokens() const {
  return ticket_ == nullptr ? 0 : static_cast<std::uint64_t>(ticket_->prompt_tokens);
}

Admission::Snapshot Admission::snapshot() const {
  const std::lock_guard lock(mutex_);
  Snapshot snapshot{queue_.running(), queue_.limits().running, queue_.waiting(), queue_.waiting_bytes(), {}, {}};
  if (queue_.waiting() != 0) {
    AdmissionQueue::Request one;
    one.flow = kNoKey;
    snapshot.estimated_wait = queue_.estimate(one, Clock::now());
  }
  for (const auto& [name, use] : keys_) {
    if (name == kNoKey && keys_.size() > 1) continue;  // with keys nobody comes without
    snapshot.keys.push_back({name, use.started, use.tokens, use.rate_limited, use.shed, queue_.waiting_of(name)});
  }
  return snapshot;
}

}  // namespace moonpool::gateway
