#include "gateway/instance_check.h"

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>

namespace moonpool::gateway {

namespace {

constexpr std::size_t kAnswerAtMost = std::size_t{4} << 20;

bool is_server_failure(unsigned status) { return status >= 500 && status != 501; }

Result<CheckedInstance> judge_models(const InstanceName& name, const std::string& model, const InstanceAnswer& answer) {
  if (answer.status != 200) {
    return CheckedInstance{false, name.to_string() + " answered HTTP " + std::to_string(answer.status) + " to GET /v1/models"};
  }
  boost::system::error_code error;
  const auto document = boost::json::parse(answer.body, error);
  const auto* data = !error && document.is_object() ? document.get_object().if_contains("data") : nullptr;
  if (data == nullptr || !data->is_array()) return CheckedInstance{false, name.to_string() + " answered GET /v1/models without a list"};
  std::string others;
  for (const auto& entry : data->get_array()) {
    const auto* id = entry.is_object() ? entry.get_object().if_contains("id") : nullptr;
    if (id == nullptr || !id->is_string()) continue;
    const std::string served(id->get_string().data(), id->get_string().size());
    if (served == model) return CheckedInstance{true, {}};
    others += (others.empty() ? "" : ", ") + served.substr(0, 200);
    if (others.size() > 1000) break;
  }
  return Status(ErrorCode::kInvalidParams, name.to_string() + " serves " + (others.empty() ? "no model" : others) + ", not " + model +
                                               ", which this gateway was started for (--model)");
}

}  // namespace

Task<Result<InstanceAnswer>> get_from_instance(UpstreamPool& pool, const InstanceName& name, std::string_view target,
                                               std::string_view fields, Deadline deadline, Cancellation& cancellation) {
  const UpstreamRequest request{upstream_request_head("GET", target, name.authority(), fields, 0), {}};
  auto opened = co_await pool.open(name, request, {deadline.left(), deadline}, cancellation);
  if (!opened.ok()) co_return opened.status();
  auto exchange = std::move(opened).value();
  const Status status = co_await read_whole(*exchange, kAnswerAtMost, deadline.left(), deadline, cancellation);
  if (!status.ok()) co_return status;
  InstanceAnswer answer{exchange->answer.status, std::move(exchange->answer.body)};
  pool.release(std::move(exchange));
  co_return answer;
}

Task<Result<CheckedInstance>> check_instance(UpstreamPool& pool, const InstanceName& name, const std::string& model,
                                             std::string_view authorization, Deadline deadline, Cancellation& cancellation) {
  const std::string fields = authorization.empty() ? std::string() : "Authorization: " + std::string(authorization) + "\r\n";
  auto health = co_await get_from_instance(pool, name, "/health", fields, deadline, cancellation);
  if (health.code() == ErrorCode::kUnavailable && !name.is_secure() && !health.status().message().starts_with("connecting to")) {
    co_return Status(ErrorCode::kUnavailable,
                     health.status().message() + ". If it speaks TLS, name it https://" + std::string(name.authority()));
  }
  if (!health.ok()) co_return health.status();
  if (is_server_failure(health->status)) {
    co_return Status(ErrorCode::kUnavailable, name.to_string() + " answered HTTP " + std::to_string(health->status) + " to GET /health");
  }
  auto models = co_await get_from_instance(pool, name, "/v1/models", fields, deadline, cancellation);
  if (!models.ok()) co_return models.status();
  if (is_server_failure(models->status)) {
    co_return Status(ErrorCode::kUnavailable, name.to_string() + " answered HTTP " + std::to_string(models->status) + " to GET /v1/models");
  }
  co_return judge_models(name, model, *models);
}

}  // namespace moonpool::gateway
