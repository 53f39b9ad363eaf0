#include "master/admin.h"

#include <fmt/format.h>
#include <boost/json.hpp>
#include <thread>

#include "base/deadline.h"
#include "master/metrics.h"
#include "master/object_key.h"

namespace moonpool::master {

namespace {

namespace json = boost::json;
constexpr auto kJson = "application/json";
constexpr std::size_t kMostKeys = 1'000'000;
constexpr std::chrono::seconds kOwnersPatience{10};

net::HttpResponse text(std::string body, int status = 200) { return {status, "text/plain; charset=utf-8", std::move(body)}; }
net::HttpResponse object(const json::value& value, int status = 200) { return {status, kJson, json::serialize(value) + "\n"}; }

std::vector<std::string> split(std::string_view list) {
  std::vector<std::string> parts;
  while (!list.empty()) {
    const auto comma = std::min(list.find(','), list.size());
    if (comma > 0) parts.emplace_back(list.substr(0, comma));
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return parts;
}

// JSON strings are UTF-8; keys are any bytes.
std::string printable(std::string_view key) {
  std::string out;
  for (const char c : key) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F) {
      out.push_back(c);
    } else {
      out += fmt::format("%{:02X}", byte);
    }
  }
  return out;
}

// Blocks this thread of the pages' server, which is not the wire's.
Status await_owners(const Coordinator& coordinator) {
  const auto barrier = coordinator.barrier();
  const auto deadline = Deadline::after(kOwnersPatience);
  while (!coordinator.over(barrier)) {
    if (deadline.expired()) return {ErrorCode::kRpcTimeout, "all is removed, but not every owner has acknowledged it yet: ask again"};
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return {};
}

}  // namespace

std::string Admin::summary_line() const { return summary_text(coordinator_); }

net::HttpResponse Admin::serve(const net::HttpRequest& request) {
  if (request.path == "/api/v1/remove_all") return remove_all(request);
  if (request.method != "GET" && request.method != "HEAD") return text("only GET is served here\n", 405);
  if (request.path == "/health") return text("OK");
  if (request.path == "/role") return text("leader");
  if (request.path == "/metrics") return {200, "text/plain; version=0.0.4; charset=utf-8", prometheus_text(coordinator_)};
  if (request.path == "/metrics/summary") return text(summary_text(coordinator_) + "\n");
  if (request.path == "/status") return {200, kJson, status_json(coordinator_, now_ms()) + "\n"};
  if (request.path == "/query_key") return query_keys(request, false);
  if (request.path == "/batch_query_keys") return query_keys(request, true);
  if (request.path == "/get_all_segments") return all_segments();
  if (request.path == "/query_segment") return query_segment(request);
  if (request.path == "/get_all_keys") {
    std::string body;
    for (const auto& key : coordinator_.table().keys(kMostKeys)) body += printable(key) + "\n";
    return text(std::move(body));
  }
  return text(
      "no such page; there are /health /role /status /metrics /metrics/summary /query_key /batch_query_keys /get_all_keys "
      "/get_all_segments /query_segment and POST /api/v1/remove_all\n",
      404);
}

net::HttpResponse Admin::query_keys(const net::HttpRequest& request, bool batch) {
  const auto given = net::find_param(request.query, batch ? "keys" : "key");
  if (!given || given->empty()) return text(batch ? "give ?keys=A,B,...\n" : "give ?key=K\n", 400);
  const auto tenant = std::string(net::find_param(request.query, "tenant").value_or(""));
  const auto keys = batch ? split(*given) : std::vector<std::string>{std::string(*given)};
  json::object found;
  for (const auto& key : keys) {
    const auto description = coordinator_.describe(tenant, key);
    if (!description) {
      if (!batch) return object(json::object{{"error", "key not found"}, {"key", printable(key)}}, 404);
      found[printable(key)] = json::object{{"ok", false}, {"error", "key not found"}};
      continue;
    }
    json::array replicas;
    for (const auto& replica : description->replicas) {
      replicas.push_back(
          json::object{{"segment", replica.segment}, {"host", replica.host}, {"port", replica.port}, {"offset", replica.offset}});
    }
    json::object value{{"ok", true},
                       {"size", description->size},
                       {"version", fmt::format("{}.{}", description->version.term.value, description->version.count)},
                       {"checksum", fmt::format("{:016x}", description->checksum)},
                       {"replicas", std::move(replicas)}};
    if (!batch) {
      value["key"] = printable(key);
      return object(value);
    }
    found[printable(key)] = std::move(value);
  }
  return object(json::object{{"success", true}, {"data", std::move(found)}});
}

net::HttpResponse Admin::all_segments() const {
  std::string body;
  const auto segments = coordinator_.membership().segments();
  for (const auto& segment : *segments) body += segment->description().name + "\n";
  return text(std::move(body));
}

net::HttpResponse Admin::query_segment(const net::HttpRequest& request) const {
  const auto name = net::find_param(request.query, "segment");
  if (!name || name->empty()) return text("give ?segment=HOST:PORT\n", 400);
  std::string body;
  const auto segments = coordinator_.membership().segments();
  for (const auto& segment : *segments) {
    if (segment->description().name != *name) continue;
    body += fmt::format("{}\nUsed(bytes): {}\nCapacity(bytes): {}\nQuarantine(bytes): {}\n", *name, segment->used(), segment->capacity(),
                        segment->quarantine());
  }
  return body.empty() ? text("segment not found\n", 404) : text(std::move(body));
}

net::HttpResponse Admin::remove_all(const net::HttpRequest& request) {
  if (request.method != "POST") return text("use POST\n", 405);
  wire::RemoveMatchingRequest all;
  all.set_all(true);
  all.set_force(net::find_param(request.query, "force").value_or("") == "true");
  all.set_tenant(std::string(net::find_param(request.query, "tenant").value_or("")));
  auto purge = coordinator_.begin_remove_matching(all, now_ms());
  auto status = purge.status();
  for (std::size_t shard = 0; status.ok() && shard < ObjectTable::kShards; ++shard) {
    status = coordinator_.remove_matching(*purge, shard, now_ms());
  }
  if (status.ok()) status = await_owners(coordinator_);
  if (!status.ok()) return object(json::object{{"success", false}, {"error", status.to_string()}}, 503);
  return object(json::object{{"success", true}, {"removed_count", purge->removed}});
}

}  // namespace moonpool::master
