#include "gateway/models.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <set>

#include "gateway/instance_check.h"

namespace moonpool::gateway {

namespace {

namespace json = boost::json;

// What the askers and the one who waits for them share; it lives as long as the last of them.
struct Asked final : Abortable {
  explicit Asked(const Executor& executor) : all_answered(executor) {}
  void abort() override {
    for (auto& one : cancellations) one.cancel();
    all_answered.cancel();
  }

  Timer all_answered;
  std::vector<Cancellation> cancellations;
  std::vector<std::optional<Result<InstanceAnswer>>> answers;  // in the order of the group
  std::size_t missing = 0;
};

Task<void> ask(std::shared_ptr<Asked> asked, std::size_t which, UpstreamPool& pool, std::shared_ptr<Instance> instance, std::string fields,
               Deadline deadline) {
  asked->answers[which] = co_await get_from_instance(pool, instance->name(), "/v1/models", fields, deadline, asked->cancellations[which]);
  if (--asked->missing == 0) asked->all_answered.cancel();
}

}  // namespace

std::string merge_model_lists(const std::vector<std::string>& bodies) {
  json::array all;
  std::set<std::string> ids;
  for (const std::string& body : bodies) {
    boost::system::error_code error;
    json::value document = json::parse(body, error);
    auto* data = !error && document.is_object() ? document.get_object().if_contains("data") : nullptr;
    if (data == nullptr || !data->is_array()) continue;
    for (json::value& entry : data->get_array()) {
      const auto* id = entry.is_object() ? entry.get_object().if_contains("id") : nullptr;
      if (id == nullptr || !id->is_string()) continue;
      if (ids.emplace(id->get_string().data(), id->get_string().size()).second) all.push_back(entry);
    }
  }
  return json::serialize(json::object{{"object", "list"}, {"data", std::move(all)}});
}

Task<Reply> merged_models(GatewayState& state, UpstreamPool& pool, const Group& group, std::string fields, const TraceContext& trace,
                          Cancellation& cancellation) {
  const auto list = group.snapshot();
  InstanceList usable;
  for (const auto& instance : *list) {
    if (instance->healthy() && !instance->draining()) usable.push_back(instance);
  }
  if (usable.empty()) usable = *list;
  const Executor executor = co_await asio::this_coro::executor;
  const Deadline deadline = Deadline::after(state.settings().timeouts.check);
  auto asked = std::make_shared<Asked>(executor);
  asked->cancellations.resize(usable.size());
  asked->answers.resize(usable.size());
  asked->missing = usable.size();
  asked->all_answered.expires_at(deadline.time());
  for (std::size_t i = 0; i < usable.size(); ++i) {
    asio::co_spawn(
        executor,
        [asked, i, &pool, instance = usable[i], its_fields = fields + trace.hop_field(), deadline] {
          return ask(asked, i, pool, instance, its_fields, deadline);
        },
        asio::detached);
  }
  {
    const Cancellation::Scope scope(cancellation, *asked);
    if (asked->missing > 0 && !cancellation.cancelled()) co_await asked->all_answered.async_wait(kAwait);
  }

  std::vector<std::string> bodies;
  const InstanceAnswer* refusal = nullptr;
  std::string reason = "no answer within the check time-out";
  for (const auto& answer : asked->answers) {
    if (!answer) continue;
    if (!answer->ok()) {
      reason = answer->status().message();
    } else if ((*answer)->status == 200) {
      bodies.push_back((*answer)->body);
    } else {
      refusal = &**answer;
    }
  }
  if (!bodies.empty()) co_return Reply{200, merge_model_lists(bodies)};
  if (refusal != nullptr) co_return Reply{refusal->status, refusal->body};
  co_return Reply{502, openai_error(502, "no " + group.role() + " instance answered GET /v1/models, the last: " + reason)};
}

}  // namespace moonpool::gateway
