#include "trace_replay.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <deque>
#include <fstream>
#include <functional>
#include <memory>
#include <queue>
#include <span>
#include <unordered_map>

#include "gateway/group.h"
#include "gateway/json_member.h"
#include "gateway/policies/choosing.h"
#include "gateway/policies/prefix_index.h"

namespace moonpool::bench {
namespace {

using gateway::Group;
using gateway::Instance;
using gateway::PrefixIndex;
using Clock = std::chrono::steady_clock;
using Blocks = std::span<const std::uint32_t>;

constexpr std::size_t kBytesPerToken = 4;

// ---------------------------------------------------------------- the trace

bool read_number(std::string_view text, std::uint64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end != text.data();
}

// Gives every block hash a number from 0 on.
class BlockNumbers {
 public:
  bool read(std::string_view list, std::vector<std::uint32_t>& blocks) {
    std::size_t at = 0;
    while ((at = list.find_first_of("0123456789", at)) != std::string_view::npos) {
      const std::size_t end = std::min(list.find_first_not_of("0123456789", at), list.size());
      std::uint64_t hash = 0;
      if (!read_number(list.substr(at, end - at), hash)) return false;
      blocks.push_back(numbers_.try_emplace(hash, static_cast<std::uint32_t>(numbers_.size())).first->second);
      at = end;
    }
    return true;
  }

 private:
  std::unordered_map<std::uint64_t, std::uint32_t> numbers_;
};

void spread_equal_arrivals(std::vector<TraceRequest>& trace) {
  double gap = 0;
  for (std::size_t first = 0; first < trace.size();) {
    std::size_t next = first;
    while (next < trace.size() && trace[next].arrival_s == trace[first].arrival_s) ++next;
    if (next < trace.size()) gap = trace[next].arrival_s - trace[first].arrival_s;  // the last ones: as the ones before
    for (std::size_t i = first; i < next; ++i)
      trace[i].arrival_s += gap * static_cast<double>(i - first) / static_cast<double>(next - first);
    first = next;
  }
}

// ---------------------------------------------------------------- what a policy sees

// A request's body. Its "user" is the number of the prompt's second block, which stands for a conversation (many share the first, a system
// prompt): what a client would send as its session's name.
class RequestBody {
 public:
  const std::string& of(const TraceRequest& request) {
    body_.assign(R"({"user":"c)" + std::to_string(request.blocks[std::min<std::size_t>(1, request.blocks.size() - 1)]) + R"(","prompt":")");
    const std::size_t start = body_.size();
    body_.resize(start + request.blocks.size() * kTraceBlockTokens * kBytesPerToken);
    char* at = body_.data() + start;
    for (const std::uint32_t block : request.blocks) {
      std::uint64_t state = gateway::mix_bits(block + 1);
      for (std::size_t i = 0; i < kTraceBlockTokens * kBytesPerToken; i += sizeof state, at += sizeof state) {
        state = state * 0x5851F42D4C957F2DULL + 0x14057B7EF767814FULL;
        const std::uint64_t letters = ((state >> 4) & 0x0F0F0F0F0F0F0F0FULL) + 0x6161616161616161ULL;  // a to p
        std::memcpy(at, &letters, sizeof letters);
      }
    }
    body_.resize(start + std::min<std::size_t>(body_.size() - start, request.input_tokens * kBytesPerToken));
    body_ += "\"}";
    return body_;
  }

 private:
  std::string body_;
};

// ---------------------------------------------------------------- instances

// Whole blocks, the least recently used go first, and of one prompt its end first.
class BlockCache {
 public:
  BlockCache(std::uint64_t tokens, std::size_t numbers) : capacity_(tokens / kTraceBlockTokens), links_(numbers + 1) {
    links_[end()] = {static_cast<std::uint32_t>(end()), static_cast<std::uint32_t>(end()), true};
  }

  // Leading tokens of this prompt that are here; never all of it, since the last token is always computed.
  [[nodiscard]] std::uint64_t tokens_of(const TraceRequest& request) const {
    std::size_t known = 0;
    while (known < request.blocks.size() && links_[request.blocks[known]].here) ++known;
    return std::min<std::uint64_t>(known * kTraceBlockTokens, request.input_tokens - 1);
  }

  void use(Blocks blocks) {
    for (std::size_t i = blocks.size(); i-- > 0;) {
      Link& link = links_[blocks[i]];
      if (link.here) {
        unlink(blocks[i]);
      } else if (used_ == capacity_) {
        const std::uint32_t oldest = links_[end()].newer;
        if (oldest == end()) return;  // no room at all
        unlink(oldest);
        links_[oldest].here = false;
      } else {
        ++used_;
      }
      link = {links_[end()].older, static_cast<std::uint32_t>(end()), true};
      links_[link.older].newer = blocks[i];
      links_[end()].older = blocks[i];
    }
  }

 private:
  // A ring through end(), whose `older` is the newest block and whose `newer` is the oldest.
  struct Link {
    std::uint32_t older = 0;
    std::uint32_t newer = 0;
    bool here = false;
  };
  [[nodiscard]] std::size_t end() const { return links_.size() - 1; }
  void unlink(std::uint32_t number) {
    links_[links_[number].older].newer = links_[number].newer;
    links_[links_[number].newer].older = links_[number].older;
  }

  const std::size_t capacity_;
  std::vector<Link> links_;
  std::size_t used_ = 0;
};

struct PrefillInstance {
  std::shared_ptr<Instance> instance;
  BlockCache cache;
  PrefixIndex sent;  // what the policy's own index of this instance holds
  std::deque<std::size_t> queue{};
  bool busy = false;
  double busy_s = 0;
};

struct DecodeInstance {
  std::shared_ptr<Instance> instance;
  BlockCache cache;
  std::deque<std::size_t> queue{};
  std::uint64_t running = 0;
  double delayed_s = 0;          // by prompts computed here, ever: who runs ends so much later than it would have
  std::uint64_t tokens = 0;      // of KV memory, promised to those that run
  double loading_until_s = 0;    // its link is busy
  double computing_until_s = 0;  // with prompts
};

struct Event {
  enum class Kind { kPrefilled, kDecoded };
  double at_s = 0;
  std::uint64_t number = 0;  // events of one time happen in the order in which they were made
  Kind kind = Kind::kPrefilled;
  std::size_t request = 0;
  std::size_t instance = 0;

  bool operator>(const Event& other) const { return at_s != other.at_s ? at_s > other.at_s : number > other.number; }
};

// What is kept of a request between its events.
struct Progress {
  std::unique_ptr<Instance::InFlight> in_flight;
  std::uint64_t expected_tokens = 0;  // in the chosen instance's cache, as its index has it
  bool decode_first = false;
  double first_token_s = 0;
  double delayed_s = 0;  // of its decode instance, as far as it is in the time of its end
};

// ---------------------------------------------------------------- the replay

class Replay {
 public:
  Replay(const std::vector<TraceRequest>& trace, const ReplayOptions& options, std::shared_ptr<gateway::Policy> prefill_policy,
         std::shared_ptr<gateway::Policy> decode_policy)
      : trace_(trace),
        options_(options),
        judges_index_(options.policy == "prefix_aware" || options.policy == "pool_aware"),
        prefill_group_("prefill", std::move(prefill_policy)),
        decode_group_("decode", std::move(decode_policy)),
        pool_(options.pool ? options.pool_tokens : 0, numbers_of(trace)),
        progress_(trace.size()) {
    for (std::size_t i = 0; i < options.prefill; ++i) {
      prefill_.push_back({make_instance(prefill_group_, "prefill", i), BlockCache(options.cache_tokens, numbers_of(trace)),
                          PrefixIndex(options.policy_options.prefix_index_bytes)});
    }
    for (std::size_t i = 0; i < options.decode; ++i) {
      decode_.push_back({make_instance(decode_group_, "decode", i), BlockCache(options.cache_tokens, numbers_of(trace))});
    }
  }

  ReplayResult run() {
    for (std::size_t i = 0; i < trace_.size(); ++i) {
      const double arrival_s = trace_[i].arrival_s / options_.load;
      handle_events_until(arrival_s);
      now_s_ = arrival_s;
      arrive(i);
    }
    handle_events_until(HUGE_VAL);
    return result();
  }

 private:
  static std::size_t numbers_of(const std::vector<TraceRequest>& trace) {
    std::size_t count = 0;
    for (const TraceRequest& request : trace) {
      for (const std::uint32_t block : request.blocks) count = std::max<std::size_t>(count, block + 1);
    }
    return count;
  }

  static std::shared_ptr<Instance> make_instance(Group& group, const std::string& role, std::size_t number) {
    auto name = gateway::InstanceName::parse(role + std::to_string(number) + ":8000");
    auto instance = std::make_shared<Instance>(std::move(name).value(), role, gateway::CircuitSettings{});
    group.add(instance);
    return instance;
  }

  template <typename Instances>
  static std::size_t position_of(const Instances& instances, const std::shared_ptr<Instance>& picked) {
    const auto found = std::find_if(instances.begin(), instances.end(), [&](const auto& one) { return one.instance == picked; });
    return static_cast<std::size_t>(found - instances.begin());
  }

  void handle_events_until(double time_s) {
    while (!events_.empty() && events_.top().at_s <= time_s) {
      const Event event = events_.top();
      events_.pop();
      now_s_ = event.at_s;
      if (event.kind == Event::Kind::kPrefilled) {
        prefilled(event.request, event.instance);
      } else {
        decoded(event.request, event.instance);
      }
    }
  }

  void make_event(double at_s, Event::Kind kind, std::size_t request, std::size_t instance) {
    events_.push({at_s, next_event_++, kind, request, instance});
  }

  void arrive(std::size_t request) {
    const std::string& body = body_.of(trace_[request]);
    if (goes_to_decode_first(body)) {
      progress_[request].decode_first = true;
      ++decode_first_;
      queue_for_decode(request, body);
      return;
    }
    const auto start = Clock::now();
    const auto picked = prefill_group_.pick({"/v1/completions", body}, {});
    choosing_ += Clock::now() - start;
    const std::size_t chosen = position_of(prefill_, picked);
    progress_[request].in_flight = std::make_unique<Instance::InFlight>(picked);
    if (judges_index_) {
      gateway::make_prefix_chain(gateway::prompt_parts(body).prompt, 0, chain_);
      progress_[request].expected_tokens = prefill_[chosen].sent.match(chain_) * gateway::kPrefixBlockBytes / kBytesPerToken;
      prefill_[chosen].sent.insert(chain_);
    }
    prefill_[chosen].queue.push_back(request);
    if (!prefill_[chosen].busy) start_prefill(chosen);
  }

  // Seconds of work for all tokens behind the first `known` ones.
  [[nodiscard]] double compute_s(std::uint64_t known, std::uint64_t all) const {
    const auto from = static_cast<double>(known);
    const auto to = static_cast<double>(all);
    const double attention = options_.attention_tokens > 0 ? (to * to - from * from) / (2 * options_.attention_tokens) : 0;
    return (to - from + attention) / options_.prefill_tokens_s;
  }

  [[nodiscard]] double transfer_s(std::uint64_t tokens) const {
    return static_cast<double>(tokens) * options_.kv_bytes / options_.transfer_bytes_s;
  }

  void start_prefill(std::size_t at) {
    PrefillInstance& instance = prefill_[at];
    const std::size_t request = instance.queue.front();
    instance.queue.pop_front();
    const std::uint64_t all = trace_[request].input_tokens;
    const std::uint64_t cached = instance.cache.tokens_of(trace_[request]);
    const std::uint64_t known = std::max(cached, pool_.tokens_of(trace_[request]));
    cached_tokens_ += cached;
    pool_tokens_ += known - cached;
    const std::uint64_t expected = progress_[request].expected_tokens;
    expected_tokens_ += std::min(expected, all);
    if (std::max(expected, cached) - std::min(expected, cached) <= kTraceBlockTokens) ++right_;
    const double work_s = options_.request_s + transfer_s(known - cached) + compute_s(known, all);
    instance.busy = true;
    instance.busy_s += work_s;
    make_event(now_s_ + work_s, Event::Kind::kPrefilled, request, at);
  }

  void prefilled(std::size_t request, std::size_t at) {
    PrefillInstance& instance = prefill_[at];
    instance.cache.use(trace_[request].blocks);
    if (options_.pool) pool_.use(trace_[request].blocks);
    instance.busy = false;
    prefill_end_s_ = now_s_;
    progress_[request].in_flight.reset();
    if (!instance.queue.empty()) start_prefill(at);
    if (decode_.empty()) {
      first_token(request, now_s_);
      return;
    }
    queue_for_decode(request, body_.of(trace_[request]));
  }

  // As Relay does.
  [[nodiscard]] bool goes_to_decode_first(const std::string& body) const {
    const std::uint64_t below = options_.decode_first_below_tokens.value_or(0) * kBytesPerToken;
    if (below == 0) return false;
    return decode_group_.uncached_bytes({"/v1/completions", body}).value_or(gateway::prompt_parts(body).prompt.size()) < below;
  }

  void queue_for_decode(std::size_t request, const std::string& body) {
    const auto picked = decode_group_.pick({"/v1/completions", body}, {});
    progress_[request].in_flight = std::make_unique<Instance::InFlight>(picked);
    const std::size_t chosen = position_of(decode_, picked);
    decode_[chosen].queue.push_back(request);
    admit(chosen);
  }

  static std::uint64_t memory_of(const TraceRequest& request) { return request.input_tokens + request.output_tokens; }

  // Takes waiting requests in as long as they fit.
  void admit(std::size_t at) {
    DecodeInstance& instance = decode_[at];
    while (!instance.queue.empty()) {
      const std::size_t request = instance.queue.front();
      const TraceRequest& asked = trace_[request];
      if (instance.running > 0 && instance.tokens + memory_of(asked) > options_.cache_tokens) return;
      instance.queue.pop_front();
      instance.tokens += memory_of(asked);
      ++instance.running;
      const double step_s = options_.decode_step_s + options_.decode_sequence_s * static_cast<double>(instance.running);
      const double ready_s = make_prompt_ready(instance, request, step_s);
      // Prompts that are being computed there when this one is ready: their next chunk is in its first step, the rest in later ones.
      const double computing_s = std::max(0.0, instance.computing_until_s - ready_s);
      const double chunk_s = std::min(computing_s, static_cast<double>(options_.chunk_tokens) / options_.prefill_tokens_s);
      progress_[request].first_token_s = ready_s + step_s + chunk_s;
      progress_[request].delayed_s = instance.delayed_s - computing_s;
      first_token(request, progress_[request].first_token_s);
      make_event(ready_s + step_s * asked.output_tokens, Event::Kind::kDecoded, request, at);
    }
  }

  // When all of the prompt's KV is there, after it was loaded or computed.
  double make_prompt_ready(DecodeInstance& instance, std::size_t request, double step_s) {
    const TraceRequest& asked = trace_[request];
    const std::uint64_t cached = options_.decode_first_below_tokens ? instance.cache.tokens_of(asked) : 0;
    const bool computes = progress_[request].decode_first;
    const std::uint64_t known = computes ? std::max(cached, pool_.tokens_of(asked)) : asked.input_tokens;
    instance.cache.use(asked.blocks);
    if (known > cached) instance.loading_until_s = std::max(now_s_, instance.loading_until_s) + transfer_s(known - cached);
    double ready_s = known > cached ? instance.loading_until_s : now_s_;
    if (!computes) return ready_s;
    const std::uint64_t chunks = (asked.input_tokens - known + options_.chunk_tokens - 1) / options_.chunk_tokens;
    const double work_s = options_.request_s + compute_s(known, asked.input_tokens);
    instance.delayed_s += work_s;
    ready_s = std::max(ready_s, instance.computing_until_s) + work_s + static_cast<double>(chunks - 1) * step_s;
    instance.computing_until_s = ready_s;
    if (options_.pool) pool_.use(asked.blocks);
    return ready_s;
  }

  void decoded(std::size_t request, std::size_t at) {
    Progress& progress = progress_[request];
    if (const double later_s = decode_[at].delayed_s - progress.delayed_s; later_s > 0) {
      progress.delayed_s = decode_[at].delayed_s;
      make_event(now_s_ + later_s, Event::Kind::kDecoded, request, at);
      return;
    }
    const std::uint32_t more = trace_[request].output_tokens - 1;
    if (trace_[request].output_tokens > 1) token_times_.push_back((now_s_ - progress.first_token_s) / more);
    decode_[at].tokens -= memory_of(trace_[request]);
    --decode_[at].running;
    progress_[request].in_flight.reset();
    admit(at);
  }

  void first_token(std::size_t request, double at_s) { times_.push_back(at_s - trace_[request].arrival_s / options_.load); }

  [[nodiscard]] ReplayResult result() {
    ReplayResult result;
    const auto percentile = [](const std::vector<double>& sorted, double share) {
      return sorted.empty() ? 0 : sorted[std::min(sorted.size() - 1, static_cast<std::size_t>(share * static_cast<double>(sorted.size())))];
    };
    std::sort(times_.begin(), times_.end());
    const auto count = static_cast<double>(times_.size());
    for (const double time : times_) result.mean_s += time / count;
    result.p50_s = percentile(times_, 0.5);
    result.p90_s = percentile(times_, 0.9);
    result.p99_s = percentile(times_, 0.99);
    std::sort(token_times_.begin(), token_times_.end());
    result.tpot_p50_s = percentile(token_times_, 0.5);
    result.tpot_p90_s = percentile(token_times_, 0.9);
    result.tpot_p99_s = percentile(token_times_, 0.99);
    result.decode_first_share = static_cast<double>(decode_first_) / count;
    double tokens = 0;
    for (const TraceRequest& request : trace_) tokens += request.input_tokens;
    result.cached_share = static_cast<double>(cached_tokens_) / tokens;
    result.pool_share = static_cast<double>(pool_tokens_) / tokens;
    result.expected_share = static_cast<double>(expected_tokens_) / tokens;
    result.right_share = static_cast<double>(right_) / count;
    double busy_s = 0;
    double busiest_s = 0;
    for (const PrefillInstance& instance : prefill_) {
      busy_s += instance.busy_s;
      busiest_s = std::max(busiest_s, instance.busy_s);
    }
    const auto instances = static_cast<double>(prefill_.size());
    result.busy_share = busy_s / (instances * prefill_end_s_);
    result.imbalance = busiest_s * instances / busy_s;
    result.choice_ns = std::chrono::duration<double, std::nano>(choosing_).count() / count;
    return result;
  }

  const std::vector<TraceRequest>& trace_;
  const ReplayOptions& options_;
  const bool judges_index_;
  Group prefill_group_;
  Group decode_group_;
  std::vector<PrefillInstance> prefill_;
  std::vector<DecodeInstance> decode_;
  BlockCache pool_;
  std::vector<Progress> progress_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::uint64_t next_event_ = 0;
  double now_s_ = 0;
  double prefill_end_s_ = 0;
  RequestBody body_;
  std::vector<std::uint64_t> chain_;
  std::vector<double> times_;
  std::vector<double> token_times_;
  std::uint64_t decode_first_ = 0;
  Clock::duration choosing_{};
  std::uint64_t cached_tokens_ = 0;
  std::uint64_t pool_tokens_ = 0;
  std::uint64_t expected_tokens_ = 0;
  std::uint64_t right_ = 0;
};

}  // namespace

Result<std::vector<TraceRequest>> read_trace(const std::string& path, bool spread) {
  std::ifstream file(path);
  if (!file) return Status(ErrorCode::kConfig, "the trace " + path + " cannot be read");
  std::vector<TraceRequest> trace;
  BlockNumbers numbers;
  std::string line;
  while (std::getline(file, line)) {
    std::uint64_t timestamp = 0;
    std::uint64_t input = 0;
    std::uint64_t output = 0;
    TraceRequest request;
    const bool good = read_number(gateway::json_member(line, "timestamp"), timestamp) &&
                      read_number(gateway::json_member(line, "input_length"), input) &&
                      read_number(gateway::json_member(line, "output_length"), output) &&
                      numbers.read(gateway::json_member(line, "hash_ids"), request.blocks);
    if (!good || input == 0 || request.blocks.size() != (input + kTraceBlockTokens - 1) / kTraceBlockTokens) {
      return Status(ErrorCode::kConfig, path + ", line " + std::to_string(trace.size() + 1) +
                                            ": wanted timestamp, input_length, output_length and a hash for every 512 tokens of input");
    }
    request.arrival_s = static_cast<double>(timestamp) / 1000;
    request.input_tokens = static_cast<std::uint32_t>(input);
    request.output_tokens = static_cast<std::uint32_t>(output);
    trace.push_back(std::move(request));
  }
  if (trace.empty()) return Status(ErrorCode::kConfig, "the trace " + path + " is empty");
  const auto earlier = [](const TraceRequest& a, const TraceRequest& b) { return a.arrival_s < b.arrival_s; };
  std::stable_sort(trace.begin(), trace.end(), earlier);
  if (spread) spread_equal_arrivals(trace);
  return trace;
}

Result<ReplayResult> replay(const std::vector<TraceRequest>& trace, const ReplayOptions& options) {
  auto prefill = gateway::make_policy(options.policy, options.policy_options);
  if (!prefill.ok()) return prefill.status();
  auto decode = gateway::make_policy(options.decode_policy, options.policy_options);
  if (!decode.ok()) return decode.status();
  return Replay(trace, options, std::move(prefill).value(), std::move(decode).value()).run();
}

}  // namespace moonpool::bench
