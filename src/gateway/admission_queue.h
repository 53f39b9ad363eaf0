// Who starts next when not all can: a bounded queue with priorities, fair shares and an estimate of the wait.
//
// Lower priorities' numbers go first, strictly. Within a priority each key has a flow, and flows are served by start-time fair queueing: a
// request's start tag is where its flow's service has come to (at least where the queue has), its finish tag lies cost / weight behind it,
// the lowest start tag goes first, of equal ones the earlier. So keys that always have something waiting get service in proportion to their
// weights, whoever sends more; a key that was away gains nothing by it. Within a flow: first in, first out. Only the head of a flow has a
// tag: a request that leaves the middle costs its key nothing.
//
// The estimate: what is served before the request by those tags, divided by the rate at which cost was finished while all places were
// taken (decaying over half a minute). Unknown until three requests have ended; then nothing is refused for it.
//
// Full: a request displaces the newest waiting ones of higher priority numbers; else, if its key has less than its share of the queue,
// the newest of the key that exceeds its own the most. Shares are of the flows that wait in a priority, by weight.
//
// The clock is the caller's. Costs: log(flows) to come and go; a pass over the flows for an estimate and when full.
// Threads: one at a time. Ownership: requests are their callers', who take them out before they end (leave, ended).
#pragma once

#include <chrono>
#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace moonpool::gateway {

struct QueueLimits {
  std::size_t running = 0;  // at the same time; 0: any number, so that nothing ever waits
  std::size_t waiting = 1000;
  std::size_t waiting_bytes = std::size_t{256} << 20;

  friend bool operator==(const QueueLimits&, const QueueLimits&) = default;
};

// Why a request was not started.
enum class Shed {
  kQueueFull,     // and its key had no more than its share
  kOverShare,     // the queue was full, its key had more than its share
  kDisplaced,     // by one of a lower priority number
  kDeadline,      // it could not start before its deadline, by the estimate
  kQueueTimeout,  // it did not start in time
  kRequestRate,   // its key's limits
  kTokenRate,
};
inline constexpr std::size_t kShedCauses = 7;
[[nodiscard]] std::string_view name_of(Shed cause);

class AdmissionQueue {
 public:
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;
  struct Flow;
  // Where in its class's service a request starts; of equal ones the flow goes first that came to it first.
  using Tag = std::pair<double, std::uint64_t>;

  // One request. The members above the line are set before it arrives and stay as they are.
  struct Request {
    std::string flow;  // the key's name
    double weight = 1;
    int priority = 0;
    std::size_t bytes = 0;  // of its body, held while it waits
    double cost = 1;        // estimated tokens, at least 1
    Time deadline{};        // it is of no use to start later

    enum class State { kOutside, kWaiting, kRunning } state = State::kOutside;
    bool charged = false;                 // its flow was, because it waited
    std::list<Request*>::iterator place;  // among its flow's, while it waits
  };
  // Those of a key that wait in one priority.
  struct Flow {
    std::list<Request*> waiting;
    double weight = 1;
    Tag start{};        // of the one in front
    double finish = 0;  // of the one served last
    double cost = 0;    // of all that wait
    std::size_t bytes = 0;
  };

  explicit AdmissionQueue(QueueLimits limits) : limits_(limits) {}
  AdmissionQueue(const AdmissionQueue&) = delete;
  AdmissionQueue& operator=(const AdmissionQueue&) = delete;

  // Afterwards more may start: next(). What waits beyond new limits stays.
  void change(QueueLimits limits, Time now);

  struct Arrival {
    std::optional<Shed> refused;                       // neither started nor waiting
    std::optional<std::chrono::nanoseconds> wait;      // the estimate, where one was needed and could be made
    std::vector<std::pair<Request*, Shed>> displaced;  // no longer in the queue
  };
  // Afterwards it runs, waits, or is outside.
  [[nodiscard]] Arrival arrive(Request& request, Time now);
  // The next one to run, which runs now; null when there is none or no place.
  [[nodiscard]] Request* next(Time now);
  // Takes out one that waits.
  void leave(Request& request);
  // One that ran is over. `actual_cost` corrects what its flow was charged.
  void ended(Request& request, double actual_cost, Time now);

  [[nodiscard]] const QueueLimits& limits() const { return limits_; }
  [[nodiscard]] std::size_t running() const { return running_; }
  [[nodiscard]] std::size_t waiting() const { return waiting_; }
  [[nodiscard]] std::size_t waiting_bytes() const { return waiting_bytes_; }
  [[nodiscard]] std::size_t waiting_of(const std::string& flow) const;
  // Until one that comes now would start; none while the rate is not known.
  [[nodiscard]] std::optional<std::chrono::nanoseconds> estimate(const Request& request, Time now) const;

 private:
  struct Class {
    double now = 0;  // the start tag of the one served last
    std::map<std::string, Flow, std::less<>> flows;
    std::map<Tag, Flow*> order;  // those that wait, by the tag of their first
  };
  // What is finished in a second while all places are taken.
  class ServiceRate {
   public:
    void saturated_since(Time now) { last_ = now; }
    void finished(double cost, Time now);
    [[nodiscard]] bool known() const { return ended_ >= 3; }
    [[nodiscard]] double per_second(Time now) const;
    [[nodiscard]] double mean_cost() const { return work_ / count_; }

   private:
    double work_ = 0;
    double count_ = 0;
    double seconds_ = 0;
    std::uint64_t ended_ = 0;
    Time last_{};
  };
  using Displaced = std::vector<std::pair<Request*, Shed>>;

  [[nodiscard]] bool saturated() const { return limits_.running != 0 && running_ >= limits_.running; }
  [[nodiscard]] bool fits(const Request& request) const;
  void run(Request& request, Time now);
  void push(Request& request);
  // Its first one starts at `start` from now on.
  void line_up(Class& its_class, Flow& flow, double start);
  // Takes waiting ones out until `request` fits; none when that cannot be.
  [[nodiscard]] std::optional<Displaced> make_room(const Request& request);
  [[nodiscard]] std::optional<std::pair<Request*, Shed>> victim_for(const Request& request);
  // What the flow uses of its share, which is `weight / weights` of the queue; above 1: more than that.
  [[nodiscard]] double use_of_share(std::size_t requests, std::size_t bytes, double weight, double weights) const;
  [[nodiscard]] bool would_be_over_share(const Request& request) const;
  // Of the flows that wait in the class, and of `request`'s.
  [[nodiscard]] static double weights(const Class& its_class, const Request& request);
  static void forget_idle(Class& its_class);

  QueueLimits limits_;
  std::map<int, Class> classes_;  // those where something waits, or was served lately
  std::size_t running_ = 0;
  std::size_t waiting_ = 0;
  std::size_t waiting_bytes_ = 0;
  std::uint64_t turns_ = 0;  // tags given
  ServiceRate rate_;
};

}  // namespace moonpool::gateway
